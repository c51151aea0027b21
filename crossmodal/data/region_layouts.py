"""The names and shapes under which detectors leave their boxes, and the one record that they become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmodal.errors import DataError

Array = NDArray[Any]

_FEATURES = ("features", "x")
_BOXES = ("boxes", "bbox")
_CONFIDENCE = ("conf", "objects_conf", "confidence")
_WIDTH = ("image_w", "img_w", "width")
_HEIGHT = ("image_h", "img_h", "height")
NAMES = frozenset({*_FEATURES, *_BOXES, *_CONFIDENCE, *_WIDTH, *_HEIGHT, "norm_bb", "soft_labels"})
"""What `as_record` looks at."""


def as_record(arrays: Mapping[str, Any], where: str, width: int | None = None) -> dict[str, Array]:
    """One image's arrays, under any of the names above, as a record of `region_records`.

    Either ``norm_bb`` (R,4 or 6) normalised to the image, kept in its order (detector dumps are sorted), or
    ``boxes``/``bbox`` (R,4: x1, y1, x2, y2 in pixels) with the image's width and height; these are sorted by
    descending confidence where there is one, because only the first rows of a record are used.
    ``features`` (R,F), or ``x``, also (F,R); `width` is what F must be, None for any. Whether the numbers are
    finite isn't looked at (`region_values`). Raises DataError, beginning with `where`.
    """
    for name in NAMES & arrays.keys():
        if arrays[name] is not None and np.asarray(arrays[name]).dtype.kind not in "biuf":
            raise DataError(f"{where} holds {name} that are not numbers; extract that image again.")
    features = _first(arrays, _FEATURES)
    if features is None or np.ndim(features) != 2:
        raise DataError(f"{where} holds no features of shape (boxes, F); it holds {_names(arrays)}.")
    features, conf = np.asarray(features), _first(arrays, _CONFIDENCE)
    norm_bb, sort = _norm_bb(arrays, where)
    if "features" not in arrays and features.shape[1] == len(norm_bb) != len(features):
        features = features.T
    record = {"norm_bb": norm_bb, "features": features}
    if conf is not None:
        record["conf"] = _floats(conf).reshape(-1, 1)
    if arrays.get("soft_labels") is not None:
        record["soft_labels"] = np.atleast_1d(arrays["soft_labels"])
    if width not in (None, features.shape[1]):
        raise DataError(f"{where} has features {features.shape[1]} wide, and the other images have {width}.")
    rows = {name: len(array) for name, array in record.items()}
    if len(set(rows.values())) != 1:
        raise DataError(f"{where} has arrays of different numbers of boxes: {rows}.")
    if sort and conf is not None:
        order = np.argsort(-record["conf"][:, 0].astype(np.float64), kind="stable")
        record = {name: array[order] for name, array in record.items()}
    return record


def common_width(loaders: Iterable[Callable[[], Mapping[str, Array]]]) -> int | None:
    """How wide the features of the first image are that can be read; None where none can.

    Formats without a checksum show by another width that part of an image is lost.
    """
    for load in loaders:
        with suppress(DataError):
            return int(load()["features"].shape[1])
    return None


def normalise(boxes: Array, width: float, height: float) -> NDArray[np.float32]:
    """(R,4) corners in pixels -> (R,6): x1, y1, x2, y2, w, h, each divided by the image's width or height."""
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are not finite are found by `region_values`
        return with_sizes(np.asarray(boxes, np.float32) / np.array([width, height, width, height], np.float32))


def with_sizes(corners: Array) -> NDArray[np.float32]:
    """(R,4) normalised corners -> (R,6): the corners, then w = x2-x1 and h = y2-y1."""
    corners = np.asarray(corners, np.float32)
    return np.concatenate([corners, corners[:, 2:] - corners[:, :2]], axis=1)


def _norm_bb(arrays: Mapping[str, Any], where: str) -> tuple[Array, bool]:
    """The six normalised numbers a box, and whether the rows are still to be sorted."""
    norm_bb, boxes = arrays.get("norm_bb"), _first(arrays, _BOXES)
    found = boxes if norm_bb is None else norm_bb
    widths = (4,) if norm_bb is None else (4, 6)
    if found is None or np.ndim(found) != 2 or np.shape(found)[1] not in widths:
        raise DataError(
            f"{where} holds neither norm_bb (boxes, 6) nor {' or '.join(_BOXES)} (boxes, 4); it holds {_names(arrays)}."
        )
    found = np.asarray(found)
    if norm_bb is not None:
        return (_floats(found) if found.shape[1] == 6 else with_sizes(found)), False
    width, height = _first(arrays, _WIDTH), _first(arrays, _HEIGHT)
    if width is None or height is None:
        raise DataError(f"{where} has boxes in pixels but no image_w and image_h to normalise them by.")
    return normalise(found, _side(width, where), _side(height, where)), True


def _floats(array: Any) -> Array:
    array = np.asarray(array)
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def _side(given: Any, where: str) -> float:
    """One side of an image in pixels."""
    if np.size(given) == 1:
        side = float(np.asarray(given).reshape(()))
        if 0 < side < np.inf:
            return side
    raise DataError(f"{where} gives the image a size of {given} on one side; extract that image again.")


def _first(arrays: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((arrays[name] for name in names if arrays.get(name) is not None), None)


def _names(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {np.shape(array)}" for name, array in arrays.items()) or "nothing"
