"""Turning a picture into regions: the interface of every detector, and a built-in stand-in for one.

`GridExtractor` needs no weights. It is a stand-in for a detector, not a detector: it cuts the picture into grid
cells and a few crops that stand out, and describes each by colour, gradient and texture statistics. Features are
comparable among its own pictures and mean nothing to a model trained on a detector's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crossmodal.data.crops import grid, salient
from crossmodal.data.descriptors import describe
from crossmodal.data.items import RegionItem
from crossmodal.data.region_layouts import with_sizes
from crossmodal.errors import ConfigError, nearest

Floats = NDArray[np.float32]

_THUMBNAIL = 256  # pixels: larger pictures are shrunk to this longer side before they are described


class RegionExtractor(Protocol):
    """A picture -> its regions. Implementations can be pickled: `write_photo_db` sends them to workers."""

    @property
    def feature_dim(self) -> int:
        """F, the width of a region's feature."""

    @property
    def identity(self) -> str:
        """What the features depend on: a name with every option, one for one set of features."""

    def __call__(self, image: Image.Image, name: str = "") -> RegionItem:
        """features (R,F), boxes (R,6) and confidence (R,) of an RGB picture, by descending confidence."""


class GridExtractor:
    """The whole picture, grid cells at several scales, and crops that stand out, described without weights.

    feature_dim: F. grids: cells a side of each scale. crops: how many salient crops, at most. seed: of the random
    projection of the description to F dimensions, after which negative values become 0, as in a detector's
    pool5. The confidence of a region is 0.3 to 1 and grows with how much it stands out, so all of them pass the
    usual threshold of 0.2. Equal pictures give equal regions.
    """

    def __init__(
        self, feature_dim: int = 2048, *, grids: tuple[int, ...] = (1, 2, 3, 4), crops: int = 6, seed: int = 0
    ) -> None:
        self.feature_dim = feature_dim
        self.grids = tuple(grids)
        self.crops = crops
        self.seed = seed

    @property
    def options(self) -> dict[str, Any]:
        """What `build_extractor` makes this one from."""
        return {
            "use": "grid",
            "feature_dim": self.feature_dim,
            "grids": list(self.grids),
            "crops": self.crops,
            "seed": self.seed,
        }

    @property
    def identity(self) -> str:
        return json.dumps(self.options, sort_keys=True)

    def __call__(self, image: Image.Image, name: str = "") -> RegionItem:
        image = image.convert("RGB")
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        cells = np.concatenate([grid(side) for side in self.grids])
        corners, saliency = salient(image, cells, self.crops)
        order = np.argsort(-saliency, kind="stable")
        corners, saliency = corners[order], saliency[order]
        description = describe(image, corners)
        features = np.maximum(description @ _projection(description.shape[1], self.feature_dim, self.seed), 0.0)
        return RegionItem(
            id=name,
            features=features,
            boxes=with_sizes(corners),
            confidence=(0.3 + 0.7 * saliency).astype(np.float32),
        )


EXTRACTORS: dict[str, Callable[..., RegionExtractor]] = {"grid": GridExtractor}


def build_extractor(options: Mapping[str, Any]) -> RegionExtractor:
    """``{"use": name, option: value, ...}`` -> the extractor. Raises ConfigError for an unknown name or option."""
    chosen = dict(options)
    name = str(chosen.pop("use", "grid"))
    if name not in EXTRACTORS:
        raise ConfigError(f"there is no region extractor {name!r}; {nearest(name, EXTRACTORS)}")
    try:
        return EXTRACTORS[name](**chosen)
    except TypeError as error:
        raise ConfigError(f"the region extractor {name!r} cannot be built with {chosen}: {error}") from error


@lru_cache(maxsize=4)
def _projection(width: int, feature_dim: int, seed: int) -> NDArray[Any]:
    """(width, F) random directions of unit variance; distances are kept in expectation."""
    return np.random.default_rng(seed).standard_normal((width, feature_dim), dtype=np.float32)
