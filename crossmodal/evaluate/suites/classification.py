"""Zero-shot classification of folders of images, with the class names and prompts of a file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import Self

from crossmodal.data.photos import SUFFIXES
from crossmodal.errors import ConfigError, DataError, nearest

from .files import read_json, read_text
from .items import Answers, Judge, Picture, Test
from .metrics import Verdicts, index_ranks, mean
from .registry import suite


@dataclass(frozen=True)
class Prompts:
    """classes: the names of each class, mostly one. templates: sentences in which a name stands for `{}`."""

    classes: list[tuple[str, ...]]
    templates: list[str]

    def of_class(self, number: int) -> list[str]:
        return [t.replace("{}", name) for name in self.classes[number] for t in self.templates]


@suite("zero_shot")
def zero_shot(data: Path, *, images: Path, classes: str | None = None) -> Classification:
    """CLIP's ``prompts.md`` (`classes` names its part, such as CIFAR10), or JSON of `classes` and `templates`.

    images: a folder with one folder of images a class, named like it.
    """
    prompts = read_prompts(data, classes)
    return Classification(prompts, *_labelled(images, prompts))


@dataclass(frozen=True)
class Classification(Test):
    """photos: by class, as the folders hold them; labels: the class of each."""

    prompts: Prompts
    photos: list[Picture]
    labels: list[int]
    ties = "of equal scores the class that is named first wins"
    shown = ("top1", "top5", "mean per class")

    @property
    def pictures(self) -> list[Picture]:
        return self.photos

    @property
    def size(self) -> int:
        return len(self.photos)

    def without(self, pictures: Iterable[Picture]) -> Self:
        gone = set(pictures)
        kept = [(photo, label) for photo, label in zip(self.photos, self.labels, strict=True) if photo not in gone]
        return replace(self, photos=[photo for photo, _ in kept], labels=[label for _, label in kept])

    def ask(self, judge: Judge) -> Answers:
        scores = judge.classify([self.prompts.of_class(c) for c in range(len(self.prompts.classes))], self.photos)
        for row, _ in scores.isnan().nonzero()[:1].tolist():
            raise DataError(f"a score of {self.photos[row].name} is NaN; check the weights of the model and the image")
        right = torch.tensor(self.labels)
        rank = index_ranks(scores, right)
        tied = (scores == scores.gather(1, right[:, None])).sum(dim=1) > 1
        first = Verdicts(rank < 1, tied)
        rows = {"top1": first.share(), "top5": Verdicts(rank < 5, tied).share()}
        of_class = {
            self.prompts.classes[c][0]: first.share((right == c).nonzero().flatten().tolist())
            for c in dict.fromkeys(self.labels)
        }
        arrays = {
            "scores": scores.float().numpy(),
            "image_ids": np.array([photo.name for photo in self.photos]),
            "classes": np.array([names[0] for names in self.prompts.classes]),
        }
        return Answers(rows | {"mean per class": mean(of_class.values())} | of_class, arrays=arrays)


def read_prompts(path: Path, part: str | None = None) -> Prompts:
    """Raises ConfigError where the file has no such part, DataError where it is damaged."""
    if path.suffix == ".json":
        return _prompts(read_json(path), str(path))
    blocks = re.findall(r"^## (.+?)\s*$.*?^```\w*\n(.*?)^```", read_text(path), re.MULTILINE | re.DOTALL)
    parts = {name.strip(): block for name, block in blocks}
    if not parts:
        raise DataError(f"{path} holds no class names; give CLIP's prompts.md, or JSON of `classes` and `templates`")
    if part not in parts:
        said = "name one of its parts with --classes" if part is None else f"it has no part {part!r}"
        raise ConfigError(f"{path}: {said}; {nearest(part or '', parts)}")
    try:
        lists = {
            ast.unparse(node.targets[0]): ast.literal_eval(node.value)
            for node in ast.parse(parts[part]).body
            if isinstance(node, ast.Assign)
        }
    except (SyntaxError, ValueError):
        raise DataError(f"the lists of {part} in {path} cannot be read; download it again") from None
    return _prompts(lists, f"{path}, {part}")


def _prompts(content: Any, where: str) -> Prompts:
    try:
        classes = [(name,) if isinstance(name, str) else tuple(name) for name in content["classes"]]
        templates = list(content["templates"])
    except (KeyError, TypeError):
        raise DataError(f"{where} has no lists `classes` and `templates`") from None
    if not classes or not templates or not all("{}" in str(template) for template in templates):
        raise DataError(f"{where} needs classes, and templates that hold {{}} for the name of a class")
    return Prompts(classes, templates)


def _labelled(images: Path, prompts: Prompts) -> tuple[list[Picture], list[int]]:
    """The photos below a folder of each class. Raises DataError where a folder is none, or there is no photo."""
    number = {_plain(name): c for c, names in enumerate(prompts.classes) for name in names}
    photos, labels = [], []
    for folder in sorted(p for p in images.iterdir() if p.is_dir()) if images.is_dir() else []:
        if _plain(folder.name) not in number:
            raise DataError(f"{folder} is named like none of the classes; {nearest(folder.name, number)}")
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        photos += [Picture(path.relative_to(images).as_posix()) for path in found]
        labels += [number[_plain(folder.name)]] * len(found)
    if not photos:
        raise DataError(f"{images} holds no folder of images for each class; give such a folder as --images")
    return photos, labels


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().lower()
