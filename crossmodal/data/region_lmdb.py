"""Image databases: LMDB folders of packed records, UNITER's in both published flavours, and ours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb
from tqdm import tqdm

from crossmodal.data.environments import environment
from crossmodal.data.json_text import parse
from crossmodal.data.region_db import BoxRule, Record, RegionDB, cut, float32
from crossmodal.data.region_names import ENDINGS, Found, find
from crossmodal.data.region_raw import MAGIC, SCHEMA, unsealed
from crossmodal.data.region_records import BadRecord, unpack
from crossmodal.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

KEYS = b"__keys__"


class LmdbRegions(RegionDB):
    """One image database; `path` and options are those of `region_names.find`.

    A record is decoded in place from the memory map, only the arrays asked for, and only the kept rows are
    copied: an item stays valid when the database is closed.
    """

    def __init__(
        self, path: Path, rule: BoxRule, allowed: Sequence[str] = tuple(ENDINGS), *, verify: bool = False
    ) -> None:
        found: Found = find(path, rule, allowed)
        super().__init__(found.folder.absolute(), found.rule)
        self._folder = str(self.path)  # what a reader is opened by, thousands of times a second
        self.verify = verify
        self.counts = found.counts
        """The JSON of box counts, None where there is none."""

    def _read_lengths(self) -> dict[str, int]:
        if self.rule.fixed and self.counts is None:
            return dict.fromkeys(self.ids, self.rule.num_bb)
        if self.counts is None:
            return self._count()
        counts = _json(self.counts)
        if not isinstance(counts, dict):
            raise DataError(f"{self.counts} holds no JSON object of box counts; copy or convert it again.")
        for name in self.ids:
            if type(counts.get(name)) is not int or counts[name] < 0:
                raise DataError(
                    f"{self.counts} gives no box count for {name!r}, which {self.path} holds; "
                    "the two belong to different conversions."
                )
        return {name: counts[name] for name in self.ids}

    def loader(self, key: str) -> Callable[[], Record]:
        return partial(read_record, self._folder, key, verify=self.verify)

    def _read(self, key: str, only: Collection[str] | None, limit: int | None) -> Record:
        record = read_record(self._folder, key, only, limit, verify=self.verify)
        if only is not None and "conf" in only and "conf" not in record and self._confident:
            raise DataError(f"The record of {key} in {self.path} has no conf, unlike others; convert that image again.")
        return record

    @cached_property
    def _confident(self) -> bool:
        """Whether the first record has confidences: a damaged name is how another could lose them."""
        with suppress(DataError):
            return "conf" in read_record(self._folder, self.ids[0], ("conf",), verify=self.verify)
        return False

    def features(self, image: str) -> Tensor:
        key = self.key(image)
        limit = self.lengths[key]

        def convert(value: memoryview) -> Tensor:
            found = unpack(value, ("features",), verify=self.verify).get("features")
            if found is None or found.ndim != 2:
                raise BadRecord("it has no features (R,F)")
            return float32(found[:limit])

        return _read_value(self._folder, key, convert)

    def _count(self) -> dict[str, int]:
        lengths = {}
        for key in tqdm(self.ids, desc=f"counting boxes of {self.path.name}", disable=None):
            record = self._read(key, ("conf", "norm_bb"), None)
            if "norm_bb" not in record:
                raise DataError(f"The record of {key} in {self.path} has no norm_bb; convert that image again.")
            lengths[key] = self.rule.count(record.get("conf"), len(record["norm_bb"]))
        return lengths

    def _read_ids(self) -> list[str]:
        try:
            with environment(self.path).begin() as txn:
                value = txn.get(KEYS)
                listed = None if value is None else bytes(value)
                self._require_whole(txn, listed)
                if listed is None:
                    ids = [key.decode() for key in txn.cursor().iternext(keys=True, values=False)]
                else:
                    ids = _json(self.path, listed)
        except (lmdb.Error, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} is damaged ({error}); copy or download it again.") from error
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids) or len(set(ids)) != len(ids):
            raise DataError(f"The index in {self.path} is not a list of names, each once; copy or convert it again.")
        if not ids:
            raise DataError(f"{self.path} holds no image.")
        return ids

    def _require_whole(self, txn: lmdb.Transaction, listed: bytes | None) -> None:
        """Raises DataError for a raw database that is half-built, damaged or of another schema."""
        sealed = txn.get(SCHEMA)
        first: Any = next((value for key, value in txn.cursor() if key != KEYS), b"")
        if sealed is None and not first.startswith(MAGIC):
            return  # a published flavour
        wrong = unsealed(listed, None if sealed is None else bytes(sealed))
        if wrong:
            raise DataError(f"{self.path} {wrong}.")


def read_record(
    folder: str, key: str, only: Collection[str] | None = None, limit: int | None = None, *, verify: bool = False
) -> Record:
    """The arrays stored under `key`, cut to `limit` rows. Raises DataError, naming key and folder."""
    return _read_value(folder, key, lambda value: cut(unpack(value, only, verify=verify), limit))


def _read_value(folder: str, key: str, use: Callable[[memoryview], T]) -> T:
    """What `use` makes of the value stored under `key`, which is a view on the database's memory."""
    try:
        with environment(folder).begin(buffers=True) as txn:
            value: Any = txn.get(key.encode(errors="replace"))
            if value is None:
                raise DataError(f"{folder} lists {key} but holds no record of it; convert the images again.")
            return use(value)
    except BadRecord as error:
        raise DataError(f"The record of {key} in {folder} is damaged ({error}); convert that image again.") from error
    except lmdb.Error as error:
        raise DataError(f"{folder} is damaged at {key} ({error}); copy or download it again.") from error


def _json(path: Path, text: bytes | None = None) -> Any:
    """The JSON in `text`, by default in the file `path` itself."""
    try:
        return parse(path.read_bytes() if text is None else text)
    except (OSError, ValueError) as error:
        raise DataError(f"The index in {path} is not JSON ({error}); copy or convert it again.") from error
