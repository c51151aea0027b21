"""Losses of a dual encoder over the global batch: cross-entropy of the scores, uniformity of the vectors."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .registry import Items, Scores, full_precision, mean_or_zero, register


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
        logits = scale.exp() * s
        matched = torch.arange(len(s), device=s.device)
        directions = [F.cross_entropy(x, matched, reduction="none") for x in (logits, logits.T)]
        return mean_or_zero(torch.cat(directions))


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
