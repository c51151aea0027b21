"""Faster R-CNN's and Detic's detections merged, as ALADIN-2.0 does (ALADIN, spec section 12.3).

Of each image: boxes of one class that overlap are reduced to the best, Faster R-CNN's before Detic's; what is kept
stands by descending z-score of its confidence within its own detector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from crossmodal.data.detic import detic_boxes, read_shelved, shelve_of, shelved
from crossmodal.data.region_db import BoxRule, Record, RegionDB, pack_tags
from crossmodal.data.vinvl_predictions import Detections, read_predictions
from crossmodal.data.vinvl_regions import VinvlRegions, bare
from crossmodal.errors import DataError

OVERLAP = 0.5
MOST = 100

Merge = Literal["det+fast", "det+fast_labels"]


class MergedRegions(RegionDB):
    """A VinVL folder with a shelve of Detic's detections in it: the merged tags, and regions.

    merge: ``det+fast``: the merged regions, Faster R-CNN's features (R,2048), and Detic's followed by zeros;
    ``det+fast_labels``: Faster R-CNN's regions alone. images: what the z-scores and the classes are taken over; None
    means all images of predictions.tsv that both detectors know.
    published: as ALADIN-2.0 does it: the z-scores of the boxes in another order, and the features of other boxes
    than those of the tags (for checkpoints trained so).
    """

    chosen: ClassVar[bool] = True
    content: ClassVar[str] = "features or detections"

    def __init__(
        self,
        path: Path,
        rule: BoxRule,
        merge: Merge = "det+fast",
        *,
        images: Sequence[str] | None = None,
        published: bool = False,
    ) -> None:
        super().__init__(shelve_of(path).absolute(), rule)
        self.merge, self.published = merge, published
        self.faster = VinvlRegions(self.path.parent, rule)
        self.images = None if images is None else frozenset(map(bare, images))

    @cached_property
    def merged(self) -> dict[str, Merged]:
        """Image id -> what is kept of it, in the order of predictions.tsv."""
        if self.faster._named is None:
            raise DataError(f"{self.faster.predictions} isn't there, and merging needs it; copy it")
        known = set(map(bare, self.faster.ids)) & set(shelved(self.path))
        chosen = [i for i in self.faster._named if i in known and (self.images is None or i in self.images)]
        if not chosen:
            raise DataError(f"{self.path} and {self.faster.path} have no image in common")
        return merge_all({i: self._found(i) for i in tqdm(chosen, "merging detections", disable=None)}, self.published)

    def over(self, images: Sequence[str]) -> MergedRegions:
        return MergedRegions(self.path, self.rule, self.merge, images=images, published=self.published)

    def _found(self, image: str) -> tuple[Detections, Detections]:
        assert self.faster._named is not None
        faster = read_predictions(self.faster.predictions, self.faster._named[image], image)
        _require(faster, f"The line of image {image} in {self.faster.predictions}", self.faster._lines[image][1])
        detic = read_shelved(self.path, image)[0]
        _require(detic, f"The record of image {image} in {self.path}", len(detic.names))
        return faster, detic

    def _read_ids(self) -> list[str]:
        return [f"{image}.npz" for image in self.merged]

    def _read_lengths(self) -> dict[str, int]:
        if self.merge == "det+fast_labels":
            return {key: self.faster.lengths[key] for key in self.ids}
        return {key: self.rule.count(None, len(self.merged[bare(key)].order)) for key in self.ids}

    def loader(self, key: str) -> Callable[[], Record]:
        faster = self.faster.loader(key)
        return partial(read_merged, faster, self.path, bare(key), self.merged[bare(key)], self.merge)


def _require(found: Detections, where: str, boxes: int) -> None:
    if found.conf is None or found.rects is None or len(found.names) != boxes:
        raise DataError(f"{where} has not {boxes} objects with conf and rect, which merging needs; detect it again")


@dataclass(frozen=True)
class Merged:
    """What is kept of an image. `order` (K,): indices of boxes, Faster R-CNN's first, then Detic's, as they are listed.

    tags: their names. regions (K,): whose features go with them, `order` unless published.
    """

    order: NDArray[np.int64]
    tags: tuple[str, ...]
    regions: NDArray[np.int64]


def merge_all(found: dict[str, tuple[Detections, Detections]], published: bool = False) -> dict[str, Merged]:
    """Image -> (Faster R-CNN's, Detic's) detections, with conf and rects, to what is kept of each."""
    confidences = [np.concatenate([pair[detector].conf for pair in found.values()]) for detector in (0, 1)]
    known: dict[str, int] = {}
    merged = {}
    for image, (faster, detic) in found.items():
        assert faster.conf is not None and detic.conf is not None
        assert faster.rects is not None and detic.rects is not None
        classes = np.array([*(_class(known, n) for n in faster.names), *(_detic_class(known, n) for n in detic.names)])
        priority = np.concatenate([faster.conf + detic.conf.max(initial=0), detic.conf])
        kept = class_nms(np.concatenate([faster.rects, detic.rects]), priority, classes)[:MOST]
        scores = np.concatenate([_z(faster.conf, confidences[0]), _z(detic.conf, confidences[1])])
        order = kept[np.argsort(-scores[np.sort(kept) if published else kept], kind="stable")]
        regions = order
        if published:  # indices into Detic's features followed by Faster R-CNN's
            regions = np.where(order < len(detic.names), order + len(faster.names), order - len(detic.names))
        names = (*faster.names, *detic.names)
        merged[image] = Merged(order, tuple(names[i] for i in order), regions)
    return merged


def _z(conf: NDArray[np.float32], of: NDArray[np.float32]) -> NDArray[np.float64]:
    deviation = of.std(dtype=np.float64) if len(of) else 0.0
    return (conf - of.mean(dtype=np.float64)) / (deviation or 1.0) if len(conf) else np.zeros(0)


def _class(known: dict[str, int], name: str) -> int:
    return known.setdefault(name, len(known))


def _detic_class(known: dict[str, int], name: str) -> int:
    """The class of an equal known name, else of the first that contains one of its words, else a new one."""
    if name not in known:
        words = detic_words(name)
        known[name] = next((number for other, number in known.items() if any(w in other for w in words)), len(known))
    return known[name]


def detic_words(name: str) -> list[str]:
    """``tennis_racket`` -> tennis, racket; ``ball_(sports)`` -> (sports, ball: the bracket stays, as published."""
    before, bracket, inside = name.partition("(")
    words = [word for word in before.split("_") if word]
    return [(bracket + inside[:-1]).split("_")[-1], *words] if bracket else words


def class_nms(boxes: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Non-maximum suppression within each class: indices of what is kept, by descending score.

    boxes (N,4) corners. A box goes where one of its class with a higher score overlaps it by more than `OVERLAP`.
    """
    if not len(boxes):
        return np.zeros(0, np.int64)
    apart = boxes + (classes * (boxes.max() + 1)).astype(np.float32)[:, None]  # no box meets one of another class
    area = (apart[:, 2] - apart[:, 0]) * (apart[:, 3] - apart[:, 1])
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = np.maximum(apart[best, :2], apart[left, :2]), np.minimum(apart[best, 2:], apart[left, 2:])
        shared = (high - low).clip(min=0).prod(axis=1)
        left = left[~(shared > OVERLAP * (area[best] + area[left] - shared))]
    return np.array(kept, np.int64)


def read_merged(faster: Callable[[], Record], shelve: Path, image: str, merged: Merged, merge: Merge) -> Record:
    """The record of an image: regions and merged tags. Raises DataError, naming it."""
    plain = faster()
    tags = pack_tags(merged.tags)
    if merge == "det+fast_labels":
        return {"norm_bb": plain["norm_bb"], "features": plain["features"], "tags": tags}
    found, narrow = read_shelved(shelve, image)
    first, width = len(plain["features"]), plain["features"].shape[1]
    if narrow.shape[1] > width:
        raise DataError(f"Image {image} has Detic features {narrow.shape[1]} wide, wider than the others ({width})")
    wide = np.pad(narrow, ((0, 0), (0, width - narrow.shape[1])))
    boxes = np.concatenate([plain["norm_bb"], detic_boxes(found, f"The record of image {image} in {shelve}")])
    return {
        "norm_bb": boxes[merged.regions],
        "features": np.concatenate([plain["features"], wide])[merged.regions],
        "detic": merged.regions >= first,
        "tags": tags,
    }
