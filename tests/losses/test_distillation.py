"""Distillation of score matrices against loops, its edges, and that the teacher is left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.losses.distillation import (
    ScoreRegression,
    contrastive_distillation,
    listnet,
    ordinal_distillation,
)

Loss = Callable[[Tensor, Tensor], Tensor]
Rows = list[list[float]]
DALR: dict[str, Any] = {"scale": 1.0, "epsilon": 0.0, "directions": "texts", "diagonal": False}
shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))


def matrices(texts: int, images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, texts, images, generator=draw, dtype=torch.float64)
    return 3 * teacher, student


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def softmax(row: list[float]) -> list[float]:
    total = sum(map(math.exp, row))
    return [math.exp(x) / total for x in row]


def naive_listnet(teacher: Rows, student: Rows, scale: float, epsilon: float, diagonal: bool) -> float:
    costs = []
    for i, (t, s) in enumerate(zip(teacher, student, strict=True)):
        kept = [j for j in range(len(t)) if diagonal or j != i]
        target, ours = softmax([t[j] for j in kept]), softmax([scale * s[j] for j in kept])
        costs.append(-sum(q * math.log(p + epsilon) for q, p in zip(target, ours, strict=True)))
    return mean(costs)


@settings(max_examples=30, deadline=None)
@given(shapes, st.sampled_from([1.0, 6.0]), st.sampled_from([0.0, 1e-10, 0.1]), st.sampled_from(["both", "texts"]))
def test_listnet_is_the_cross_entropy_of_the_lists(
    shape: tuple[int, int, int], scale: float, epsilon: float, directions: Any
) -> None:
    for diagonal in (True, False):
        t, s = matrices(shape[0], shape[1] if diagonal else shape[0], shape[2])
        expected = naive_listnet(t.tolist(), s.tolist(), scale, epsilon, diagonal)
        if directions == "both":
            expected += naive_listnet(t.T.tolist(), s.T.tolist(), scale, epsilon, diagonal)
        ours = listnet(t, s, scale=scale, epsilon=epsilon, directions=directions, diagonal=diagonal)
        assert float(ours) == pytest.approx(expected, abs=1e-8)


def test_listnet_of_another_system_by_its_options() -> None:
    t, s = matrices(4, 4, 1)
    q = t.masked_fill(torch.eye(4).bool(), -torch.inf).softmax(1)
    logs = s.masked_fill(torch.eye(4).bool(), -1e9).log_softmax(1)
    torch.testing.assert_close(listnet(t, s, **DALR), -(q * logs).sum(1).mean())


def naive_ordinal(teacher: Rows, student: Rows, margin: float, threshold: float, stride: int) -> float:
    costs = []
    for t, s in zip(teacher, student, strict=True):
        order = sorted(range(len(t)), key=lambda j: t[j])
        for low, high in zip(order, order[stride:], strict=False):
            if t[high] >= threshold:
                costs.append(max(0.0, margin + s[low] - s[high]))
    return mean(costs)


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(1, 4), st.sampled_from([-9.0, 0.1, 2.0]))
def test_ordinal_is_the_mean_of_the_steps(shape: tuple[int, int, int], stride: int, threshold: float) -> None:
    t, s = matrices(*shape)
    options = {"margin": 0.3, "threshold": threshold, "stride": stride}
    expected = naive_ordinal(t.tolist(), s.tolist(), **options) + naive_ordinal(t.T.tolist(), s.T.tolist(), **options)
    assert float(ordinal_distillation(t, s, **options)) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_contrastive_selects_whole_rows_and_columns(size: int, seed: int) -> None:
    teacher, student = matrices(size, size, seed)
    t, s = teacher.tolist(), student.tolist()
    for i in range(size):
        t[i][i] = 0.0
    best_image = [max(range(size), key=lambda j: t[i][j]) for i in range(size)]
    best_text = [max(range(size), key=lambda i: t[i][j]) for j in range(size)]
    expected = 0.0
    for k in range(size):
        expected += sum(max(0.0, 0.2 + s[i][best_image[k]] - s[i][i]) for i in range(size))
        expected += sum(max(0.0, 0.2 + s[best_text[k]][j] - s[j][j]) for j in range(size))
    assert float(contrastive_distillation(teacher, student)) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(shapes)
def test_regression_is_the_mean_squared_error(shape: tuple[int, int, int]) -> None:
    t, s = matrices(*shape)
    loss = ScoreRegression()
    assert list(loss.state_dict()) == ["wb"]
    errors = [
        (0.5 * y + 0.5 - x) ** 2 for a, b in zip(t.tolist(), s.tolist(), strict=True) for x, y in zip(a, b, strict=True)
    ]
    assert loss(t, s).item() == pytest.approx(mean(errors), rel=1e-9)


def regression(teacher: Tensor, student: Tensor) -> Tensor:
    return ScoreRegression()(teacher, student)


ALL = {
    "listnet": listnet,
    "dalr": partial(listnet, **DALR),
    "regression": regression,
    "ordinal": partial(ordinal_distillation, stride=1),
    "contrastive": contrastive_distillation,
}
LOSSES = pytest.mark.parametrize("loss", ALL.values(), ids=ALL)


@LOSSES
def test_gradients_reach_the_student_alone_and_nothing_is_changed(loss: Loss) -> None:
    teacher, student = matrices(4, 4, 2)
    before = teacher.clone()
    teacher.requires_grad_()
    student.requires_grad_()
    assert torch.autograd.gradcheck(partial(loss, teacher), (student,))
    loss(teacher, student).backward()
    assert teacher.grad is None and torch.equal(teacher, before)


def test_regression_learns_its_scale_and_bias() -> None:
    teacher, student = matrices(3, 3, 3)
    loss = ScoreRegression().double()
    wb = torch.tensor([0.5, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: torch.func.functional_call(loss, {"wb": b}, (teacher, student)), (wb,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@LOSSES
def test_half_precision_scores_are_computed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    teacher, student = (x.to(dtype) for x in matrices(4, 4))
    student.requires_grad_()
    value = loss(teacher, student)
    value.backward()
    assert value.dtype == torch.float32 and student.grad is not None and student.grad.isfinite().all()
    assert torch.equal(value, loss(teacher.float(), student.float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@LOSSES
def test_large_scores_stay_finite(loss: Loss, dtype: torch.dtype) -> None:
    teacher, student = (300 * x.to(dtype) for x in matrices(4, 4))
    student.requires_grad_()
    value = loss(teacher, student)
    value.backward()
    assert value.isfinite() and student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("size", [0, 1])
@LOSSES
def test_no_pair_or_one_is_finite(loss: Loss, size: int) -> None:
    teacher, student = matrices(size, size)
    student.requires_grad_()
    value = loss(teacher, student)
    value.backward()
    assert value.isfinite() and student.grad is not None and student.grad.isfinite().all()
    if size == 0:
        assert value.item() == 0


def test_one_pair_by_hand() -> None:
    teacher, student = matrices(1, 1)
    assert float(listnet(teacher, student)) == pytest.approx(0, abs=1e-9)
    assert float(listnet(teacher, student, **DALR)) == 0
    assert float(ordinal_distillation(teacher, student)) == 0
    assert float(contrastive_distillation(teacher, student)) == pytest.approx(0.4)  # the diagonal counts, twice


@LOSSES
def test_ties_are_finite(loss: Loss) -> None:
    student = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    value = loss(torch.ones(4, 4, dtype=torch.float64), student)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


def test_equal_lists_cost_their_entropy() -> None:
    scores = torch.zeros(3, 5, dtype=torch.float64)
    assert float(listnet(scores, scores)) == pytest.approx(math.log(5) + math.log(3))


@pytest.mark.parametrize("stride, threshold", [(4, 0.1), (9, 0.1), (1, 1e9)])
def test_ordinal_is_zero_where_no_place_is_kept(stride: int, threshold: float) -> None:
    teacher, student = matrices(4, 4)
    student.requires_grad_()
    value = ordinal_distillation(teacher, student, stride=stride, threshold=threshold)
    value.backward()
    assert value.item() == 0 and not student.grad.any()
