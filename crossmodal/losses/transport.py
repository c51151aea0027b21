"""Word-region alignment by optimal transport (UNITER, spec section 8): the IPOT iteration."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .registry import Groups, full_precision, mean_or_zero, register

_BLOCKED = 1e4  # what padding adds to a scaling denominator, as published


@register("word_region_alignment")
def word_region_alignment(
    word_states: Groups, region_states: Groups, word_pad: Groups, region_pad: Groups, matched: Groups
) -> Tensor:
    """Transport distance of matched pairs minus that of unmatched ones, summed over pairs and divided by P.

    word_states (P,T,D), region_states (P,R,D), word_pad (P,T), region_pad (P,R) as `transport_distance` takes
    them; matched (G,K) of 0 and 1 with G K = P.
    """
    distance = transport_distance(word_states, region_states, word_pad, region_pad)
    return mean_or_zero(torch.where(matched.flatten().bool(), distance, -distance))


def transport_distance(
    words: Tensor,
    regions: Tensor,
    word_pad: Tensor,
    region_pad: Tensor,
    *,
    beta: float = 0.5,
    iterations: int = 50,
    inner: int = 1,
) -> Tensor:
    """The cost of moving words onto regions, (B,): trace(C T) with C = 1 - cos(word, region).

    words (B,T,D) and regions (B,R,D) are last-layer states, [CLS] and [SEP] included; word_pad (B,T) and
    region_pad (B,R) bool are true on padding. Computed in float32 at least; the plan T in float32 and detached.
    """
    words, regions = full_precision(words, regions)
    cost = cosine_cost(words, regions, eps=1e-5)  # (B,T,R)
    pad = word_pad[:, :, None] | region_pad[:, None, :]
    cost = cost.masked_fill(pad, 0)
    plan = transport_plan(cost.detach().float(), word_pad, region_pad, beta, iterations, inner)
    return torch.einsum("btr,brt->b", cost, plan.to(cost.dtype))


def cosine_cost(x: Tensor, y: Tensor, *, eps: float) -> Tensor:
    """1 - cosine of all pairs: (B,T,D), (B,R,D) -> (B,T,R)."""
    return 1 - F.normalize(x, dim=-1, eps=eps) @ F.normalize(y, dim=-1, eps=eps).transpose(1, 2)


def transport_plan(
    cost: Tensor, word_pad: Tensor, region_pad: Tensor, beta: float, iterations: int, inner: int
) -> Tensor:
    """IPOT: cost (B,T,R) -> plan (B,R,T), zero on padding."""
    pad = region_pad[:, :, None] | word_pad[:, None, :]  # (B,R,T)
    n_words = (~word_pad).sum(dim=1).to(cost.dtype)[:, None]  # (B,1)
    n_regions = (~region_pad).sum(dim=1).to(cost.dtype)[:, None]
    sigma = (torch.ones_like(word_pad, dtype=cost.dtype) / n_words).masked_fill(word_pad, 0)  # (B,T)
    kernel = torch.exp(-cost.transpose(1, 2) / beta).masked_fill(pad, 0)  # (B,R,T)
    plan = torch.ones_like(kernel).masked_fill(pad, 0)
    word_block, region_block = word_pad * _BLOCKED, region_pad * _BLOCKED
    for _ in range(iterations):
        q = kernel * plan
        for _ in range(inner):
            delta = 1 / (n_regions * (q @ sigma[:, :, None]).squeeze(2) + region_block)  # (B,R)
            sigma = 1 / (n_words * (delta[:, None, :] @ q).squeeze(1) + word_block)  # (B,T)
        plan = delta[:, :, None] * q * sigma[:, None, :]
    return plan.masked_fill(pad, 0)
