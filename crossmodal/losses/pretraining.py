"""Pre-training objectives of UNITER but matching and optimal transport (arXiv 1909.11740; spec section 8).

Each is averaged over its own unit (masked words, masked regions or their elements) and returns
``(mean, count)``, so that the engine can average over micro-steps and ranks.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .registry import Groups, full_precision, mean_or_zero, register

Counted = tuple[Tensor, int]


def _mean(terms: Tensor) -> Counted:
    return mean_or_zero(terms), terms.numel()


@register("masked_words")
def masked_words(word_logits: Groups, word_targets: Groups) -> Counted:
    """Masked-language modelling: cross-entropy a masked word. word_logits (n, V), word_targets (n,) int64."""
    return _mean(masked_words_terms(word_logits, word_targets))


def masked_words_terms(word_logits: Tensor, word_targets: Tensor) -> Tensor:
    (logits,) = full_precision(word_logits)
    return F.cross_entropy(logits, word_targets, reduction="none")


@register("masked_region_features")
def masked_region_features(region_predictions: Groups, region_targets: Groups) -> Counted:
    """Masked-region feature regression (MRFR): squared error an element, both (n, F)."""
    return _mean(masked_region_features_terms(region_predictions, region_targets))


def masked_region_features_terms(region_predictions: Tensor, region_targets: Tensor) -> Tensor:
    prediction, target = full_precision(region_predictions, region_targets)
    return (prediction - target).square()


@register("masked_region_classes")
def masked_region_classes(region_logits: Groups, region_labels: Groups) -> Counted:
    """Masked-region classification (MRC): cross-entropy against the detector's best class but the background.

    region_logits (n, C); region_labels (n, C) soft labels, column 0 the background, never a target.
    """
    return _mean(masked_region_classes_terms(region_logits, region_labels))


def masked_region_classes_terms(region_logits: Tensor, region_labels: Tensor) -> Tensor:
    (logits,) = full_precision(region_logits)
    return F.cross_entropy(logits, region_labels[:, 1:].argmax(dim=1) + 1, reduction="none")


@register("masked_region_kl")
def masked_region_kl(region_logits: Groups, region_labels: Groups) -> Counted:
    """MRC-KL: KL(soft label || prediction) over all classes, averaged over all elements (n, C)."""
    return _mean(masked_region_kl_terms(region_logits, region_labels))


def masked_region_kl_terms(region_logits: Tensor, region_labels: Tensor) -> Tensor:
    logits, labels = full_precision(region_logits, region_labels)
    return F.kl_div(logits.log_softmax(dim=1), labels, reduction="none")
