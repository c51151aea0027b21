"""Relation distance: how far the words' attention to each other is from that of the regions they name.

Two forms of the IAIS paper (arXiv 2105.13868), lower is better:

ISDa, with annotations (Flickr30k Entities links noun phrases to boxes): for the N linked phrases of a pair,
    the last layer's text-to-text attention between phrases against the region-to-region attention between
    their boxes, as mKL(A, B) = sum_i [ KL(A_i || B_i) + KL(B_i || A_i) ].
ISD, without: the quantity that the IAIS loss minimises.

No code for ISDa is published and the paper leaves choices open. Each is an option here; the defaults are this
project's, so figures compare only with figures made by the same options.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from crossmodal.errors import ConfigError, DataError
from crossmodal.losses.iais import Alignment, Side, iais_terms

Normalise = Literal["sum", "softmax"]


def relation_distance(
    text_attention: Tensor,
    image_attention: Tensor,
    *,
    normalise: Normalise = "sum",
    divide_by_n: bool = False,
) -> Tensor:
    """mKL between two attention blocks over the same N linked things: (N,N), (N,N) -> scalar.

    Row i, column j of both is how much thing i attends to thing j; entries are 0 or more. Computed in float32
    at least.

    normalise: how the rows become distributions, "sum" divides by the row's sum (a row of zeros becomes
        uniform), "softmax" takes the softmax of the attention probabilities, as the IAIS loss does.
    divide_by_n: the mean over rows instead of the sum, so that pairs with many phrases don't weigh more.
    """
    if text_attention.shape != image_attention.shape or text_attention.shape[:1] != text_attention.shape[1:]:
        raise DataError(
            f"relation distance: blocks of shapes {tuple(text_attention.shape)} and "
            f"{tuple(image_attention.shape)}: give two (N,N) blocks over the same N phrases"
        )
    a, b = _distributions(text_attention, normalise), _distributions(image_attention, normalise)
    # KL(a||b) + KL(b||a) in one term that is never negative
    distance = ((a - b) * (a.log() - b.log())).sum()
    return distance / max(1, len(a)) if divide_by_n else distance


def merge_attention(attention: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Attention between groups of positions: (S,S), N groups of positions -> (N,N).

    What a group receives is the sum over its positions as keys, what it gives is the mean over its positions
    as queries: so the rows of a partition of all positions still sum to 1. Groups may overlap or leave
    positions out.
    """
    size = len(attention)
    for group in groups:
        if not len(group) or not all(0 <= position < size for position in group):
            raise DataError(f"a phrase holds the positions {list(group)}: give one or more of 0 to {size - 1}")
    member = attention.new_zeros(len(groups), size)
    for row, group in enumerate(groups):
        member[row, torch.as_tensor(list(group), device=member.device)] = 1.0
    return (member / member.sum(1, keepdim=True)) @ attention @ member.T


def match_boxes(regions: Tensor, gold: Tensor, *, threshold: float = 0.5) -> Tensor:
    """The detected region that overlaps each annotated box best: (R,4), (G,4) -> (G,) int64.

    Boxes are x1, y1, x2, y2 in one unit. -1: no region's intersection over union reaches `threshold`.
    """
    if not len(regions):
        return torch.full((len(gold),), -1, dtype=torch.int64)
    overlap, best = box_iou(gold, regions).max(dim=1)
    return torch.where(overlap >= threshold, best, -1)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of x1, y1, x2, y2 boxes: (A,4), (B,4) -> (A,B)."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clamp(min=0).prod(dim=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(dim=1), (b[:, 2:] - b[:, :2]).prod(dim=1)
    return both / (area_a[:, None] + area_b[None, :] - both).clamp(min=torch.finfo(both.dtype).tiny)


def annotated_distance(
    text_attention: Tensor,
    image_attention: Tensor,
    phrases: Sequence[Sequence[int]],
    regions: Tensor,
    gold: Sequence[Tensor],
    *,
    threshold: float = 0.5,
    normalise: Normalise = "sum",
    divide_by_n: bool = False,
) -> Tensor | None:
    """ISDa of one matched pair, or None where fewer than two phrases can be linked (nothing relates).

    text_attention (T,T) over the caption's tokens, image_attention (R,R) over the image's regions, both
    averaged over heads, without special tokens and padding. phrases: the token positions of each annotated
    phrase; regions: (R,4) detected boxes; gold: (G,4) annotated boxes of each phrase, in the same unit. A
    phrase is linked to the regions that match its boxes (`match_boxes`), several are merged by
    `merge_attention`, and a phrase without any is left out. For the other options see `relation_distance`.
    """
    words, boxes = [], []
    for phrase, annotated in zip(phrases, gold, strict=True):
        matched = match_boxes(regions, annotated, threshold=threshold)
        if bool((matched >= 0).any()):
            words.append(phrase)
            boxes.append(matched[matched >= 0].unique().tolist())
    if len(words) < 2:
        return None
    return relation_distance(
        merge_attention(text_attention, words),
        merge_attention(image_attention, boxes),
        normalise=normalise,
        divide_by_n=divide_by_n,
    )


def mean_distance(distances: Iterable[Tensor | None]) -> tuple[float, int]:
    """ISDa of a data set: the mean over the pairs that have one, and how many they are. NaN without any."""
    known = [float(d) for d in distances if d is not None]
    return (sum(known) / len(known) if known else float("nan")), len(known)


@torch.no_grad()
def self_distance(
    text_attention: Tensor,
    image_attention: Tensor,
    text_image_attention: Tensor,
    image_text_attention: Tensor,
    word_counts: Tensor,
    region_counts: Tensor,
    *,
    alignment: Alignment = "singular",
    side: Side = "both",
) -> Tensor:
    """ISD, annotation-free, of every pair: (G,T,T), (G,R,R), (G,T,R), (G,R,T), counts (G,), (G,) -> (G,).

    The value of the IAIS loss on these pairs: each modality's attention against the other's carried over
    through the cross-attention. Average it over the matched pairs of a split. The arguments are those of
    `crossmodal.losses.iais.iais`.
    """
    return iais_terms(
        text_attention,
        image_attention,
        text_image_attention,
        image_text_attention,
        word_counts,
        region_counts,
        alignment=alignment,
        side=side,
    )


def _distributions(attention: Tensor, normalise: Normalise) -> Tensor:
    if normalise not in get_args(Normalise):
        raise ConfigError(f"normalise: {normalise!r} is unknown: choose {' or '.join(get_args(Normalise))}")
    block = attention if attention.dtype == torch.float64 else attention.float()
    if normalise == "softmax":
        return block.softmax(dim=1)
    # Exact zeros (underflow in half precision) would make the distance infinite.
    block = block.clamp(min=torch.finfo(torch.float32).tiny)
    return block / block.sum(dim=1, keepdim=True)
