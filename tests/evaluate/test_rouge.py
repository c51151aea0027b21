from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossmodal.errors import DataError
from crossmodal.evaluate import rouge
from crossmodal.evaluate.rouge import References, cached_rouge_relevances, rouge_l, rouge_relevances


def lcs(a: Sequence[str], b: Sequence[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def naive(candidate: str, references: Sequence[str], beta: float = 1.2) -> float:
    given = candidate.lower().split(" ")
    p = r = 0.0
    for reference in references:
        words = reference.lower().split(" ")
        common = lcs(given, words)
        p, r = max(p, common / len(given)), max(r, common / len(words))
    return (1 + beta**2) * p * r / (r + beta**2 * p) if p and r else 0.0


WORD = st.sampled_from(["a", "A", "b", "c", "dog", "Dog.", ""])
CAPTION = st.lists(WORD, min_size=1, max_size=12).map(" ".join)


@given(st.one_of(CAPTION, st.lists(WORD, min_size=60, max_size=140).map(" ".join)), st.lists(CAPTION, min_size=1))
def test_common_subsequences_and_scores_are_those_of_loops(candidate: str, references: list[str]) -> None:
    words = candidate.lower().split(" ")
    expected = [lcs(words, reference.lower().split(" ")) for reference in references]
    assert References(references).common(words).tolist() == expected
    assert rouge_l(candidate, references) == pytest.approx(naive(candidate, references))
    assert rouge_l(candidate, references, beta=0.5) == pytest.approx(naive(candidate, references, 0.5))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_a_caption_against_itself_fills_a_word(length: int) -> None:
    caption = " ".join(f"w{i}" for i in range(length))
    assert rouge_l(caption, [caption]) == pytest.approx(1)
    assert References([caption, "w0", "x"]).common(caption.split(" ")).tolist() == [length, 1, 0]


def test_references_are_asked_again_and_again() -> None:
    against = References(["a dog", "the dog runs"])
    assert [against.common(words).tolist() for words in (["dog"], ["a", "the"], ["dog"])] == [[1, 1], [1, 1], [1, 1]]


def test_nothing_shared_and_blanks() -> None:
    assert rouge_l("surf", ["a man", "the sea"]) == 0
    # Two blanks in a row have an empty token between them, as published.
    assert rouge_l("a  b", ["a b"]) == pytest.approx(naive("a  b", ["a b"]))
    assert rouge_l("a  b", ["a b"]) < rouge_l("a b", ["a b"])
    assert rouge_l("", ["", "a"]) == pytest.approx(1)


CAPTIONS = ["A dog runs", "a dog", "The cat sits", "a cat sits there", "a dog and a cat", "nobody", "a"]


@pytest.mark.parametrize(
    "positives", [[0, 0, 1, 1, 2, 2, 2], [2, 0, 3, 0, 2, 0, 2], [[0], [], [1, 0], [1], [2], [], []]]
)
def test_relevances_of_every_caption_to_every_image(positives: list[int] | list[list[int]]) -> None:
    images = 4
    found = rouge_relevances(CAPTIONS, positives, images)
    named = [image if isinstance(image, list) else [image] for image in positives]
    described = [[c for c, of in zip(CAPTIONS, named, strict=True) if j in of] for j in range(images)]
    expected = [[naive(caption, texts) if texts else 0 for texts in described] for caption in CAPTIONS]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_was_computed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_of = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    first = cached_rouge_relevances(tmp_path / "cache", CAPTIONS, image_of, 3)
    assert torch.equal(first, rouge_relevances(CAPTIONS, image_of, 3))
    with monkeypatch.context() as patch:
        patch.setattr(rouge, "rouge_relevances", None)
        assert torch.equal(cached_rouge_relevances(tmp_path / "cache", CAPTIONS, image_of, 3), first)
    cached_rouge_relevances(tmp_path / "cache", [*CAPTIONS[:-1], "b"], image_of, 3)
    cached_rouge_relevances(tmp_path / "cache", CAPTIONS, image_of.flip(0), 3)
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 3 and all(file.stat().st_size == 4 * 7 * 3 for file in files)
    for file in files:
        file.write_bytes(b"half")
    with pytest.raises(DataError, match=r"rougeL-[0-9a-f]{16}\.npy has 4 bytes"):
        cached_rouge_relevances(tmp_path / "cache", CAPTIONS, image_of, 3)
