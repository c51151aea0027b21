"""VinVL's published folders of boxes: ``features.tsv``, ``imageid2idx.json`` and ``predictions.tsv`` (ALADIN, spec 7).

A line of features.tsv is ``image_id \\t num_boxes \\t base64``: (num_boxes, F) little-endian float32, the last six
numbers of a row those of its box (x1, y1, x2, y2, w, h, each divided by the image's width or height). The starts of
its lines stand in ``features.lineidx``. The names of what was detected, an image's tags, are in predictions.tsv.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from crossmodal.data.json_text import parse
from crossmodal.data.region_db import BoxRule, Record, RegionDB, pack_tags
from crossmodal.data.tsv_lines import heads, index_of, line_starts, read_line
from crossmodal.data.vinvl_predictions import index_predictions, read_predictions
from crossmodal.errors import DataError

FEATURES = "features.tsv"
PREDICTIONS = "predictions.tsv"
BOX = 6


class VinvlRegions(RegionDB):
    """A VinVL folder, or its features.tsv: the boxes of an image in the file's order, and its tags.

    The detector has chosen the boxes, and their confidences don't choose again: `rule` only bounds how many.
    Ids end in ``.npz`` like those of other databases. An image without boxes, or of which predictions.tsv (if it
    is there) has no line, isn't in it.
    """

    chosen: ClassVar[bool] = True
    content: ClassVar[str] = "features or detections"

    def __init__(self, path: Path, rule: BoxRule) -> None:
        super().__init__(features_of(path).absolute(), rule)
        self.predictions = self.path.with_name(PREDICTIONS)

    def _read_ids(self) -> list[str]:
        ids = [image for image, (_, boxes) in self._lines.items() if boxes]
        if self._named is not None:
            ids = [image for image in ids if image in self._named]
        if not ids:
            raise DataError(f"{self.path.parent} holds no image with features and detections")
        return [f"{image}.npz" for image in ids]

    def _read_lengths(self) -> dict[str, int]:
        return {key: self.rule.count(None, self._lines[bare(key)][1]) for key in self.ids}

    @cached_property
    def _lines(self) -> dict[str, tuple[int, int]]:
        """Image id -> (where its line begins, its number of boxes), in the order of the lines."""
        starts = line_starts(self.path)
        lines: dict[str, tuple[int, int]] = {}
        for number, (start, columns) in enumerate(zip(starts.tolist(), heads(self.path, starts), strict=True), 1):
            if len(columns) < 2 or not columns[1].isdigit():
                raise DataError(f"{self.path}, line {number}, does not begin with an image id and a number of boxes")
            image = columns[0].decode("utf-8", errors="replace")
            if image in lines:
                raise DataError(f"{self.path}, line {number}, holds image {image} again; keep one of its lines")
            lines[image] = start, int(columns[1])
        self._require_numbers(list(lines))
        return lines

    def _require_numbers(self, images: list[str]) -> None:
        """imageid2idx.json, where it is there, must give every image the number of its line."""
        file = self.path.with_name("imageid2idx.json")
        if not file.is_file():
            return
        try:
            numbers = parse(file.read_bytes(), unique=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read as JSON ({error}); copy it again, or remove it") from None
        if not isinstance(numbers, dict):
            raise DataError(f"{file} holds no JSON object of line numbers; copy it again, or remove it")
        for image, number in numbers.items():
            if type(number) is not int or not 0 <= number < len(images) or images[number] != image:
                raise DataError(
                    f"{file} says that line {number} of {self.path.name} is that of image {image}, and it isn't; copy "
                    "both again from one place"
                )

    @cached_property
    def _named(self) -> dict[str, int] | None:
        """Image id -> where its line of predictions.tsv begins; None where there is no such file."""
        return index_predictions(self.predictions) if self.predictions.is_file() else None

    @cached_property
    def _width(self) -> int | None:
        """F: that of the first line that can be read."""
        for key in self.ids:
            with suppress(DataError):
                start, boxes = self._lines[bare(key)]
                return read_features(self.path, start, bare(key), boxes).shape[1]
        return None

    def loader(self, key: str) -> Callable[[], Record]:
        image = bare(key)
        start, boxes = self._lines[image]
        named = None if self._named is None else self._named[image]
        return partial(read_vinvl, self.path, start, image, boxes, self._width, self.predictions, named)


def features_of(path: Path) -> Path:
    """The features.tsv that a path means: itself, or the one in a folder."""
    return path / FEATURES if path.is_dir() else path


def is_vinvl(path: Path) -> bool:
    """Whether it is a TSV with an index beside it, or a folder with a features.tsv that has one."""
    file = features_of(path)
    return file.suffix == ".tsv" and file.is_file() and index_of(file).is_file()


def bare(key: str) -> str:
    """``391895.npz`` is image 391895."""
    return key.removesuffix(".npz")


def read_vinvl(
    features: Path, start: int, image: str, boxes: int, width: int | None, predictions: Path, named: int | None
) -> Record:
    """norm_bb (R,6), features (R,F-6), tags, and conf (R,1) where predictions.tsv names as many objects as boxes.

    start, named: where the image's lines begin. Raises DataError, naming the image.
    """
    rows = read_features(features, start, image, boxes)
    if width is not None and width != rows.shape[1]:
        raise DataError(
            f"Image {image} in {features} has features {rows.shape[1]} wide, and the other images have {width}; copy "
            "the file again"
        )
    record: Record = {"norm_bb": rows[:, -BOX:].copy(), "features": rows[:, :-BOX].copy()}
    if named is not None:
        found = read_predictions(predictions, named, image)
        record["tags"] = pack_tags(found.names)
        if found.conf is not None and len(found.conf) == boxes:
            record["conf"] = found.conf[:, None]
    return record


def read_features(features: Path, start: int, image: str, boxes: int) -> NDArray[np.float32]:
    """(boxes, F) the whole rows of an image. Raises DataError, naming it."""
    where = f"The line of image {image} in {features}"
    columns = read_line(features, start)
    if len(columns) < 3 or columns[0] != image.encode() or not columns[1].isdigit() or int(columns[1]) != boxes:
        raise DataError(f"{where} is not where its index says; copy the file and its index again")
    try:
        content = base64.b64decode(columns[-1], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where} has damaged features ({error}); copy the file again") from None
    numbers = len(content) // 4
    if len(content) % 4 or not boxes or numbers % boxes or numbers // boxes <= BOX:
        raise DataError(f"{where} has {len(content)} bytes of features for {boxes} boxes; copy the file again")
    return np.frombuffer(content, "<f4").astype(np.float32, copy=False).reshape(boxes, -1)
