"""Random fields of the losses with wrong captions, and what the losses have in common."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Fields(NamedTuple):
    """In the order in which the losses read them."""

    images: Tensor
    texts: Tensor
    negatives: Tensor
    mask: Tensor
    scale: Tensor

    def scores(self) -> tuple[list[float], list[list[float]], list[list[float]], list[list[float]]]:
        """p (B,), h (B,K), images with all texts and wrong texts (B,B+BK), captions with wrong ones (B,BK)."""
        s, kinds = self.scale.item(), self.mask.shape[1]
        product = [[s * (i @ t).item() for t in (*self.texts, *self.negatives)] for i in self.images]
        count = len(self.images)
        own = [row[i] for i, row in enumerate(product)]
        wrong = [row[count + kinds * i : count + kinds * (i + 1)] for i, row in enumerate(product)]
        return own, wrong, product, [[s * (t @ n).item() for n in self.negatives] for t in self.texts]

    def differentiable(self) -> Fields:
        grown = [x.clone().requires_grad_() for x in (self.images, self.texts, self.negatives, self.scale)]
        return Fields(*grown[:3], self.mask, grown[3])


def fields(items: int, types: int = 4, *, seed: int = 0, scale: float = 10.0) -> Fields:
    """float64; about a third of the wrong captions are missing."""
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randn(n, 5, generator=draw, dtype=torch.float64) for n in (items, items, items * types)]
    mask = (torch.rand(items, types, generator=draw) > 0.3).long()
    return Fields(*(F.normalize(x, dim=1) for x in rows), mask, torch.tensor(scale, dtype=torch.float64))


def log_sum(values: list[float]) -> float:
    return math.log(sum(map(math.exp, values)))


def naive_itc(given: Fields, *, masked: bool = False) -> float:
    own, _, product, _ = given.scores()
    n = len(own)
    kept = [True] * n + [bool(m) or not masked for m in given.mask.flatten()]
    rows = sum(
        log_sum([x for x, keep in zip(row, kept, strict=True) if keep]) - p for row, p in zip(product, own, strict=True)
    )
    columns = sum(log_sum([product[i][j] for i in range(n)]) - own[j] for j in range(n))
    return (rows + columns) / (2 * n)


def naive_imc(given: Fields, form: str, *, masked: bool = False) -> float:
    own, _, _, texts = given.scores()
    total = 0.0
    for p, row in zip(own, texts, strict=True):
        kept = [x for x, m in zip(row, given.mask.flatten(), strict=True) if m or not masked]
        logits = [p, *kept] if form.startswith("v") else kept
        total += log_sum(logits) - (row[0] if form in ("main", "v2023_06") else p)
    return total / len(own)


def naive_cmr(given: Fields, thresholds: list[float]) -> float:
    own, wrong, _, _ = given.scores()
    total = 0.0
    for i, p in enumerate(own):
        for k, threshold in enumerate(thresholds):
            if given.mask[i, k]:
                total += max(0.0, threshold + wrong[i][k] - p)
    return total / given.mask.numel()
