"""HDF5 files of detected boxes, in two layouts.

- one group an image, named by it: datasets or attributes as in `region_layouts` (``features`` (R,F),
  ``norm_bb`` (R,6) or ``boxes`` (R,4) in pixels with ``image_w`` and ``image_h``, perhaps ``conf``,
  ``soft_labels``);
- flat: ``ids`` (N,) strings; ``features`` (N,R,F), ``boxes`` or ``norm_bb`` (N,R,4|6), perhaps ``conf``
  (N,R), ``image_w``, ``image_h``, ``num_boxes`` (N,) (row i is cut to ``num_boxes[i]``);
  or features (M,F), boxes (M,4|6) and conf (M,) of all images in one, with ``pos_boxes`` (N,2): the first row
  of image i and the row behind its last.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from crossmodal.data.region_db import BoxRule, Record, RegionDB
from crossmodal.data.region_layouts import as_record
from crossmodal.errors import DataError

_PER_BOX = ("features", "boxes", "bbox", "norm_bb", "conf", "objects_conf", "confidence", "soft_labels")


class Hdf5Regions(RegionDB):
    """An HDF5 file. It is opened at each read, so that the object can be pickled and used after a fork."""

    def __init__(self, path: Path, rule: BoxRule) -> None:
        super().__init__(path.absolute(), rule)

    @cached_property
    def rows(self) -> dict[str, int | str]:
        """id -> its row in the flat layout, or the name of its group."""
        with _open(self.path) as file:
            if "ids" in file:
                names = [n.decode() if isinstance(n, bytes) else str(n) for n in file["ids"][()]]
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

    def loader(self, key: str) -> Callable[[], Record]:
        return partial(read_hdf5, self.path, self.rows[key])


def read_hdf5(path: Path, row: int | str) -> Record:
    """The record of one image: a row of the flat layout, or a group. Raises DataError if damaged."""
    where = f"{path}, image {row!r},"
    try:
        with _open(path) as file:
            arrays = _flat(file, row) if isinstance(row, int) else _group(file[row])
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{where} cannot be read ({error}).") from error
    return as_record(arrays, where)


def _group(group: Any) -> dict[str, Any]:
    datasets = {name: data[()] for name, data in group.items() if isinstance(data, h5py.Dataset)}
    return dict(group.attrs) | datasets


def _flat(file: Any, row: int) -> dict[str, Any]:
    arrays = {name: file[name][row] for name in ("image_w", "image_h", "img_w", "img_h") if name in file}
    if "pos_boxes" in file:
        first, behind = (int(n) for n in file["pos_boxes"][row])
        return arrays | {name: file[name][first:behind] for name in _PER_BOX if name in file}
    count = int(file["num_boxes"][row]) if "num_boxes" in file else None
    return arrays | {name: np.asarray(file[name][row])[:count] for name in _PER_BOX if name in file}


def _npz(name: str) -> str:
    return name if name.endswith(".npz") else f"{name}.npz"


def _open(path: Path) -> Any:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} cannot be opened as HDF5 ({error}).") from error
