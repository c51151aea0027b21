"""ARO's sets of Visual Genome: attributes and relations, asked about a part of an image (CE-CLIP, spec section 6.1)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from crossmodal.errors import DataError

from .aro_relations import SYMMETRIC
from .files import number, read_records, text, texts
from .items import Picture, Question, Questions, Rows, by_name, stacked
from .metrics import Verdicts, by_category, choose, mean
from .registry import suite

LEAST = 25  # cases of a pair of attributes; pairs of fewer are left out
_TIES = "a tie is wrong"
_RIGHT = 1  # the true caption stands behind the false one, as in the published scores


@suite("aro_relation")
def aro_relation(data: Path) -> Questions:
    """``visual_genome_relation.json``, or the folder that holds it."""
    return Questions(_questions(data, "visual_genome_relation.json", _relation), _relations, _TIES, ("macro accuracy",))


@suite("aro_attribution")
def aro_attribution(data: Path) -> Questions:
    """``visual_genome_attribution.json``, or the folder that holds it."""
    questions = _questions(data, "visual_genome_attribution.json", _attributes)
    return Questions(questions, _attributions, _TIES, ("macro accuracy",))


def _questions(data: Path, name: str, category: Any) -> list[Question]:
    path = data / name if data.is_dir() else data
    questions = []
    for key, record in read_records(path):
        x, y, w, h = (number(record, f"bbox_{side}", key, path) for side in "xywh")
        if w < 1 or h < 1:
            raise DataError(f"the box of record {key} of {path} is {w} by {h} pixels; download the file again")
        picture = Picture(text(record, "image_path", key, path), (x, y, x + w, y + h))
        captions = tuple(text(record, f"{which}_caption", key, path) for which in ("false", "true"))
        questions.append(Question(key, category(record, key, path), (picture,), captions))
    return questions


def _relation(record: dict[str, Any], key: str, path: Path) -> str:
    return text(record, "relation_name", key, path)


def _attributes(record: dict[str, Any], key: str, path: Path) -> str:
    """Of red and blue: `red_blue`, which is another category than `blue_red`."""
    return "_".join(texts(record, "attributes", key, path))


def relation_rows(verdicts: Verdicts, relations: dict[str, list[int]], symmetric: Collection[str] = SYMMETRIC) -> Rows:
    """Every relation in alphabetical order, then the mean over those that aren't symmetric, then over all."""
    rows = by_category(verdicts, dict(sorted(relations.items())))
    kept = [row for name, row in rows.items() if name not in symmetric]
    return rows | {"macro accuracy": mean(kept), "macro accuracy, symmetric ones too": mean(rows.values())}


def attribution_rows(verdicts: Verdicts, attributes: dict[str, list[int]]) -> Rows:
    """Every ordered pair of attributes that has enough cases, in alphabetical order, then their mean."""
    rows = by_category(verdicts, dict(sorted(attributes.items())), least=LEAST)
    return rows | {"macro accuracy": mean(rows.values())}


def _relations(questions: Sequence[Question], scores: Sequence[Tensor]) -> Rows:
    return relation_rows(choose(stacked(questions, scores), _RIGHT), by_name(questions))


def _attributions(questions: Sequence[Question], scores: Sequence[Tensor]) -> Rows:
    return attribution_rows(choose(stacked(questions, scores), _RIGHT), by_name(questions))
