from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from crossmodal.losses.contrastive import InfoNCE, clip_info_nce, sigmoid, uniformity

cases = st.tuples(st.integers(1, 6), st.integers(0, 10**6))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cross_entropy(rows: list[list[float]]) -> float:
    return sum(math.log(sum(map(math.exp, row))) - row[k] for k, row in enumerate(rows)) / len(rows)


@settings(max_examples=30, deadline=None)
@given(cases, st.sampled_from([0.0, 1.0, 2.6593]))
def test_info_nce_is_the_mean_of_both_directions(case: tuple[int, int], log_scale: float) -> None:
    scores = random(case[0], case[0], seed=case[1])
    logits = scores * math.exp(log_scale)
    expected = (cross_entropy(logits.tolist()) + cross_entropy(logits.T.tolist())) / 2
    for learn in (True, False):
        loss = InfoNCE(log_scale=log_scale, learn=learn).double()
        assert loss(scores).item() == pytest.approx(expected, abs=1e-5 * (1 + expected))  # the scale was float32


def test_info_nce_learns_its_scale_or_keeps_it() -> None:
    learnt, kept = InfoNCE(), InfoNCE(learn=False)
    assert learnt.logit_scale.item() == kept.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert list(learnt.state_dict()) == ["logit_scale"] and not list(kept.state_dict())
    assert len(list(learnt.parameters())) == 1 and not list(kept.parameters())
    assert float(learnt(torch.eye(3)).detach()) == float(kept(torch.eye(3)))


def test_info_nce_gradients() -> None:
    loss = InfoNCE(log_scale=0.5).double()

    def value(scores: Tensor, scale: Tensor) -> Tensor:
        return torch.func.functional_call(loss, {"logit_scale": scale}, (scores,))  # type: ignore[no-any-return]

    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (random(4, 4).requires_grad_(), scale))


def test_info_nce_edges() -> None:
    loss = InfoNCE()
    none = torch.zeros(0, 0, requires_grad=True)
    loss(none).backward()
    assert loss(none).item() == 0 and none.grad is not None
    assert loss(torch.ones(1, 1)).item() == 0
    assert loss(torch.ones(4, 4)).item() == pytest.approx(math.log(4))
    assert loss(torch.eye(3) * -1e4).isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_info_nce_of_half_precision_scores_is_computed_in_float32(dtype: torch.dtype) -> None:
    scores = random(4, 4).to(dtype).requires_grad_()
    loss = InfoNCE()
    value = loss(scores)
    value.backward()
    assert value.dtype == torch.float32 and torch.equal(value, loss(scores.float()))
    assert scores.grad is not None and scores.grad.isfinite().all()
    assert torch.isclose(InfoNCE().to(dtype)(scores), value, rtol=0.05)


def naive_uniformity(vectors: list[list[float]]) -> float:
    total = 0.0
    for k, x in enumerate(vectors):
        others = [y for j, y in enumerate(vectors) if j != k]
        nearest = max(others, key=lambda y: sum(a * b for a, b in zip(x, y, strict=True)))
        distance = sum((a - b + 1e-6) ** 2 for a, b in zip(x, nearest, strict=True)) ** 0.5
        total -= math.log(len(vectors) * distance)
    return total / len(vectors)


@settings(max_examples=30, deadline=None)
@given(cases)
def test_uniformity_is_the_log_distance_to_the_nearest(case: tuple[int, int]) -> None:
    x = F.normalize(random(2 * case[0], 4, seed=case[1]), dim=1)
    images, texts = x.chunk(2)
    expected = naive_uniformity(x.tolist())
    assert float(uniformity(images, texts)) == pytest.approx(expected, abs=1e-9)
    assert float(uniformity(texts, images)) == pytest.approx(naive_uniformity([*texts.tolist(), *images.tolist()]))


def test_uniformity_gradients() -> None:
    x = F.normalize(random(6, 3, seed=1), dim=1)
    assert torch.autograd.gradcheck(uniformity, tuple(part.clone().requires_grad_() for part in x.chunk(2)))


def test_uniformity_edges() -> None:
    none = torch.zeros(0, 3, requires_grad=True)
    uniformity(none, none).backward()
    assert uniformity(none, none).item() == 0 and none.grad is not None
    same = torch.ones(3, 4, requires_grad=True)
    value = uniformity(same, same)
    value.backward()
    assert value.item() == pytest.approx(-math.log(6 * 2e-6)) and same.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_uniformity_of_half_precision_vectors_is_computed_in_float32(dtype: torch.dtype) -> None:
    x, y = (F.normalize(random(3, 4, seed=s), dim=1).to(dtype) for s in (0, 1))
    value = uniformity(x, y)
    assert value.dtype == torch.float32 and torch.equal(value, uniformity(x.float(), y.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(value, uniformity(x, y))


def vectors(rows: int, seed: int) -> Tensor:
    return F.normalize(random(rows, 4, seed=seed), dim=1)


@settings(max_examples=30, deadline=None)
@given(cases, st.sampled_from([1.0, 14.0, 100.0]))
def test_clip_info_nce_is_info_nce_of_the_scaled_products(case: tuple[int, int], scale: float) -> None:
    images, texts = vectors(case[0], case[1]), vectors(case[0], case[1] + 1)
    logits = [[scale * float(i @ t) for t in texts] for i in images]
    expected = (cross_entropy(logits) + cross_entropy([list(column) for column in zip(*logits, strict=True)])) / 2
    assert float(clip_info_nce(images, texts, torch.tensor(scale))) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(cases, st.sampled_from([-10.0, 0.0, 2.0]))
def test_sigmoid_is_the_sum_over_pairs(case: tuple[int, int], bias: float) -> None:
    images, texts = vectors(case[0], case[1]), vectors(case[0], case[1] + 1)
    expected = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            score = 10 * float(image @ text) + bias
            expected += math.log1p(math.exp(-score if i == j else score))
    for divide, by in (("items", case[0]), ("pairs", case[0] ** 2)):
        ours = sigmoid(images, texts, torch.tensor(10.0), torch.tensor(bias), divide=divide)
        assert float(ours) == pytest.approx(expected / by, rel=1e-9)


def biased(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    return sigmoid(images, texts, scale, torch.tensor(-10.0))


def test_clip_and_sigmoid_gradients() -> None:
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    fields = (vectors(4, 0).requires_grad_(), vectors(4, 1).requires_grad_(), scale)
    assert torch.autograd.gradcheck(clip_info_nce, fields)
    assert torch.autograd.gradcheck(sigmoid, (*fields, bias))


@pytest.mark.parametrize("loss", [clip_info_nce, biased])
def test_clip_and_sigmoid_edges(loss: Callable[..., Tensor]) -> None:
    none, scale = torch.zeros(0, 3, requires_grad=True), torch.tensor(100.0)
    loss(none, none, scale).backward()
    assert loss(none, none, scale).item() == 0 and none.grad is not None
    assert loss(torch.ones(1, 3), torch.ones(1, 3), scale).isfinite()
    assert loss(1e3 * torch.eye(3), -1e3 * torch.eye(3), scale).isfinite()
    assert float(clip_info_nce(torch.ones(4, 1), torch.ones(4, 1), scale)) == pytest.approx(math.log(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [clip_info_nce, biased])
def test_clip_and_sigmoid_of_half_precision_are_computed_in_float32(
    loss: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    images, texts, scale = vectors(4, 0).to(dtype), vectors(4, 1).to(dtype), torch.tensor(100.0)
    value = loss(images, texts, scale)
    assert value.dtype == torch.float32 and torch.equal(value, loss(images.float(), texts.float(), scale))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(value, loss(images, texts, scale))
