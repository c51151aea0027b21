"""Sums of maxima over pairs of token sets: each query vector meets its best candidate vector (late interaction).

One matrix product of the rows of all items, block by block, instead of a product of two expanded copies a pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 2048  # query rows of one matrix product
ENTRIES = 1 << 19  # similarities held at once: 2 MB in float32, so that they stay in a cache


def max_sum(queries: Tensor, query_counts: Tensor, rows: Tensor, counts: Tensor, clamped: Tensor) -> Tensor:
    """Every query item with every candidate item: (Q,C) with

        out[q,c] = sum over the vectors x of q of max over the vectors y of c of x . y, at least 0 where clamped[c]

    queries (N,E) and rows (M,E): the vectors of all items, one item after the other, of one dtype and device;
    query_counts (Q,) and counts (C,): how many each has, at least 1; clamped (C,) bool; these three on the host.
    Of equal products the first gets the gradient. No more than `ENTRIES` products are held at once (of one
    candidate and `ROWS` query rows, if these are more); training keeps (N,C) int32 beside its inputs.
    """
    out: Tensor = _MaxSum.apply(queries, query_counts, rows, counts, clamped)
    return out


def padded_index(starts: Tensor, counts: Tensor) -> Tensor:
    """The rows of each item, (n,), (n,) -> (n, widest), the last one of an item repeated up to the width."""
    return starts[:, None] + torch.arange(int(counts.max())).minimum(counts[:, None] - 1)


class _MaxSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, query_counts: Tensor, rows: Tensor, counts: Tensor, clamped: Tensor
    ) -> Tensor:
        device = queries.device
        item = torch.arange(len(query_counts)).repeat_interleave(query_counts).to(device)  # (N,)
        starts = counts.cumsum(0) - counts
        out = queries.new_zeros(len(query_counts), len(counts))
        differentiable = any(ctx.needs_input_grad)
        if differentiable:  # which row of `rows` was the best of each candidate; -1 where 0 was better
            best_rows = torch.empty(len(queries), len(counts), dtype=torch.int32, device=device)
        for block in _blocks(counts, min(len(queries), ROWS)):
            index = padded_index(starts[block], counts[block]).to(device)  # (c,R); a repeated row changes no maximum
            candidates, floor = rows.index_select(0, index.flatten()), clamped[block, None].to(device)
            block = block.to(device)
            scores = queries.new_zeros(len(out), len(block))
            for start in range(0, len(queries), ROWS):
                part = slice(start, start + ROWS)
                products = (candidates @ queries[part].T).unflatten(0, index.shape)  # (c,R,n)
                if differentiable:
                    best, place = products.max(dim=1)
                    best_rows[part, block] = index.gather(1, place).masked_fill_(floor & (best < 0), -1).T.int()
                else:
                    best = products.amax(dim=1)
                scores.index_add_(0, item[part], torch.where(floor, best.clamp(min=0), best).T)
            out[:, block] = scores
        if differentiable:
            ctx.save_for_backward(queries, rows, item, best_rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the similarities has one entry a query row and candidate, and few under hard negatives."""
        queries, rows, item, best_rows = ctx.saved_tensors
        weights = grad[item]  # (N,C)
        query, candidate = ((weights != 0) & (best_rows >= 0)).nonzero(as_tuple=True)
        places = torch.stack([query, best_rows[query, candidate].long()])
        sparse = torch.sparse_coo_tensor(
            places, weights[query, candidate], (len(queries), len(rows)), check_invariants=False
        )
        need = ctx.needs_input_grad
        return (
            torch.sparse.mm(sparse, rows) if need[0] else None,
            None,
            torch.sparse.mm(sparse.t(), queries) if need[2] else None,
            None,
            None,
        )


def _blocks(counts: Tensor, queries: int) -> Iterator[Tensor]:
    """The candidates, those of like count together, in blocks that padded fit `ENTRIES` with so many queries."""
    order = counts.argsort(stable=True, descending=True)
    start = 0
    while start < len(order):
        stop = start + max(1, ENTRIES // max(1, queries * int(counts[order[start]])))
        yield order[start:stop]
        start = stop
