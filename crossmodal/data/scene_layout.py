"""The demo world's scenes: what stands where, how objects relate, and how a scene is drawn by lot.

Everything here is symbolic. `scene_render.py` turns a scene into a picture, `scene_captions.py` into
sentences, `scene_features.py` into the regions a detector would report.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]
Pixels = tuple[int, int]

CANVAS = 160
"""Width and height of a picture in pixels."""

KINDS = ("ball", "box", "heart", "moon", "ring", "star", "table", "tree")
COLOURS = ("black", "blue", "green", "orange", "pink", "purple", "red", "yellow")
SIZES = ("small", "medium", "large")
RELATIONS = ("left", "right", "above", "below", "on", "under")
REVERSED = dict(zip(RELATIONS, ("right", "left", "below", "above", "under", "on"), strict=True))

SIDE_SPREAD = 0.07
ASPECT = {"heart": 1.08, "moon": 0.75, "table": 1.45, "tree": 0.8}
"""Width over height of the kinds that are not as wide as high."""
SUPPORTS = ("box", "table")
"""The kinds with a flat top, on which another object can stand."""

_MARGIN = 5  # pixels between an object and the edge of the picture
_GAP = 9  # pixels between two objects that do not touch: a jittered detection must not close it
_TOUCH = 3.0 / CANVAS  # boxes at most this far apart touch
_DOMINANT = 1.25  # a relation is named along one axis where the other axis is clearly shorter


@dataclass(frozen=True)
class Staging:
    """How many objects a scene has, at least and at most, and how large those of each of `SIZES` are.

    sides: in pixels, the square root of the area of an object's box, give or take `SIDE_SPREAD`.
    """

    objects: tuple[int, int] = (2, 5)
    sides: tuple[int, int, int] = (24, 36, 54)


FULL = Staging()


@dataclass(frozen=True)
class SceneObject:
    """One object; `box` is (x1, y1, x2, y2), each divided by the picture's width or height, y downwards."""

    kind: str
    colour: str
    size: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """Two objects or more. No two objects of a scene share both kind and colour."""

    name: str
    objects: tuple[SceneObject, ...]

    @property
    def relations(self) -> tuple[tuple[int, str, int], ...]:
        """Every named relation, as (subject, relation, object), both directions of a pair included."""
        found = []
        for i, subject in enumerate(self.objects):
            for j, other in enumerate(self.objects):
                relation = relation_between(subject.box, other.box) if i != j else None
                if relation is not None:
                    found.append((i, relation, j))
        return tuple(found)

    @property
    def signature(self) -> tuple[tuple[str, str, str], ...]:
        """The objects as a sorted multiset of (kind, colour, size), whatever their places.

        Scenes of different signatures differ in a sentence one could say, so splits are kept apart by it.
        """
        return tuple(sorted((o.kind, o.colour, o.size) for o in self.objects))


def centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def relation_between(a: Box, b: Box) -> str | None:
    """The one relation of `a` to `b` that a person would name, or None where two would do.

    `on` and `under`: the boxes touch, and the upper one's centre is over the lower one. Otherwise the
    boxes are apart along the named axis, and the centres are farther apart along it than along the other.
    """
    if _stands_on(a, b):
        return "on"
    if _stands_on(b, a):
        return "under"
    (ax, ay), (bx, by) = centre(a), centre(b)
    dx, dy = abs(ax - bx), abs(ay - by)
    if dx >= _DOMINANT * dy:
        if a[2] < b[0]:
            return "left"
        if b[2] < a[0]:
            return "right"
    if dy >= _DOMINANT * dx:
        if a[3] < b[1]:
            return "above"
        if b[3] < a[1]:
            return "below"
    return None


def may_relate(a: Box, relation: str, b: Box) -> bool:
    """Whether the most generous reader could grant the relation: the centres lie in that order."""
    (ax, ay), (bx, by) = centre(a), centre(b)
    return {
        "left": ax < bx,
        "right": ax > bx,
        "above": ay < by,
        "on": ay < by,
        "below": ay > by,
        "under": ay > by,
    }[relation]


def _stands_on(upper: Box, lower: Box) -> bool:
    return abs(upper[3] - lower[1]) <= _TOUCH and lower[0] <= centre(upper)[0] <= lower[2]


def sample_scene(name: str, rng: np.random.Generator, staging: Staging = FULL) -> Scene:
    """Draw a scene in which at least one pair of objects has a nameable relation."""
    while True:
        count = int(rng.integers(staging.objects[0], staging.objects[1] + 1))
        looks = rng.choice(len(KINDS) * len(COLOURS), size=count, replace=False)
        kinds = [KINDS[look // len(COLOURS)] for look in looks]
        colours = [COLOURS[look % len(COLOURS)] for look in looks]
        sizes = [SIZES[i] for i in rng.integers(0, len(SIZES), size=count)]
        boxes = _place([_extent(k, s, rng, staging) for k, s in zip(kinds, sizes, strict=True)], kinds, rng)
        if boxes is None:
            continue
        objects = zip(kinds, colours, sizes, boxes, strict=True)
        scene = Scene(name, tuple(SceneObject(k, c, s, b) for k, c, s, b in objects))
        if scene.relations:
            return scene


def sample_scenes(
    prefix: str, count: int, stream: tuple[int, ...], taken: set[tuple[tuple[str, str, str], ...]]
) -> list[Scene]:
    """Draw `count` scenes named ``<prefix>_00000`` and on, none of a signature in `taken`, which grows.

    Scene i depends on `stream`, i and the signatures taken before it alone.
    """
    scenes = []
    for index in range(count):
        rng = np.random.default_rng((*stream, index))
        scene = sample_scene(f"{prefix}_{index:05d}", rng)
        while scene.signature in taken:
            scene = sample_scene(scene.name, rng)
        taken.add(scene.signature)
        scenes.append(scene)
    return scenes


def _extent(kind: str, size: str, rng: np.random.Generator, staging: Staging) -> Pixels:
    """Width and height in pixels."""
    side = staging.sides[SIZES.index(size)] * (1 + rng.uniform(-SIDE_SPREAD, SIDE_SPREAD))
    root = np.sqrt(ASPECT.get(kind, 1.0))
    return max(round(side * root), 1), max(round(side / root), 1)


def _place(extents: list[Pixels], kinds: list[str], rng: np.random.Generator) -> list[Box] | None:
    """Boxes for objects of these extents, one perhaps standing on another; None where they do not fit."""
    places: dict[int, Pixels] = {}  # object -> left and top in pixels
    stack = _choose_stack(extents, kinds, rng)
    if stack is not None:
        rider, support = stack
        (rider_w, rider_h), (support_w, _) = extents[rider], extents[support]
        slack = int(0.2 * support_w)
        offset = (support_w - rider_w) // 2 + int(rng.integers(-slack, slack + 1))
        left = int(rng.integers(_MARGIN + max(0, -offset), CANVAS - _MARGIN - support_w - max(0, offset)))
        lowest = CANVAS - _MARGIN - extents[support][1]
        if _MARGIN + rider_h > lowest:
            return None
        top = int(rng.integers(_MARGIN + rider_h, lowest + 1))
        places[support] = (left, top)
        places[rider] = (left + offset, top - rider_h)
    for i in sorted(range(len(extents)), key=lambda i: -extents[i][0] * extents[i][1]):
        if i in places:
            continue
        w, h = extents[i]
        for _ in range(40):
            x, y = (int(rng.integers(_MARGIN, CANVAS - _MARGIN - side + 1)) for side in (w, h))
            if all(_apart((x, y), (w, h), places[j], extents[j]) for j in places):
                places[i] = (x, y)
                break
        else:
            return None
    return [_normalised(places[i], extents[i]) for i in range(len(extents))]


def _choose_stack(extents: list[Pixels], kinds: list[str], rng: np.random.Generator) -> tuple[int, int] | None:
    """(rider, support): in most scenes that allow it, an object stands on one that is not much narrower."""
    supports = [s for s, kind in enumerate(kinds) if kind in SUPPORTS]
    pairs = [(r, s) for s in supports for r in range(len(kinds)) if r != s and extents[r][0] <= 1.1 * extents[s][0]]
    if not pairs or rng.random() < 0.4:
        return None
    return pairs[int(rng.integers(len(pairs)))]


def _apart(p: Pixels, p_extent: Pixels, q: Pixels, q_extent: Pixels) -> bool:
    return any(
        p[axis] + p_extent[axis] + _GAP <= q[axis] or q[axis] + q_extent[axis] + _GAP <= p[axis] for axis in (0, 1)
    )


def _normalised(place: Pixels, extent: Pixels) -> Box:
    (x, y), (w, h) = place, extent
    return x / CANVAS, y / CANVAS, (x + w) / CANVAS, (y + h) / CANVAS
