"""NegCLIP's wrong captions: two phrases or words of one kind exchanged, up to six a caption (CE-CLIP, spec 4.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from .ce_clip import exchanged
from .tagged import Tagged

SLOTS = ("noun_phrase", "verb_phrase", "NN", "NNS", "ADV", "ADJ")
_LONG = 3  # tokens that a noun phrase has at least
_VERB_PHRASE = re.compile("v?d*x*v+")
_CODES = {"VERB": "v", "ADV": "d", "AUX": "x"}


def six_negatives(tagged: Tagged, rng: Random) -> dict[str, str | None]:
    """By slot, the caption with two of its phrases or words exchanged; None where it has fewer than two, or where
    the result is the caption itself but for ``.``, ``,``, spacing and case.

    Which two are exchanged is drawn slot by slot. Exchanged phrases stand in a caption of small letters, exchanged
    words in one with a space around every token, as published.
    """
    noun_phrases = [tagged.phrase(*span) for span in tagged.noun_phrases if span[1] - span[0] >= _LONG]
    found = {
        "noun_phrase": _swap_phrases(tagged, noun_phrases, rng),
        "verb_phrase": _swap_phrases(tagged, [tagged.phrase(*span) for span in verb_phrases(tagged)], rng),
        "NN": _swap_words(tagged, _tagged_as(tagged, "NN"), rng),
        "NNS": _swap_words(tagged, _tagged_as(tagged, "NNS"), rng),
        "ADV": _swap_words(tagged, tagged.of_class("ADV"), rng),
        "ADJ": _swap_words(tagged, tagged.of_class("ADJ"), rng),
    }
    return {slot: None if new is None or _same(new, tagged.caption) else new for slot, new in found.items()}


def verb_phrases(tagged: Tagged) -> list[tuple[int, int]]:
    """Runs of VERB? ADV* AUX* VERB+ in sentence order; where some overlap, the longest, and of those the first."""
    coded = "".join(_CODES.get(token.pos, ".") for token in tagged.tokens)
    spans = [
        (start, stop)
        for start in range(len(coded))
        for stop in range(start + 1, len(coded) + 1)
        if _VERB_PHRASE.fullmatch(coded, start, stop)
    ]
    kept: list[tuple[int, int]] = []
    for start, stop in sorted(spans, key=lambda span: (span[0] - span[1], span[0])):
        if all(stop <= a or b <= start for a, b in kept):
            kept.append((start, stop))
    return sorted(kept)


def _tagged_as(tagged: Tagged, tag: str) -> list[int]:
    return [i for i, token in enumerate(tagged.tokens) if token.tag == tag]


def _swap_phrases(tagged: Tagged, phrases: Sequence[str], rng: Random) -> str | None:
    if len(phrases) < 2:
        return None
    return exchanged(tagged.caption, *rng.sample(phrases, 2)).lower()


def _swap_words(tagged: Tagged, places: Sequence[int], rng: Random) -> str | None:
    if len(places) < 2:
        return None
    words = [token.text for token in tagged.tokens]
    a, b = rng.sample(places, 2)
    words[a], words[b] = words[b], words[a]
    return " ".join(words)


def _same(a: str, b: str) -> bool:
    a, b = ("".join(c for c in s.casefold() if c not in ".," and not c.isspace()) for s in (a, b))
    return a == b
