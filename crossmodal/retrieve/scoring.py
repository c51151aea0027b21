"""Score matrices and pair lists, as fast as the machine allows, for every scorer of the model protocol.

Each side was encoded once. Pairs are cut into tiles of similar length under a token budget, a pair costing the
tokens of both items and one at least; the scorer packs a tile, so nothing is padded. Scores come back in float32
(float64 stays) in the order asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

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
    lengths = (a.lengths[pairs[:, 0]] + b.lengths[pairs[:, 1]]).clamp(min=1)
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

    Without items on either side there are no blocks. Rows come shortest first; within a block, tiles of columns
    are shortest first, so that the pairs of one tile have few distinct lengths.
    """
    if not (len(a) and len(b)):
        return
    rows, columns = a.lengths.argsort(stable=True), b.lengths.argsort(stable=True)
    a, b = a[rows], b[columns]
    back = columns.argsort()
    height = _tile_height(a, b, tokens)
    for top in range(0, len(a), height):
        block = a[top : top + height]
        per_column = (len(block) * b.lengths + int(block.lengths.sum())).clamp(min=len(block))
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
    matrix = torch.zeros(len(a), len(b))
    for rows, scores in score_blocks(scorer, a, b, tokens=tokens, progress=progress):
        matrix = matrix.to(scores.dtype)
        matrix[rows] = scores.cpu()
    return matrix


@dataclass(frozen=True)
class Best:
    """The k best of a gallery for each of Q queries: values (Q,k), best first, and gallery indices (Q,k)."""

    values: Tensor
    indices: Tensor


@torch.no_grad()
def top_k(
    scorer: Scorer, a: Encoded, b: Encoded, k: int, *, tokens: int = TOKENS, progress: Progress | None = None
) -> tuple[Best, Best]:
    """The k best b of each a, and the k best a of each b, on the host; of equal scores the lower index first.

    The whole matrix is never held. A gallery of fewer than k gives all that it has.
    """
    of_a = Best(torch.zeros(len(a), min(k, len(b))), torch.zeros(len(a), min(k, len(b)), dtype=torch.int64))
    of_b = Best(torch.zeros(len(b), 0), torch.zeros(len(b), 0, dtype=torch.int64))
    for rows, scores in score_blocks(scorer, a, b, tokens=tokens, progress=progress):
        device = scores.device
        block = _best(scores, torch.arange(len(b), device=device).expand_as(scores), k)
        of_a = Best(of_a.values.to(scores.dtype), of_a.indices)
        of_a.values[rows], of_a.indices[rows] = block.values.cpu(), block.indices.cpu()
        seen = torch.cat([of_b.values.to(scores), scores.T], dim=1)  # (B, k+n)
        indices = torch.cat([of_b.indices.to(device), rows.to(device).expand(len(b), -1)], dim=1)
        of_b = _best(seen, indices, k)
    return of_a, Best(of_b.values.cpu(), of_b.indices.cpu())


def _best(scores: Tensor, indices: Tensor, k: int) -> Best:
    """The k best of each row of scores (Q,C) and what `indices` (Q,C) calls them, equal ones by lower index."""
    top = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    values, picked = top.values[:, :k], indices.gather(1, top.indices[:, :k])
    tied = (top.values[:, 1:] == top.values[:, :-1]).any(dim=1)  # topk promises no order there: sort those rows
    if tied.any():
        s, by_index = scores[tied], indices[tied].argsort(dim=1)
        order = by_index.gather(1, s.gather(1, by_index).argsort(dim=1, descending=True, stable=True)[:, :k])
        values[tied], picked[tied] = s.gather(1, order), indices[tied].gather(1, order)
    return Best(values, picked)


def _widened(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype.itemsize < 4 else scores


def _tile_height(a: Encoded, b: Encoded, tokens: int) -> int:
    """Rows of a tile so that it is about as many rows as columns: each side is gathered equally often."""
    per_pair = float(a.lengths.float().mean() + b.lengths.float().mean())
    return max(1, min(len(a), int((tokens / max(per_pair, 1.0)) ** 0.5)))


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
