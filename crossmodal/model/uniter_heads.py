"""The pre-training heads of UNITER (spec section 8): masked words, region features and region classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .transformer import LAYER_NORM_EPS

PRETRAINING_FIELDS = {
    "word_logits": "(n,V) vocabulary logits of the masked words, pair by pair",
    "region_predictions": "(n,F) regressed features of the masked regions, pair by pair",
    "region_logits": "(n,C) detector classes of the masked regions",
    "word_states": "(P,T,H) last hidden states of the text, [CLS] and [SEP] included",
    "region_states": "(P,R,H) last hidden states of the regions",
    "word_pad": "(P,T) true on padding",
    "region_pad": "(P,R) true on padding",
}


class Transform(nn.Module):
    """LN(gelu(W h))"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, h: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(h)))


class WordPredictions(nn.Module):
    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform = Transform(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))


class WordHead(nn.Module):
    """Vocabulary logits; the decoder's weight is the word table, handed in so that it is stored once."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.predictions = WordPredictions(width, vocabulary)

    def forward(self, h: Tensor, word_table: Tensor) -> Tensor:
        """h (n,H), word_table (V,H) -> (n,V)"""
        return F.linear(self.predictions.transform(h), word_table, self.predictions.bias)


class FeatureHead(nn.Module):
    """Regresses a region's feature through the transposed image projection, handed in."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=LAYER_NORM_EPS))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, h: Tensor, projection: Tensor) -> Tensor:
        """h (n,H), projection (H,F) -> (n,F)"""
        return F.linear(self.net(h), projection.t(), self.bias)


class ClassHead(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=LAYER_NORM_EPS),
            nn.Linear(width, classes),
        )

    def forward(self, h: Tensor) -> Tensor:
        return self.net(h)
