"""What a detector named: ``predictions.tsv``, one image a line, ``image_id \\t JSON`` (ALADIN, spec section 7).

The JSON is ``{"image_h", "image_w", "objects": [{"class", "conf", "rect": [x1, y1, x2, y2]}]}`` or the list alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmodal.data.json_text import parse
from crossmodal.data.tsv_lines import heads, line_starts, read_line
from crossmodal.errors import DataError

DEFAULT_SIZE = (800.0, 600.0)
"""Width and height in pixels of an image whose line is a list alone, as published."""


@dataclass(frozen=True)
class Detections:
    """What a detector found in an image, in its order: names, confidences (R,), boxes (R,4) in pixels.

    `size` is the image's width and height. Confidences or boxes that aren't there for all are None.
    """

    names: tuple[str, ...]
    conf: NDArray[np.float32] | None
    rects: NDArray[np.float32] | None
    size: tuple[float, float]


def detections_of(found: Any, where: str) -> Detections:
    """What a parsed line or a record of Detic's means. Raises DataError, beginning with `where`."""
    described = found if isinstance(found, dict) else {"objects": found}
    objects = described.get("objects")
    if not isinstance(objects, list) or not all(isinstance(_class(o), str) for o in objects):
        raise DataError(f"{where} holds no list of objects with their class; detect that image again")
    size = [described.get(name, default) for name, default in zip(("image_w", "image_h"), DEFAULT_SIZE, strict=True)]
    if not all(isinstance(side, (int, float)) and 0 < side < np.inf for side in size):
        raise DataError(f"{where} gives the image a size of {size}; detect that image again")
    return Detections(
        names=tuple(o["class"] for o in objects),
        conf=_numbers(objects, "conf", (), where),
        rects=_numbers(objects, "rect", (4,), where),
        size=(float(size[0]), float(size[1])),
    )


def _class(found: Any) -> Any:
    return found.get("class") if isinstance(found, dict) else None


def _numbers(objects: list[Any], name: str, shape: tuple[int, ...], where: str) -> NDArray[np.float32] | None:
    """(R, *shape) what the objects hold under `name`, None where one of them holds nothing."""
    if any(o.get(name) is None for o in objects):
        return None
    try:
        values = np.array([o[name] for o in objects], np.float32).reshape(len(objects), *shape)
    except (TypeError, ValueError):
        raise DataError(f"{where} holds a {name} that is not {shape[0] if shape else 'a'} numbers") from None
    if not np.isfinite(values).all():
        raise DataError(f"{where} holds a {name} that is not finite; detect that image again")
    return values


def index_predictions(tsv: Path) -> dict[str, int]:
    """Image id -> the byte at which its line begins; no JSON is read. Raises DataError where an id stands twice."""
    starts = line_starts(tsv)
    index: dict[str, int] = {}
    for number, (start, columns) in enumerate(zip(starts.tolist(), heads(tsv, starts), strict=True), start=1):
        image = columns[0].decode("utf-8", errors="replace") if columns else ""
        if image in index:
            raise DataError(f"{tsv}, line {number}, holds image {image} again; keep one of its lines")
        if image:
            index[image] = start
    return index


def read_predictions(tsv: Path, start: int, image: str) -> Detections:
    """The line of an image. Raises DataError, naming the image, where it is damaged."""
    where = f"The line of image {image} in {tsv}"
    columns = read_line(tsv, start)
    if len(columns) < 2 or columns[0].decode("utf-8", errors="replace") != image:
        raise DataError(f"{where} is not where its index says; copy the file again")
    try:
        found = parse(columns[-1])
    except ValueError as error:
        raise DataError(f"{where} holds no JSON ({error}); copy the file again") from None
    return detections_of(found, where)
