"""Winoground: two images and two captions of the same words (CE-CLIP, spec section 6.7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from crossmodal.errors import DataError

from .files import read_records, text
from .items import Picture, Question, Questions, Rows
from .metrics import winoground as figures
from .registry import suite


@suite("winoground")
def winoground(data: Path) -> Questions:
    """``examples.jsonl`` as it is published (or the same records as JSON), or a folder that holds it."""
    path = data
    if data.is_dir():
        path = next((p for p in (data / "examples.jsonl", data / "data" / "examples.jsonl") if p.is_file()), data)
        if path is data:
            raise DataError(f"{data} holds no examples.jsonl; check the path")
    questions = []
    for key, record in read_records(path):
        images = tuple(Picture(text(record, f"image_{i}", key, path)) for i in (0, 1))
        captions = tuple(text(record, f"caption_{i}", key, path) for i in (0, 1))
        questions.append(Question(key, "all", images, captions))
    return Questions(questions, _measure, "a tie is wrong")


def _measure(questions: Sequence[Question], scores: Sequence[Tensor]) -> Rows:
    return figures(torch.stack(list(scores)) if scores else torch.empty(0, 2, 2))
