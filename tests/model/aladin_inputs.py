"""Tiny ALADIN models and ragged inputs for them."""

from __future__ import annotations

from typing import Any

import torch

from crossmodal.data.batches import Batch, Regions, Texts, Vectors, length_mask
from crossmodal.model.aladin import Aladin

CONFIG: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "img_feature_dim": 10,
}
CLIP = {"vocab_size": 40, "width": 8, "heads": 2, "layers": 2, "context": 12, "embed_dim": 6}


def model(**changes: Any) -> Aladin:
    """Large random weights, so that every part of the model matters; evaluation mode, float64."""
    torch.manual_seed(0)
    built = Aladin({**CONFIG, "initializer_range": 0.3, **changes}).double().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return built


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texts(lengths: list[int], *, seed: int = 1, tags: bool = False) -> Texts:
    n = torch.tensor(lengths)
    real = length_mask(n, int(n.max()))
    ids = torch.randint(1, 40, real.shape, generator=torch.Generator().manual_seed(seed))
    types = (real & (torch.arange(real.shape[1]) > 0)).long() if tags else None
    return Texts(torch.where(real, ids, 0), n, types)


def vectors(lengths: list[int], width: int, *, seed: int = 2) -> Vectors:
    return Vectors(_random(len(lengths), max(lengths), width, seed=seed), torch.tensor(lengths))


def regions(lengths: list[int], tags: Texts | Vectors, *, width: int = 10, seed: int = 3) -> Regions:
    n = torch.tensor(lengths)
    features = _random(len(n), int(n.max()), width, seed=seed) * length_mask(n, int(n.max()))[:, :, None]
    return Regions(features, features.new_zeros(len(n), int(n.max()), 6), n, tags)


TEXTS = texts([5, 3, 9, 4])
REGIONS = regions([3, 6, 1, 4], texts([4, 2, 7, 2], seed=4, tags=True))
BATCH = Batch({"text": ("text", TEXTS), "image": ("image", REGIONS)})
