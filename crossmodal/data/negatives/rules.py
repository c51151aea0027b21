"""Tagging by word lists and endings, where no language model is installed.

Made for short English captions. It knows no syntax: what a list does not hold is a noun unless its ending or its
neighbour says otherwise. Good for trying the toolkit; use spaCy for published numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from . import lexicon as words
from .tagged import Tagged

_TOKEN = re.compile(r"n't\b|'s\b|[^\W_]+(?:-[^\W_]+)*?(?=n't\b)|[^\W_]+(?:-[^\W_]+)*|[^\w\s]|_", re.IGNORECASE)
_CLOSED = (
    (words.AUXILIARIES, "AUX", "VBZ"),
    (words.DETERMINERS, "DET", "DT"),
    (words.POSSESSIVES, "PRON", "PRP$"),
    (words.NUMBERS, "NUM", "CD"),
    (words.CONJUNCTIONS, "CCONJ", "CC"),
    (words.SUBORDINATORS, "SCONJ", "IN"),
    (words.PREPOSITIONS, "ADP", "IN"),
    (words.PRONOUNS, "PRON", "PRP"),
    (words.PARTICLES, "PART", "RB"),
)
_ADJECTIVE_ENDINGS = ("ous", "ful", "less", "ish", "ive", "able", "ible", "ical")
_SUBJECTS = ("NOUN", "PRON", "ADV", "AUX", "PART")  # what a verb that isn't a participle stands behind


class RuleTagger:
    """The tagger of word lists and endings."""

    NAME = "the built-in word lists and rules"

    def __init__(self, name: str = NAME) -> None:
        self.name = name

    def __call__(self, captions: Iterable[str]) -> Iterator[Tagged]:
        for caption in captions:
            tagged: list[tuple[str, str, str]] = []
            found = _TOKEN.findall(caption)
            for i, word in enumerate(found):
                before = tagged[-1][1] if tagged else ""
                following = found[i + 1].lower() if i + 1 < len(found) else ""
                tagged.append((word, *_classes(word.lower(), before, following)))
            yield Tagged.of(caption, tagged, _noun_phrases([pos for _, pos, _ in tagged]))


def _classes(word: str, before: str, following: str) -> tuple[str, str]:
    """Coarse and fine class of a word, from the coarse class of the word before and the word that follows."""
    if not word[0].isalnum() and word not in words.PARTICLES:
        return "PUNCT", word
    if word.isdigit():
        return "NUM", "CD"
    for listed, pos, tag in _CLOSED:
        if word in listed:
            return pos, tag
    named = before in ("DET", "ADJ", "NUM")  # what follows these is named or described, not done
    tag = words.VERB_FORMS.get(word, "") if word not in words.NOUNS else ""
    participle = tag in ("VBG", "VBD")
    if word in words.ADJECTIVES and (named or not participle):
        return "ADJ", "JJ"
    if tag and not named and (participle or before in _SUBJECTS or following in words.DETERMINERS):
        return "VERB", tag
    if word in words.ADVERBS or (word.endswith("ly") and word not in words.NOUNS and len(word) > 4):
        return "ADV", "RB"
    return _by_ending(word, before, following, named)


def _by_ending(word: str, before: str, following: str, named: bool) -> tuple[str, str]:
    if word in words.IRREGULAR_PLURALS:
        return "NOUN", "NNS"
    if word in words.NOUNS:
        return "NOUN", "NN"
    if word.endswith(_ADJECTIVE_ENDINGS) and len(word) > 5:
        return "ADJ", "JJ"
    if word.endswith(("ing", "ed")) and len(word) > 4:
        if named:
            return ("ADJ", "JJ") if _is_open(following) else ("NOUN", "NN")  # a sleeping dog; a railing
        return "VERB", "VBG" if word.endswith("ing") else "VBN"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return "NOUN", "NNS"
    return "NOUN", "NN"


def _is_open(word: str) -> bool:
    """Whether a word may be a noun or an adjective, to which one before it belongs."""
    return word[:1].isalpha() and not any(word in listed for listed, _, _ in _CLOSED)


def _noun_phrases(classes: list[str]) -> Iterator[tuple[int, int]]:
    """Runs of article, number, possessive or description that end in a noun."""
    coded = "".join({"DET": "d", "NUM": "d", "ADJ": "a", "NOUN": "n"}.get(pos, ".") for pos in classes)
    for run in re.finditer(r"d*[an]*n", coded):
        yield run.span()
