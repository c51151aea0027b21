"""Ranking and matching losses on the scores of a positive pair and its negatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .registry import Groups, full_precision, mean_or_zero, register


@register("margin_ranking")
def margin_ranking(rank_scores: Groups, *, margin: float = 0.2) -> Tensor:
    """Margin ranking of UNITER (spec section 4): the mean over groups g and negatives k of

        max(0, margin + sigmoid(s_gk) - sigmoid(s_g0))

    rank_scores: (G, 1+K) raw logits, the positive first. A group without negatives adds 0.
    """
    return mean_or_zero(margin_ranking_terms(rank_scores, margin=margin))


def margin_ranking_terms(rank_scores: Tensor, *, margin: float = 0.2) -> Tensor:
    """The hinges before the mean: (G, 1+K) -> (G, K)."""
    (scores,) = full_precision(rank_scores)
    matched = torch.sigmoid(scores)
    return (margin + matched[:, 1:] - matched[:, :1]).clamp(min=0)


@register("softmax_ranking")
def softmax_ranking(rank_scores: Groups, *, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the positive among its group: the mean over g of -log softmax(s_g / temperature)_0.

    rank_scores: (G, 1+K) raw logits, the positive first. Unlike the margin, it has a gradient from the start,
    which is what a randomly initialised cross-encoder needs.
    """
    (scores,) = full_precision(rank_scores)
    return mean_or_zero(-(scores / temperature).log_softmax(dim=1)[:, 0])


@register("itm")
def itm(itm_logits: Groups, matched: Groups) -> Tensor:
    """Image-text matching as two-class cross-entropy (UNITER, spec section 8), the mean over all pairs.

    itm_logits: (G, K, 2), class 1 = matched; matched: (G, K) int64 of 0 and 1.
    """
    (logits,) = full_precision(itm_logits)
    return mean_or_zero(F.cross_entropy(logits.flatten(0, 1), matched.flatten(), reduction="none"))
