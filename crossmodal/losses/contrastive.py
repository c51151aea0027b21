"""Losses of a dual encoder over the global batch: of its scores, of its vectors and their scale.

`logit_scale` is the factor s itself, as the model applies it, not its logarithm.
"""

from __future__ import annotations

from math import log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .registry import Items, Scalar, Scores, full_precision, mean_or_zero, register


@register("info_nce")
class InfoNCE(nn.Module):
    """Symmetric InfoNCE: (CE(e^s M, k) + CE(e^s M^T, k)) / 2, the mean cross-entropy of each text over the images and
    of each image over the texts (ALADIN-2.0, spec section 5; CLIP).

    log_scale: where s starts, ln(1/0.07) as in CLIP; ALADIN's unused `cross_entropy` starts at 0. learn: whether s is
    learnt. The parameter (or the constant, not saved) is `logit_scale` ().
    """

    def __init__(self, *, log_scale: float = -log(0.07), learn: bool = True) -> None:
        super().__init__()
        start = torch.tensor(float(log_scale))
        self.logit_scale: Tensor
        if learn:
            self.logit_scale = nn.Parameter(start)
        else:
            self.register_buffer("logit_scale", start, persistent=False)

    def forward(self, scores: Scores) -> Tensor:
        """scores M: (B,B), text k matching image k."""
        s, scale = full_precision(scores, self.logit_scale)
        return symmetric_cross_entropy(scale.exp() * s)


@register("clip_info_nce")
def clip_info_nce(image_embeds: Items, text_embeds: Items, logit_scale: Scalar) -> Tensor:
    """CLIP's symmetric InfoNCE (CE-CLIP, spec 3.1).

    With L = s I T^t, image i matching text i, and CE the mean cross-entropy of the rows,

        (CE(L, i) + CE(L^t, i)) / 2

    image_embeds I, text_embeds T: (B,E) unit vectors; logit_scale s: (). A second picture or caption of what is in the
    batch already counts as a negative.
    """
    images, texts, scale = full_precision(image_embeds, text_embeds, logit_scale)
    return symmetric_cross_entropy(scaled_products(images, texts, scale))


@register("sigmoid")
def sigmoid(
    image_embeds: Items,
    text_embeds: Items,
    logit_scale: Scalar,
    logit_bias: Scalar,
    *,
    divide: Literal["items", "pairs"] = "items",
) -> Tensor:
    """SigLIP's loss, which judges every pair by itself (CE-CLIP, spec 3.1).

    With y_ij = 1 where i = j and -1 elsewhere,

        -sum over images i and texts j of log sigmoid(y_ij (s I_i.T_j + b)) / B

    image_embeds I, text_embeds T: (B,E) unit vectors, image i matching text i; logit_scale s, logit_bias b: ().
    divide: "items" is by B, as SigLIP and OpenCLIP have it; "pairs" is by B^2, as CE-CLIP's code has it.
    """
    images, texts, scale, bias = full_precision(image_embeds, text_embeds, logit_scale, logit_bias)
    logits = scaled_products(images, texts, scale) + bias
    sign = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    losses = -F.logsigmoid(sign * logits)
    return mean_or_zero(losses if divide == "pairs" else losses.sum(dim=1))


@register("uniformity")
def uniformity(image_embeds: Items, text_embeds: Items) -> Tensor:
    """How evenly all vectors of the batch lie on the sphere ("entropy", ALADIN, spec section 5): with x the 2B vectors
    of both sides and nn(k) the one with the largest dot product with x_k but itself,

        -mean over k of log(2B || x_k - x_nn(k) + 1e-6 ||_2)

    image_embeds, text_embeds: (B,E) unit vectors, of one number of items. Equal vectors stay finite.
    """
    x = torch.cat(list(full_precision(image_embeds, text_embeds)))
    if len(x) < 2:
        return x.sum()
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        nearest = (x @ x.T).fill_diagonal_(-torch.inf).argmax(dim=1)
    return -(len(x) * F.pairwise_distance(x, x[nearest], eps=1e-6)).log().mean()


def scaled_products(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """(A,E), (B,E), () -> (A,B): scale a b^t, never in half precision."""
    with torch.autocast(a.device.type, enabled=False):
        return scale * a @ b.T


def symmetric_cross_entropy(logits: Tensor) -> Tensor:
    """(CE of each row over all columns + CE of each of the first B columns over the rows) / 2.

    logits: (B,B+C); what matches row i is column i, and the last C columns match nothing.
    """
    matched = torch.arange(len(logits), device=logits.device)
    directions = logits, logits[:, : len(logits)].T
    return mean_or_zero(torch.cat([F.cross_entropy(x, matched, reduction="none") for x in directions]))
