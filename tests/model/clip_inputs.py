"""Tiny CLIP models and inputs for them."""

from __future__ import annotations

from typing import Any

import torch

from crossmodal.data.batches import Batch, Pixels, Texts
from crossmodal.model.clip import Clip

CONFIG: dict[str, Any] = {
    "embed_dim": 6, "vocab_size": 30, "context": 9, "width": 16, "heads": 4, "layers": 3,
    "image_size": 12, "patch_size": 4, "vision_width": 24, "vision_heads": 3, "vision_layers": 2,
}  # fmt: skip


def clip(seed: int = 0, **changes: Any) -> Clip:
    """Random weights, all of them; evaluation mode."""
    torch.manual_seed(seed)
    built = Clip({**CONFIG, **changes}).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return built


def texts(lengths: list[int], *, width: int = 0, seed: int = 1) -> Texts:
    """Each row starts with 28, ends with 29 and is padded with 0 to `width`, or the longest."""
    ids = torch.zeros(len(lengths), max(width, *lengths), dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    for row, n in zip(ids, lengths, strict=True):
        row[:n] = torch.randint(1, 28, (n,), generator=generator)
        row[0], row[n - 1] = 28, 29
    return Texts(ids, torch.tensor(lengths))


def pixels(count: int, *size: int, seed: int = 2) -> Pixels:
    return Pixels(torch.randn(count, 3, *(size or (12, 12)), generator=torch.Generator().manual_seed(seed)))


TEXTS, PIXELS = texts([5, 3, 9, 4]), pixels(4)
BATCH = Batch({"text": ("text", TEXTS), "image": ("image", PIXELS)})
