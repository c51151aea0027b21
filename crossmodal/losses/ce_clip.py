"""CE-CLIP's whole objective, each product of two sets of vectors computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from .contrastive import scaled_products, symmetric_cross_entropy
from .cross_modal_rank import CrossModalRank, Rule
from .hard_negatives import Form, imc_of, itc_of, require_maskable, wrong_scores
from .registry import Items, Scalar, full_precision, register


@register("ce_clip")
class CeClip(CrossModalRank):
    """CE-CLIP's whole objective (spec 3.3), each product of its three terms computed once:

        hard_negative_itc + cmr_weight cross_modal_rank + imc_weight intra_modal_contrastive

    A term of weight 0 is not computed. hard_negatives: whether the wrong captions are columns of the first term;
    without, it is `clip_info_nce`. The other options are those of the terms.

    `terms` are `itc`, `cmr` and `imc` of the last call, before weighting.
    """

    def __init__(
        self,
        *,
        cmr_weight: float = 0.2,
        imc_weight: float = 0.2,
        hard_negatives: bool = True,
        form: Form = "v2024_01",
        mask_missing: bool = False,
        threshold: Rule = "mean",
        upper_bound: float = 10.0,
        fixed_threshold: float = 2.0,
        types: int = 4,
        reset_each_epoch: bool = False,
    ) -> None:
        super().__init__(
            threshold=threshold,
            upper_bound=upper_bound,
            fixed_threshold=fixed_threshold,
            types=types,
            reset_each_epoch=reset_each_epoch,
        )
        if mask_missing and imc_weight:
            require_maskable(form)
        self.cmr_weight, self.imc_weight, self.hard_negatives = cmr_weight, imc_weight, hard_negatives
        self.form, self.mask_missing = form, mask_missing
        self.terms: dict[str, Tensor] = {}

    @property
    def shown(self) -> dict[str, float]:
        return {name: float(term) for name, term in self.terms.items()} | super().shown

    def forward(
        self,
        image_embeds: Items,
        text_embeds: Items,
        negative_text_embeds: Items,
        negative_mask: Items,
        logit_scale: Scalar,
    ) -> Tensor:
        """As of `cross_modal_rank`."""
        images, texts, negatives, scale = full_precision(image_embeds, text_embeds, negative_text_embeds, logit_scale)
        count = len(images)
        if self.hard_negatives:
            logits = scaled_products(images, torch.cat([texts, negatives]), scale)  # (B, B+B*K)
            wrong = logits[:, count:].unflatten(1, negative_mask.shape).diagonal().T  # (B, B,K) -> (B,K)
            itc = itc_of(logits, negative_mask, self.mask_missing)
        else:
            logits = scaled_products(images, texts, scale)
            itc = symmetric_cross_entropy(logits)
            wrong = wrong_scores(images, negatives, scale, negative_mask.shape[1])
        own = logits.diagonal()
        terms, total = {"itc": itc}, itc
        if self.cmr_weight:
            terms["cmr"] = self.of_scores(own, wrong, negative_mask)
            total = total + self.cmr_weight * terms["cmr"]
        if self.imc_weight:
            text_logits = scaled_products(texts, negatives, scale)
            terms["imc"] = imc_of(own, text_logits, negative_mask, self.form, self.mask_missing)
            total = total + self.imc_weight * terms["imc"]
        self.terms = {name: term.detach() for name, term in terms.items()}
        return total
