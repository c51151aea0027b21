"""Zero-shot classification: class names in prompt templates, compared with images (CE-CLIP, spec section 6.3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def classifier(prompts: Tensor) -> Tensor:
    """Embeddings (C,K,D) of the K prompts of each class -> (D,C): the mean of unit vectors, of unit length again."""
    return F.normalize(F.normalize(prompts, dim=2).mean(dim=1), dim=1).T


def classify(images: Tensor, weights: Tensor) -> Tensor:
    """Image embeddings (N,D) and a classifier (D,C) -> logits (N,C), 100 times the cosine."""
    return 100 * F.normalize(images, dim=1) @ weights
