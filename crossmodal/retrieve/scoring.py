"""Score matrices and pair lists, as fast as the machine allows, for every scorer of the model protocol.

Each side was encoded once. Pairs are cut into tiles of similar length under a token budget; the scorer packs
a tile, so nothing is padded. Scores come back in float32 (float64 stays) in the order asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from crossmodal.data.batches import Items
from crossmodal.model.base import Encoded, Model, Scorer

TOKENS = 16384
"""Default token budget of one tile: large enough to keep the matrix products busy, small enough for caches."""

Progress = Callable[[int], object]


def encode_all(model: Model, side: str, batches: Iterable[Items]) -> Encoded:
    """Encode every batch of items of one side, one after the other, on the model's device."""
    return Encoded.cat(model.encode(side, items.to(model.device)) for items in batches)


def score_pairs(
    scorer: Scorer,
    a: Encoded,
    b: Encoded,
    pairs: Tensor,
    *,
    tokens: int = TOKENS,
    progress: Progress | None = None,
) -> Tensor:
    """Scores (P,) of pairs (P,2) of host indices into a and b."""
    lengths = a.lengths[pairs[:, 0]] + b.lengths[pairs[:, 1]]
    order = lengths.argsort(stable=True)
    parts = []
    for start, stop in _cut(lengths[order], tokens):
        parts.append(_widened(scorer(a, b, pairs[order[start:stop]])))
        if progress:
            progress(stop - start)
    return torch.cat(parts)[order.argsort().to(parts[0].device)] if parts else torch.empty(0)


def score_blocks(
    scorer: Scorer, a: Encoded, b: Encoded, *, tokens: int = TOKENS, progress: Progress | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every a with every b, in blocks of rows: yields (host indices into a (n,), scores (n,B)).

    Rows come shortest first; within a block, tiles of columns are shortest first, so that the pairs of one
    tile have few distinct lengths.
    """
    rows, columns = a.lengths.argsort(stable=True), b.lengths.argsort(stable=True)
    a, b = a[rows], b[columns]
    back = columns.argsort()
    height = _tile_height(a, b, tokens)
    for top in range(0, len(a), height):
        block = a[top : top + height]
        per_column = len(block) * b.lengths + int(block.lengths.sum())
        tiles = []
        for left, right in _cut(per_column, tokens):
            tiles.append(_widened(scorer(block, b[left:right])))
            if progress:
                progress(len(block) * (right - left))
        scores = torch.cat(tiles, dim=1)
        yield rows[top : top + height], scores[:, back.to(scores.device)]


def score_matrix(
    scorer: Scorer, a: Encoded, b: Encoded, *, tokens: int = TOKENS, progress: Progress | None = None
) -> Tensor:
    """The whole matrix (A,B) on the host."""
    blocks = [(index, scores.cpu()) for index, scores in score_blocks(scorer, a, b, tokens=tokens, progress=progress)]
    order = torch.cat([index for index, _ in blocks]).argsort()
    return torch.cat([scores for _, scores in blocks])[order]


def _widened(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype.itemsize < 4 else scores


def _tile_height(a: Encoded, b: Encoded, tokens: int) -> int:
    """Rows of a tile so that it is about as many rows as columns: each side is gathered equally often."""
    per_pair = float(a.lengths.float().mean() + b.lengths.float().mean())
    return max(1, min(len(a), int((tokens / per_pair) ** 0.5)))


def _cut(costs: Tensor, budget: int) -> Iterator[tuple[int, int]]:
    """Consecutive runs whose costs add up to at most `budget`; a single item over it stands alone."""
    start, total = 0, 0
    for i, cost in enumerate(costs.tolist()):
        if i > start and total + cost > budget:
            yield start, i
            start, total = i, 0
        total += cost
    if len(costs) > start:
        yield start, len(costs)
