"""Tagging with a spaCy model, the published way, and the choice between it and the rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Any, Literal

from crossmodal.errors import ConfigError

from .rules import RuleTagger
from .tagged import Tagged, Tagger

SPACY_MODEL = "en_core_web_sm"


class SpacyTagger:
    """spaCy's classes, and its noun phrases where they are asked for.

    Raises ConfigError where spaCy or the model is not installed.
    """

    def __init__(self, model: str = SPACY_MODEL, *, noun_phrases: bool = True) -> None:
        try:
            import spacy

            self._pipeline = spacy.load(model, exclude=["ner"] if noun_phrases else ["ner", "parser"])
        except (ImportError, OSError):
            raise ConfigError(
                f"spaCy's {model} is not installed; pip install spacy and python -m spacy download {model}, or use "
                "the tagger rules"
            ) from None
        self._noun_phrases, self.name = noun_phrases, f"spaCy's {model}"

    def __call__(self, captions: Iterable[str]) -> Iterator[Tagged]:
        ahead, captions = tee(captions)
        for caption, parsed in zip(captions, self._pipeline.pipe(ahead), strict=True):
            words = [(token.text, token.pos_, token.tag_) for token in parsed if not token.is_space]
            phrases = [_bare(parsed, chunk) for chunk in parsed.noun_chunks] if self._noun_phrases else []
            yield Tagged.of(caption, words, phrases)


def open_tagger(
    use: Literal["auto", "spacy", "rules"] = "auto", model: str = SPACY_MODEL, *, noun_phrases: bool = True
) -> Tagger:
    """`auto` is spaCy where its model is installed, else the rules; the tagger's `name` says which."""
    if use == "rules":
        return RuleTagger()
    try:
        return SpacyTagger(model, noun_phrases=noun_phrases)
    except ConfigError:
        if use == "spacy":
            raise
        return RuleTagger(f"{RuleTagger.NAME}, as spaCy's {model} is not installed")


def _bare(parsed: Any, chunk: Any) -> tuple[int, int]:
    """A phrase's range of tokens, without those that are only space."""
    before = sum(token.is_space for token in parsed[: chunk.start])
    return chunk.start - before, chunk.end - before - sum(token.is_space for token in chunk)
