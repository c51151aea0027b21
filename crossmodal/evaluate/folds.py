"""Protocols: the full gallery, or the mean over folds of consecutive images (COCO's 1K from 5K images)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossmodal.errors import ConfigError

from .blocks import Scores, rereadable, row_blocks
from .positives import Positives, positive_pairs
from .ranks import Ranks, TieRule, ranks
from .recall import RetrievalMetrics, recall


@dataclass(frozen=True)
class Protocol:
    """What one protocol gives: `metrics` is the mean over `folds`, one set of metrics and of ranks a fold."""

    metrics: RetrievalMetrics
    folds: list[RetrievalMetrics]
    ranks: list[Ranks]


def run_protocol(
    scores: Scores,
    positives: Positives,
    *,
    folds: int = 1,
    order: Sequence[int] | None = None,
    ties: TieRule = "average",
    reference_count: bool = False,
) -> Protocol:
    """Recall on the full gallery (`folds=1`), or averaged over folds.

    scores, positives, ties: see `ranks`; reference_count: see `recall`.
    folds: the images are cut into this many runs of consecutive ones, equal to within one image; each fold
        ranks its own images and their captions only. COCO "1K" is 5 folds of its 5000 test images.
    order: the image columns in the order of the protocol, when the matrix holds them in another (evaluation
        often sorts images by their number of regions). The default takes the columns as they stand.
    """
    if folds == 1:
        whole = ranks(scores, positives, ties=ties)
        metrics = recall(whole, reference_count=reference_count)
        return Protocol(metrics, [metrics], [whole])
    scores = rereadable(scores)
    images = next(block.shape[1] for _, block in row_blocks(scores))
    check_folds(folds, images)
    columns = torch.arange(images) if order is None else torch.as_tensor(order)
    if not torch.equal(columns.sort().values, torch.arange(images)):
        raise ConfigError(f"order: name each of the {images} image columns once")
    pairs = positive_pairs(positives)
    each = [ranks(*_fold(scores, pairs, part), ties=ties) for part in columns.tensor_split(folds)]
    per_fold = [recall(r, reference_count=reference_count) for r in each]
    mean = {name: sum(m[name] for m in per_fold) / folds for name in per_fold[0]}
    return Protocol(mean, per_fold, each)


def check_folds(folds: int, images: int) -> None:
    """Raises ConfigError where so many images cannot be cut into so many folds."""
    if not 1 <= folds <= images:
        raise ConfigError(f"folds: {folds} folds of {images} images: choose 1 to {images}")


def _fold(scores: Scores, pairs: Tensor, columns: Tensor) -> tuple[list[Tensor], list[list[int]]]:
    """The scores of these images with their captions, and the positives in the numbering of the fold."""
    place = {column: i for i, column in enumerate(columns.tolist())}
    mine: dict[int, list[int]] = {}
    for text, image in pairs.tolist():
        if image in place:
            mine.setdefault(text, []).append(place[image])
    rows = torch.tensor(sorted(mine), dtype=torch.int64)
    blocks = []
    for start, block in row_blocks(scores):
        here = rows[(rows >= start) & (rows < start + len(block))] - start
        blocks.append(block[here.to(block.device)][:, columns.to(block.device)])
    return blocks, [mine[int(row)] for row in rows]
