"""UNITER's image databases: LMDB folders of packed records, in both published flavours."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
from tqdm import tqdm

from crossmodal.data.environments import environment
from crossmodal.data.region_db import BoxRule, Record, RegionDB, cut
from crossmodal.data.region_names import Found, find
from crossmodal.data.region_records import BadRecord, unpack
from crossmodal.errors import DataError

KEYS = b"__keys__"


class LmdbRegions(RegionDB):
    """One image database; `path` and options are those of `region_names.find`.

    A record is decoded in place from the memory map, only the arrays asked for, and only the kept rows are
    copied: an item stays valid when the database is closed.
    """

    def __init__(self, path: Path, rule: BoxRule, compressed: bool | None = None) -> None:
        found: Found = find(path, rule, compressed)
        super().__init__(found.folder.absolute(), found.rule)
        self._counts = found.counts

    def _read_lengths(self) -> dict[str, int]:
        if self.rule.fixed and self._counts is None:
            return dict.fromkeys(self.ids, self.rule.num_bb)
        if self._counts is None:
            return self._count()
        counts = _json(self._counts, self._counts.read_bytes())
        try:
            return {name: int(counts[name]) for name in self.ids}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self._counts} gives no box count for {error}, which {self.path} holds; "
                "the two belong to different conversions."
            ) from error

    def loader(self, key: str) -> Callable[[], Record]:
        return partial(read_record, self.path, key)

    def _record(self, key: str, only: Collection[str] | None, limit: int | None) -> Record:
        return read_record(self.path, key, only, limit)

    def _count(self) -> dict[str, int]:
        lengths = {}
        for key in tqdm(self.ids, desc=f"counting boxes of {self.path.name}", disable=None):
            record = self._record(key, ("conf", "norm_bb"), None)
            if "norm_bb" not in record:
                raise DataError(f"The record of {key} in {self.path} has no norm_bb; convert that image again.")
            lengths[key] = self.rule.count(record.get("conf"), len(record["norm_bb"]))
        return lengths

    def _read_ids(self) -> list[str]:
        try:
            with environment(self.path).begin() as txn:
                listed = txn.get(KEYS)
                if listed is None:
                    ids = [key.decode() for key in txn.cursor().iternext(keys=True, values=False)]
                else:
                    ids = [str(name) for name in _json(self.path, listed)]
        except lmdb.Error as error:
            raise DataError(f"{self.path} is damaged ({error}); copy or download it again.") from error
        if not ids:
            raise DataError(f"{self.path} holds no image.")
        return ids


def read_record(folder: Path, key: str, only: Collection[str] | None = None, limit: int | None = None) -> Record:
    """The arrays stored under `key`, cut to `limit` rows. Raises DataError, naming key and folder."""
    try:
        with environment(folder).begin(buffers=True) as txn:
            value = txn.get(key.encode())
            if value is None:
                raise DataError(f"{folder} lists {key} but holds no record of it; convert the images again.")
            return cut(unpack(value, only), limit)
    except BadRecord as error:
        raise DataError(f"The record of {key} in {folder} is damaged ({error}); convert that image again.") from error
    except lmdb.Error as error:
        raise DataError(f"{folder} is damaged at {key} ({error}); copy or download it again.") from error


def _json(path: Path, text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"The index in {path} is not JSON ({error}); copy or convert it again.") from error
