"""Layers whose attention has one packed projection, under the names of `torch.nn.MultiheadAttention`.

CLIP's towers and the layers that ALADIN puts on its backbone are made of them; sequences are packed as in the
one transformer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .transformer import PackedAttention, Packing


class InProjAttention(PackedAttention):
    """Self-attention with `in_proj_weight` (3D,D), `in_proj_bias` (3D,) and `out_proj`."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, causal: bool = False) -> None:
        super().__init__(width, heads, dropout, causal=causal)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, packing: Packing, first_only: bool = False) -> Tensor:
        """x (N,D) -> (N,D), or (B,D) for the first row of each sequence."""
        if not first_only:
            return self.out_proj(self.attend(*F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, 1), packing))
        width = x.shape[1]
        q = F.linear(x.index_select(0, packing.first), self.in_proj_weight[:width], self.in_proj_bias[:width])
        k, v = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, 1)
        return self.out_proj(self.attend(q, k, v, packing, first_only=True))
