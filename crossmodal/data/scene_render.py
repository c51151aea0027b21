"""Draws a demo-world scene as a picture: flat objects, lightly shaded, on a light uneven background."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from crossmodal.data.scene_layout import CANVAS, Scene, SceneObject

Plane = NDArray[np.float32]
Points = NDArray[np.float64]  # (N, 2) x and y, y downwards

PAINT = {
    "black": (40, 40, 44),
    "blue": (45, 95, 215),
    "green": (40, 155, 70),
    "orange": (245, 135, 25),
    "pink": (245, 135, 185),
    "purple": (125, 60, 170),
    "red": (215, 40, 40),
    "yellow": (240, 210, 40),
}
_SUPERSAMPLING = 3
_TILT = math.radians(6)
_PAINT_SPREAD = 6  # how far, in 1/255, a channel of one object's colour strays from the palette
_GRAIN = 2.5  # standard deviation of the pixel noise, in 1/255


def render(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture of a scene, (CANVAS, CANVAS, 3). Every object fills its box exactly."""
    picture = _background(rng)
    standing = {i for i, relation, _ in scene.relations if relation in ("on", "under")}
    for i, thing in enumerate(scene.objects):
        # What stands on something, or bears something, stays upright.
        _draw(picture, thing, 0.0 if i in standing else float(rng.uniform(-_TILT, _TILT)), rng)
    picture += _GRAIN * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator) -> Plane:
    """(CANVAS, CANVAS, 3), from 0 to 255."""
    tint = rng.uniform(232, 247, size=3).astype(np.float32)
    blotches = Image.fromarray(rng.normal(0, 4, size=(5, 5)).astype(np.float32))
    uneven = np.asarray(blotches.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC))
    slope = np.linspace(rng.uniform(-6, 6), 0, CANVAS, dtype=np.float32)[:, None]
    picture: Plane = (uneven + slope)[..., None] + tint
    return picture


def _draw(picture: Plane, thing: SceneObject, tilt: float, rng: np.random.Generator) -> None:
    x1, y1, x2, y2 = (round(v * CANVAS) for v in thing.box)
    w, h = x2 - x1, y2 - y1
    alpha = _silhouette(thing.kind, w, h, tilt)  # (h, w) in [0, 1]
    paint = np.asarray(PAINT[thing.colour]) + rng.uniform(-_PAINT_SPREAD, _PAINT_SPREAD, size=3)
    light = np.linspace(1.06, 0.94, h)[:, None] + np.linspace(0.04, -0.04, w)  # brighter at the upper left
    rim = 1 - 0.3 * (1 - _eroded(alpha))  # a darker outline, so that objects stand out from the background
    surface = (light * rim).astype(np.float32)[..., None] * paint.astype(np.float32)
    patch = picture[y1:y2, x1:x2]
    patch += alpha[..., None] * (surface - patch)


def _eroded(alpha: Plane) -> Plane:
    padded = np.pad(alpha, 1)
    neighbours = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    inner: Plane = np.minimum.reduce([alpha, *neighbours])
    return inner


def _silhouette(kind: str, width: int, height: int, tilt: float) -> Plane:
    """Coverage of each pixel, (height, width), of the kind's outline tilted and then fitted to the box."""
    outline, holes = OUTLINES[kind]()
    turn = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
    outline = outline @ turn
    low, high = outline.min(axis=0), outline.max(axis=0)
    scale = np.array([width, height]) * _SUPERSAMPLING
    mask = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING), 0)
    brush = ImageDraw.Draw(mask)
    for points, fill in [(outline, 255), *((hole @ turn, 0) for hole in holes)]:
        brush.polygon([(float(x), float(y)) for x, y in (points - low) / (high - low) * scale], fill=fill)
    coverage: Plane = np.asarray(mask.reduce(_SUPERSAMPLING)).astype(np.float32) / np.float32(255)
    return coverage


def _circle(radius: float, points: int = 48) -> Points:
    angles = np.linspace(0, 2 * math.pi, points, endpoint=False)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _ball() -> tuple[Points, list[Points]]:
    return _circle(1.0), []


def _ring() -> tuple[Points, list[Points]]:
    return _circle(1.0), [_circle(0.58)]


def _box() -> tuple[Points, list[Points]]:
    return np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]), []


def _heart() -> tuple[Points, list[Points]]:
    t = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1), []


def _moon() -> tuple[Points, list[Points]]:
    """A crescent, open to the right: the outer arc and, back again, an arc of a shifted circle."""
    outer = np.linspace(math.radians(50), math.radians(310), 40)
    tip_x, tip_y = math.cos(outer[0]), math.sin(outer[0])
    shift = 0.62
    radius = math.hypot(tip_x - shift, tip_y)
    start = math.atan2(tip_y, tip_x - shift)
    inner = np.linspace(2 * math.pi - start, start, 40)
    arcs = [np.stack([np.cos(outer), np.sin(outer)], axis=1)]
    arcs.append(np.stack([shift + radius * np.cos(inner), radius * np.sin(inner)], axis=1))
    return np.concatenate(arcs), []


def _star() -> tuple[Points, list[Points]]:
    angles = np.arange(10) * math.pi / 5 - math.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1), []


def _table() -> tuple[Points, list[Points]]:
    right = [(1.0, -1.0), (1.0, -0.5), (0.82, -0.5), (0.82, 1.0), (0.52, 1.0), (0.52, -0.5)]
    return np.array(right + [(-x, y) for x, y in reversed(right)]), []


def _tree() -> tuple[Points, list[Points]]:
    right = [(0.0, -1.0), (0.62, -0.3), (0.36, -0.3), (1.0, 0.5), (0.2, 0.5), (0.2, 1.0)]
    return np.array(right + [(-x, y) for x, y in reversed(right[1:])]), []


OUTLINES: dict[str, Callable[[], tuple[Points, list[Points]]]] = {
    "ball": _ball,
    "box": _box,
    "heart": _heart,
    "moon": _moon,
    "ring": _ring,
    "star": _star,
    "table": _table,
    "tree": _tree,
}
"""Kind -> its outline and the holes in it, in any units: the outline is fitted to the object's box."""
