"""What every region database is: `db[image_id]` gives the image's detected boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crossmodal.data.items import RegionItem
from crossmodal.data.region_values import require_usable
from crossmodal.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
Record = dict[str, Array]

TAGS = "tags"
"""The array of a record that is not one row a box: names of what was detected, as `pack_tags` writes them."""

_ALWAYS = ("norm_bb", "features", "conf", "detic", TAGS)


@dataclass(frozen=True)
class BoxRule:
    """How many of an image's boxes are used: the first `count`, by descending confidence.

    ``min(max_bb, max(min_bb, number of confidences > conf_th))``; a `conf_th` of -1 means always `num_bb`.
    Never more than there are, and without confidences all of them, up to `max_bb`.
    """

    conf_th: float = 0.2
    max_bb: int = 100
    min_bb: int = 10
    num_bb: int = 36

    @property
    def fixed(self) -> bool:
        return self.conf_th == -1

    def count(self, conf: Array | None, rows: int) -> int:
        """conf (R,) or (R,1), or None; rows: R."""
        return min(self.num_bb, rows) if self.fixed else self.stored(conf, rows)

    def stored(self, conf: Array | None, rows: int) -> int:
        """What a converter keeps: it ignores `num_bb`, which the reader applies."""
        confident = rows if conf is None else int((conf > self.conf_th).sum())
        return min(self.max_bb, max(self.min_bb, confident), rows)


class RegionDB(ABC):
    """Images as detected boxes, by id. Files are opened at each read, so it can be sent to workers.

    `ids` in stored order; `lengths` id -> number of boxes that `db[id]` gives. Ids are file names ending in
    ``.npz``, as UNITER's text databases name them; a lookup without the ending finds them too.

    chosen: whether its boxes are used as they come, none being left out for its confidence.
    content: what an image that it lacks would need, in words. advice: what to do about such images.
    """

    chosen: ClassVar[bool] = False
    content: ClassVar[str] = "regions"
    advice: ClassVar[str] = "run `crossmodal data check` on the two databases"

    def __init__(self, path: Path, rule: BoxRule) -> None:
        self.path = path
        self.rule = rule

    @cached_property
    def ids(self) -> list[str]:
        return self._read_ids()

    @cached_property
    def lengths(self) -> dict[str, int]:
        return self._read_lengths()

    @abstractmethod
    def _read_ids(self) -> list[str]: ...

    @abstractmethod
    def _read_lengths(self) -> dict[str, int]: ...

    @abstractmethod
    def loader(self, key: str) -> Callable[[], Record]:
        """A small picklable function that reads the whole record of an image in `ids`, in any process."""

    def _read(self, key: str, only: Collection[str] | None, limit: int | None) -> Record:
        """The stored arrays of an image in `ids`, cut to `limit` rows; only the names in `only`."""
        record = self.loader(key)()
        return cut({name: array for name, array in record.items() if only is None or name in only}, limit)

    def sources(self) -> Iterator[tuple[str, Callable[[], Record]]]:
        """Every id with its loader: what `region_writer.write_region_db` takes."""
        return ((key, self.loader(key)) for key in self.ids)

    def record(self, image: str) -> Record:
        """All rows of an image: norm_bb (R,6), features (R,F), perhaps conf (R,1), soft_labels (R,C), detic (R,).

        And perhaps tags (N,L), names of N objects (`pack_tags`).
        """
        return self._read(self.key(image), None, None)

    def item(self, image: str, *, soft_labels: bool = False) -> RegionItem:
        """The first `lengths[image]` boxes of an image and all its tags; class probabilities, being large, if asked."""
        key = self.key(image)
        record = self._read(key, (*_ALWAYS, "soft_labels") if soft_labels else _ALWAYS, self.lengths[key])
        where = f"The record of {key} in {self.path}"
        require_boxes(record, where)
        require_usable(record, where)
        if soft_labels and "soft_labels" not in record:
            raise DataError(f"{self.path} holds no soft_labels for {key}.")
        return as_item(key, record)

    def over(self, images: Sequence[str]) -> RegionDB:
        """The same boxes for the use with these images, where a database depends on what it is used with."""
        return self

    def features(self, image: str) -> Tensor:
        """The features of `item` alone, (R,F) float32, as they are kept: unlike `item`'s they may hold NaN.

        An LMDB's are converted in the one pass that takes them out of the database.
        """
        return float32(self.item(image).features)

    @cached_property
    def feature_dim(self) -> int:
        """F, the width of a region's feature, read from the first image."""
        return int(self.item(self.ids[0]).features.shape[1])

    def key(self, image: str) -> str:
        """The id under which an image is stored. Raises DataError if it isn't."""
        if image in self.lengths:
            return image
        if f"{image}.npz" in self.lengths:
            return f"{image}.npz"
        raise DataError(f"{self.path} holds no image {image!r}; it holds {len(self)} such as {self.ids[:2]}.")

    def __getitem__(self, image: str) -> RegionItem:
        return self.item(image)

    def __contains__(self, image: object) -> bool:
        return isinstance(image, str) and (image in self.lengths or f"{image}.npz" in self.lengths)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)


def require_boxes(record: Record, where: str) -> None:
    """Raises DataError, beginning with `where`, unless features (R,F), norm_bb (R,6), any conf and detic agree."""
    features, boxes, conf, detic = (record.get(name) for name in ("features", "norm_bb", "conf", "detic"))
    if (
        features is None
        or boxes is None
        or features.ndim != 2
        or boxes.shape != (len(features), 6)
        or any(array is not None and array.size != len(features) for array in (conf, detic))
    ):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in record.items()) or "nothing"
        raise DataError(f"{where} lacks features (R,F) or norm_bb (R,6): it holds {shapes}; convert that image again.")


def as_item(key: str, record: Record) -> RegionItem:
    """A record, all its rows, as the item of image `key`. Raises DataError for tags that are no names."""
    conf, detic = record.get("conf"), record.get("detic")
    try:
        tags = unpack_tags(record[TAGS]) if TAGS in record else ()
    except (ValueError, AttributeError) as error:
        raise DataError(f"The tags of {key} are damaged ({error}); convert that image again.") from None
    return RegionItem(
        id=key,
        features=record["features"],
        boxes=record["norm_bb"].astype(np.float32),
        confidence=None if conf is None else conf.reshape(-1).astype(np.float32),
        soft_labels=record.get("soft_labels"),
        tags=tags,
        detic=None if detic is None else detic.reshape(-1).astype(bool),
    )


def pack_tags(names: Sequence[str]) -> NDArray[np.uint8]:
    """Names -> (N,L) uint8: their UTF-8, zeros at the right; L the longest, at least 1."""
    encoded = [name.encode() for name in names]
    width = max([1, *map(len, encoded)])
    rows = b"".join(name.ljust(width, b"\0") for name in encoded)
    return np.frombuffer(rows, np.uint8).reshape(len(encoded), width)


def unpack_tags(packed: Array) -> tuple[str, ...]:
    """The names that `pack_tags` was given. Raises ValueError for an array of another kind."""
    if packed.dtype != np.uint8 or packed.ndim != 2:
        raise ValueError(f"an array of {packed.dtype} and shape {packed.shape}")
    return tuple(row.tobytes().rstrip(b"\0").decode() for row in packed)


def cut(record: Record, limit: int | None) -> Record:
    """The first `limit` rows of every array, tags whole; copied: nothing refers to the memory of a database."""
    return {name: np.array(array if name == TAGS else array[:limit]) for name, array in record.items()}


def float32(array: Array) -> Tensor:
    """A copy as a tensor. torch converts half precision twenty times as fast as numpy."""
    import torch

    try:
        return torch.asarray(array, dtype=torch.float32, copy=True)
    except (TypeError, ValueError):  # numbers that torch doesn't know, such as big-endian ones
        return torch.from_numpy(array.astype(np.float32))
