"""Aggregation over depth: one state a position from those of all layers (ALADIN, spec section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .in_proj import InProjAttention
from .transformer import Packing

Depth = Literal["mean", "gated"]

HEADS = 4
FUSION_WIDTH = 512


class MeanDepth(nn.Module):
    """The mean over layers."""

    def forward(self, states: Sequence[Tensor], packings: Sequence[Packing]) -> Tensor:
        """Layer outputs, (N,D) each -> (N,D)"""
        return torch.stack(list(states)).mean(dim=0)


class GatedDepth(nn.Module):
    """sum_d g_d x_d with a gate for every position of every layer: g_d = sigmoid(w . attention(x_d) + c)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = InProjAttention(width, HEADS, dropout)
        self.gate_ffn = nn.Linear(width, 1)

    def forward(self, states: Sequence[Tensor], packings: Sequence[Packing]) -> Tensor:
        """Layer outputs, (N,D) each, and what attention sees in each layer -> (N,D)"""
        gates = [self.gate_ffn(self.self_attn(x, p)).sigmoid() for x, p in zip(states, packings, strict=True)]
        return torch.stack([g * x for g, x in zip(gates, states, strict=True)]).sum(dim=0)


class FeatureFusion(nn.Module):
    """a s_0 + b s_1 with two gates a position: s = sigmoid(W_2 relu(W_1 [a; b]))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.alphas = nn.Sequential(
            nn.Linear(2 * width, FUSION_WIDTH), nn.ReLU(), nn.Dropout(dropout), nn.Linear(FUSION_WIDTH, 2)
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b (N,D) -> (N,D)"""
        first, second = self.alphas(torch.cat([a, b], dim=-1)).sigmoid().split(1, dim=-1)
        return a * first + b * second


def build_depth(kind: Depth, width: int, dropout: float) -> nn.Module:
    return MeanDepth() if kind == "mean" else GatedDepth(width, dropout)


def published_masks(real: Tensor, widths: Tensor, depth: int) -> list[Tensor]:
    """Which rows attention sees in each layer where the masks are mixed up as published (spec section 13, row 8).

    real (B,): how many rows of each item are no padding; widths (B,): how many rows it has, the same for all.
    The depth x B sequences are numbered layer by layer, and number r has the mask of item r // depth.
    -> (sum of widths,) bool a layer.
    """
    items = len(real)
    positions = torch.arange(int(widths[0])) if items else widths
    owners = (torch.arange(depth * items) // depth).view(depth, items)
    return [(positions < real[owner, None]).flatten() for owner in owners]
