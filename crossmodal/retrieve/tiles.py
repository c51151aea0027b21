"""How a matrix of scores is cut into tiles: by the lengths of the items alone, so that every process cuts alike.

Rows and columns are sorted by length, shortest first; a tile is a rectangle of the sorted matrix that a scorer
takes at once. Pairs of one tile have few distinct lengths, and cost about the same number of tokens in all tiles.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

from crossmodal.model.base import Encoded, Scorer

TOKENS = 16384
"""Default token budget of one tile: large enough to keep the matrix products busy, small enough for caches."""


@dataclass(frozen=True)
class Plan:
    """The N tiles of A x B pairs, row of tiles after row of tiles; without items on either side there are none.

    rows (A,), columns (B,): host indices of the items in sorted order, in which `bounds` count.
    bounds (N,4): top, bottom, left, right of each tile. costs (N,): its tokens.
    """

    rows: Tensor
    columns: Tensor
    bounds: Tensor
    costs: Tensor

    def __len__(self) -> int:
        return len(self.bounds)

    def tile(self, number: int) -> tuple[slice, slice]:
        """The rows and columns of a tile."""
        top, bottom, left, right = self.bounds[number].tolist()
        return slice(top, bottom), slice(left, right)

    def pairs(self) -> Tensor:
        """(N,) how many pairs each tile has."""
        top, bottom, left, right = self.bounds.unbind(1)
        return (bottom - top) * (right - left)


def plan_tiles(a: Tensor, b: Tensor, tokens: int = TOKENS) -> Plan:
    """Cut all pairs of items of lengths a (A,) and b (B,) into tiles of at most `tokens`.

    A pair costs the tokens of both items, and one at least; a pair over the budget stands alone.
    """
    rows, columns = a.argsort(stable=True), b.argsort(stable=True)
    a, b = a[rows], b[columns]
    height = _tile_height(a, b, tokens)
    bounds, costs = [torch.zeros(0, 4, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for top in range(0, len(a) if len(b) else 0, height):
        block = a[top : top + height]
        per_column = (len(block) * b + block.sum()).clamp(min=len(block))
        left, right = torch.tensor(cut(per_column, tokens)).unbind(1)
        ends = torch.cat([per_column.new_zeros(1), per_column.cumsum(0)])
        vertical = torch.tensor([top, top + len(block)]).expand(len(left), 2)
        bounds.append(torch.cat([vertical, left[:, None], right[:, None]], dim=1))
        costs.append(ends[right] - ends[left])
    return Plan(rows, columns, torch.cat(bounds), torch.cat(costs))


def budget(scorer: Scorer, tokens: int) -> int:
    """How many tokens a tile of this scorer may have where a joint transformer's may have `tokens`."""
    return max(1, int(tokens / scorer.cost))


def score_tile(scorer: Scorer, a: Encoded, b: Encoded, tile: tuple[slice, slice]) -> Tensor:
    """The scores of one tile of sorted items, in float32 (float64 stays)."""
    return widened(scorer(a[tile[0]], b[tile[1]]))


def widened(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype.itemsize < 4 else scores


def cut(costs: Tensor, budget: int) -> list[tuple[int, int]]:
    """Consecutive runs whose costs add up to at most `budget`; a single item over it stands alone."""
    ends = costs.cumsum(0).tolist()
    runs, start, spent = [], 0, 0
    while start < len(ends):
        stop = max(start + 1, bisect_right(ends, spent + budget, lo=start))
        runs.append((start, stop))
        start, spent = stop, ends[stop - 1]
    return runs


def _tile_height(a: Tensor, b: Tensor, tokens: int) -> int:
    """Rows of a tile so that it is about as many rows as columns: each side is gathered equally often."""
    if not (len(a) and len(b)):
        return 1
    per_pair = float(a.float().mean() + b.float().mean())
    return max(1, min(len(a), int((tokens / max(per_pair, 1.0)) ** 0.5)))
