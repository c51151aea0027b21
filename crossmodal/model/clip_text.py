"""CLIP's text tower: a pre-LayerNorm transformer in which a token sees those before it, under the published names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossmodal.data.batches import Texts, length_mask

from .base import ragged_index
from .clip_blocks import Blocks
from .transformer import Packing


class ClipText(nn.Module):
    """Sentences to CLIP's text vectors, and to the states of their tokens. The defaults are ViT-B/32's.

    mlp_width: None for 4 width. layer_scale, recompute: see `clip_blocks`.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 49408,
        width: int = 512,
        heads: int = 8,
        layers: int = 12,
        context: int = 77,
        embed_dim: int = 512,
        mlp_width: int | None = None,
        quick_gelu: bool = True,
        layer_scale: float | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.transformer = Blocks(
            layers, width, heads, mlp_width,
            causal=True, quick_gelu=quick_gelu, layer_scale=layer_scale, recompute=recompute,
        )  # fmt: skip
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self._initialise(width, layers)

    def _initialise(self, width: int, layers: int) -> None:
        """As published (CE-CLIP, spec section 2.3)."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for name, parameter in self.transformer.named_parameters():
            if name.endswith("attn.in_proj_weight"):
                nn.init.normal_(parameter, std=width**-0.5)
            elif name.endswith(("attn.out_proj.weight", "mlp.c_proj.weight")):
                nn.init.normal_(parameter, std=width**-0.5 * (2 * layers) ** -0.5)
            elif name.endswith("mlp.c_fc.weight"):
                nn.init.normal_(parameter, std=(2 * width) ** -0.5)

    def forward(self, texts: Texts) -> tuple[Tensor, Tensor]:
        """S sentences (rows of `input_ids`, T at most `context`) -> (S, embed_dim), (N, width).

        The vector of a sentence is that of its end token, which has the largest id (the first of equal ones),
        after the last LayerNorm and the projection. The N states, row after row, `lengths[s]` each, are those
        before that LayerNorm.
        """
        ids, lengths = texts.input_ids, texts.lengths
        packing = Packing.of(lengths, self.positional_embedding.shape[1], ids.device)
        position = ragged_index(torch.zeros_like(lengths), lengths)  # (N,)
        place = position + (torch.arange(len(lengths)) * ids.shape[1]).repeat_interleave(lengths)
        x = self.token_embedding(ids.flatten()[place.to(ids.device)])
        states = self.transformer(x + self.positional_embedding[position.to(ids.device)], packing)
        padding = ~length_mask(lengths, ids.shape[1]).to(ids.device)
        end = ids.masked_fill(padding, -1).argmax(dim=1)  # (S,)
        pooled = self.ln_final(states[packing.first + end])
        return pooled @ self.text_projection, states
