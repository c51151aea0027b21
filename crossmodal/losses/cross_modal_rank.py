"""CE-CLIP's hinge between right and wrong captions, with margins that follow the model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .hard_negatives import own_scores, wrong_scores
from .registry import Items, Scalar, WrongFields, full_precision, mean_or_zero, register
from .state import StatefulLoss

Rule = Literal["mean", "max", "fixed"]


@register("cross_modal_rank")
class CrossModalRank(StatefulLoss):
    """Each image nearer to its caption than to its wrong ones, by adaptive margins (CMR, CE-CLIP, spec 3.3).

    With p_i = s I_i.T_i, h_ik the score of image i's wrong caption of type k, and m_ik whether there is one,

        sum over i and k of m_ik max(0, theta_k + h_ik - p_i) / (B K)

    The thresholds theta (the buffer `thresholds` (K,), 0 at first, in units of the scaled scores) change once an
    update, without gradients, and are kept between 0 and `upper_bound`. What they become (`threshold`):

        "mean":   theta_k = mean_i p_i - mean of h_ik over the i with m_ik = 1
        "max":    theta_k = max_i(m_ik (p_i - h_ik)) / 5
        "fixed":  they stay at `fixed_threshold`, whatever the bound

    A type of which the batch has none keeps its threshold (the published code makes it NaN).

    types: K. reset_each_epoch: thresholds start at 0 in every epoch, as published.
    """

    def __init__(
        self,
        *,
        threshold: Rule = "mean",
        upper_bound: float = 10.0,
        fixed_threshold: float = 2.0,
        types: int = 4,
        reset_each_epoch: bool = False,
    ) -> None:
        super().__init__()
        self.threshold, self.upper_bound, self.reset_each_epoch = threshold, upper_bound, reset_each_epoch
        self.thresholds: Tensor
        self.register_buffer("thresholds", torch.full((types,), fixed_threshold if threshold == "fixed" else 0.0))
        self._next: Tensor | None = None

    def forward(
        self,
        image_embeds: Items,
        text_embeds: Items,
        negative_text_embeds: Items,
        negative_mask: Items,
        logit_scale: Scalar,
    ) -> Tensor:
        """image_embeds, text_embeds: (B,E); negative_text_embeds: (B*K,E), item after item, all unit vectors;
        negative_mask: (B,K); logit_scale: (), the factor itself. Raises WrongFields where K is not `types`.
        """
        images, texts, negatives, scale = full_precision(image_embeds, text_embeds, negative_text_embeds, logit_scale)
        wrong = wrong_scores(images, negatives, scale, negative_mask.shape[1])
        return self.of_scores(own_scores(images, texts, scale), wrong, negative_mask)

    def of_scores(self, own: Tensor, wrong: Tensor, mask: Tensor) -> Tensor:
        """The loss of p (B,), h (B,K) and m (B,K)."""
        if mask.shape[1:] != self.thresholds.shape:
            raise WrongFields(
                f"negative_mask has {tuple(mask.shape[1:])} types, the loss {len(self.thresholds)}; set types"
            )
        valid, thresholds = mask > 0, self.thresholds.to(own.dtype)
        if self.threshold != "fixed" and self.training:
            found = new_thresholds(own.detach(), wrong.detach(), valid, thresholds, self.threshold)
            self._next = found.clamp(0, self.upper_bound)
        hinges = (thresholds + wrong - own[:, None]).clamp(min=0)
        return mean_or_zero(hinges.where(valid, 0))

    @property
    def shown(self) -> dict[str, float]:
        return {f"threshold_{k}": theta for k, theta in enumerate(self.thresholds.tolist())}

    def begin_epoch(self) -> None:
        if self.reset_each_epoch and self.threshold != "fixed":
            self.thresholds.zero_()

    def after_update(self, *, made: bool = True) -> None:
        if made and self._next is not None:
            self.thresholds.copy_(self._next)
        self._next = None


def new_thresholds(own: Tensor, wrong: Tensor, valid: Tensor, old: Tensor, rule: Literal["mean", "max"]) -> Tensor:
    """What the thresholds (K,) become before they are bounded, from p (B,), h (B,K), m (B,K) bool and the old ones."""
    counts = valid.sum(dim=0)
    if rule == "mean":
        found = own.mean() - wrong.where(valid, 0).sum(dim=0) / counts
    else:
        gaps = (own[:, None] - wrong).where(valid, 0)
        found = (gaps.amax(dim=0) if len(own) else old) / 5
    return found.where(counts > 0, old)
