"""Score matrices and pair lists, as fast as the machine allows, for every scorer of the model protocol.

Each side was encoded once. Pairs are cut into tiles of similar length under a token budget (`tiles`); the scorer
packs a tile, so nothing is padded. Scores come back in float32 (float64 stays) in the order asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crossmodal.data.batches import Items
from crossmodal.model.base import Encoded, Model, Scorer

from .tiles import TOKENS, budget, cut, plan_tiles, score_tile, widened

__all__ = [
    "TOKENS",
    "Best",
    "Progress",
    "best_of",
    "best_of_blocks",
    "encode_all",
    "score_blocks",
    "score_matrix",
    "score_pairs",
    "top_k",
]

Progress = Callable[[int], object]
"""Called with the number of pairs that were just scored; what it raises ends the scoring."""


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
    for start, stop in cut(lengths[order], budget(scorer, tokens)):
        parts.append(widened(scorer(a, b, pairs[order[start:stop]])))
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
    plan = plan_tiles(a.lengths, b.lengths, budget(scorer, tokens))
    a, b = a[plan.rows], b[plan.columns]
    back = plan.columns.argsort()
    tiles = []
    for number in range(len(plan)):
        rows, columns = plan.tile(number)
        tiles.append(score_tile(scorer, a, b, (rows, columns)))
        if progress:
            progress(tiles[-1].numel())
        if columns.stop == len(b):  # the last tile of these rows
            yield plan.rows[rows], torch.cat(tiles, dim=1)[:, back.to(tiles[0].device)]
            tiles = []


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
    return best_of_blocks(score_blocks(scorer, a, b, tokens=tokens, progress=progress), len(a), len(b), k)


def best_of_blocks(blocks: Iterable[tuple[Tensor, Tensor]], a: int, b: int, k: int) -> tuple[Best, Best]:
    """`top_k` of blocks (rows (n,), scores (n,B)) that give each of the A rows once, in any order."""
    of_a = Best(torch.zeros(a, min(k, b)), torch.zeros(a, min(k, b), dtype=torch.int64))
    of_b = Best(torch.zeros(b, 0), torch.zeros(b, 0, dtype=torch.int64))
    for rows, scores in blocks:
        device = scores.device
        block = best_of(scores, torch.arange(b, device=device).expand_as(scores), k)
        of_a = Best(of_a.values.to(scores.dtype), of_a.indices)
        of_a.values[rows], of_a.indices[rows] = block.values.cpu(), block.indices.cpu()
        seen = torch.cat([of_b.values.to(scores), scores.T], dim=1)  # (B, k+n)
        indices = torch.cat([of_b.indices.to(device), rows.to(device).expand(b, -1)], dim=1)
        of_b = best_of(seen, indices, k)
    return of_a, Best(of_b.values.cpu(), of_b.indices.cpu())


def best_of(scores: Tensor, indices: Tensor, k: int) -> Best:
    """The k best of each row of scores (Q,C) and what `indices` (Q,C) calls them, equal ones by lower index."""
    top = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    values, picked = top.values[:, :k], indices.gather(1, top.indices[:, :k])
    tied = (top.values[:, 1:] == top.values[:, :-1]).any(dim=1)  # topk promises no order there: sort those rows
    if tied.any():
        s, by_index = scores[tied], indices[tied].argsort(dim=1)
        order = by_index.gather(1, s.gather(1, by_index).argsort(dim=1, descending=True, stable=True)[:, :k])
        values[tied], picked[tied] = s.gather(1, order), indices[tied].gather(1, order)
    return Best(values, picked)
