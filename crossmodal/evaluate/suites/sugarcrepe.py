"""SugarCrepe and SugarCrepe++: a true caption, or two, against a false one (CE-CLIP, spec section 6.6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .files import files_of, read_records, text
from .items import Picture, Question, Questions, Rows, by_name, stacked
from .metrics import by_category, choose, means
from .registry import suite

GROUPS = {
    "replace": ("replace_obj", "replace_att", "replace_rel"),
    "swap": ("swap_obj", "swap_att"),
    "add": ("add_obj", "add_att"),
}
FILES = tuple(name for members in GROUPS.values() for name in members)
FILES_PP = FILES[:5]  # SugarCrepe++ adds nothing
_TIES = "a tie is wrong"


@suite("sugarcrepe")
def sugarcrepe(data: Path) -> Questions:
    """SugarCrepe's seven files ``add_obj.json`` ... in a folder, or one of them."""
    return Questions(_questions(data, FILES, ("caption", "negative_caption")), _measure, _TIES, (*FILES, *GROUPS))


@suite("sugarcrepe_pp")
def sugarcrepe_pp(data: Path) -> Questions:
    """SugarCrepe++'s five files: both true captions must score higher than the false one."""
    names = ("caption", "caption2", "negative_caption")
    return Questions(_questions(data, FILES_PP, names), _measure, _TIES, (*FILES_PP, "replace", "swap"))


def _questions(data: Path, stems: tuple[str, ...], names: tuple[str, ...]) -> list[Question]:
    questions = []
    for stem, path in files_of(data, stems, "SugarCrepe").items():
        for key, record in read_records(path):
            captions = tuple(text(record, name, key, path) for name in names)
            picture = Picture(text(record, "filename", key, path))
            questions.append(Question(f"{stem}/{key}", stem, (picture,), captions))
    return questions


def _measure(questions: Sequence[Question], scores: Sequence[Tensor]) -> Rows:
    found = stacked(questions, scores)
    true, false = found[:, :-1].amin(dim=1), found[:, -1]
    rows = by_category(choose(torch.stack([true, false], dim=1), 0), by_name(questions))
    both = {name: [m for m in members if found.shape[1] == 2 or m in FILES_PP] for name, members in GROUPS.items()}
    return rows | means(rows, both)
