"""The hinges against loops over all entries, their edges, and that they are sums."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.losses.triplet import semantic_triplet, triplet, triplet_distinct_images

sizes = st.integers(1, 6)
seeds = st.integers(0, 10**6)
Loss = Callable[..., Tensor]


def random_scores(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(scores: Tensor, margin: float, hardest: bool, ids: list[int]) -> float:
    s, n = scores.tolist(), len(scores)
    negatives = [(i, j) for i in range(n) for j in range(n) if ids[i] != ids[j]]
    by_text = [[max(0.0, margin + s[i][j] - s[i][i]) for a, j in negatives if a == i] for i in range(n)]
    by_image = [[max(0.0, margin + s[i][j] - s[j][j]) for i, b in negatives if b == j] for j in range(n)]
    pick = (lambda costs: max(costs, default=0.0)) if hardest else sum
    return sum(map(pick, by_text)) + sum(map(pick, by_image))


@settings(max_examples=30, deadline=None)
@given(sizes, seeds, st.sampled_from([0.0, 0.2, 1.0]), st.booleans())
def test_equal_to_the_loop(size: int, seed: int, margin: float, hardest: bool) -> None:
    scores = random_scores(size, seed)
    expected = naive(scores, margin, hardest, list(range(size)))
    assert float(triplet(scores, margin=margin, hardest=hardest)) == pytest.approx(expected, abs=1e-9)
    different = triplet_distinct_images(scores, torch.randperm(size), margin=margin, hardest=hardest)
    assert float(different) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), seeds, st.booleans())
def test_pairs_of_one_image_are_no_negatives(ids: list[int], seed: int, hardest: bool) -> None:
    scores = random_scores(len(ids), seed)
    ours = triplet_distinct_images(scores, torch.tensor(ids), margin=1.0, hardest=hardest)
    assert float(ours) == pytest.approx(naive(scores, 1.0, hardest, ids), abs=1e-9)


@pytest.mark.parametrize("hardest", [True, False])
def test_directions_count_alike(hardest: bool) -> None:
    scores = random_scores(5, 1)
    torch.testing.assert_close(triplet(scores, hardest=hardest), triplet(scores.T, hardest=hardest))


def by_image(scores: Tensor, **options: Any) -> Tensor:
    return triplet_distinct_images(scores, torch.arange(len(scores)) // 2, **options)


def semantic(scores: Tensor, **options: Any) -> Tensor:
    return semantic_triplet(scores, torch.eye(len(scores)), **options)


LOSSES = pytest.mark.parametrize(
    "loss", [partial(f, hardest=h) for f in (triplet, by_image, semantic) for h in (True, False)]
)


@LOSSES
def test_gradients(loss: Loss) -> None:
    assert torch.autograd.gradcheck(loss, (random_scores(4, 3).requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@LOSSES
def test_half_precision_scores_are_computed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    scores = (100 * random_scores(4)).to(dtype).requires_grad_()
    value = loss(scores)
    value.backward()
    assert value.dtype == torch.float32 and scores.grad is not None and scores.grad.isfinite().all()
    assert torch.equal(value, loss(scores.float()))


@pytest.mark.parametrize("size", [0, 1])
@LOSSES
def test_without_negatives_it_is_zero_with_a_gradient_of_zero(loss: Loss, size: int) -> None:
    scores = random_scores(size).requires_grad_()
    value = loss(scores)
    value.backward()
    assert value.item() == 0 and scores.grad is not None and not scores.grad.any()


@LOSSES
def test_scores_stay_as_they_were(loss: Loss) -> None:
    scores = random_scores(4)
    before = scores.clone()
    loss(scores)
    assert torch.equal(scores, before)


def test_ties_cost_the_margin_once_or_each() -> None:
    zero = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    hardest = triplet(zero, margin=0.25)
    assert hardest.item() == 8 * 0.25 and triplet(zero, margin=0.25, hardest=False).item() == 24 * 0.25
    hardest.backward()
    assert zero.grad is not None
    assert (zero.grad > 0).sum() == 6  # the first negative of each row and column; (1,0) and (0,1) are both


def test_all_of_one_image_cost_nothing() -> None:
    scores = random_scores(3).requires_grad_()
    value = triplet_distinct_images(scores, torch.zeros(3, dtype=torch.int64), margin=5.0)
    value.backward()
    assert value.item() == 0 and not scores.grad.any()


def naive_semantic(
    scores: Tensor, relevance: Tensor, positives: list[dict[int, int]], margin: float, hardest: bool
) -> float:
    total = 0.0
    for s, r, positive in zip((scores, scores.T), (relevance, relevance.T), positives, strict=True):
        for i, own in positive.items():
            costs = [max(0.0, margin + float(s[i, j] - s[i, own])) for j in range(s.shape[1]) if r[i, j] <= 0]
            total += max(costs, default=0.0) if hardest else sum(costs)
    return total


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), seeds, st.booleans())
def test_semantic_positives_are_some_relevant_ones(texts: int, images: int, seed: int, hardest: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(texts, images, generator=draw, dtype=torch.float64)
    relevance = torch.randint(0, 2, (texts, images), generator=draw).double()
    ours = semantic_triplet(scores, relevance, margin=0.5, hardest=hardest, seed=seed)
    order = torch.rand(texts, images, generator=torch.Generator().manual_seed(seed))
    positives = []
    for r, o in ((relevance, order), (relevance.T, order.T)):
        found = {i: [j for j in range(r.shape[1]) if r[i, j] > 0] for i in range(len(r))}
        positives.append({i: max(js, key=lambda j: float(o[i, j])) for i, js in found.items() if js})
    expected = naive_semantic(scores, relevance, positives, 0.5, hardest)
    assert float(ours) == pytest.approx(expected, abs=1e-9)
    assert torch.equal(ours, semantic_triplet(scores, relevance, margin=0.5, hardest=hardest, seed=seed))


def test_semantic_with_the_matched_pairs_relevant_is_the_triplet() -> None:
    scores = random_scores(5, 4)
    torch.testing.assert_close(semantic_triplet(scores, torch.eye(5)), triplet(scores))


def test_semantic_draws_every_relevant_one_under_some_seed() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, 9.0]])
    relevance = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    found = {round(float(semantic_triplet(scores, relevance, margin=0.0, seed=seed))) for seed in range(40)}
    assert found == {9, 8, 7}


def test_semantic_without_relevant_pairs_is_zero() -> None:
    scores = random_scores(3).requires_grad_()
    value = semantic_triplet(scores, torch.zeros(3, 3))
    value.backward()
    assert value.item() == 0 and not scores.grad.any()
