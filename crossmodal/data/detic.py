"""Detic's published detections: a Python shelve, image id -> what was found (ALADIN, spec section 12.3).

A value is a pickle of ``{"image_h", "image_w", "objects": [{"class", "conf", "rect": [x1, y1, x2, y2], "features":
1024 numbers}]}``. It is opened by the allow-list unpickler. A shelve reads slowly, so convert one that is used often
(`crossmodal data regions --from det`).
"""

from __future__ import annotations

import dbm
import os
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from crossmodal.data.npz import LARGEST
from crossmodal.data.region_db import BoxRule, Record, RegionDB, pack_tags
from crossmodal.data.region_layouts import normalise, with_sizes
from crossmodal.data.unpickle import Refused, unpickle
from crossmodal.data.vinvl_predictions import Detections, detections_of
from crossmodal.data.vinvl_regions import bare
from crossmodal.errors import DataError

_ENDINGS = (".dir", ".dat", ".bak", ".db", ".pag")  # files that dbm adds to the name of a shelve


class DeticRegions(RegionDB):
    """A shelve of Detic's: features (R,1024), boxes clipped to the image, tags; `RegionItem.detic` is true for all."""

    chosen: ClassVar[bool] = True

    def __init__(self, path: Path, rule: BoxRule) -> None:
        super().__init__(shelve_of(path).absolute(), rule)

    @cached_property
    def _counts(self) -> dict[str, int]:
        """Image -> number of boxes, of images that have any: one pass over the shelve."""
        images = shelved(self.path)
        counts = {i: len(read_shelved(self.path, i)[0].names) for i in tqdm(images, "counting boxes", disable=None)}
        return {f"{image}.npz": count for image, count in counts.items() if count}

    def _read_ids(self) -> list[str]:
        if not self._counts:
            raise DataError(f"{self.path} holds no image with a box")
        return list(self._counts)

    def _read_lengths(self) -> dict[str, int]:
        return {key: self.rule.count(None, count) for key, count in self._counts.items()}

    def loader(self, key: str) -> Callable[[], Record]:
        return partial(read_detic, self.path, bare(key))


def read_detic(shelve: Path, image: str) -> Record:
    """The record of an image. Raises DataError, naming it."""
    found, features = read_shelved(shelve, image)
    where = f"The record of image {image} in {shelve}"
    record = {
        "norm_bb": detic_boxes(found, where),
        "features": features,
        "detic": np.ones(len(features), bool),
        "tags": pack_tags(found.names),
    }
    return record if found.conf is None else {**record, "conf": found.conf[:, None]}


def detic_boxes(found: Detections, where: str) -> NDArray[np.float32]:
    """(R,6) boxes normalised to the image and clipped to it. Raises DataError where one has no rect."""
    if found.rects is None:
        raise DataError(f"{where} has objects without a rect; detect that image again")
    return with_sizes(normalise(found.rects, *found.size)[:, :4].clip(0, 1))


def shelve_of(path: Path) -> Path:
    """The shelve that a path means: its name, one of its files, or a folder that holds one shelve."""
    if path.is_dir():
        names = {file.with_suffix("") if file.suffix in _ENDINGS else file for file in path.iterdir() if file.is_file()}
        found = sorted(name for name in names if dbm.whichdb(str(name)))
        if len(found) != 1:
            listed = ", ".join(name.name for name in found) or "none"
            raise DataError(f"{path} must hold one shelve of Detic's detections, and there is: {listed}; name the file")
        return found[0]
    for name in (path, path.with_suffix("") if path.suffix in _ENDINGS else path):
        if dbm.whichdb(str(name)):
            return name
    raise DataError(f"{path} is no shelve of Detic's detections; check the path")


def is_shelve(path: Path) -> bool:
    return not path.is_dir() and bool(dbm.whichdb(str(path)))


def shelved(shelve: Path) -> list[str]:
    """The images of a shelve, in its order."""
    return [key.decode("utf-8", errors="replace") for key in _opened(str(shelve), os.getpid()).keys()]  # noqa: SIM118


def read_shelved(shelve: Path, image: str) -> tuple[Detections, NDArray[np.float32]]:
    """What was found in an image, and the features (R,F) of its boxes. Raises DataError, naming the image."""
    where = f"The record of image {image} in {shelve}"
    try:
        value = _opened(str(shelve), os.getpid())[image.encode()]
    except KeyError:
        raise DataError(f"{shelve} holds no image {image}; detect it, or leave its captions out") from None
    except (OSError, ValueError, *dbm.error) as error:
        raise DataError(f"{where} cannot be read ({error}); copy the shelve again") from None
    if len(value) > LARGEST:
        raise DataError(f"{where} has more than {LARGEST >> 20} MiB; is this a shelve of Detic's?")
    try:
        record = unpickle(value)
    except Refused as error:
        raise DataError(f"{where} cannot be read ({error}); copy the shelve again") from None
    found = detections_of(record, where)
    return found, _features(record, where)


def _features(record: Any, where: str) -> NDArray[np.float32]:
    objects = record["objects"] if isinstance(record, dict) else record
    try:
        features = np.array([o["features"] for o in objects], np.float32)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{where} has objects whose features are no numbers, or of several widths") from None
    if len(objects) and features.ndim != 2:
        raise DataError(f"{where} has features of shape {features.shape}; detect that image again")
    return features.reshape(len(objects), -1) if len(objects) else np.zeros((0, 1), np.float32)


@lru_cache(maxsize=4)
def _opened(shelve: str, process: int) -> Any:
    """The shelve's database, one a process: its place in the file isn't shared with a process that forked."""
    try:
        return dbm.open(shelve, "r")
    except (OSError, ValueError, SyntaxError, ImportError, *dbm.error) as error:
        raise DataError(
            f"the shelve {shelve} cannot be opened ({error}); copy it again, or convert it where its kind of database "
            "can be read"
        ) from None
