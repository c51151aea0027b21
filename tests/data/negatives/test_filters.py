from __future__ import annotations

import pytest

from crossmodal.data.negatives.filters import bare_words, refused


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ("a blue cat.", None),
        ("A red  cat", "the same as the caption"),
        ("A RED CAT!", "the same as the caption"),
        ("a green Cat", "there already"),
        ("a cat", "no word in the place of the word"),
        ("a . cat", "no word in the place of the word"),
    ],
)
def test_what_is_refused(candidate: str, reason: str | None) -> None:
    assert refused(candidate, "A red cat.", ["###", "a green cat"]) == reason


def test_words_alone() -> None:
    assert bare_words("A man's T-shirt, red.") == ["a", "man's", "t-shirt", "red"]
