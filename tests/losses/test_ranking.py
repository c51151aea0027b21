from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.losses.ranking import itm, margin_ranking, margin_ranking_terms, softmax_ranking

shapes = st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(0, 10**6))
Loss = Callable[[Tensor], Tensor]


def itm_of_scores(scores: Tensor) -> Tensor:
    """ITM where the score is the logit of "matched" and 0 that of the other class, the first of a group matched."""
    matched = torch.zeros(scores.shape, dtype=torch.int64)
    matched[:, :1] = 1
    return itm(torch.stack([scores * 0, scores], dim=2), matched)


LOSSES = pytest.mark.parametrize("loss", [margin_ranking, softmax_ranking, itm_of_scores])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def random_scores(shape: tuple[int, int, int], *more: int) -> Tensor:
    groups, size, seed = shape
    return torch.randn(groups, size, *more, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None)
@given(shapes, st.sampled_from([0.0, 0.2, 1.0]))
def test_margin_ranking_is_the_mean_of_the_hinges(shape: tuple[int, int, int], margin: float) -> None:
    scores = random_scores(shape)
    hinges = [[max(0.0, margin + sigmoid(s) - sigmoid(row[0])) for s in row[1:]] for row in scores.tolist()]
    expected = torch.tensor(hinges, dtype=torch.float64)
    torch.testing.assert_close(margin_ranking_terms(scores, margin=margin), expected)
    torch.testing.assert_close(margin_ranking(scores, margin=margin), expected.mean())


@settings(deadline=None)
@given(shapes, st.sampled_from([0.5, 1.0, 3.0]))
def test_softmax_ranking_is_the_mean_negative_log_probability_of_the_positive(
    shape: tuple[int, int, int], temperature: float
) -> None:
    rows = [[math.exp(s / temperature) for s in row] for row in random_scores(shape).tolist()]
    expected = sum(-math.log(row[0] / sum(row)) for row in rows) / len(rows)
    assert float(softmax_ranking(random_scores(shape), temperature=temperature)) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(shapes)
def test_itm_counts_every_pair(shape: tuple[int, int, int]) -> None:
    logits = random_scores(shape, 2)
    matched = torch.randint(0, 2, logits.shape[:2], generator=torch.Generator().manual_seed(shape[2]))
    terms = []
    for group, classes in zip(logits.tolist(), matched.tolist(), strict=True):
        for pair, right in zip(group, classes, strict=True):
            terms.append(-math.log(math.exp(pair[right]) / sum(map(math.exp, pair))))
    assert float(itm(logits, matched)) == pytest.approx(sum(terms) / len(terms), abs=1e-9)


@LOSSES
def test_gradients(loss: Loss) -> None:
    scores = random_scores((3, 4, 0)).requires_grad_()
    assert torch.autograd.gradcheck(loss, (scores,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@LOSSES
def test_half_precision_scores_are_computed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    scores = torch.randn(4, 3).to(dtype).requires_grad_()
    value = loss(scores)
    value.backward()
    assert value.dtype == torch.float32 and scores.grad is not None and scores.grad.isfinite().all()
    assert torch.equal(value, loss(scores.float()))


@pytest.mark.parametrize("size", [1.0, 1e4])
@LOSSES
def test_extreme_scores_stay_finite(loss: Loss, size: float) -> None:
    scores = (torch.tensor([[-1.0, 1.0], [1.0, -1.0]]) * size).requires_grad_()
    value = loss(scores)
    value.backward()
    assert value.isfinite() and scores.grad is not None and scores.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3), (0, 1)])
@LOSSES
def test_no_groups_give_zero_and_no_nan(loss: Loss, shape: tuple[int, int]) -> None:
    scores = torch.randn(*shape, requires_grad=True)
    value = loss(scores)
    value.backward()
    assert value.item() == 0 and scores.grad is not None


@pytest.mark.parametrize("loss", [margin_ranking, softmax_ranking])
def test_a_group_without_negatives_gives_zero_and_a_finite_gradient(loss: Loss) -> None:
    scores = torch.randn(2, 1, requires_grad=True)
    value = loss(scores)
    value.backward()
    assert value.item() == 0 and torch.equal(scores.grad, torch.zeros(2, 1))


def test_ties_cost_exactly_the_margin() -> None:
    assert float(margin_ranking(torch.zeros(2, 3), margin=0.2)) == pytest.approx(0.2)
    assert float(softmax_ranking(torch.zeros(2, 3))) == pytest.approx(math.log(3))


def test_a_negative_beyond_the_margin_has_no_gradient() -> None:
    scores = torch.tensor([[5.0, -5.0, 4.9]], requires_grad=True)
    margin_ranking(scores).backward()
    assert scores.grad is not None and scores.grad[0, 1] == 0 and scores.grad[0, 2] > 0 > scores.grad[0, 0]
