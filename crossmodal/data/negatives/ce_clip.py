"""CE-CLIP's four wrong captions of a caption: two nouns swapped, an adjective, a noun, a verb replaced (spec 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random

from .filters import Refused, refused
from .tagged import Tagged

TYPES = ("relation", "adjective", "noun", "verb")
CLASSES = {"adjective": "ADJ", "noun": "NOUN", "verb": "VERB"}
MISSING = "###"
MASK = "<mask>"
BEST = 3
"""The completion that is taken: the fourth best. Better ones tend to be the word itself or a synonym."""
_BLOCK = 512  # captions whose masked sentences are completed together

Fill = Callable[[Sequence[str]], "list[list[str]]"]
"""Sentences with one `MASK` -> completed sentences of each, the likeliest first."""


@dataclass(frozen=True)
class Four:
    """The wrong captions of a caption in the order of `TYPES`, `MISSING` where there is none.

    why: for each type that was made and refused, the reason.
    """

    caption: str
    negatives: tuple[str, ...]
    why: dict[str, Refused] = field(default_factory=dict)

    @property
    def valid(self) -> tuple[int, ...]:
        """1 for each type that there is."""
        return tuple(int(negative != MISSING) for negative in self.negatives)


def four_negatives(tagged: Iterable[Tagged], fill: Fill, rng: Random, *, published: bool = False) -> Iterator[Four]:
    """The wrong captions of every caption, in order; the words to replace are drawn caption by caption.

    published: as the published code makes them. Words are then replaced wherever their letters stand, also inside
    longer words, and nothing is refused: not a swap of two equal nouns, nor a completion that is the caption itself.
    """
    captions = iter(tagged)
    while block := list(islice(captions, _BLOCK)):
        swapped = [swap_nouns(caption, published=published) for caption in block]
        masked = [mask_words(caption, rng, published=published) for caption in block]
        wanted = list(dict.fromkeys(sentence for three in masked for sentence in three.values()))
        completed = dict(zip(wanted, fill(wanted), strict=True))
        for caption, relation, three in zip(block, swapped, masked, strict=True):
            found = {"relation": [relation]} if relation else {}
            found |= {kind: _preferred(completed[sentence]) for kind, sentence in three.items()}
            yield _chosen(caption.caption, found, published)


def swap_nouns(tagged: Tagged, *, published: bool = False) -> str | None:
    """The first two nouns exchanged wherever they stand, in captions of three nouns or more.

    A caption whose first two nouns are equal comes back as it is.
    """
    nouns = [tagged.tokens[i].text for i in tagged.of_class("NOUN")]
    if len(nouns) < 3:
        return None
    first, second = nouns[:2]
    if published:
        return exchanged(tagged.caption, first, second)
    other = {first: second, second: first}
    return tagged.replaced({i: other[t.text] for i, t in enumerate(tagged.tokens) if t.text in other})


def mask_words(tagged: Tagged, rng: Random, *, published: bool = False) -> dict[str, str]:
    """For each class that the caption has, the caption with `MASK` in the place of a drawn word of that class."""
    masked = {}
    for kind, pos in CLASSES.items():
        places = tagged.of_class(pos)
        if not places:
            continue
        place = rng.choice(places)
        word = tagged.tokens[place].text
        masked[kind] = tagged.caption.replace(word, MASK, 1) if published else tagged.replaced({place: MASK})
    return masked


def exchanged(sentence: str, first: str, second: str) -> str:
    """Two strings exchanged wherever they stand, also inside words."""
    marker = "\0"
    return sentence.replace(first, marker).replace(second, first).replace(marker, second)


def _preferred(completions: Sequence[str]) -> list[str]:
    """The fourth best first, then less likely ones, then better ones."""
    start = min(BEST, len(completions) - 1)
    return [*completions[start:], *reversed(completions[:start])]


def _chosen(caption: str, found: dict[str, list[str]], published: bool) -> Four:
    negatives, why = [], {}
    for kind in TYPES:
        candidates = found.get(kind, [])
        if published:
            negatives.append(candidates[0] if candidates else MISSING)
            continue
        reasons = [refused(candidate, caption, negatives) for candidate in candidates]
        good = [candidate for candidate, reason in zip(candidates, reasons, strict=True) if reason is None]
        negatives.append(good[0] if good else MISSING)
        if reasons and reasons[0] is not None and not good:
            why[kind] = reasons[0]
    return Four(caption, tuple(negatives), why)
