"""Layers whose attention has one packed projection, under the names of `torch.nn.MultiheadAttention`.

CLIP's towers and the layers that ALADIN puts on its backbone are made of them; sequences are packed as in the
one transformer.
"""

from __future__ import annotations

from copy import deepcopy

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
            q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, 1)
            return self.out_proj(self.attend(q, k, v, packing))
        width = x.shape[1]
        q = F.linear(x.index_select(0, packing.first), self.in_proj_weight[:width], self.in_proj_bias[:width])
        k, v = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, 1)
        return self.out_proj(self.attend(q, k, v, packing, first_only=True))


class PostNormLayer(nn.Module):
    """y = LN(x + attention(x)); LN(y + W_2 relu(W_1 y)), under the names of `torch.nn.TransformerEncoderLayer`."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = InProjAttention(width, heads, dropout)
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing, first_only: bool = False) -> Tensor:
        """x (N,D) -> (N,D), or (B,D) for the first row of each sequence."""
        context = self.dropout(self.self_attn(x, packing, first_only))
        y = self.norm1(context + (x.index_select(0, packing.first) if first_only else x))
        inner = self.linear2(self.dropout(F.relu(self.linear1(y))))
        return self.norm2(y + self.dropout(inner))


class PostNormStack(nn.Module):
    """Layers that start as copies of one, with no norm after them: ALADIN's extra transformers (spec section 2.2)."""

    def __init__(self, layers: int, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        layer = PostNormLayer(width, heads, inner, dropout)
        self.layers = nn.ModuleList(deepcopy(layer) for _ in range(layers))

    def forward(self, x: Tensor, packing: Packing, first_only: bool = False) -> Tensor:
        """x (N,D) -> (N,D), or (B,D) of the first rows with `first_only`."""
        for i, layer in enumerate(self.layers):
            x = layer(x, packing, first_only and i == len(self.layers) - 1)
        return x.index_select(0, packing.first) if first_only and not self.layers else x
