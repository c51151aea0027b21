"""The nearest others of every vector of a set, block by block: hard images for NegCLIP's table."""

from __future__ import annotations

import torch
from torch import Tensor

from .product import Product
from .scoring import best_of


def nearest_others(vectors: Tensor, k: int, *, block: int | None = None) -> Tensor:
    """(N,D) -> (N, min(k,N-1)) int64 on the host: the rows with the largest products, but itself, best first; of
    equal ones the lower row. Never more than `block` scores at once, except that a row of N is not cut.
    """
    count = len(vectors)
    product = Product(vectors, vectors) if block is None else Product(vectors, vectors, block)
    kept = max(0, min(k, count - 1))
    rows, found = torch.arange(count, device=vectors.device), [torch.empty(0, kept, dtype=torch.int64)]
    start = 0
    for scores in product:
        own = rows[start : start + len(scores)]
        scores[own - start, own] = -torch.inf
        found.append(best_of(scores, rows.expand_as(scores), kept).indices.cpu())
        start += len(scores)
    return torch.cat(found)
