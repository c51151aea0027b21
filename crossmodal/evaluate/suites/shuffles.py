"""ARO's captions in another order of words, and its cleaning of captions (CE-CLIP, spec section 6.1).

The draws are the published ones: NumPy's legacy generator permutes, Python's shuffles. What comes out depends on
them, on the tagger and on the order of the captions.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import chain

import numpy as np

NOUNS = frozenset({"NN", "NNS", "NNP", "NNPS"})
ADJECTIVES = frozenset({"JJ", "JJR", "JJS"})
MAX_WORDS = 30
SEED = 1

Tagged = Sequence[tuple[str, str]]
"""Words with their fine part-of-speech tags."""

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def pre_caption(caption: str, max_words: int = MAX_WORDS) -> str:
    """Lower-cased, without some punctuation, the first so many words."""
    cleaned = re.sub(r"\s{2,}", " ", _PUNCTUATION.sub(" ", caption.lower()))
    return " ".join(cleaned.rstrip("\n").strip(" ").split(" ")[:max_words])


class Shuffler:
    """The published order of draws, one caption after the other."""

    def __init__(self, seed: int = SEED, python_seed: int | None = None) -> None:
        """python_seed: of Python's generator, where it is another one than NumPy's."""
        self._numpy = np.random.RandomState(seed)
        self._python = random.Random(seed if python_seed is None else python_seed)

    def four(self, tagged: Tagged, words: Sequence[str]) -> list[str]:
        """Nouns among nouns and adjectives among adjectives; all but these; words within trigrams; the trigrams.

        tagged: the tagger's tokens; words: those of the word tokenizer, of which the trigrams are made.
        """
        tokens = [word for word, _ in tagged]
        nouns = [i for i, (_, tag) in enumerate(tagged) if tag in NOUNS]
        adjectives = [i for i, (_, tag) in enumerate(tagged) if tag in ADJECTIVES]
        others = [i for i in range(len(tagged)) if i not in {*nouns, *adjectives}]
        content = self._permuted(self._permuted(tokens, nouns), adjectives)
        rest = self._permuted(tokens, others)
        trigrams = [list(words[i : i + 3]) for i in range(0, len(words), 3)]
        within = [list(trigram) for trigram in trigrams]
        for trigram in within:
            self._python.shuffle(trigram)
        self._python.shuffle(trigrams)
        return [" ".join(content), " ".join(rest), *(" ".join(chain(*t)) for t in (within, trigrams))]

    def all_words(self, caption: str) -> str:
        words = caption.split(" ")
        return " ".join(self._permuted(words, list(range(len(words)))))

    def _permuted(self, words: Sequence[str], places: Sequence[int]) -> list[str]:
        """The words at these places change places among themselves."""
        out = list(words)
        for place, i in zip(places, self._numpy.permutation(len(places)), strict=True):
            out[place] = words[places[i]]
        return out


def nltk_words(caption: str) -> list[str] | None:
    """The published words, of which trigrams are made; None where NLTK is not installed."""
    try:
        from nltk.tokenize import NLTKWordTokenizer  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    return list(NLTKWordTokenizer().tokenize(caption))
