"""The tagger of word lists and endings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossmodal.data.negatives import lexicon
from crossmodal.data.negatives.rules import RuleTagger

from .words import tagged

SENTENCES = {
    "A man in a red shirt rides a small horse.": "DET NOUN ADP DET ADJ NOUN VERB DET ADJ NOUN PUNCT",
    "Two children are quickly eating cold pizza at tables": "NUM NOUN AUX ADV VERB ADJ NOUN ADP NOUN",
    "The man's dog isn't running on a sleeping cat": "DET NOUN PART NOUN AUX PART VERB ADP DET ADJ NOUN",
    "A bus and a bus stop by the bus station": "DET NOUN CCONJ DET NOUN VERB ADP DET NOUN NOUN",  # stop: a mistake
    "A woman takes a ride in a building": "DET NOUN VERB DET NOUN ADP DET NOUN",
    "The door is open and a man opens it": "DET NOUN AUX ADJ CCONJ DET NOUN VERB PRON",
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_classes(sentence: str) -> None:
    assert " ".join(token.pos for token in tagged(sentence).tokens) == SENTENCES[sentence]


def test_fine_tags_tell_one_from_several() -> None:
    found = {token.text: token.tag for token in tagged("a cat and dogs, geese and a bus on the grass").tokens}
    assert [found[word] for word in ("cat", "dogs", "geese", "bus", "grass")] == ["NN", "NNS", "NNS", "NN", "NN"]


def test_noun_phrases() -> None:
    found = tagged("Two small dogs and the parked blue car wait")
    assert [found.phrase(*span) for span in found.noun_phrases] == ["Two small dogs", "the parked blue car"]


@given(st.text(max_size=40))
def test_any_text_is_cut_where_it_says(text: str) -> None:
    found = tagged(text)
    assert all(text[token.start : token.end] == token.text for token in found.tokens)
    assert all(a.end <= b.start for a, b in zip(found.tokens, found.tokens[1:], strict=False))


def test_the_name_says_what_it_is() -> None:
    assert RuleTagger().name == "the built-in word lists and rules"


@pytest.mark.parametrize(
    ("base", "forms"),
    [
        ("ride", "ride rides riding rided"),
        ("sit", "sit sits sitting sitted"),
        ("carry", "carry carries carrying carried"),
        ("watch", "watch watches watching watched"),
        ("open", "open opens opening opened"),
        ("play", "play plays playing played"),
        ("eat", "eat eats eating eated"),
    ],
)
def test_forms_of_verbs(base: str, forms: str) -> None:
    assert list(lexicon.verb_forms(base)) == forms.split()


def test_the_lists_know_irregular_forms_and_closed_classes_do_not_meet() -> None:
    assert lexicon.VERB_FORMS["rode"] == "VBD" and lexicon.VERB_FORMS["lying"] == "VBG"
    assert not lexicon.AUXILIARIES & (lexicon.PREPOSITIONS | lexicon.DETERMINERS | lexicon.CONJUNCTIONS)
