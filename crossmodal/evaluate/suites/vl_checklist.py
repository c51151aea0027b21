"""VL-CheckList: a true text against one in which a word was replaced (CE-CLIP, spec section 6.5)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from crossmodal.errors import ConfigError, DataError

from .files import read_json, read_text
from .items import Picture, Question, Questions, Rows, by_name, stacked
from .metrics import Share, Verdicts, choose, mean, means
from .registry import suite

TYPES = {
    "Attribute": ("action", "color", "material", "size", "state"),
    "Object": ("Location", "Size"),
    "Relation": ("action", "spatial"),
}
SUB_TYPES = {kind: [f"{kind}/{sub}" for sub in subs] for kind, subs in TYPES.items()}
MAX_NUM = 2000


@suite("vl_checklist")
def vl_checklist(data: Path, *, max_num: int = MAX_NUM) -> Questions:
    """The published folder: ``corpus/<Type>/.../<data set>.yaml`` and the files of pairs that these name.

    max_num: the published limit of texts of each; the first half as many pairs are used. 0: all of them.
    """
    if max_num < 0:
        raise ConfigError(f"max_num is {max_num}; give the number of texts of a data set, or 0 for all")
    corpora = _corpora(data)
    if not corpora:
        raise DataError(f"{data} holds no corpus/Attribute, corpus/Object or corpus/Relation with YAML files; check it")
    questions = []
    for name, path in corpora.items():
        corpus = _corpus(path)
        pairs = _pairs(_annotations(data, corpus["ANNO_PATH"], path))
        for number, (image, true, false) in enumerate(pairs[: max_num // 2] if max_num else pairs):
            picture = Picture(f"{corpus['IMG_ROOT'].strip('/')}/{image}")
            questions.append(Question(f"{name}/{number}", name, (picture,), (true, false)))
    return Questions(questions, _measure, "a tie is wrong", (*chain(*SUB_TYPES.values()), *TYPES, "avg"))


def _corpora(data: Path) -> dict[str, Path]:
    """`Object/Location/center/hake` -> its YAML file."""
    folder = next((f for f in (data / "corpus", data) if any((f / kind).is_dir() for kind in TYPES)), data)
    paths = [path for kind in TYPES for path in sorted((folder / kind).rglob("*.yaml"))]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def _corpus(path: Path) -> dict[str, str]:
    try:
        corpus = yaml.safe_load(read_text(path))
        return {name: str(corpus[name]) for name in ("ANNO_PATH", "IMG_ROOT")}
    except (yaml.YAMLError, KeyError, TypeError):
        raise DataError(f"{path} names no ANNO_PATH and IMG_ROOT; use the published file") from None


def _annotations(data: Path, named: str, corpus: Path) -> Path:
    """The path is written from the folder that holds the repository: leading folders may be missing."""
    parts = Path(named).parts
    found = next((p for n in range(len(parts)) if (p := data.joinpath(*parts[n:])).is_file()), None)
    if found is None:
        raise DataError(f"{corpus} names {named}, which is not below {data}; copy the published data folder there")
    return found


def _pairs(path: Path) -> list[tuple[str, str, str]]:
    """(image, first true text, first false text) of every pair."""
    content: Any = read_json(path)
    try:
        return [(str(image), str(texts["POS"][0]), str(texts["NEG"][0])) for image, texts in content]
    except (KeyError, IndexError, TypeError, ValueError):
        raise DataError(f"{path} is not a list of [image, {{POS, NEG}}]; download it again") from None


def accuracy(verdicts: Verdicts, of: Sequence[int] | None = None) -> Share:
    """Rounded to four digits, as published."""
    found = verdicts.share(of)
    return Share(round(found.value, 4), found.count, found.ties)


def _measure(questions: Sequence[Question], scores: Sequence[Tensor]) -> Rows:
    """Data sets, then means over them in each sub-type, over sub-types in each type, and over all sub-types."""
    verdicts = choose(stacked(questions, scores), 0)
    rows = {name: accuracy(verdicts, numbers) for name, numbers in by_name(questions).items()}
    below: Rows = {}
    for sub in chain(*SUB_TYPES.values()):
        sets = [row for name, row in rows.items() if name.startswith(f"{sub}/")]
        below |= {sub: mean(sets)} if sets else {}
    return rows | below | means(below, SUB_TYPES) | means(below, {"avg": list(chain(*SUB_TYPES.values()))})
