"""Word-region alignment against the iteration written out for one pair, and its edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.losses.transport import cosine_cost, transport_distance, transport_plan, word_region_alignment

Rows = list[list[float]]


def naive_cost(words: Rows, regions: Rows) -> Rows:
    """1 - cosine, norms at least 1e-5."""

    def norm(x: list[float]) -> float:
        return max(math.sqrt(sum(v * v for v in x)), 1e-5)

    return [[1 - sum(a * b for a, b in zip(w, r, strict=True)) / norm(w) / norm(r) for r in regions] for w in words]


def naive_plan(cost: Rows, beta: float = 0.5, iterations: int = 50, inner: int = 1) -> Rows:
    """IPOT of one pair without padding, as spec section 8 writes it: cost [n][r] -> plan [r][n]."""
    n, r = len(cost), len(cost[0])
    a = [[math.exp(-cost[i][j] / beta) for i in range(n)] for j in range(r)]
    plan, sigma = [[1.0] * n for _ in range(r)], [1 / n] * n
    for _ in range(iterations):
        q = [[a[j][i] * plan[j][i] for i in range(n)] for j in range(r)]
        for _ in range(inner):
            delta = [1 / (r * sum(q[j][i] * sigma[i] for i in range(n))) for j in range(r)]
            sigma = [1 / (n * sum(delta[j] * q[j][i] for j in range(r))) for i in range(n)]
        plan = [[delta[j] * q[j][i] * sigma[i] for i in range(n)] for j in range(r)]
    return plan


def naive_distance(words: Tensor, regions: Tensor, **options: Any) -> float:
    cost = naive_cost(words.tolist(), regions.tolist())
    plan = naive_plan(cost, **options)
    return sum(cost[i][j] * plan[j][i] for i in range(len(words)) for j in range(len(regions)))


def pairs(sizes: list[tuple[int, int]], seed: int = 0, extra: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random states of pairs with these numbers of words and regions, and what is padding; padding holds numbers."""
    draw = torch.Generator().manual_seed(seed)
    out, pads = [], []
    for column in (0, 1):
        lengths = torch.tensor([size[column] for size in sizes])
        width = int(lengths.max()) + extra
        out.append(torch.randn(len(sizes), width, 4, generator=draw, dtype=torch.float64))
        pads.append(torch.arange(width) >= lengths[:, None])
    return out[0], out[1], pads[0], pads[1]


several = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3)


@settings(max_examples=20, deadline=None)
@given(several, st.integers(0, 10**6), st.integers(0, 3), st.sampled_from([0.5, 1.0]), st.integers(1, 2))
def test_equal_to_the_loop_whatever_the_padding(
    sizes: list[tuple[int, int]], seed: int, extra: int, beta: float, inner: int
) -> None:
    words, regions, word_pad, region_pad = pairs(sizes, seed, extra)
    options: dict[str, Any] = {"beta": beta, "iterations": 10, "inner": inner}
    ours = transport_distance(words, regions, word_pad, region_pad, **options)
    naive = [naive_distance(words[b, :n], regions[b, :r], **options) for b, (n, r) in enumerate(sizes)]
    torch.testing.assert_close(ours, torch.tensor(naive, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_the_published_number_of_iterations_is_the_default() -> None:
    words, regions, *pads = pairs([(3, 4)])
    assert float(transport_distance(words, regions, *pads)) == pytest.approx(naive_distance(words[0], regions[0]), 1e-5)


@settings(max_examples=20, deadline=None)
@given(several, st.integers(0, 10**6))
def test_the_plan_spreads_every_word_and_region_evenly(sizes: list[tuple[int, int]], seed: int) -> None:
    words, regions, word_pad, region_pad = pairs(sizes, seed, extra=1)
    cost = cosine_cost(words, regions, eps=1e-5)
    plan = transport_plan(cost, word_pad, region_pad, beta=0.5, iterations=200, inner=1)
    for b, (n, r) in enumerate(sizes):
        assert not plan[b, r:].any() and not plan[b, :, n:].any()
        torch.testing.assert_close(plan[b].sum(0)[:n], torch.full((n,), 1 / n).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(plan[b].sum(1)[:r], torch.full((r,), 1 / r).double(), atol=1e-3, rtol=0)


def test_equal_sets_cost_almost_nothing() -> None:
    states, none = torch.eye(4).double()[None], torch.zeros(1, 4, dtype=torch.bool)
    assert float(transport_distance(states, states, none, none)) == pytest.approx(0, abs=1e-3)


def test_one_word_and_one_region_cost_their_distance() -> None:
    words, regions, *pads = pairs([(1, 1)])
    cosine = torch.nn.functional.cosine_similarity(words[0, 0], regions[0, 0], dim=0)
    assert float(transport_distance(words, regions, *pads)) == pytest.approx(1 - float(cosine), abs=1e-6)


def test_gradients_take_the_plan_as_given() -> None:
    words, regions, word_pad, region_pad = pairs([(3, 2), (2, 4)], extra=1)
    words.requires_grad_()
    regions.requires_grad_()
    ours = torch.autograd.grad(transport_distance(words, regions, word_pad, region_pad).sum(), [words, regions])
    cost = cosine_cost(words, regions, eps=1e-5)
    pad = word_pad[:, :, None] | region_pad[:, None, :]
    plan = transport_plan(cost.detach().masked_fill(pad, 0), word_pad, region_pad, beta=0.5, iterations=50, inner=1)
    fixed = torch.autograd.grad((cost * plan.transpose(1, 2)).sum(), [words, regions])
    torch.testing.assert_close(ours, fixed, rtol=1e-4, atol=1e-6)
    assert not ours[0][word_pad].any() and not ours[1][region_pad].any()
    assert torch.autograd.gradcheck(lambda x, y: cosine_cost(x, y, eps=1e-5), (words, regions))


@pytest.mark.parametrize("size", [(0, 3), (3, 0), (0, 0)])
def test_a_pair_of_padding_alone_costs_nothing(size: tuple[int, int]) -> None:
    words, regions, word_pad, region_pad = pairs([size, (2, 3)])
    words.requires_grad_()
    distance = transport_distance(words, regions, word_pad, region_pad)
    distance.sum().backward()
    assert distance[0] == 0 and distance[1] > 0
    assert words.grad is not None and words.grad.isfinite().all() and not words.grad[0].any()


def test_states_of_zeros_have_finite_gradients() -> None:
    words, regions, *pads = pairs([(2, 2)])
    words = torch.zeros_like(words).requires_grad_()
    distance = transport_distance(words, regions, *pads)
    distance.sum().backward()
    assert float(distance.detach()) == pytest.approx(1, abs=1e-6)
    assert words.grad is not None and words.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_compared_in_float32(dtype: torch.dtype) -> None:
    words, regions, *pads = pairs([(3, 4), (2, 2)])
    half = words.to(dtype).requires_grad_(), regions.to(dtype)
    distance = transport_distance(*half, *pads)
    distance.sum().backward()
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, transport_distance(half[0].float(), half[1].float(), *pads))
    assert half[0].grad is not None and half[0].grad.isfinite().all()


def test_alignment_takes_matched_pairs_closer_and_others_apart() -> None:
    fields = pairs([(3, 2), (2, 4), (1, 3), (3, 3)], seed=1)
    distance = transport_distance(*fields).tolist()
    loss = word_region_alignment(*fields, torch.tensor([[1, 0], [0, 1]]))
    assert float(loss) == pytest.approx((distance[0] - distance[1] - distance[2] + distance[3]) / 4)


def test_no_pairs_give_zero() -> None:
    words, regions, word_pad, region_pad = pairs([(2, 2)])
    none = words[:0].requires_grad_()
    loss = word_region_alignment(none, regions[:0], word_pad[:0], region_pad[:0], torch.zeros(0, 1))
    loss.backward()
    assert loss.item() == 0 and none.grad is not None
