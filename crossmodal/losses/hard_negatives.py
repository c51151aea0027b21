"""Contrastive losses with generated wrong captions (NegCLIP and CE-CLIP), over the global batch.

B items with K wrong captions each, whose rows stand item after item: those of item 0, those of item 1, ... An item
that lacks some has a row in each one's place; `negative_mask` (B,K) is 0 there. `logit_scale` is the factor s itself.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .contrastive import scaled_products, symmetric_cross_entropy
from .registry import Items, Scalar, full_precision, mean_or_zero, register

Form = Literal["v2024_01", "paper", "main", "v2023_06"]


@register("hard_negative_itc")
def hard_negative_itc(
    image_embeds: Items,
    text_embeds: Items,
    negative_text_embeds: Items,
    negative_mask: Items,
    logit_scale: Scalar,
    *,
    mask_missing: bool = False,
) -> Tensor:
    """InfoNCE in which the wrong captions of all items are negatives of every image (CE-CLIP, spec 3.3).

    With I, T, H the images, captions and wrong captions, image i matching caption i,

        (CE(s I [T; H]^t, i) + CE(s T I^t, i)) / 2

    This is NegCLIP's text-only form too (spec 3.2).

    image_embeds, text_embeds: (B,E); negative_text_embeds: (B*K,E), all unit vectors; negative_mask: (B,K);
    logit_scale: (). mask_missing: leave out the rows of missing captions, which are negatives as published.
    """
    images, texts, negatives, scale = full_precision(image_embeds, text_embeds, negative_text_embeds, logit_scale)
    logits = scaled_products(images, torch.cat([texts, negatives]), scale)
    return itc_of(logits, negative_mask, mask_missing)


@register("negclip")
def negclip(
    image_embeds: Items,
    hard_image_embeds: Items,
    text_embeds: Items,
    hard_text_embeds: Items,
    negative_text_embeds: Items,
    hard_negative_text_embeds: Items,
    logit_scale: Scalar,
) -> Tensor:
    """NegCLIP's InfoNCE with hard images and the wrong captions of all (CE-CLIP, spec 3.2).

    It is `hard_negative_itc` of 2B items: the own ones, and their hard images, which match their own captions.

    image_embeds, hard_image_embeds, text_embeds, hard_text_embeds: (B,E); negative_text_embeds,
    hard_negative_text_embeds: (B*K,E), all unit vectors; logit_scale: ().
    """
    images, hard_images, scale = full_precision(image_embeds, hard_image_embeds, logit_scale)
    texts = full_precision(text_embeds, hard_text_embeds, negative_text_embeds, hard_negative_text_embeds)
    return symmetric_cross_entropy(scaled_products(torch.cat([images, hard_images]), torch.cat(list(texts)), scale))


@register("intra_modal_contrastive")
def intra_modal_contrastive(
    image_embeds: Items,
    text_embeds: Items,
    negative_text_embeds: Items,
    negative_mask: Items,
    logit_scale: Scalar,
    *,
    form: Form = "v2024_01",
    mask_missing: bool = False,
) -> Tensor:
    """Every caption away from all wrong captions (IMC, CE-CLIP, spec 3.3).

    With X = s T H^t, p_i = s I_i.T_i and x the first column of X, the mean over captions i of

        "v2024_01":  log(exp(p_i) + sum_j exp(X_ij)) - p_i
        "paper":     log(sum_j exp(X_ij)) - p_i
        "main":      log(sum_j exp(X_ij)) - x_i             the published code since 2024-03
        "v2023_06":  log(exp(p_i) + sum_j exp(X_ij)) - x_i  the code published with the paper

    The last two pull every caption towards one wrong caption of the first item and are for comparison.

    image_embeds, text_embeds: (B,E); negative_text_embeds: (B*K,E), all unit vectors; negative_mask: (B,K);
    logit_scale: (). mask_missing: leave missing captions out of the sums; not with the last two forms.
    """
    images, texts, negatives, scale = full_precision(image_embeds, text_embeds, negative_text_embeds, logit_scale)
    own = own_scores(images, texts, scale)
    return imc_of(own, scaled_products(texts, negatives, scale), negative_mask, form, mask_missing)


def itc_of(logits: Tensor, mask: Tensor, mask_missing: bool) -> Tensor:
    """`hard_negative_itc` of logits (B,B+B*K)."""
    if mask_missing:
        columns = torch.cat([mask.new_ones(len(logits)), mask.flatten()]) > 0
        logits = logits.masked_fill(~columns, -torch.inf)
    return symmetric_cross_entropy(logits)


def imc_of(own: Tensor, logits: Tensor, mask: Tensor, form: Form, mask_missing: bool) -> Tensor:
    """`intra_modal_contrastive` of p (B,) and X (B,B*K)."""
    if mask_missing:
        require_maskable(form)
        logits = logits[:, mask.flatten() > 0]
    if not logits.numel():  # no wrong captions to push away from
        return (own.sum() + logits.sum()) * 0
    total = logits.logsumexp(dim=1)
    target = logits[:, 0] if form in ("main", "v2023_06") else own
    if form in ("v2024_01", "v2023_06"):
        total = torch.logaddexp(total, own)
    return mean_or_zero(total - target)


def require_maskable(form: Form) -> None:
    """Raises ValueError where a form's target could be masked."""
    if form in ("main", "v2023_06"):
        raise ValueError(
            f"mask_missing does not go with the form {form!r}, whose target may be a missing caption; "
            "use v2024_01 or paper"
        )


def own_scores(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """(B,E), (B,E), () -> p (B,), each image with its caption."""
    return (scale * images * texts).sum(dim=1)


def wrong_scores(images: Tensor, negatives: Tensor, scale: Tensor, types: int) -> Tensor:
    """(B,E), (B*K,E), () -> h (B,K), each image with its wrong captions."""
    return (scale * images[:, None] * negatives.unflatten(0, (len(images), types))).sum(dim=2)
