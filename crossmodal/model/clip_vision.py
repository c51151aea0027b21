"""CLIP's image tower: a picture's patches as one sequence behind a class token, under the published names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clip_blocks import Blocks
from .transformer import Packing


class ClipVision(nn.Module):
    """Pictures to CLIP's image vectors (CE-CLIP, spec section 2.2).

    image_size: (height, width) of a picture, each a multiple of `patch_size`.
    global_pool: the mean of all tokens, the class token among them, in place of the class token.
    patch_dropout: the share of patches that training leaves out, another choice for every picture.
    mlp_width: None for 4 width. layer_scale, recompute: see `clip_blocks`.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int] = (224, 224),
        patch_size: int = 32,
        width: int = 768,
        heads: int = 12,
        layers: int = 12,
        embed_dim: int = 512,
        mlp_width: int | None = None,
        quick_gelu: bool = True,
        layer_scale: float | None = None,
        global_pool: bool = False,
        patch_dropout: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.global_pool, self.patch_dropout = global_pool, patch_dropout
        start = width**-0.5  # of N(0,1), as published; what stands without it starts as torch's layers do
        self.class_embedding = nn.Parameter(start * torch.randn(width))
        self.positional_embedding = nn.Parameter(start * torch.randn(1 + self.grid[0] * self.grid[1], width))
        self.proj = nn.Parameter(start * torch.randn(width, embed_dim))
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Blocks(
            layers, width, heads, mlp_width,
            causal=False, quick_gelu=quick_gelu, layer_scale=layer_scale, recompute=recompute,
        )  # fmt: skip
        self.ln_post = nn.LayerNorm(width)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,embed_dim)"""
        x = self.conv1(pictures.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (B,D,h,w) -> (B,hw,D)
        x = x + self.positional_embedding[1:].to(x.dtype)
        if self.training and self.patch_dropout:
            x = self._some(x)
        first = (self.class_embedding + self.positional_embedding[0]).to(x.dtype)
        x = torch.cat([first.expand(len(x), 1, -1), x], dim=1)  # (B,T,D)
        count, tokens, width = x.shape
        packing = Packing.of(torch.full((count,), tokens), width, x.device)
        x = self.transformer(self.ln_pre(x).flatten(0, 1), packing, first_only=not self.global_pool)
        if self.global_pool:
            x = x.unflatten(0, (count, tokens)).mean(dim=1)
        return self.ln_post(x) @ self.proj

    def _some(self, patches: Tensor) -> Tensor:
        """As many patches of each picture as stay, drawn by the largest of normal noise: (B,P,D) -> (B,K,D)."""
        count, places, width = patches.shape
        keep = max(1, int(places * (1 - self.patch_dropout)))
        kept = torch.randn(count, places, device=patches.device).topk(keep).indices
        return patches.gather(1, kept[:, :, None].expand(-1, -1, width))


def resampled(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A table of positions (1+G*G,D) for another grid: (1+h*w,D) (CE-CLIP, spec section 2.3).

    The row of the class token is kept, the others are taken as a square and resized, bicubic with antialiasing. A
    table that has as many rows already is taken over as it is: it does not say its grid. So is one of no square.
    """
    height, width = grid
    old = round((len(table) - 1) ** 0.5)
    if len(table) == 1 + height * width or len(table) != 1 + old * old:
        return table
    full = table[1:].to(torch.promote_types(table.dtype, torch.float32))
    square = full.reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1,D,G,G)
    new = F.interpolate(square, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    rows = new.permute(0, 2, 3, 1).reshape(height * width, -1)
    return torch.cat([table[:1], rows.to(table.dtype)])
