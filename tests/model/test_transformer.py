"""The packed encoder against a readable padded one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.model import transformer
from crossmodal.model.transformer import Encoder, Layer, Packing

CPU = torch.device("cpu")


def encoder(layers: int = 2) -> Encoder:
    torch.manual_seed(0)
    return Encoder(layers, 16, 4, 32, dropout=0.0, attention_dropout=0.0).double()


def padded_layer(layer: Layer, x: Tensor, mask: Tensor) -> Tensor:
    """Post-LayerNorm attention as BERT writes it: x (B,T,D), mask (B,T)."""
    attention, (b, t, d) = layer.attention.inner, x.shape
    q, k, v = (f(x).view(b, t, 4, d // 4).transpose(1, 2) for f in (attention.query, attention.key, attention.value))
    scores = q @ k.transpose(2, 3) / (d // 4) ** 0.5 + (~mask)[:, None, None, :] * -10000.0
    context = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d)
    y = layer.attention.output.LayerNorm(layer.attention.output.dense(context) + x)
    inner = torch.nn.functional.gelu(layer.intermediate.dense(y))
    return layer.output.LayerNorm(layer.output.dense(inner) + y)


def pad(rows: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    parts = rows.split(lengths)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True), mask


lengths = st.lists(st.integers(1, 7), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(0, 10**6), st.sampled_from([0, 3000, 10**9]))
def test_equal_to_the_padded_form_however_sequences_are_grouped(sizes: list[int], seed: int, cost: int) -> None:
    rows = torch.randn(sum(sizes), 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "_CALL_COST", cost)
        packing = Packing.of(torch.tensor(sizes), 16, CPU)
    model = encoder()
    wide, mask = pad(rows, sizes)
    for layer in model.layer:
        wide = padded_layer(layer, wide, mask)  # type: ignore[arg-type]
    torch.testing.assert_close(model(rows, packing), wide[mask])
    torch.testing.assert_close(model(rows, packing, first_only=True), wide[:, 0])


@pytest.mark.parametrize("first_only", [False, True])
def test_gradients_equal_those_of_the_padded_form(first_only: bool) -> None:
    sizes = [1, 2, 2, 5]
    rows = torch.randn(10, 16, dtype=torch.float64, requires_grad=True)
    model = encoder()
    out = model(rows, Packing.of(torch.tensor(sizes), 16, CPU), first_only=first_only)
    out.square().sum().backward()
    ours, rows.grad = rows.grad, None
    wide, mask = pad(rows, sizes)
    for layer in model.layer:
        wide = padded_layer(layer, wide, mask)  # type: ignore[arg-type]
    (wide[:, 0] if first_only else wide[mask]).square().sum().backward()
    torch.testing.assert_close(ours, rows.grad)


@given(lengths, st.integers(1, 64))
def test_the_plan_covers_every_sequence_once_in_order(sizes: list[int], width: int) -> None:
    bounds = transformer._plan(sizes, width)
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(len(sizes)))


def test_groups_without_padding_where_a_call_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "_CALL_COST", 0)
    packing = Packing.of(torch.tensor([2, 2, 3, 5, 5]), 16, CPU)
    assert [(g.count, g.width, g.padding) for g in packing.groups] == [(2, 2, None), (1, 3, None), (2, 5, None)]


def test_probabilities_of_a_row_sum_to_one_over_real_keys() -> None:
    attention = encoder(1).last.attention.inner
    real = torch.tensor([[True, True, False], [False, False, False]])
    p = attention.probabilities(torch.randn(2, 2, 16).double(), torch.randn(2, 3, 16).double(), real)
    torch.testing.assert_close(p[0].sum(-1), torch.ones(4, 2).double())
    assert not p[0, :, :, 2].any() and not p[1].any()
