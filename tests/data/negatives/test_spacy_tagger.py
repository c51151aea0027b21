"""Which tagger is opened, and spaCy's documents, of which a stand-in is made where it is not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from crossmodal.data.negatives.rules import RuleTagger
from crossmodal.data.negatives.spacy_tagger import SpacyTagger, open_tagger
from crossmodal.errors import ConfigError


class Document(list[Any]):
    """Every word a noun; the first two tokens a phrase."""

    def __init__(self, caption: str) -> None:
        words = [part for part in caption.replace("  ", " _ ").split(" ") if part]
        super().__init__(
            SimpleNamespace(text=" " if w == "_" else w, pos_="NOUN", tag_="NN", is_space=w == "_") for w in words
        )

    @property
    def noun_chunks(self) -> Iterator[Any]:
        class Chunk(list[Any]):
            start, end = 0, 2

        yield Chunk(self[:2])


class Pipeline:
    def pipe(self, captions: Iterable[str]) -> Iterator[Document]:
        return map(Document, captions)


@pytest.fixture
def spacy(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    loaded: dict[str, Any] = {}

    def load(model: str, exclude: list[str]) -> Pipeline:
        if model != "en_core_web_sm":
            raise OSError("no such model")
        loaded[model] = exclude
        return Pipeline()

    module = ModuleType("spacy")
    module.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", module)
    return loaded


def test_spacy_is_used_where_it_is_installed(spacy: dict[str, Any]) -> None:
    tagger = open_tagger()
    assert isinstance(tagger, SpacyTagger) and tagger.name == "spaCy's en_core_web_sm"
    assert spacy == {"en_core_web_sm": ["ner"]}
    (found,) = tagger(iter(["red dog runs"]))
    assert [(t.text, t.pos, t.tag, t.start) for t in found.tokens][1] == ("dog", "NOUN", "NN", 4)
    assert [found.phrase(*span) for span in found.noun_phrases] == ["red dog"]
    open_tagger(noun_phrases=False)
    assert spacy == {"en_core_web_sm": ["ner", "parser"]}


def test_tokens_of_space_are_no_words(spacy: dict[str, Any]) -> None:
    (found,) = open_tagger()(["red  dog runs"])
    assert [t.text for t in found.tokens] == ["red", "dog", "runs"]
    assert [found.phrase(*span) for span in found.noun_phrases] == ["red"]


def test_rules_stand_in_and_say_so(spacy: dict[str, Any]) -> None:
    tagger = open_tagger("auto", "en_core_web_lg")
    assert isinstance(tagger, RuleTagger)
    assert tagger.name == "the built-in word lists and rules, as spaCy's en_core_web_lg is not installed"
    assert open_tagger("rules").name == "the built-in word lists and rules"


def test_spacy_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ConfigError, match="spaCy's en_core_web_sm is not installed; pip install spacy"):
        open_tagger("spacy")
