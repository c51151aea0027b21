"""Inter-modal alignment of intra-modal self-attentions (IAIS, arXiv 2105.13868; spec section 6).

Four blocks of the last layer's attention of a matched pair, averaged over heads: L words, V regions,
`LV` means word queries over region keys. Each valid row sums to 1, rows and columns of padding are 0.
Carrying one modality's attention over to the other through the cross-attention gives a pseudo distribution,
which must agree with that modality's own.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .registry import Groups, full_precision, mean_or_zero, register

Alignment = Literal["singular", "distributed"]
Side = Literal["linguistic", "visual", "both"]

EPSILON = 1e-6  # inside the logarithm of the input side only, in the distributed form (spec 6.3)


@register("iais")
def iais(
    text_attention: Groups,
    image_attention: Groups,
    text_image_attention: Groups,
    image_text_attention: Groups,
    word_counts: Groups,
    region_counts: Groups,
    *,
    alignment: Alignment = "singular",
    side: Side = "both",
) -> Tensor:
    """The IAIS regulariser: the mean over G matched pairs of R_L, R_V or R_L + R_V.

    text_attention (G,T,T), image_attention (G,R,R), text_image_attention (G,T,R), image_text_attention
    (G,R,T), with T and R at least 1; word_counts and region_counts (G,) int64 on the blocks' device.
    `side="both"` is the paper's form on one pair; the published code uses `linguistic` on text-anchored and
    `visual` on image-anchored batches. A pair without words or regions counts as 0.
    """
    terms = iais_terms(
        text_attention, image_attention, text_image_attention, image_text_attention, word_counts, region_counts,
        alignment=alignment, side=side,
    )  # fmt: skip
    return mean_or_zero(terms)


def iais_terms(
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
    """The regulariser of every pair, before the mean: (G,)."""
    ll, vv, lv, vl = full_precision(text_attention, image_attention, text_image_attention, image_text_attention)
    total = ll.new_zeros(len(ll))
    if side in ("linguistic", "both"):
        total = total + _one_side(ll, vv, lv, vl, word_counts, region_counts, alignment)
    if side in ("visual", "both"):
        total = total + _one_side(vv, ll, vl, lv, region_counts, word_counts, alignment)
    return total


def _one_side(
    own: Tensor,
    other: Tensor,
    across: Tensor,
    back: Tensor,
    counts: Tensor,
    other_counts: Tensor,
    alignment: Alignment,
) -> Tensor:
    """R of one modality: own (G,N,N), other (G,M,M), across (G,N,M), back (G,M,N) -> (G,)."""
    valid = torch.arange(own.shape[1], device=own.device) < counts[:, None]  # (G,N)
    entries = valid[:, :, None] & valid[:, None, :] & (other_counts > 0)[:, None, None]
    if alignment == "singular":
        pseudo = singular_pseudo(other, across, valid)
        return symmetric_kl(pseudo, own, entries, counts)
    return symmetric_kl(across @ back, own, entries, counts, epsilon=EPSILON)


def singular_pseudo(other: Tensor, across: Tensor, valid: Tensor) -> Tensor:
    """Softmax over own positions of the other modality's attention at their argmax partners: (G,N,N).

    P_ij = softmax_j other[a_i, a_j] with a_i = argmax_m across[i, m], the first index on ties. The softmax
    is taken of probabilities, as published, so P is nearly uniform.
    """
    partner = aligned_index(across)  # (G,N)
    rows = other.gather(1, partner[:, :, None].expand(-1, -1, other.shape[2]))  # (G,N,M)
    picked = rows.gather(2, partner[:, None, :].expand(-1, partner.shape[1], -1))  # (G,N,N)
    return picked.masked_fill(~valid[:, None, :], torch.finfo(picked.dtype).min).softmax(dim=2)


def aligned_index(across: Tensor) -> Tensor:
    """The partner of each position, (..., N, M) -> (..., N); the first index on ties."""
    best = across.amax(dim=-1, keepdim=True)
    position = torch.arange(across.shape[-1], device=across.device)
    return torch.where(across == best, position, across.shape[-1]).amin(dim=-1)


def symmetric_kl(p: Tensor, q: Tensor, entries: Tensor, counts: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """sKL of the valid block, summed and divided by the number of rows: (G,N,N), (G,N,N) -> (G,).

        (1/N) sum_ij [ q (ln q - ln(p + epsilon)) + p (ln p - ln(q + epsilon)) ],  0 ln 0 = 0 on the target side

    Exact zeros are clamped to the smallest normal number before a logarithm: the published form gives
    infinite losses or gradients there (spec 6.4).
    """
    tiny = torch.finfo(p.dtype).tiny
    p = torch.where(entries, p, 1.0)
    q = torch.where(entries, q, 1.0)

    def log(x: Tensor) -> Tensor:
        return x.clamp(min=tiny).log()

    terms = q * (log(q) - log(p + epsilon)) + p * (log(p) - log(q + epsilon))
    rows = counts.clamp(min=1).to(p.dtype)
    return torch.where(entries, terms, 0.0).sum(dim=(1, 2)) / rows
