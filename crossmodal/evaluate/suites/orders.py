"""ARO's order sets: a caption against four shuffles of its words (CE-CLIP, spec section 6.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from crossmodal.data.negatives.spacy_tagger import open_tagger
from crossmodal.errors import DataError

from .files import read_records, text, texts
from .items import Picture, Question, Questions, Rows, stacked
from .metrics import choose
from .registry import suite
from .shuffles import SEED, Shuffler, nltk_words, pre_caption

Tagging = Literal["auto", "spacy", "rules"]

_TIES = "a tie is right, as a shuffle may equal the caption"


@suite("aro_coco_order")
def aro_coco_order(data: Path, *, seed: int = SEED, tagger: Tagging = "auto") -> Questions:
    """``coco_karpathy_test.json``, or the folder that holds it: every caption is one question.

    Records may hold `shuffled`, the four shuffles of each caption; without it they are made, from `seed` and with the
    classes of words that `tagger` tells (`open_tagger`).
    """
    return _order(data, "coco_karpathy_test.json", seed, tagger)


@suite("aro_flickr_order")
def aro_flickr_order(data: Path, *, seed: int = SEED, tagger: Tagging = "auto") -> Questions:
    """The same for ``flickr30k_test.json``."""
    return _order(data, "flickr30k_test.json", seed, tagger)


def _order(data: Path, name: str, seed: int, tagger: Tagging) -> Questions:
    path = data / name if data.is_dir() else data
    captions: list[str] = []
    pictures: list[Picture] = []
    stored: list[Any] = []
    for key, record in read_records(path):
        given = record.get("caption")
        own = [given] if isinstance(given, str) else texts(record, "caption", key, path)
        captions += own
        pictures += [Picture(text(record, "image", key, path))] * len(own)
        stored += _stored(record, len(own), key, path)
    note = ""
    if None in stored:
        stored, note = _made(captions, seed, tagger)
    questions = []
    for number, (caption, picture, shuffled) in enumerate(zip(captions, pictures, stored, strict=True)):
        options = tuple(pre_caption(sentence) for sentence in (caption, *shuffled))
        questions.append(Question(str(number), "order", (picture,), options))
    return Questions(questions, _measure, _TIES, note=note)


def _made(captions: Sequence[str], seed: int, tagger: Tagging) -> tuple[list[list[str]], str]:
    """Four shuffles of each caption, and whose words they are made of."""
    opened, shuffler, made, published = open_tagger(tagger, noun_phrases=False), Shuffler(seed), [], True
    for tagged in opened(captions):
        tokens = [(token.text, token.tag) for token in tagged.tokens]
        words = nltk_words(tagged.caption)
        published = published and words is not None
        made.append(shuffler.four(tokens, [word for word, _ in tokens] if words is None else words))
    return made, f"shuffles by {opened.name}" + (
        "" if published else "; trigrams of its tokens, as NLTK is not installed"
    )


def _stored(record: dict[str, Any], captions: int, key: str, path: Path) -> list[Any]:
    shuffled = record.get("shuffled")
    if shuffled is None:
        return [None] * captions
    if not isinstance(shuffled, list) or [_is_four(four) for four in shuffled] != [True] * captions:
        raise DataError(f"'shuffled' of record {key} of {path} is not four sentences for each of {captions} captions")
    return shuffled


def _is_four(given: Any) -> bool:
    return isinstance(given, list) and len(given) == 4 and all(isinstance(sentence, str) for sentence in given)


def _measure(questions: Sequence[Question], scores: Sequence[Tensor]) -> Rows:
    return {"Precision@1": choose(stacked(questions, scores), 0, tie_wins=True).share()}
