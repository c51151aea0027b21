"""The four wrong captions: what they are by default, and with the published code's mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from crossmodal.data.negatives.ce_clip import MASK, MISSING, Four, four_negatives, mask_words, swap_nouns

from .words import CAPTIONS, tagged


def numbered(sentences: Sequence[str]) -> list[list[str]]:
    return [[sentence.replace(MASK, f"w{r}") for r in range(5)] for sentence in sentences]


def four(caption: str, fill=numbered, **options: bool) -> Four:  # type: ignore[no-untyped-def]
    (found,) = four_negatives([tagged(caption)], fill, Random(0), **options)
    return found


def test_nouns_are_swapped_as_words_and_not_inside_others() -> None:
    caption = tagged(CAPTIONS[0])
    assert swap_nouns(caption) == "A shirt in a red man rides a small horse near the woman."
    assert swap_nouns(caption, published=True) == "A shirt in a red man rides a small horse near the woshirt."


def test_every_place_of_the_two_nouns_is_swapped() -> None:
    assert swap_nouns(tagged("a dog and a cat with a dog")) == "a cat and a dog with a cat"


def test_two_nouns_are_too_few() -> None:
    assert swap_nouns(tagged("a dog and a cat")) is None


def test_a_swap_of_equal_nouns_is_none_unless_published() -> None:
    caption = "a bus and a bus and a car"
    assert four(caption).negatives[0] == MISSING
    assert four(caption).valid[0] == 0 and four(caption).why["relation"] == "the same as the caption"
    assert four(caption, published=True).negatives[0] == caption and four(caption, published=True).valid[0] == 1


def test_a_drawn_word_is_masked_where_it_stands() -> None:
    caption = tagged("a woman and a man")
    masked = {mask_words(caption, Random(seed))["noun"] for seed in range(9)}
    assert masked == {"a <mask> and a man", "a woman and a <mask>"}
    published = {mask_words(caption, Random(seed), published=True)["noun"] for seed in range(9)}
    assert published == {"a <mask> and a man", "a wo<mask> and a man"}


def test_a_missing_class_is_missing_whatever_the_model_makes_of_a_bare_mask() -> None:
    found = four("Hello there")
    assert found.negatives[1] == found.negatives[3] == MISSING and found.valid[1] == 0


def test_the_fourth_best_is_taken() -> None:
    assert four("Dogs sleeping.").negatives == (MISSING, MISSING, "w3 sleeping.", "Dogs w3.")


@pytest.mark.parametrize(
    ("completions", "taken"),
    [
        (["a", "b", "c", "DOGS", "e"], "e sleeping."),  # the word itself, in another case
        (["a", "b", "c", "dogs", "Dogs"], "c sleeping."),
        (["a", "b"], "b sleeping."),
        (["Dogs"], MISSING),
        (["-", "."], MISSING),
    ],
)
def test_completions_that_are_no_wrong_captions_give_way(completions: list[str], taken: str) -> None:
    def fill(sentences: Sequence[str]) -> list[list[str]]:
        return [[sentence.replace(MASK, word) for word in completions] for sentence in sentences]

    found = four("Dogs sleeping.", fill)
    assert found.negatives[2] == taken
    assert ("noun" in found.why) == (taken == MISSING)


def test_two_types_do_not_give_one_caption() -> None:
    def fill(sentences: Sequence[str]) -> list[list[str]]:
        return [["one and the same sentence"] for _ in sentences]

    assert four("big dogs sleeping", fill).valid == (0, 1, 0, 0)


def test_equal_sentences_are_completed_once() -> None:
    asked: list[str] = []

    def fill(sentences: Sequence[str]) -> list[list[str]]:
        asked.extend(sentences)
        return numbered(sentences)

    list(four_negatives([tagged("Dogs sleeping.")] * 3, fill, Random(0)))
    assert sorted(asked) == ["<mask> sleeping.", "Dogs <mask>."]


def test_the_same_seed_gives_the_same() -> None:
    made = [list(four_negatives(map(tagged, CAPTIONS), numbered, Random(seed))) for seed in (3, 3, 4)]
    assert made[0] == made[1] != made[2]
