"""The alignment scores against the formulas of the specification written as loops, their edges and their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.model import alignment, max_sum
from crossmodal.model.alignment import AGGREGATIONS, CLAMPS, alignment_scores
from crossmodal.model.base import all_pairs

text_lengths = st.lists(st.integers(2, 8), min_size=1, max_size=4)
image_lengths = st.lists(st.integers(1, 6), min_size=1, max_size=4)
Sets = tuple[Tensor, Tensor, Tensor, Tensor]


def sets(
    texts: list[int], images: list[int], seed: int = 0, dtype: torch.dtype = torch.float64, width: int = 5
) -> Sets:
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randn(sum(n), width, generator=draw, dtype=torch.float64).to(dtype) for n in (texts, images)]
    return rows[0], torch.tensor(texts), rows[1], torch.tensor(images)


def unit(x: list[float]) -> list[float]:
    norm = max(sum(v * v for v in x) ** 0.5, 1e-12)
    return [v / norm for v in x]


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def maximum(values: list[float], clamped: bool) -> float:
    return max([*values, 0.0]) if clamped else max(values)


def scan(table: list[list[float]], words: list[list[float]]) -> float:
    """table[r][w] of cosines."""
    relevance = [[max(0.0, x) for x in row] for row in table]
    norms = [max(sum(row[w] ** 2 for row in relevance) ** 0.5, 1e-12) for w in range(len(words))]
    total = 0.0
    for row, cosines in zip(relevance, table, strict=True):
        p = torch.tensor([x / n for x, n in zip(row, norms, strict=True)], dtype=torch.float64).softmax(0).tolist()
        attended = [sum(p[w] * word[e] for w, word in enumerate(words)) for e in range(len(words[0]))]
        total += dot(p, cosines) / max(dot(attended, attended) ** 0.5, 1e-8)
    return total


def naive(s: Sets, aggregation: str, clamp: str, widths: tuple[int, int] | None = None) -> Tensor:
    """Spec section 4, a pair at a time, without padding: what padding would do is written as conditions."""
    texts, images = (list(rows.split(lengths.tolist())) for rows, lengths in (s[:2], s[2:]))
    width, image_width = widths or (max(map(len, texts)), max(map(len, images)))
    out = torch.zeros(len(texts), len(images), dtype=torch.float64)
    for i, text in enumerate(texts):
        for j, image in enumerate(images):
            words = [unit(x) for x in text[1:-2].tolist()] if len(text) > 3 else []
            regions = [unit(x) for x in image[1:].tolist()]
            if not words or not regions:
                continue
            by_image = clamp == "always" or (clamp == "batch" and len(image) < image_width)
            by_text = clamp == "always" or (clamp == "batch" and len(text) < width)
            table = [[dot(r, w) for w in words] for r in regions]
            whole = sum(map(sum, table))
            over_regions = sum(maximum([row[w] for row in table], by_image) for w in range(len(words)))
            over_words = sum(maximum(row, by_text) for row in table)
            batch = clamp == "batch"
            size = (image_width - 1) * (width - 3) if batch else len(words) * len(regions)
            out[i, j] = {
                "sum": whole,
                "mean": whole / size,
                "MrSw": over_regions,
                "MrAVGw": over_regions / len(words),
                "MwSr": over_words,
                "symm": over_regions + over_words,
                "scan-sentences": scan(table, words),
            }[aggregation]
    return out


@settings(max_examples=40, deadline=None)
@given(text_lengths, image_lengths, st.integers(0, 10**6), st.sampled_from(AGGREGATIONS), st.sampled_from(CLAMPS))
def test_equal_to_the_loop(texts: list[int], images: list[int], seed: int, aggregation: Any, clamp: Any) -> None:
    s = sets(texts, images, seed)
    expected = naive(s, aggregation, clamp)
    ours = alignment_scores(*s, aggregation=aggregation, clamp=clamp)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    pairs = all_pairs(len(texts), len(images)).flip(0)
    listed = alignment_scores(*s, aggregation=aggregation, clamp=clamp, pairs=pairs)
    torch.testing.assert_close(listed, expected[pairs[:, 0], pairs[:, 1]], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_widths_are_those_that_items_would_be_padded_to(aggregation: Any) -> None:
    s = sets([5, 6], [3, 4], seed=1)
    for widths in ((6, 4), (71, 71)):
        ours = alignment_scores(*s, aggregation=aggregation, widths=widths)
        torch.testing.assert_close(ours, naive(s, aggregation, "batch", widths))


def test_only_an_item_that_fills_the_width_is_not_clamped() -> None:
    towards, away = torch.tensor([1.0, 0]), torch.tensor([-1.0, 0])
    texts = torch.stack([towards] * 4)
    images = torch.stack([away] * 5)
    lengths = torch.tensor([4]), torch.tensor([2, 3])
    scores = {c: alignment_scores(texts, lengths[0], images, lengths[1], clamp=c).tolist() for c in CLAMPS}
    assert scores == {"batch": [[0, -1]], "always": [[0, 0]], "never": [[-1, -1]]}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("clamp", CLAMPS)
def test_gradients(aggregation: Any, clamp: Any) -> None:
    s = sets([5, 3, 4], [3, 1, 2], seed=2, width=2)
    pairs = torch.tensor([[0, 0], [2, 2], [1, 0], [0, 2], [0, 0]])
    leaves = s[0].requires_grad_(), s[2].requires_grad_()
    for chosen in (None, pairs):
        options = {"aggregation": aggregation, "clamp": clamp, "pairs": chosen}
        assert torch.autograd.gradcheck(lambda a, b: alignment_scores(a, s[1], b, s[3], **options), leaves)  # noqa: B023


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_many_blocks_change_nothing(aggregation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s = sets([5, 8, 4, 3, 7, 6], [4, 2, 6, 1, 3, 5], seed=3)
    pairs = all_pairs(6, 6)
    weights = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def results() -> list[Tensor]:
        leaves = [s[i].clone().requires_grad_() for i in (0, 2)]
        scores = alignment_scores(leaves[0], s[1], leaves[1], s[3], aggregation=aggregation)
        listed = alignment_scores(leaves[0], s[1], leaves[1], s[3], aggregation=aggregation, pairs=pairs)
        with torch.no_grad():
            fast = alignment_scores(*s, aggregation=aggregation)
        return [scores, listed, fast, *torch.autograd.grad((scores * weights).sum(), leaves)]

    whole = results()
    monkeypatch.setattr(alignment, "ENTRIES", 1)
    monkeypatch.setattr(alignment, "GROUP", 4)
    monkeypatch.setattr(max_sum, "ENTRIES", 20)
    monkeypatch.setattr(max_sum, "ROWS", 4)
    for blocked, expected in zip(results(), whole, strict=True):
        torch.testing.assert_close(blocked, expected)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("texts, images", [([2, 3], [4, 2]), ([5, 4], [1, 1]), ([1, 6], [0, 3]), ([3], [1])])
def test_items_without_words_or_regions_score_zero(aggregation: Any, texts: list[int], images: list[int]) -> None:
    s = sets(texts, images, seed=4)
    leaves = s[0].requires_grad_(), s[2].requires_grad_()
    for pairs in (None, all_pairs(len(texts), len(images))):
        scores = alignment_scores(*s, aggregation=aggregation, pairs=pairs)
        live = (s[1] > 3)[:, None] & (s[3] > 1)
        assert torch.equal(scores.reshape(live.shape) != 0, live)
        gradients = torch.autograd.grad(scores.sum(), leaves)
        assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_no_items(aggregation: Any) -> None:
    s = sets([5], [3])
    none = torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    assert alignment_scores(*none, *s[2:], aggregation=aggregation).shape == (0, 1)
    assert alignment_scores(*s[:2], *none, aggregation=aggregation).shape == (1, 0)
    assert alignment_scores(*s, aggregation=aggregation, pairs=torch.zeros(0, 2, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_zero_vectors_and_ties_stay_finite(aggregation: Any) -> None:
    one = torch.ones(6, 3)
    zero = torch.zeros(4, 3)
    for images in (one[:4], zero):
        leaves = one.clone().requires_grad_(), images.clone().requires_grad_()
        scores = alignment_scores(
            leaves[0], torch.tensor([6]), leaves[1], torch.tensor([4]), aggregation=aggregation, clamp="never"
        )
        gradients = torch.autograd.grad(scores.sum(), leaves)
        assert scores.isfinite().all() and all(g.isfinite().all() for g in gradients)


def test_of_equal_regions_the_first_gets_the_gradient() -> None:
    region = torch.tensor([1.0, 0])
    images = torch.stack([region * 0, region, region]).requires_grad_()
    texts = torch.tensor([[0.0, 1], [1, 1], [0, 0], [0, 0]])
    alignment_scores(texts, torch.tensor([4]), images, torch.tensor([3])).sum().backward()
    assert images.grad is not None and images.grad.any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype: torch.dtype) -> None:
    s = sets([5, 6], [4, 3], seed=5, dtype=dtype)
    wide = (s[0].float(), s[1], s[2].float(), s[3])
    for aggregation in AGGREGATIONS:
        expected = alignment_scores(*wide, aggregation=aggregation)
        assert torch.equal(alignment_scores(*s, aggregation=aggregation), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(alignment_scores(*wide, aggregation=aggregation), expected)


def test_a_broken_item_spoils_its_own_scores_alone() -> None:
    s = sets([5, 6, 4], [4, 3, 5], seed=6)
    s[0][6] = torch.nan  # a word of the second text
    s[2][8] = torch.inf  # a region of the last image
    scores = alignment_scores(*s)
    assert (
        scores[[0, 2]][:, :2].isfinite().all() and not scores[1].isfinite().any() and not scores[:, 2].isfinite().any()
    )
