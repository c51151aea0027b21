from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.losses.token_sets import attention_distillation, hidden_l1, permutation_matching

lengths = st.lists(st.integers(1, 4), min_size=1, max_size=3)
Sets = tuple[Tensor, Tensor, Tensor, Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sets(texts: list[int], images: list[int], seed: int = 0) -> Sets:
    rows = random(sum(texts), 3, seed=seed), random(sum(images), 3, seed=seed + 1)
    return rows[0], torch.tensor(texts), rows[1], torch.tensor(images)


def attention(texts: int, images: int, seed: int = 0) -> Tensor:
    return random(texts, images, 5, 6, seed=seed).abs()


def split(s: Sets) -> tuple[list[list[list[float]]], list[list[list[float]]]]:
    return tuple([x.tolist() for x in rows.split(n.tolist())] for rows, n in (s[:2], s[2:]))  # type: ignore[return-value]


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def softmax(row: list[float]) -> list[float]:
    total = sum(map(math.exp, row))
    return [math.exp(x) / total for x in row]


def naive_attention(s: Sets, teacher: Tensor) -> float:
    costs = []
    for c, text in enumerate(split(s)[0]):
        for i, image in enumerate(split(s)[1]):
            for w, word in enumerate(text[1:]):
                ours = softmax([dot(word, region) / 3**0.5 for region in image[1:]])
                given = teacher[c, i, w, : len(ours)].tolist()
                target = [x / sum(given) for x in given]
                costs.append(sum(t * (math.log(t) - math.log(p)) for t, p in zip(target, ours, strict=True)))
    return sum(costs) / len(costs) if costs else 0.0


@settings(max_examples=30, deadline=None)
@given(lengths, lengths, st.integers(0, 10**6))
def test_attention_is_the_divergence_of_every_word(texts: list[int], images: list[int], seed: int) -> None:
    s, teacher = sets(texts, images, seed), attention(len(texts), len(images), seed)
    assert float(attention_distillation(*s, teacher)) == pytest.approx(naive_attention(s, teacher), abs=1e-9)


def naive_matching(s: Sets) -> float:
    total = 0.0
    for text, image in zip(*split(s), strict=True):
        d = [[math.dist(x, y) for y in image] for x in text]
        rows = [softmax([-x for x in row]) for row in d]
        columns = [softmax([-row[j] for row in d]) for j in range(len(image))]
        total += 2 * len(text) - sum(map(max, rows)) - sum(map(max, columns))
    return total / len(s[1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3), st.integers(0, 10**6))
def test_matching_is_the_mean_over_pairs(pairs: list[tuple[int, int]], seed: int) -> None:
    s = sets([t for t, _ in pairs], [i for _, i in pairs], seed)
    assert float(permutation_matching(*s)) == pytest.approx(naive_matching(s), abs=1e-9)


def test_the_order_of_a_set_changes_no_matching() -> None:
    s = sets([4, 2], [3, 3], 5)
    swapped = s[0][[2, 0, 3, 1, 5, 4]], s[1], s[2], s[3]
    torch.testing.assert_close(permutation_matching(*swapped), permutation_matching(*s))


def test_gradients() -> None:
    s, teacher = sets([3, 1, 2], [2, 3, 1], 2), attention(3, 3)
    leaves = s[0].requires_grad_(), s[2].requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: attention_distillation(a, s[1], b, s[3], teacher), leaves)
    assert torch.autograd.gradcheck(lambda a, b: permutation_matching(a, s[1], b, s[3]), leaves)
    assert torch.autograd.gradcheck(hidden_l1, (random(4).requires_grad_(), random(2).requires_grad_()))


def test_no_gradient_reaches_the_teacher_and_it_stays_as_it_was() -> None:
    s, teacher = sets([3], [3]), attention(1, 1)
    before = teacher.clone()
    s[0].requires_grad_()
    attention_distillation(*s, teacher.requires_grad_()).backward()
    assert teacher.grad is None and torch.equal(teacher, before)


def test_a_word_that_the_teacher_attends_to_no_region_of_costs_nothing() -> None:
    s, teacher = sets([3], [3]), attention(1, 1)
    both = float(attention_distillation(*s, teacher))
    teacher[0, 0, 1] = 0
    one = attention_distillation(*s, teacher)
    rest = attention_distillation(*sets([3], [3]), torch.stack([teacher[0, 0, 0]] * 2)[None, None])
    assert 0 < float(one) < both and rest.isfinite()


@pytest.mark.parametrize("texts, images", [([1, 1], [1, 1]), ([1, 3], [2, 1]), ([0, 3], [3, 0]), ([], []), ([0], [0])])
def test_empty_sets_cost_nothing_and_stay_finite(texts: list[int], images: list[int]) -> None:
    s = sets(texts, images)
    leaves = s[0].requires_grad_(), s[2].requires_grad_()
    for value in (attention_distillation(*s, attention(len(texts), len(images))), permutation_matching(*s)):
        assert value.isfinite()
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)
    if not any(texts) or not any(images):
        assert permutation_matching(*s).item() == 0


def test_equal_vectors_are_finite() -> None:
    same = torch.ones(3, 2, requires_grad=True)
    n = torch.tensor([3])
    value = permutation_matching(same, n, same, n) + attention_distillation(same, n, same, n, torch.ones(1, 1, 2, 2))
    value.backward()
    assert value.item() == pytest.approx(6 - 2) and same.grad.isfinite().all()


def test_hidden_l1_is_the_mean_of_both_means() -> None:
    texts, images = torch.tensor([1.0, 3.0]), torch.tensor([10.0])
    assert float(hidden_l1(texts, images)) == pytest.approx(0.001 * (2 + 10) / 2)
    assert float(hidden_l1(texts, images, factor=1.0)) == pytest.approx(6)
    none = torch.zeros(0, requires_grad=True)
    value = hidden_l1(none, images)
    value.backward()
    assert value.item() == pytest.approx(0.005) and none.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype: torch.dtype) -> None:
    s, teacher = sets([3, 2], [2, 3]), attention(2, 2).to(dtype)
    half = s[0].to(dtype), s[1], s[2].to(dtype), s[3]
    wide = half[0].float(), s[1], half[2].float(), s[3]
    states = random(5).abs().to(dtype), random(3).abs().to(dtype)
    for cast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            found = attention_distillation(*half, teacher), permutation_matching(*half), hidden_l1(*states)
        expected = (
            attention_distillation(*wide, teacher.float()),
            permutation_matching(*wide),
            hidden_l1(*(x.float() for x in states)),
        )
        assert all(x.dtype == torch.float32 and torch.equal(x, y) for x, y in zip(found, expected, strict=True))
