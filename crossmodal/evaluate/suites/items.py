"""What a suite is made of: pictures, and questions about them of which the right answer is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from crossmodal.errors import DataError

from .metrics import Share

Box = tuple[float, float, float, float]
Rows = dict[str, Share]
Measure = Callable[["Sequence[Question]", "Sequence[Tensor]"], Rows]


@dataclass(frozen=True)
class Picture:
    """An image by its name in the published file, cut to `box` (left, top, right, bottom in pixels) if there is one."""

    name: str
    box: Box | None = None


class Judge(Protocol):
    """Whatever scores captions with pictures: a model, or a baseline that is blind to the pictures."""

    def pairs(self, captions: Sequence[str], pictures: Sequence[Picture], pairs: Tensor) -> Tensor:
        """Scores (P,) of pairs (P,2) of caption and picture; captions and pictures stand in their lists once each."""

    def matrix(self, captions: Sequence[str], pictures: Sequence[Picture]) -> Tensor:
        """(captions, pictures)"""

    def classify(self, prompts: Sequence[Sequence[str]], pictures: Sequence[Picture]) -> Tensor:
        """(pictures, classes) from the prompts of each class."""


@dataclass(frozen=True)
class Answers:
    """rows: what the table shows. The scores: as `records`, fit for JSON, one of every question; or as `arrays`, a
    matrix of numbers and the names of its rows and columns.
    """

    rows: Rows
    records: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Test(ABC):
    """A benchmark that was read: what it asks about, and how answers are counted.

    ties: its rule for exact ties, in words. shown: the rows that sum it up; () where that is all of them.
    note: what else a reader of the results must know.
    """

    ties: str
    shown: tuple[str, ...] = ()
    note: str = ""

    @property
    @abstractmethod
    def pictures(self) -> list[Picture]:
        """Each picture once."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many questions are asked."""

    @abstractmethod
    def without(self, pictures: Iterable[Picture]) -> Self:
        """The same test but for what needs one of these pictures."""

    @abstractmethod
    def ask(self, judge: Judge) -> Answers: ...


@dataclass(frozen=True)
class Question:
    """All captions are scored with all pictures: (pictures, captions).

    key: which record of the published file. category: the row of the table that it counts for.
    """

    key: str
    category: str
    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Questions(Test):
    """Questions on one picture or a few, counted by `measure` from the scores (pictures, captions) of each."""

    questions: list[Question]
    measure: Measure
    ties: str
    shown: tuple[str, ...] = ()
    note: str = ""

    @property
    def pictures(self) -> list[Picture]:
        return unique(picture for question in self.questions for picture in question.pictures)

    @property
    def size(self) -> int:
        return len(self.questions)

    def without(self, pictures: Iterable[Picture]) -> Self:
        gone = set(pictures)
        return replace(self, questions=[q for q in self.questions if gone.isdisjoint(q.pictures)])

    def ask(self, judge: Judge) -> Answers:
        """Equal pairs are scored once: what is asked twice has exactly the same score, also of a joint model."""
        captions = places(caption for question in self.questions for caption in question.captions)
        pictures = places(picture for question in self.questions for picture in question.pictures)
        pairs = places(
            (captions[caption], pictures[picture])
            for question in self.questions
            for picture in question.pictures
            for caption in question.captions
        )
        found = judge.pairs(list(captions), list(pictures), torch.tensor(list(pairs)).view(-1, 2))
        scores = []
        for question in self.questions:
            asked = [[pairs[captions[c], pictures[p]] for c in question.captions] for p in question.pictures]
            scores.append(found[torch.tensor(asked)])
            if scores[-1].isnan().any():
                raise DataError(
                    f"question {question.key} of {question.category} has a score that is NaN; "
                    "check the weights of the model and the image"
                )
        records = [_record(*pair) for pair in zip(self.questions, scores, strict=True)]
        return Answers(self.measure(self.questions, scores), records)


def _record(question: Question, scores: Tensor) -> dict[str, Any]:
    return {
        "key": question.key,
        "category": question.category,
        "images": [picture.name for picture in question.pictures],
        "captions": list(question.captions),
        "scores": scores.tolist(),
    }


def stacked(questions: Sequence[Question], scores: Sequence[Tensor]) -> Tensor:
    """(N,C) scores of N questions on one picture each, all of C captions."""
    return torch.stack([of_one[0] for of_one in scores]) if questions else torch.empty(0, 2)


def by_name(questions: Sequence[Question]) -> dict[str, list[int]]:
    """Category -> the questions of it, in the order of first occurrence."""
    found: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        found.setdefault(question.category, []).append(number)
    return found


def places(values: Iterable[Any]) -> dict[Any, int]:
    """Each value once, with its place in the order of first occurrence."""
    found: dict[Any, int] = {}
    for value in values:
        found.setdefault(value, len(found))
    return found


def unique(values: Iterable[Any]) -> list[Any]:
    return list(places(values))
