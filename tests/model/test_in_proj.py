"""Packed attention with one projection, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crossmodal.model.in_proj import InProjAttention, PostNormStack
from crossmodal.model.transformer import Packing

LENGTHS = torch.tensor([5, 1, 3])


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_torchs_attention_of_each_sequence_alone(causal: bool) -> None:
    torch.manual_seed(0)
    own, theirs = InProjAttention(12, 3, causal=causal), nn.MultiheadAttention(12, 3, batch_first=True)
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(int(LENGTHS.sum()), 12)
    found = own(x, Packing.of(LENGTHS, 12, x.device))
    for part, sequence in zip(found.split(LENGTHS.tolist()), x.split(LENGTHS.tolist()), strict=True):
        later = torch.ones(len(sequence), len(sequence), dtype=torch.bool).triu(1) if causal else None
        expected, _ = theirs(sequence[None], sequence[None], sequence[None], attn_mask=later)
        torch.testing.assert_close(part, expected[0])


def test_the_first_rows_alone() -> None:
    torch.manual_seed(0)
    attention, x = InProjAttention(12, 3), torch.randn(int(LENGTHS.sum()), 12)
    packing = Packing.of(LENGTHS, 12, x.device)
    torch.testing.assert_close(attention(x, packing, first_only=True), attention(x, packing)[packing.first])


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_post_norm_layers_are_torchs(layers: int) -> None:
    torch.manual_seed(0)
    own, x = PostNormStack(layers, 12, 3, 16, dropout=0.0), torch.randn(int(LENGTHS.sum()), 12)
    packing = Packing.of(LENGTHS, 12, x.device)
    found = own(x, packing)
    for part, sequence in zip(found.split(LENGTHS.tolist()), x.split(LENGTHS.tolist()), strict=True):
        for layer in own.layers:
            theirs = nn.TransformerEncoderLayer(12, 3, 16, 0.0, batch_first=True)
            theirs.load_state_dict(layer.state_dict())
            sequence = theirs(sequence[None])[0]
        torch.testing.assert_close(part, sequence)
    torch.testing.assert_close(own(x, packing, first_only=True), found[packing.first])
