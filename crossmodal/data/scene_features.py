"""Region features of the demo world: what a detector would report, computed from the pixels of each box.

A region is described by the shape of its foreground, its colour and its size. The three blocks are whitened
with statistics of unlabelled regions, so that none drowns the others, and mixed by a fixed random
projection. Nothing here sees what an object is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crossmodal.data.scene_layout import Box, Scene, sample_scenes
from crossmodal.data.scene_render import render

Array = NDArray[np.float32]

FEATURE_DIM = 256

_PATCH = 24  # every box is resampled to this many pixels a side
_MASK = 8  # cells a side of the foreground layout
_CELLS, _ORIENTATIONS = 4, 8  # gradient-orientation histograms
_LEVELS = np.linspace(0.0, 1.0, 4, dtype=np.float32)  # of the soft colour histogram, a channel
_SIDES = np.log(np.geomspace(0.1, 0.5, 9)).astype(np.float32)  # of the soft size histogram
_SHARES = {"shape": 0.4, "colour": 0.45, "size": 0.15}  # of the feature's variance
_FLOOR = 0.03  # eigenvalues below this share of the largest are not amplified
_FEATURE_NOISE = 0.15
_EDGE_JITTER = 0.025  # standard deviation of each edge of a detected box, in box sides
_FIXED_SEED = 20_240_229  # of the statistics and the projection: the same for every world
_CALIBRATION_SCENES = 150


@dataclass(frozen=True)
class Detections:
    """R regions of one picture by descending confidence.

    boxes (R,6) x1, y1, x2, y2, w, h normalised; features (R,F); confidence (R,1).
    owner (R,): index of the object the box was drawn around, -1 for a distractor. For checks only: it is
    never stored.
    """

    boxes: Array
    features: Array
    confidence: Array
    owner: NDArray[np.int64]


def region_features(picture: NDArray[np.uint8], boxes: list[Box]) -> Array:
    """Features (R, FEATURE_DIM) of R boxes (x1, y1, x2, y2, normalised) of a picture (H,W,3).

    About zero mean and unit variance a dimension over the regions of the demo world.
    """
    return _calibration().apply(_describe(picture, boxes))


def detect(scene: Scene, picture: NDArray[np.uint8], rng: np.random.Generator) -> Detections:
    """Simulate a detector: jittered boxes of the objects, partial boxes, boxes of background, and noise."""
    boxes, confidence, owner = _propose(scene, rng)
    features = region_features(picture, boxes)
    features += rng.normal(0, _FEATURE_NOISE, size=features.shape).astype(np.float32)
    order = np.argsort(-confidence, kind="stable")
    corners = np.asarray(boxes, dtype=np.float32)[order]
    return Detections(
        boxes=np.concatenate([corners, corners[:, 2:] - corners[:, :2]], axis=1),
        features=features[order],
        confidence=confidence[order, None],
        owner=owner[order],
    )


def _propose(scene: Scene, rng: np.random.Generator) -> tuple[list[Box], Array, NDArray[np.int64]]:
    boxes = [_jittered(thing.box, rng) for thing in scene.objects]
    confidence = list(rng.uniform(0.5, 0.99, size=len(boxes)))
    owner = list(range(len(boxes)))
    if rng.random() < 0.5:
        boxes.append(_part_of(boxes[int(rng.integers(len(scene.objects)))], rng))
        confidence.append(rng.uniform(0.15, 0.45))
        owner.append(-1)
    for _ in range(int(rng.integers(1, 4))):
        w, h = rng.uniform(0.1, 0.35, size=2)
        x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
        empty = (x, y, x + w, y + h)
        if all(_overlap(empty, thing.box) == 0 for thing in scene.objects):
            boxes.append(empty)
            confidence.append(rng.uniform(0.03, 0.35))
            owner.append(-1)
    return boxes, np.asarray(confidence, dtype=np.float32), np.asarray(owner, dtype=np.int64)


def _jittered(box: Box, rng: np.random.Generator) -> Box:
    w, h = box[2] - box[0], box[3] - box[1]
    edges = np.asarray(box) + rng.normal(0, _EDGE_JITTER, size=4) * [w, h, w, h]
    x1, y1, x2, y2 = np.clip(edges, 0, 1).tolist()
    return x1, y1, x2, y2


def _part_of(box: Box, rng: np.random.Generator) -> Box:
    """About half of a box: its left, right, upper or lower part."""
    edge = int(rng.integers(4))
    part = list(box)
    part[edge] += (box[(edge + 2) % 4] - box[edge]) * rng.uniform(0.4, 0.6)
    x1, y1, x2, y2 = part
    return x1, y1, x2, y2


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _describe(picture: NDArray[np.uint8], boxes: list[Box]) -> dict[str, Array]:
    """The raw blocks, name -> (R, width)."""
    height, width = picture.shape[:2]
    scale = (width, height, width, height)
    image = Image.fromarray(picture)
    resized = [
        image.resize(
            (_PATCH, _PATCH),
            Image.Resampling.BILINEAR,
            box=tuple(min(max(v * s, 0.0), float(s)) for v, s in zip(box, scale, strict=True)),
        )
        for box in boxes
    ]
    patches: Array = np.stack([np.asarray(p, dtype=np.float32) for p in resized])  # (R, P, P, 3)
    patches /= 255
    # The backgrounds are light and pale, so a pixel is foreground as far as one channel is dark.
    foreground: Array = np.clip((0.85 - patches.min(axis=-1)) / 0.15, 0, 1)  # (R, P, P)
    corners = np.asarray(boxes, dtype=np.float32)
    return {
        "shape": np.concatenate([_layout(foreground), _orientations(foreground)], axis=1),
        "colour": _colours(patches, foreground),
        "size": _sizes(corners[:, 2:] - corners[:, :2]),
    }


def _layout(foreground: Array) -> Array:
    count, step = len(foreground), _PATCH // _MASK
    cells: Array = foreground.reshape(count, _MASK, step, _MASK, step).mean(axis=(2, 4))
    return cells.reshape(count, -1)


def _orientations(foreground: Array) -> Array:
    """Gradient strength by direction in each of 4 x 4 cells, directions shared softly between neighbours."""
    dy, dx = np.gradient(foreground, axis=(1, 2))
    directions = np.arange(_ORIENTATIONS, dtype=np.float32)
    turn = (np.arctan2(dy, dx) * (_ORIENTATIONS / (2 * np.pi)))[..., None] - directions
    distance = np.abs((turn + _ORIENTATIONS / 2) % _ORIENTATIONS - _ORIENTATIONS / 2)
    strength = np.hypot(dx, dy)[..., None] * np.clip(1 - distance, 0, 1)  # (R, P, P, orientations)
    count, step = len(foreground), _PATCH // _CELLS
    cells: Array = strength.reshape(count, _CELLS, step, _CELLS, step, _ORIENTATIONS).mean(axis=(2, 4))
    return cells.reshape(count, -1)


def _colours(patches: Array, foreground: Array) -> Array:
    """Soft 4 x 4 x 4 histogram of the foreground's colours, scaled to sum to the share of foreground or 1."""
    near = np.clip(1 - np.abs(patches[..., None] - _LEVELS) * (len(_LEVELS) - 1), 0, 1)  # (R, P, P, 3, L)
    near = near.reshape(len(patches), _PATCH * _PATCH, 3, len(_LEVELS))
    weight = foreground.reshape(len(patches), -1) ** 2
    weight = weight / np.maximum(weight.sum(axis=1, keepdims=True), 0.1 * _PATCH * _PATCH)
    red, green, blue = (near[:, :, channel] for channel in range(3))
    two = (weight[..., None] * red)[..., None] * green[:, :, None, :]  # (R, P*P, L, L)
    histogram: Array = two.reshape(*two.shape[:2], -1).transpose(0, 2, 1) @ blue  # (R, L*L, L)
    return histogram.reshape(len(patches), -1)


def _sizes(extents: Array) -> Array:
    """Soft histogram of the log side, then log width and height, (R, 11)."""
    logs = np.log(np.maximum(extents, 1e-3))
    side = logs.mean(axis=1, keepdims=True)
    bumps = np.exp(-0.5 * ((side - _SIDES) / (_SIDES[1] - _SIDES[0])) ** 2)
    return np.concatenate([bumps, logs], axis=1)


@dataclass(frozen=True)
class _Calibration:
    """A fixed linear map from the raw blocks to the features."""

    mean: dict[str, Array]
    mixing: dict[str, Array]  # (width, F)

    def apply(self, blocks: dict[str, Array]) -> Array:
        return np.asarray(
            sum((blocks[name] - self.mean[name]) @ self.mixing[name] for name in self.mean), dtype=np.float32
        )


@lru_cache(maxsize=1)
def _calibration() -> _Calibration:
    """Statistics of the regions of scenes drawn for this purpose alone, without their labels."""
    described: dict[str, list[Array]] = {name: [] for name in _SHARES}
    for scene in sample_scenes("calibration", _CALIBRATION_SCENES, (_FIXED_SEED,), set()):
        rng = np.random.default_rng((_FIXED_SEED, int(scene.name[-5:]), 1))
        picture = render(scene, rng)
        for name, block in _describe(picture, _propose(scene, rng)[0]).items():
            described[name].append(block)
    rng = np.random.default_rng((_FIXED_SEED, 2))
    mean, mixing, total = {}, {}, 0.0
    for name, share in _SHARES.items():
        raw = np.concatenate(described[name]).astype(np.float64)  # (calibration regions, width)
        mean[name] = raw.mean(axis=0).astype(np.float32)
        whitening = _whitening(np.cov(raw, rowvar=False), share)
        mixing[name] = whitening @ rng.normal(size=(raw.shape[1], FEATURE_DIM))
        total = total + (raw - raw.mean(axis=0)) @ mixing[name]
    scale = np.std(total, axis=0)
    return _Calibration(mean, {name: (m / scale).astype(np.float32) for name, m in mixing.items()})


def _whitening(covariance: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Symmetric whitening (so that the signs of eigenvectors do not matter), to total variance `share`."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0)
    gains = 1 / np.sqrt(values + _FLOOR * values[-1])
    gains *= np.sqrt(share / np.sum(values * gains**2))
    whitening: NDArray[np.float64] = (vectors * gains) @ vectors.T
    return whitening
