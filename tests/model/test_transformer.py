"""The packed encoder against a readable padded one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmodal.model import transformer
from crossmodal.model.transformer import ACTIVATIONS, Encoder, Packing

from . import padded

CPU = torch.device("cpu")


def encoder(layers: int = 2) -> Encoder:
    torch.manual_seed(0)
    return Encoder(layers, 16, 4, 32, dropout=0.0, attention_dropout=0.0).double()


def packing(lengths: list[int], call_cost: int | None = None) -> Packing:
    """The plan for these lengths where a further attention call costs this much."""
    with pytest.MonkeyPatch.context() as patch:
        if call_cost is not None:
            patch.setattr(transformer, "_CALL_COST", call_cost)
        return Packing.of(torch.tensor(lengths), 16, CPU)


lengths = st.lists(st.integers(1, 7), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(0, 10**6), st.sampled_from([0, 3000, 10**9]))
def test_equal_to_the_padded_form_however_sequences_are_grouped(sizes: list[int], seed: int, cost: int) -> None:
    rows = torch.randn(sum(sizes), 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model, plan = encoder(), packing(sizes, cost)
    wide, mask = padded.pad(list(rows.split(sizes)))
    last = padded.encode(model, wide, mask)[-1]
    torch.testing.assert_close(model(rows, plan), last[mask])
    torch.testing.assert_close(model(rows, plan, first_only=True), last[:, 0])


@settings(max_examples=10, deadline=None)
@given(lengths, st.booleans(), st.sampled_from([0, 10**9]))
def test_gradients_equal_those_of_the_padded_form(sizes: list[int], first_only: bool, cost: int) -> None:
    torch.manual_seed(1)
    rows = torch.randn(sum(sizes), 16, dtype=torch.float64, requires_grad=True)
    model = encoder()
    wanted = [rows, *model.parameters()]
    ours = torch.autograd.grad(model(rows, packing(sizes, cost), first_only).square().sum(), wanted)
    wide, mask = padded.pad(list(rows.split(sizes)))
    last = padded.encode(model, wide, mask)[-1]
    naive = torch.autograd.grad((last[:, 0] if first_only else last[mask]).square().sum(), wanted)
    torch.testing.assert_close(ours, naive)


def test_one_sequence_of_one_token() -> None:
    rows, model = torch.randn(1, 16).double(), encoder()
    last = padded.encode(model, rows[None], torch.ones(1, 1, dtype=torch.bool))[-1]
    torch.testing.assert_close(model(rows, packing([1])), last[0])


def test_a_sequence_does_not_see_its_neighbours() -> None:
    model, rows = encoder(), torch.randn(9, 16).double()
    before = model(rows, packing([4, 2, 3]))
    rows[4:6] += 1
    after = model(rows, packing([4, 2, 3]))
    torch.testing.assert_close(after[[0, 1, 2, 3, 6, 7, 8]], before[[0, 1, 2, 3, 6, 7, 8]])
    assert not torch.isclose(after[4:6], before[4:6]).any()


@settings(deadline=None)
@given(lengths, st.integers(1, 64))
def test_the_plan_covers_every_sequence_once_in_order(sizes: list[int], width: int) -> None:
    bounds = transformer._plan(sizes, width)
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(len(sizes)))


@settings(deadline=None)
@given(lengths, st.sampled_from([0, 300, 3000]))
def test_a_group_pads_no_more_than_a_call_costs(sizes: list[int], cost: int) -> None:
    plan = packing(sizes, cost)
    place = 0
    for group in plan.groups:
        members = sizes[place : place + group.count]
        assert group.rows == sum(members) and group.width == max(members)
        assert (group.padding is None) == (min(members) == max(members))
        assert 2 * 16 * sum(group.width**2 - n * n for n in members) <= cost
        place += group.count
    assert place == len(sizes)


def test_groups_without_padding_where_a_call_costs_nothing() -> None:
    groups = packing([2, 2, 3, 5, 5], 0).groups
    assert [(g.count, g.width, g.padding) for g in groups] == [(2, 2, None), (1, 3, None), (2, 5, None)]


def test_dropout_only_in_training() -> None:
    model = Encoder(2, 16, 4, 32, dropout=0.5, attention_dropout=0.5)
    rows, plan = torch.randn(6, 16), packing([1, 5])
    assert not torch.equal(model(rows, plan), model(rows, plan))
    model.eval()
    assert torch.equal(model(rows, plan), model(rows, plan))


def test_probabilities_of_a_row_sum_to_one_over_real_keys() -> None:
    attention = encoder(1).last.attention.inner
    real = torch.tensor([[True, True, False], [False, False, False]])
    p = attention.probabilities(torch.randn(2, 2, 16).double(), torch.randn(2, 3, 16).double(), real)
    torch.testing.assert_close(p[0].sum(-1), torch.ones(4, 2).double())
    assert not p[0, :, :, 2].any() and not p[1].any()


def test_probabilities_of_half_precision_are_float32() -> None:
    attention = encoder(1).last.attention.inner
    q, real = torch.randn(1, 2, 16).bfloat16(), torch.ones(1, 2, dtype=torch.bool)
    p = attention.probabilities(q, q, real)
    assert p.dtype == torch.float32
    torch.testing.assert_close(p.sum(-1), torch.ones(1, 4, 2))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    x = torch.linspace(-3, 3, 7).double()
    formula = {
        "gelu": x / 2 * (1 + torch.erf(x / 2**0.5)),
        "relu": x * (x > 0),
        "swish": x / (1 + torch.exp(-x)),
    }
    torch.testing.assert_close(ACTIVATIONS[name](x), formula[name])


@settings(max_examples=30, deadline=None)
@given(lengths, st.integers(0, 10**6), st.sampled_from([0, 10**9]), st.booleans())
def test_rows_that_are_no_keys_are_seen_by_none(sizes: list[int], seed: int, cost: int, first_only: bool) -> None:
    """They get states of their own all the same, as published padding does."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(sizes), 16, generator=generator, dtype=torch.float64)
    keys = torch.rand(sum(sizes), generator=generator) < 0.6
    for start, size in zip([sum(sizes[:i]) for i in range(len(sizes))], sizes, strict=True):
        keys[start + seed % size] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "_CALL_COST", cost)
        plan = Packing.of(torch.tensor(sizes), 16, CPU, keys)
    model = encoder()
    wide, real = padded.pad(list(rows.split(sizes)))
    mask, _ = padded.pad(list(keys[:, None].split(sizes)))
    last = padded.encode(model, wide, mask[:, :, 0] & real)[-1]
    torch.testing.assert_close(model(rows, plan, first_only), last[:, 0] if first_only else last[real])


def test_the_states_of_every_layer() -> None:
    rows, model, plan = torch.randn(9, 16).double(), encoder(3), packing([4, 5])
    states = model.states(rows, plan)
    assert len(states) == 4 and torch.equal(states[0], rows)
    assert torch.equal(states[2], model.below_last(rows, plan))
    assert torch.equal(states[3], model(rows, plan))
