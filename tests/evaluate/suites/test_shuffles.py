"""ARO's cleaning and shuffles of captions."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from crossmodal.evaluate.suites.shuffles import Shuffler, nltk_words, pre_caption


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A man, (riding) a *wave*!! ", "a man, riding a wave"),
        ('He said: "go~home" #now.', "he said go home now"),
        ("Hyphen-ated   double  spaces\n", "hyphen-ated double spaces"),
        ("ends\n\n", "ends"),
        ("", ""),
    ],
)
def test_cleaning(caption: str, cleaned: str) -> None:
    assert pre_caption(caption) == cleaned


def test_cleaning_keeps_thirty_words() -> None:
    assert pre_caption("w " * 60).split(" ") == ["w"] * 30
    assert len(pre_caption("w " * 60, 50).split(" ")) == 50


def test_draws_are_numpys_and_pythons_in_the_published_order() -> None:
    tagged = [("a", "DT"), ("red", "JJ"), ("dog", "NN"), ("sees", "VBZ"), ("blue", "JJ"), ("cats", "NNS"), (".", ".")]
    words = [word for word, _ in tagged]
    shuffler, ours = Shuffler(3), []
    for _ in range(3):
        ours.append(shuffler.four(tagged, words))
    ours.append([shuffler.all_words("a b  c")])
    by_numpy, by_python = np.random.RandomState(3), random.Random(3)
    for row in ours[:3]:
        nouns, adjectives = by_numpy.permutation(["dog", "cats"]), by_numpy.permutation(["red", "blue"])
        others = by_numpy.permutation(["a", "sees", "."])
        assert row[0] == f"a {adjectives[0]} {nouns[0]} sees {adjectives[1]} {nouns[1]} ."
        assert row[1] == f"{others[0]} red dog {others[1]} blue cats {others[2]}"
        trigrams = [words[:3], words[3:6], words[6:]]
        within = [list(t) for t in trigrams]
        for trigram in within:
            by_python.shuffle(trigram)
        by_python.shuffle(trigrams)
        assert row[2:] == [" ".join(w for t in part for w in t) for part in (within, trigrams)]
    assert ours[3] == [" ".join(by_numpy.permutation(["a", "b", "", "c"]))]


def test_nothing_to_shuffle() -> None:
    assert Shuffler().four([], []) == [""] * 4
    assert Shuffler().four([("dogs", "NNS")], ["dogs"]) == ["dogs"] * 4


def test_two_seeds() -> None:
    tagged = [(word, "NN") for word in "abcdefgh"]
    words = list("abcdefgh")
    same, other = Shuffler(3).four(tagged, words), Shuffler(3, 4).four(tagged, words)
    assert same[:2] == other[:2] and same[2:] != other[2:]


def test_words_are_nltks_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    assert nltk_words("a dog") is None
    splitting = SimpleNamespace(NLTKWordTokenizer=lambda: SimpleNamespace(tokenize=str.split))
    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace(tokenize=splitting))
    monkeypatch.setitem(sys.modules, "nltk.tokenize", splitting)
    assert nltk_words("a dog") == ["a", "dog"]
