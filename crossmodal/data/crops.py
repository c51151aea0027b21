"""Which parts of a picture become regions: grid cells, and windows that stand out from what is around them.

Corners are (R,4) float32: x1, y1, x2, y2, normalised to the picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

_SIDE = 64  # the saliency map is _SIDE x _SIDE pixels
_STEP = 4
_SIZES = (12, 18, 26, 36)
_OVERLAP = 0.4


def grid(side: int) -> Floats:
    """The side*side equal cells of a picture, row by row."""
    y, x = (a.ravel() for a in np.mgrid[0:side, 0:side])
    return (np.stack([x, y, x + 1, y + 1], axis=1) / side).astype(np.float32)


def salient(image: Image.Image, cells: Floats, crops: int) -> tuple[Floats, Floats]:
    """`cells` and up to `crops` windows that stand out and overlap little: corners (R,4), saliency (R,) in [0,1]."""
    energy = _energy(image)
    windows = _windows()
    contrast = _contrast(energy, windows)
    chosen: list[int] = []
    for candidate in np.argsort(-contrast, kind="stable"):
        if len(chosen) == crops:
            break
        if all(_iou(windows[candidate], windows[other]) < _OVERLAP for other in chosen):
            chosen.append(int(candidate))
    corners = np.concatenate([cells, (windows[chosen] / _SIDE).astype(np.float32)])
    # A cell is compared by the same measure; the whole picture has no surroundings and counts as the best.
    values = _contrast(energy, np.rint(corners * _SIDE).astype(int))
    whole = np.all(corners == (0, 0, 1, 1), axis=1)
    spread = float(np.ptp(values)) or 1.0
    return corners, np.where(whole, 1.0, (values - values.min()) / spread).astype(np.float32)


def _energy(image: Image.Image) -> NDArray[Any]:
    """(_SIDE,_SIDE): how far each pixel's colour is from the picture's mean colour, plus its gradient."""
    pixels = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float64) / 255
    distance = np.linalg.norm(pixels - pixels.mean((0, 1)), axis=2)
    gy, gx = np.gradient(pixels.mean(2))
    return distance + np.hypot(gx, gy)


def _windows() -> NDArray[Any]:
    """(N,4) candidates in pixels of the map: several sizes and aspects, every few pixels."""
    boxes = []
    for w in _SIZES:
        for h in _SIZES:
            if 0.5 <= w / h <= 2:
                y, x = (a.ravel() for a in np.mgrid[0 : _SIDE - h + 1 : _STEP, 0 : _SIDE - w + 1 : _STEP])
                boxes.append(np.stack([x, y, x + w, y + h], axis=1))
    return np.concatenate(boxes)


def _contrast(energy: NDArray[Any], windows: NDArray[Any]) -> NDArray[Any]:
    """Mean energy inside each window less the mean in a ring around it (half the area of the window wide)."""
    sums = np.zeros((_SIDE + 1, _SIDE + 1))
    sums[1:, 1:] = energy.cumsum(0).cumsum(1)
    margin = np.maximum((windows[:, 2:] - windows[:, :2]) // 4, 1)
    outer = np.concatenate([windows[:, :2] - margin, windows[:, 2:] + margin], axis=1).clip(0, _SIDE)
    inside, area = _sum(sums, windows)
    around, outer_area = _sum(sums, outer)
    ring = np.maximum(outer_area - area, 1)
    return inside / area - (around - inside) / ring


def _sum(sums: NDArray[Any], boxes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    x1, y1, x2, y2 = boxes.T
    return sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1], (x2 - x1) * (y2 - y1)


def _iou(a: NDArray[Any], b: NDArray[Any]) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = float(np.prod(np.maximum(high - low, 0)))
    return both / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)
