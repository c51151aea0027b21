from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.losses.pretraining import (
    Counted,
    masked_region_classes,
    masked_region_features,
    masked_region_kl,
    masked_words,
)

sizes = st.tuples(st.integers(1, 5), st.integers(2, 6), st.integers(0, 10**6))


def randn(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def soft_labels(rows: int, columns: int, seed: int) -> Tensor:
    return randn(rows, columns, seed + 1).softmax(dim=1)


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(map(math.exp, row)))
    return [x - total for x in row]


@settings(deadline=None)
@given(sizes)
def test_masked_words_averages_over_words(size: tuple[int, int, int]) -> None:
    n, vocabulary, seed = size
    logits = randn(*size)
    targets = torch.randint(0, vocabulary, (n,), generator=torch.Generator().manual_seed(seed))
    terms = [-log_softmax(row)[t] for row, t in zip(logits.tolist(), targets.tolist(), strict=True)]
    mean, count = masked_words(logits, targets)
    assert count == n and float(mean) == pytest.approx(sum(terms) / n)


@settings(deadline=None)
@given(sizes)
def test_region_features_are_averaged_over_elements(size: tuple[int, int, int]) -> None:
    n, width, seed = size
    a, b = randn(*size), randn(n, width, seed + 1)
    terms = [(a[i, k].item() - b[i, k].item()) ** 2 for i in range(n) for k in range(width)]
    mean, count = masked_region_features(a, b)
    assert count == n * width and float(mean) == pytest.approx(sum(terms) / count)


@settings(deadline=None)
@given(sizes)
def test_the_background_is_never_a_target(size: tuple[int, int, int]) -> None:
    n, classes, _ = size
    logits, labels = randn(*size), soft_labels(*size)
    labels[:, 0] += 1
    terms = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        best = max(range(1, classes), key=lambda c: label[c])
        terms.append(-log_softmax(row)[best])
    mean, count = masked_region_classes(logits, labels)
    assert count == n and float(mean) == pytest.approx(sum(terms) / n)


@settings(deadline=None)
@given(sizes)
def test_kl_is_averaged_over_all_elements_and_takes_zero_labels(size: tuple[int, int, int]) -> None:
    n, classes, _ = size
    logits, labels = randn(*size), soft_labels(*size)
    labels[:, 1] = 0
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total += sum(p * (math.log(p) - q) for p, q in zip(label, log_softmax(row), strict=True) if p > 0)
    mean, count = masked_region_kl(logits, labels)
    assert count == n * classes and float(mean) == pytest.approx(total / count)


def words(logits: Tensor) -> Counted:
    return masked_words(logits, torch.arange(len(logits)) % logits.shape[1])


def features(predictions: Tensor) -> Counted:
    return masked_region_features(predictions, predictions.detach().flip(1))


def classes(logits: Tensor) -> Counted:
    return masked_region_classes(logits, soft_labels(*logits.shape, 3).to(logits.dtype))


def kl(logits: Tensor) -> Counted:
    return masked_region_kl(logits, soft_labels(*logits.shape, 3).to(logits.dtype))


LOSSES = pytest.mark.parametrize("loss", [words, features, classes, kl])
Loss = Callable[[Tensor], Counted]


@pytest.mark.parametrize("loss", [words, classes, kl])
def test_gradients(loss: Loss) -> None:
    assert torch.autograd.gradcheck(lambda x: loss(x)[0], (randn(4, 5, 0).requires_grad_(),))


def test_gradients_of_features() -> None:
    target = randn(4, 5, 1)
    assert torch.autograd.gradcheck(lambda x: masked_region_features(x, target)[0], (randn(4, 5, 0).requires_grad_(),))


@LOSSES
def test_nothing_masked_counts_nothing(loss: Loss) -> None:
    given_field = torch.randn(0, 7, requires_grad=True)
    mean, count = loss(given_field)
    mean.backward()
    assert count == 0 and mean.item() == 0 and given_field.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@LOSSES
def test_half_precision_is_computed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    half = (100 * randn(3, 4, 2)).to(dtype).requires_grad_()  # squares of these overflow float16
    mean, _ = loss(half)
    mean.backward()
    assert mean.dtype == torch.float32 and mean.isfinite()
    assert half.grad is not None and half.grad.isfinite().all()
