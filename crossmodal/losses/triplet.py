"""Hinge losses of a score matrix whose diagonal holds the matched pairs: sums over the batch, as published."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import Items, Scores, full_precision, register


@register("triplet")
def triplet(scores: Scores, *, margin: float = 0.2, hardest: bool = True) -> Tensor:
    """Triplet hinge of both directions (ALADIN, spec section 5): with S (B,B), text i matching image i,

        c_ij = max(0, margin + S_ij - S_ii),  d_ij = max(0, margin + S_ij - S_jj),  0 on the diagonal
        hardest: sum over i of max over j of c_ij + sum over j of max over i of d_ij;  else the sum of all entries

    scores: (B,B), (texts, images). A sum and no mean: what it is worth grows with the batch. Another text of the
    same image is a negative like any other; `triplet_distinct_images` leaves it out. One pair costs 0.
    """
    return _triplet(scores, torch.eye(len(scores), dtype=torch.bool, device=scores.device), margin, hardest)


@register("triplet_distinct_images")
def triplet_distinct_images(scores: Scores, image_ids: Items, *, margin: float = 0.2, hardest: bool = True) -> Tensor:
    """`triplet` in which pairs of the same image are no negatives (spec section 13, row 12).

    scores: (B,B), (texts, images); image_ids: (B,) int64, equal for the same image.
    """
    return _triplet(scores, image_ids[:, None] == image_ids, margin, hardest)


@register("semantic_triplet")
def semantic_triplet(
    scores: Scores, relevance: Scores, *, margin: float = 0.2, hardest: bool = True, seed: int = 0
) -> Tensor:
    """`triplet` with one positive drawn from the relevant ones (spec section 5): instead of S_ii and S_jj, the score of
    one relevant image of text i, and of one relevant text of image j; relevant pairs are no negatives.

    scores, relevance: (A,B), (texts, images); a relevance above 0 makes a pair relevant. A text or image without any
    costs 0. The draw depends on `seed` and on the place in the matrix alone, so that all ranks draw the same.
    """
    relevant = relevance > 0
    draw = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed)).to(scores.device)
    place = draw.masked_fill(~relevant, -1)
    (s,) = full_precision(scores)
    if not s.numel():
        return s.sum()
    total = s.new_zeros(())
    for dim in (1, 0):
        positive = s.gather(dim, place.argmax(dim, keepdim=True))
        excluded = relevant | ~relevant.any(dim, keepdim=True)
        total = total + _hinges(s, positive, excluded, dim, margin, hardest)
    return total


def _triplet(scores: Tensor, excluded: Tensor, margin: float, hardest: bool) -> Tensor:
    """excluded (B,B): pairs that are no negatives."""
    (s,) = full_precision(scores)
    if not s.numel():
        return s.sum()
    matched = s.diagonal()
    images = _hinges(s, matched[:, None], excluded, 1, margin, hardest)
    return images + _hinges(s, matched[None], excluded, 0, margin, hardest)


def _hinges(s: Tensor, positive: Tensor, excluded: Tensor, dim: int, margin: float, hardest: bool) -> Tensor:
    """The sum of the largest hinge along `dim`, or of all of them."""
    hinges = (margin + s - positive).clamp(min=0).masked_fill(excluded, 0)
    return hinges.max(dim).values.sum() if hardest else hinges.sum()
