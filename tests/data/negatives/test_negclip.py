"""The six slots of NegCLIP."""

from __future__ import annotations

from random import Random

from crossmodal.data.negatives.negclip import SLOTS, six_negatives, verb_phrases
from crossmodal.data.negatives.tagged import Tagged

from .words import CAPTIONS, tagged


def six(caption: str, seed: int = 0) -> dict[str, str | None]:
    return six_negatives(tagged(caption), Random(seed))


def test_slots_of_a_caption() -> None:
    found = six("A red helmet is on a yellow toilet")
    assert list(found) == list(SLOTS)
    assert found["noun_phrase"] == "a yellow toilet is on a red helmet"
    assert found["NN"] == "A red toilet is on a yellow helmet"
    assert found["ADJ"] == "A yellow helmet is on a red toilet"
    assert found["verb_phrase"] is found["NNS"] is found["ADV"] is None


def test_words_of_the_plural_and_adverbs_are_swapped_with_their_like() -> None:
    found = six("Dogs and cats are sleeping quietly and soundly")
    assert found["NNS"] == "cats and Dogs are sleeping quietly and soundly"
    assert found["ADV"] == "Dogs and cats are sleeping soundly and quietly"


def test_a_swap_that_changes_nothing_is_none() -> None:
    assert not any(six("A dog sees a dog").values())


def test_the_longest_verb_phrases_are_kept() -> None:
    words = ["he", "was", "slowly", "walking", "and", "had", "been", "running", "fast"]
    classes = ["PRON", "AUX", "ADV", "VERB", "CCONJ", "AUX", "AUX", "VERB", "ADV"]
    given = Tagged.of(" ".join(words), [(w, c, "") for w, c in zip(words, classes, strict=True)])
    assert [given.phrase(*span) for span in verb_phrases(given)] == ["slowly walking", "had been running"]


def test_the_same_seed_gives_the_same() -> None:
    made = [[six_negatives(tagged(c), rng) for c in CAPTIONS * 3] for rng in map(Random, (1, 1, 2))]
    assert made[0] == made[1] != made[2]
