"""Scorers without parameters: of token sets and of vectors. They know no model, and serve as score fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from crossmodal.errors import ConfigError, nearest

from .alignment import AGGREGATIONS, CLAMPS, Aggregation, Clamp, alignment_scores
from .base import Encoded

Measure = Literal["dot", "cosine", "order"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
ENTRIES = 1 << 22  # numbers held at once where vectors meet pair by pair: 16 MB in float32


@dataclass(frozen=True)
class AlignmentScorer:
    """Pooled cosines of the words of a text with the regions of an image (ALADIN, spec section 4).

    aggregation, clamp, widths: see `alignment_scores`. With clamp="batch" and no widths a score depends on the
    longest items of the two sides that a call is given; the published evaluation is clamp="always" (in which no item
    fills the width of 71), and for `mean` clamp="batch" with widths=(71, 71).
    """

    aggregation: Aggregation = "MrSw"
    clamp: Clamp = "batch"
    widths: tuple[int, int] | None = None
    reads: ClassVar[tuple[str, ...]] = ("tokens",)
    cost: ClassVar[float] = 1 / 64

    def __post_init__(self) -> None:
        _known("aggregation", self.aggregation, AGGREGATIONS)
        _known("clamp", self.clamp, CLAMPS)

    def __call__(self, a: Encoded, b: Encoded, pairs: Tensor | None = None) -> Tensor:
        """a texts, b images; pairs (P,2) on the host -> (P,), or None -> (A,B)."""
        return alignment_scores(
            a.rows["tokens"], a.lengths, b.rows["tokens"], b.lengths,
            aggregation=self.aggregation, clamp=self.clamp, widths=self.widths, pairs=pairs,
        )  # fmt: skip


@dataclass(frozen=True)
class VectorScorer:
    """One vector a text and one an image (ALADIN, spec section 4): their dot product, their cosine, or

        order   -|| max(0, text - image) ||_2

    which is 0 where no number of the text exceeds the image's. Half precision is computed in float32.
    """

    measure: Measure = "dot"
    reads: ClassVar[tuple[str, ...]] = ("embeds",)
    cost: ClassVar[float] = 1 / 4096

    def __post_init__(self) -> None:
        _known("measure", self.measure, MEASURES)

    def __call__(self, a: Encoded, b: Encoded, pairs: Tensor | None = None) -> Tensor:
        """a texts, b images; pairs (P,2) on the host -> (P,), or None -> (A,B)."""
        texts, images = (_full(x.vectors["embeds"]) for x in (a, b))
        if self.measure == "cosine":
            texts, images = F.normalize(texts, dim=1), F.normalize(images, dim=1)
        with torch.autocast(texts.device.type, enabled=False):
            if pairs is None and self.measure != "order":
                return texts @ images.T
            one = _order if self.measure == "order" else _dot
            if pairs is None:
                rows = max(1, ENTRIES // max(1, images.numel()))
                return torch.cat([one(part[:, None], images) for part in texts.split(rows)])
            blocks = pairs.to(texts.device).split(max(1, ENTRIES // max(1, texts.shape[1])))
            return torch.cat([one(texts[block[:, 0]], images[block[:, 1]]) for block in blocks])


def _dot(texts: Tensor, images: Tensor) -> Tensor:
    return (texts * images).sum(dim=-1)


def _order(texts: Tensor, images: Tensor) -> Tensor:
    return -torch.linalg.vector_norm((texts - images).relu(), dim=-1)


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _known(what: str, given: str, names: tuple[str, ...]) -> None:
    if given not in names:
        raise ConfigError(f"{what} {given!r} is not known; {nearest(given, names)}")
