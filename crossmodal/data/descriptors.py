"""Describing crops of a picture by colour, gradient and texture statistics, without any weights.

Each crop is scaled to 32 x 32 pixels, so a description says nothing of where the crop is or how large.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
Floats = NDArray[np.float32]

_SIDE = 32
_CELLS = 4  # gradients and mean colours are taken in _CELLS x _CELLS parts of a crop
_ORIENTATIONS = 9
_LEVELS = 4  # a colour channel's levels in the colour histogram


def describe(image: Image.Image, corners: Floats) -> Floats:
    """An RGB picture and the corners (R,4) of its crops -> (R,D), each of the five parts of unit length."""
    size = np.array(image.size * 2, np.float32)
    boxes = [tuple(float(v) for v in box * size) for box in corners]
    crops = [
        np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=box))  # type: ignore[arg-type]
        for box in boxes
    ]
    pixels = np.stack(crops).astype(np.float32) / 255  # (R,32,32,3)
    gray = pixels @ np.array([0.299, 0.587, 0.114], np.float32)  # (R,32,32)
    parts = (
        np.sqrt(_colours(pixels)),
        _moments(pixels),
        _layout(pixels),
        np.sqrt(_gradients(gray)),
        np.sqrt(_texture(gray)),
    )
    return np.concatenate([_unit(part) for part in parts], axis=1).astype(np.float32)


def _colours(pixels: Array) -> Array:
    """(R,64): share of the pixels in each of 4x4x4 colours."""
    levels = np.minimum((pixels * _LEVELS).astype(int), _LEVELS - 1)
    codes = (levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]
    return _histogram(codes.reshape(len(pixels), -1), _LEVELS**3)


def _moments(pixels: Array) -> Array:
    """(R,9): mean, spread and skew (cube root) of each channel."""
    flat = pixels.reshape(len(pixels), -1, 3)
    centred = flat - flat.mean(1, keepdims=True)
    return np.concatenate([flat.mean(1) - 0.5, flat.std(1), np.cbrt((centred**3).mean(1))], axis=1)


def _layout(pixels: Array) -> Array:
    """(R,48): the mean colour of each part, less grey."""
    step = _SIDE // _CELLS
    parts = pixels.reshape(-1, _CELLS, step, _CELLS, step, 3).mean((2, 4))
    return parts.reshape(len(pixels), -1) - 0.5


def _gradients(gray: Array) -> Array:
    """(R,144): in each part, gradient magnitude by orientation (unsigned, 9 bins)."""
    gy, gx = np.gradient(gray, axis=(1, 2))
    magnitude = np.hypot(gx, gy)
    bins = np.minimum((np.arctan2(gy, gx) % np.pi) / np.pi * _ORIENTATIONS, _ORIENTATIONS - 1).astype(int)
    step = _SIDE // _CELLS
    part = np.arange(_SIDE) // step
    codes = (part[:, None] * _CELLS + part[None, :])[None] * _ORIENTATIONS + bins
    return _histogram(codes.reshape(len(gray), -1), _CELLS**2 * _ORIENTATIONS, magnitude.reshape(len(gray), -1))


def _texture(gray: Array) -> Array:
    """(R,10): uniform, rotation-invariant local binary patterns (Ojala et al. 2002) of 8 neighbours."""
    ring = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    inner = _SIDE - 2
    centre = gray[:, 1:-1, 1:-1] + 1e-3  # flat areas must not depend on rounding
    bits = np.stack([gray[:, y : y + inner, x : x + inner] > centre for y, x in ring])
    changes = (bits != np.roll(bits, 1, axis=0)).sum(0)
    codes = np.where(changes <= 2, bits.sum(0), len(ring) + 1)
    return _histogram(codes.reshape(len(gray), -1), len(ring) + 2)


def _histogram(codes: Array, size: int, weights: Array | None = None) -> Array:
    """(R,N) codes below `size` -> (R,size): their mean weight (1 by default)."""
    rows = len(codes)
    offset = codes + np.arange(rows)[:, None] * size
    counts = np.bincount(offset.ravel(), None if weights is None else weights.ravel(), rows * size)
    return counts.reshape(rows, size) / codes.shape[1]


def _unit(part: Array) -> Array:
    return part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6)
