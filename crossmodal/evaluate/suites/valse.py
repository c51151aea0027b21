"""VALSE: a caption against a foil, by the pairwise and by the official protocol (CE-CLIP, spec section 6.4)."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmodal.errors import DataError

from .files import files_of, read_records, text
from .items import Picture, Question, Questions, Rows, by_name, stacked
from .metrics import by_category, choose, means, two_class
from .registry import suite

CATEGORIES = {
    "Existence": ("existence",),
    "Plurality": ("plurals",),
    "Counting": ("counting-hard", "counting-small-quant", "counting-adversarial"),
    "Relations": ("relations",),
    "Actions": ("action-replacement", "actant-swap"),
    "Coreference": ("coreference-standard", "coreference-hard"),
    "Foil it": ("foil-it",),
}
INSTRUMENTS = tuple(name for members in CATEGORIES.values() for name in members)
AVERAGE = {"avg": INSTRUMENTS}
_COLUMNS = (*(name for name in INSTRUMENTS if not name.startswith("counting")), "Counting", "avg")  # as published
VOTES = 2  # of three annotators who found that the caption, and not the foil, describes the image
FIGURES = ("acc", "p_c", "p_f", "acc_r")


@suite("valse")
def valse(data: Path) -> Questions:
    """VALSE's files ``existence.json`` ... in a folder, or one of them: the caption must score higher than the foil.

    The average is over instruments.
    """
    return Questions(_questions(data), pairwise, "a tie is wrong", _COLUMNS)


@suite("valse_official")
def valse_official(data: Path, *, threshold: float = 0.0) -> Questions:
    """The same files by the official protocol: which captions and which foils are found to fit.

    threshold: a caption fits where its score is higher, as a model's "fit" logit is higher than that of "no fit".
    """
    ties = "a pair whose foil scores exactly the threshold is left out, and counted as a tie"
    shown = (*(f"{name} acc_r" for name in INSTRUMENTS), "avg acc")
    return Questions(_questions(data), partial(_official, threshold=threshold), ties, shown)


def _questions(data: Path) -> list[Question]:
    questions = []
    for stem, path in files_of(data, INSTRUMENTS, "VALSE").items():
        for key, record in read_records(path):
            if _votes(record, key, path) >= VOTES:
                captions = (text(record, "caption", key, path), text(record, "foil", key, path))
                picture = Picture(text(record, "image_file", key, path))
                questions.append(Question(f"{stem}/{key}", stem, (picture,), captions))
    return questions


def _votes(record: dict[str, Any], key: str, path: Path) -> int:
    """`mturk.caption`; the object stands in some files as a text."""
    try:
        votes = record["mturk"]
        return int((ast.literal_eval(votes) if isinstance(votes, str) else votes)["caption"])
    except (KeyError, TypeError, ValueError, SyntaxError):
        raise DataError(f"record {key} of {path} has no votes `mturk.caption`; use the published file") from None


def pairwise(questions: Sequence[Question], scores: Sequence[Tensor]) -> Rows:
    rows = by_category(choose(stacked(questions, scores), 0), by_name(questions))
    several = {name: members for name, members in CATEGORIES.items() if len(members) > 1}
    return rows | means(rows, several) | means(rows, AVERAGE)


def _official(questions: Sequence[Question], scores: Sequence[Tensor], threshold: float) -> Rows:
    fit = stacked(questions, scores)  # (N,2): caption, foil
    logits = torch.stack([torch.full_like(fit, threshold), fit], dim=2)
    by_instrument = {name: two_class(logits[numbers]) for name, numbers in by_name(questions).items()}
    rows = {f"{name} {figure}": shares[figure] for name, shares in by_instrument.items() for figure in FIGURES}
    return rows | means(rows, {f"avg {figure}": [f"{name} {figure}" for name in INSTRUMENTS] for figure in FIGURES})
