from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossmodal.losses.ranking import itm, margin_ranking, softmax_ranking

shapes = st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(0, 10**6))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(shapes)
def test_margin_ranking_is_the_mean_of_the_hinges(shape: tuple[int, int, int]) -> None:
    groups, size, seed = shape
    scores = torch.randn(groups, size, generator=torch.Generator().manual_seed(seed)).double()
    hinges = [max(0.0, 0.2 + sigmoid(float(row[k])) - sigmoid(float(row[0]))) for row in scores for k in range(1, size)]
    assert float(margin_ranking(scores, margin=0.2)) == pytest.approx(sum(hinges) / len(hinges), abs=1e-12)


@given(shapes)
def test_softmax_ranking_is_the_mean_negative_log_probability_of_the_positive(shape: tuple[int, int, int]) -> None:
    groups, size, seed = shape
    scores = torch.randn(groups, size, generator=torch.Generator().manual_seed(seed)).double()
    expected = [-math.log(math.exp(row[0] / 0.5) / sum(math.exp(x / 0.5) for x in row)) for row in scores.tolist()]
    assert float(softmax_ranking(scores, temperature=0.5)) == pytest.approx(sum(expected) / groups, abs=1e-9)


def test_itm_counts_every_pair() -> None:
    logits = torch.randn(3, 2, 2).double()
    matched = torch.tensor([[1, 0], [1, 0], [0, 1]])
    expected = [-float(logits[g, k].log_softmax(0)[matched[g, k]]) for g in range(3) for k in range(2)]
    assert float(itm(logits, matched)) == pytest.approx(sum(expected) / 6)


@pytest.mark.parametrize("loss", [margin_ranking, softmax_ranking])
def test_gradients(loss: object) -> None:
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (scores,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [margin_ranking, softmax_ranking])
def test_half_precision_scores_are_computed_in_float32(loss: object, dtype: torch.dtype) -> None:
    scores = torch.randn(4, 3).to(dtype)
    value = loss(scores)  # type: ignore[operator]
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(scores.float()))  # type: ignore[operator]


def test_a_group_without_negatives_gives_zero_and_a_finite_gradient() -> None:
    scores = torch.randn(2, 1, requires_grad=True)
    loss = margin_ranking(scores)
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(scores.grad, torch.zeros(2, 1))  # type: ignore[arg-type]


def test_ties_cost_exactly_the_margin() -> None:
    assert float(margin_ranking(torch.zeros(2, 3), margin=0.2)) == pytest.approx(0.2)
