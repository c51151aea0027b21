"""TSV files of detected boxes, as the bottom-up-attention and LXMERT detectors write them.

No header; one image a line; arrays are base64 of little-endian numbers:

- LXMERT: img_id img_h img_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features
- bottom-up attention: image_id image_w image_h num_boxes boxes features (no confidences)

boxes float32 (R,4) in pixels, features float32 (R,F). LXMERT's rows stand in the order of another score, so
they are sorted by `objects_conf` here.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from crossmodal.data.npz import LARGEST
from crossmodal.data.region_db import BoxRule, Record, RegionDB
from crossmodal.data.region_layouts import as_record, common_width
from crossmodal.errors import DataError

_LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf")
_BOXES = ("num_boxes", "boxes", "features")
_LONGEST = 2 * LARGEST  # bytes of a line: base64 takes a third more than the numbers
_COLUMNS = {10: (*_LXMERT, *_BOXES), 6: ("img_id", "img_w", "img_h", *_BOXES)}


class TsvRegions(RegionDB):
    """A TSV file, indexed by one pass on first use; records are read from their line when asked for."""

    def __init__(self, path: Path, rule: BoxRule) -> None:
        super().__init__(path.absolute(), rule)

    @cached_property
    def offsets(self) -> dict[str, tuple[int, int]]:
        """id -> (byte offset of its line, line number). Raises DataError where an id stands twice."""
        offsets: dict[str, tuple[int, int]] = {}
        with _open(self.path) as file, _bar(self.path) as bar:
            at = 0
            for number in itertools.count(1):
                line = file.readline(_LONGEST)
                if not line:
                    break
                if len(line) == _LONGEST:
                    raise DataError(f"{self._where(number)} has more than {_LONGEST} bytes; is this a TSV?")
                if line.strip():
                    key = _name(line, self._where(number)) + ".npz"
                    if key in offsets:
                        first = offsets[key][1]
                        raise DataError(f"{self.path} holds image {key} in lines {first} and {number}.")
                    offsets[key] = (at, number)
                at += len(line)
                bar.update(len(line))
        if not offsets:
            raise DataError(f"{self.path} holds no image.")
        return offsets

    def _read_ids(self) -> list[str]:
        return list(self.offsets)

    def _read_lengths(self) -> dict[str, int]:
        lengths = {}
        with _open(self.path) as file:
            for key, (offset, number) in tqdm(self.offsets.items(), desc="counting boxes", disable=None):
                file.seek(offset)
                row = _split(file.readline(), self._where(number))
                conf = _numbers(row, "objects_conf", self._where(number)) if "objects_conf" in row else None
                lengths[key] = self.rule.count(conf, _integer(row, "num_boxes", self._where(number)))
        return lengths

    @cached_property
    def _width(self) -> int | None:
        return common_width(partial(read_row, self.path, at, self._where(n)) for at, n in self.offsets.values())

    def loader(self, key: str) -> Callable[[], Record]:
        offset, number = self.offsets[key]
        return partial(read_row, self.path, offset, self._where(number), self._width)

    def _where(self, number: int) -> str:
        return f"{self.path}, line {number},"


def read_row(path: Path, offset: int, where: str, width: int | None = None) -> Record:
    """The record of the image whose line begins at `offset`. Raises DataError, beginning with `where`."""
    with _open(path) as file:
        file.seek(offset)
        row = _split(file.readline(), where)
    boxes = _integer(row, "num_boxes", where)
    arrays: dict[str, object] = {}
    for name in ("boxes", "features", "objects_conf"):
        if name in row:
            arrays[name] = _rows(_numbers(row, name, where), boxes, name, where)
    return as_record(arrays | {name: _integer(row, name, where) for name in ("img_w", "img_h")}, where, width)


def _name(line: bytes, where: str) -> str:
    name = line.rstrip(b"\r\n").partition(b"\t")[0]
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise DataError(f"{where} begins with {name[:20]!r}, which is no name in UTF-8; is this a TSV?") from None


def _split(line: bytes, where: str) -> dict[str, bytes]:
    values = line.rstrip(b"\r\n").split(b"\t")
    if len(values) not in _COLUMNS:
        raise DataError(f"{where} has {len(values)} columns, not 10 (LXMERT) or 6 (bottom-up attention).")
    return dict(zip(_COLUMNS[len(values)], values, strict=True))


def _numbers(row: dict[str, bytes], name: str, where: str) -> NDArray[np.float32]:
    try:
        return np.frombuffer(base64.b64decode(row[name], validate=True), "<f4")
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where} has a damaged {name} column ({error}).") from error


def _rows(numbers: NDArray[np.float32], boxes: int, name: str, where: str) -> NDArray[np.float32]:
    fits = boxes > 0 and numbers.size > 0 and numbers.size % boxes == 0
    if not fits or (name == "boxes" and numbers.size != 4 * boxes):
        raise DataError(f"{where} has {numbers.size} numbers in its {name} column for {boxes} boxes.")
    return numbers.reshape(boxes, -1)


def _integer(row: dict[str, bytes], name: str, where: str) -> int:
    if not re.fullmatch(rb" *\d{1,9} *", row[name]):
        raise DataError(f"{where} has {row[name][:20]!r} where {name}, a whole number, is expected.")
    return int(row[name])


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from None


def _bar(path: Path) -> Any:
    title = f"indexing {path.name}"
    return tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=title, disable=None)
