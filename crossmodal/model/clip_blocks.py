"""The layers of CLIP's two towers: pre-LayerNorm residual blocks over packed sequences, under the published names."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .in_proj import InProjAttention
from .transformer import Packing


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x)"""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    """gamma x, with a learnt vector gamma that starts as a constant."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), float(start)))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class ResidualBlock(nn.Module):
    """y = x + ls_1(attention(ln_1 x)); y + ls_2(c_proj(act(c_fc(ln_2 y)))) (CE-CLIP, spec section 2.2).

    ls_1 and ls_2 are identities unless `layer_scale` says where they start.
    """

    def __init__(
        self, width: int, heads: int, mlp_width: int, *, causal: bool, quick_gelu: bool, layer_scale: float | None
    ) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

        self.ln_1 = nn.LayerNorm(width)
        self.attn = InProjAttention(width, heads, causal=causal)
        self.ls_1 = scale()
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, mlp_width),
                gelu=QuickGELU() if quick_gelu else nn.GELU(),
                c_proj=nn.Linear(mlp_width, width),
            )
        )
        self.ls_2 = scale()

    def forward(self, x: Tensor, packing: Packing, first_only: bool = False) -> Tensor:
        """x (N,D) -> (N,D), or (B,D) for the first row of each sequence."""
        context = self.ls_1(self.attn(self.ln_1(x), packing, first_only))
        y = context + (x.index_select(0, packing.first) if first_only else x)
        return y + self.ls_2(self.mlp(self.ln_2(y)))


class Blocks(nn.Module):
    """The stack of residual blocks.

    recompute: whether training keeps only what enters each block, and computes the rest again in the backward pass.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        mlp_width: int | None = None,
        *,
        causal: bool,
        quick_gelu: bool = True,
        layer_scale: float | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.resblocks = nn.ModuleList(
            ResidualBlock(
                width, heads, mlp_width or 4 * width, causal=causal, quick_gelu=quick_gelu, layer_scale=layer_scale
            )
            for _ in range(layers)
        )

    def forward(self, x: Tensor, packing: Packing, first_only: bool = False) -> Tensor:
        """x (N,D) -> (N,D), or (B,D) for the first row of each sequence."""
        for i, block in enumerate(self.resblocks):
            first = first_only and i == len(self.resblocks) - 1
            if self.recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, packing, first, use_reentrant=False)
            else:
                x = block(x, packing, first)
        return x
