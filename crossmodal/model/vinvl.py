"""The backbone of VinVL and OSCAR+ (ALADIN, spec sections 2.1 and 12.1): BERT over words and projected regions.

Padding lies between words and regions in the published form; sequences are packed here, which drops it: regions
have no position, so nothing else changes, and in which order the parts of a sequence stand does not matter either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import ragged_index
from .config import BertSizes
from .embeddings import Pooler, TextEmbeddings
from .transformer import Encoder, Packing

DETIC_WIDTH = 1030
"""The numbers of a region of Detic: 1024 and 6 of its box."""


@dataclass(frozen=True)
class Rows:
    """Embedded rows of B items: `x` (N,H), `lengths` (B,) how many rows each has, `real` (B,) how many of them, the
    first ones, are no padding. Both on the host."""

    x: Tensor
    lengths: Tensor
    real: Tensor

    @property
    def position(self) -> Tensor:
        """(N,) of each row within its item."""
        return ragged_index(torch.zeros_like(self.lengths), self.lengths)

    @property
    def keys(self) -> Tensor:
        """(N,) bool, the rows that are no padding."""
        return self.position < self.real.repeat_interleave(self.lengths)


@dataclass(frozen=True)
class VinvlSizes(BertSizes):
    """What the published config.json says of the backbone."""

    layer_norm_eps: float = 1e-12
    img_feature_dim: int = 2054
    use_img_layernorm: bool = True
    img_layer_norm_eps: float = 1e-12


def mapper(width_in: int, width: int) -> nn.Sequential:
    """W_2 relu(W_1 x): what brings features of another source to the backbone."""
    return nn.Sequential(nn.Linear(width_in, width), nn.ReLU(), nn.Linear(width, width))


class WordEmbeddings(TextEmbeddings):
    """BERT's, and mappers for CLIP's vectors where those stand in for the words of tags or of captions."""

    def __init__(self, sizes: VinvlSizes, clip_tags: int, clip_captions: int) -> None:
        width = sizes.hidden_size
        super().__init__(
            sizes.vocab_size, width, sizes.max_position_embeddings, sizes.type_vocab_size, sizes.hidden_dropout_prob
        )
        self.clip_global_to_oscar_embeddings = mapper(clip_tags, width) if clip_tags else None
        self.clip_local_to_oscar_embeddings = mapper(clip_captions, width) if clip_captions else None


class Bert(nn.Module):
    """Embeddings and encoder.

    detic: with a mapper for the regions of Detic that stand among others, known by zeros after their numbers.
    clip_tags, clip_captions: widths of the CLIP vectors that stand in for words; 0 for none.
    """

    def __init__(self, sizes: VinvlSizes, *, detic: bool = False, clip_tags: int = 0, clip_captions: int = 0) -> None:
        super().__init__()
        self.width = width = sizes.hidden_size
        self.embeddings = WordEmbeddings(sizes, clip_tags, clip_captions)
        self.encoder = Encoder(
            sizes.num_hidden_layers,
            width,
            sizes.num_attention_heads,
            sizes.intermediate_size,
            sizes.hidden_act,
            sizes.hidden_dropout_prob,
            sizes.attention_probs_dropout_prob,
        )
        self.pooler = Pooler(width)
        self.img_embedding = nn.Linear(sizes.img_feature_dim, width)
        self.LayerNorm = nn.LayerNorm(width, eps=sizes.img_layer_norm_eps) if sizes.use_img_layernorm else None
        self.detic_to_oscar_img = mapper(sizes.img_feature_dim, width) if detic else None
        self.dropout = nn.Dropout(sizes.hidden_dropout_prob)

    def embed_regions(self, features: Tensor) -> Tensor:
        """features (N,F) -> (N,H): Dropout(LN(W_img r + b)), no position and no segment."""
        x = self.img_embedding(features)
        if self.detic_to_oscar_img is not None:
            of_detic = (features[:, DETIC_WIDTH:] == 0).all(dim=1, keepdim=True)
            x = torch.where(of_detic, self.detic_to_oscar_img(features), x)
        return self.dropout(x if self.LayerNorm is None else self.LayerNorm(x))

    def forward(self, *parts: Rows, every: bool = False) -> list[Tensor]:
        """Encode sequences that consist of `parts` -> the states (N,H) of the rows of the last part.

        every: those of the embeddings and of every layer, else of the last layer alone.
        """
        last = parts[-1]
        lengths = torch.stack([part.lengths for part in parts])  # (parts,B)
        total = lengths.sum(dim=0)
        order = total.argsort(stable=True)  # so that attention wastes nothing
        starts = (lengths.flatten().cumsum(0) - lengths.flatten()).view_as(lengths)
        rows = ragged_index(starts[:, order].T.flatten(), lengths[:, order].T.flatten())
        keys = torch.cat([part.keys for part in parts])[rows]
        x = torch.cat([part.x for part in parts])
        packing = Packing.of(total[order], self.width, x.device, keys)
        x = x.index_select(0, rows.to(x.device))
        states = self.encoder.states(x, packing) if every else [self.encoder(x, packing)]
        ends = total[order].cumsum(0)[order.argsort()]
        back = ragged_index(ends - last.lengths, last.lengths).to(x.device)
        return [state.index_select(0, back) for state in states]


class Vinvl(nn.Module):
    """The backbone with the pair classifier of VinVL's own retrieval, which nothing here trains."""

    def __init__(self, sizes: VinvlSizes, *, detic: bool = False, clip_tags: int = 0, clip_captions: int = 0) -> None:
        super().__init__()
        self.bert = Bert(sizes, detic=detic, clip_tags=clip_tags, clip_captions=clip_captions)
        self.dropout = nn.Dropout(sizes.hidden_dropout_prob)
        self.classifier = nn.Linear(sizes.hidden_size, 2)
        self.initializer_range = sizes.initializer_range
        self.apply(self.initialise)

    def initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def classify(self, first: Tensor) -> Tensor:
        """Logits (B,2) of pairs encoded as one sequence, class 1 = matched, from the states (B,H) of their [CLS]."""
        return self.classifier(self.dropout(self.bert.pooler(first)))
