"""A folder of detector dumps, one ``.npz`` an image.

UNITER's dumps (``norm_bb``, ``features``, ``conf``, ``soft_labels``; float16, 100 boxes) and plain ones
(``bbox`` in pixels, ``image_w``, ``image_h``; see `region_layouts`). Ids are the file names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from crossmodal.data.npz import read_arrays
from crossmodal.data.region_db import BoxRule, Record, RegionDB
from crossmodal.data.region_layouts import NAMES, as_record
from crossmodal.data.region_records import MALFORMED
from crossmodal.errors import DataError


class NpzRegions(RegionDB):
    """A folder of npz dumps, in the order of their names."""

    def __init__(self, path: Path, rule: BoxRule) -> None:
        super().__init__(path.absolute(), rule)

    def _read_ids(self) -> list[str]:
        ids = sorted(p.name for p in self.path.glob("*.npz"))
        if not ids:
            raise DataError(f"{self.path} holds no .npz file.")
        return ids

    def _read_lengths(self) -> dict[str, int]:
        lengths = {}
        for key in tqdm(self.ids, desc=f"counting boxes of {self.path.name}", disable=None):
            record = read_npz(self.path / key)
            lengths[key] = self.rule.count(record.get("conf"), len(record["norm_bb"]))
        return lengths

    def loader(self, key: str) -> Callable[[], Record]:
        return partial(read_npz, self.path / key)


def read_npz(path: Path) -> Record:
    """The record of one dump. Raises DataError where it is damaged; never unpickles.

    Only arrays of the known names are read: some dumps have a pickled dict beside them.
    """
    try:
        with open(path, "rb") as file:
            arrays = read_arrays(file, NAMES)
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path} cannot be read ({error}); extract that image again.") from error
    return as_record(arrays, str(path))
