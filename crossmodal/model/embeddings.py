"""What BERT's descendants share around the one transformer: the embedding of text, and the pooler."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .transformer import LAYER_NORM_EPS


class TextEmbeddings(nn.Module):
    """LN(word + position + type) of packed tokens, then dropout."""

    def __init__(self, vocabulary: int, width: int, positions: int, types: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(types, width)
        self.LayerNorm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        """words (N,) ids, or (N,H) what stands in for their embeddings; positions, types (N,) -> (N,H)"""
        x = words if words.is_floating_point() else self.word_embeddings(words)
        x = x + self.position_embeddings(positions) + self.token_type_embeddings(types)
        return self.dropout(self.LayerNorm(x))


class Pooler(nn.Module):
    """tanh(W h_0 + b)"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))
