"""The scores of a corpus."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .ranks import TieRule, ranks
from .recall import RetrievalMetrics, recall


@dataclass(frozen=True)
class Scored:
    """scores (texts, images) float32 with the ids of rows and columns; image_of (texts,) the right columns.

    key: a hash of what they were made from, where that was taken.
    """

    scores: Tensor
    text_ids: list[str]
    image_ids: list[str]
    image_of: Tensor
    key: str | None = None

    def metrics(self, *, ties: TieRule = "average", reference_count: bool = False) -> RetrievalMetrics:
        return recall(ranks(self.scores, self.image_of, ties=ties), reference_count=reference_count)
