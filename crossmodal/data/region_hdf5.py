"""HDF5 files of detected boxes, in two layouts.

- one group an image, named by it: datasets or attributes as in `region_layouts` (``features`` (R,F),
  ``norm_bb`` (R,6) or ``boxes`` (R,4) in pixels with ``image_w`` and ``image_h``, perhaps ``conf``,
  ``soft_labels``);
- flat: ``ids`` (N,) strings; ``features`` (N,R,F), ``boxes`` or ``norm_bb`` (N,R,4|6), perhaps ``conf``
  (N,R), ``image_w``, ``image_h``, ``num_boxes`` (N,) (row i is cut to ``num_boxes[i]``);
  or features (M,F), boxes (M,4|6) and conf (M,) of all images in one, with ``pos_boxes`` (N,2): the first row
  of image i and the row behind its last.

The HDF5 library believes a damaged file: it allocates what a size says, and damaged strings of variable length,
which `ids` mostly are, can keep it busy forever. So sizes are looked at before anything is read, only numbers of
the names above are read, and such `ids` in a process of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from crossmodal.data.npz import LARGEST
from crossmodal.data.region_db import BoxRule, Record, RegionDB
from crossmodal.data.region_layouts import NAMES, as_record, common_width
from crossmodal.errors import DataError

_PER_BOX = ("features", "boxes", "bbox", "norm_bb", "conf", "objects_conf", "confidence", "soft_labels")
_PATIENCE = 60.0  # seconds for `ids`: a million of them take one or two
_READ_IDS = f"""
import json, resource, sys, h5py
resource.setrlimit(resource.RLIMIT_AS, (16 * {LARGEST}, 16 * {LARGEST}))
with h5py.File(sys.argv[1], "r") as file:
    print(json.dumps([name.decode() for name in file["ids"][()]]))
"""


class Hdf5Regions(RegionDB):
    """An HDF5 file. It is opened at each read, so that the object can be pickled and used after a fork."""

    def __init__(self, path: Path, rule: BoxRule) -> None:
        super().__init__(path.absolute(), rule)

    @cached_property
    def rows(self) -> dict[str, int | str]:
        """id -> its row in the flat layout, or the name of its group."""
        with _open(self.path, str(self.path)) as file:
            if "ids" in file:
                names = _ids(self.path, file["ids"])
                rows: dict[str, int | str] = {_npz(name): i for i, name in enumerate(names)}
                if len(rows) != len(names):
                    raise DataError(f"{self.path} has {len(names) - len(rows)} repeated names in `ids`.")
            else:
                rows = {_npz(name): name for name, group in file.items() if isinstance(group, h5py.Group)}
        if not rows:
            raise DataError(f"{self.path} holds neither groups, one an image, nor a dataset `ids`.")
        return rows

    def _read_ids(self) -> list[str]:
        return list(self.rows)

    def _read_lengths(self) -> dict[str, int]:
        lengths = {}
        for key in tqdm(self.ids, desc="counting boxes", disable=None):
            record = read_hdf5(self.path, self.rows[key])
            lengths[key] = self.rule.count(record.get("conf"), len(record["norm_bb"]))
        return lengths

    @cached_property
    def _width(self) -> int | None:
        return common_width(partial(read_hdf5, self.path, row) for row in self.rows.values())

    def loader(self, key: str) -> Callable[[], Record]:
        return partial(read_hdf5, self.path, self.rows[key], self._width)


def read_hdf5(path: Path, row: int | str, width: int | None = None) -> Record:
    """The record of one image: a row of the flat layout, or a group. Raises DataError if damaged."""
    where = f"{path}, image {row!r},"
    with _open(path, where) as file:
        arrays = _flat(file, row) if isinstance(row, int) else _group(file[row])
    return as_record(arrays, where, width)


def _group(group: Any) -> dict[str, Any]:
    found = {}
    for name in sorted(NAMES & set(group.attrs)):
        _require_numbers(name, group.attrs.get_id(name))
        found[name] = group.attrs[name]
    return found | {name: _read(group, name) for name in sorted(NAMES & set(group))}


def _flat(file: Any, row: int) -> dict[str, Any]:
    arrays = {name: _read(file, name, row) for name in ("image_w", "image_h", "img_w", "img_h") if name in file}
    if "pos_boxes" in file:
        first, behind = (int(n) for n in _read(file, "pos_boxes", row))
        if not 0 <= first < behind:
            raise ValueError(f"pos_boxes says that its boxes are rows {first} to {behind}")
        return arrays | {name: _read(file, name, slice(first, behind)) for name in _PER_BOX if name in file}
    count = int(_read(file, "num_boxes", row)) if "num_boxes" in file else None
    if count is not None and count < 1:
        raise ValueError(f"num_boxes says that it has {count} boxes")
    return arrays | {name: np.asarray(_read(file, name, row))[:count] for name in _PER_BOX if name in file}


def _read(group: Any, name: str, at: int | slice | tuple[()] = ()) -> Any:
    """A dataset, or one or some of its rows."""
    data = group[name]
    rows = 1 if isinstance(at, int) else at.stop - at.start if isinstance(at, slice) else None
    _require_numbers(name, data, rows)
    if isinstance(at, slice) and at.stop > len(data):
        raise ValueError(f"{name} has {len(data)} rows, and row {at.stop - 1} is wanted")
    return data[at]


def _require_numbers(name: str, data: Any, rows: int | None = None) -> None:
    """Raises ValueError unless so many rows of a dataset or attribute, by default all, are numbers that fit."""
    shape, kind = data.shape, data.dtype.kind
    if shape is None or kind not in "biuf" or (rows is not None and not shape):
        raise ValueError(f"{name} is not an array of numbers")
    wanted = (*shape,) if rows is None else (rows, *shape[1:])
    for sides in (wanted, getattr(data, "chunks", None) or ()):
        if prod(sides) * data.dtype.itemsize > LARGEST:
            raise ValueError(f"{name} is said to have the shape {shape}, more than {LARGEST >> 20} MiB an image")


def _ids(path: Path, data: Any) -> list[str]:
    kind = data.dtype.kind
    if len(data.shape) != 1 or prod(data.shape) * data.dtype.itemsize > LARGEST or kind not in "SOiu":
        raise ValueError(f"`ids` of {data.dtype} and shape {data.shape} is no list of names")
    if kind != "O":
        return [name.decode() if isinstance(name, bytes) else str(name) for name in data[()].tolist()]
    command = [sys.executable, "-c", _READ_IDS, str(path)]
    try:
        # At the root: the current folder is where Python would look for modules first.
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, cwd=path.anchor)
    except subprocess.TimeoutExpired:
        raise ValueError(f"`ids` could not be read within {_PATIENCE:g} seconds") from None
    if done.returncode:
        raise ValueError(f"`ids` is damaged: {(done.stderr.strip() or 'HDF5 crashed').splitlines()[-1]}")
    names: list[str] = json.loads(done.stdout)
    return names


def _npz(name: str) -> str:
    return name if name.endswith(".npz") else f"{name}.npz"


@contextmanager
def _open(path: Path, where: str) -> Iterator[Any]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except Exception as error:  # HDF5 tells of damage in nearly every type there is
        raise DataError(f"{where} cannot be read as HDF5 ({error}); copy or convert it again.") from error
