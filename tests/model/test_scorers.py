from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.errors import ConfigError
from crossmodal.model import scorers
from crossmodal.model.alignment import alignment_scores
from crossmodal.model.base import Encoded, all_pairs
from crossmodal.model.scorers import MEASURES, AlignmentScorer, VectorScorer
from crossmodal.retrieve.scoring import score_matrix, score_pairs


def encoded(lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> Encoded:
    draw = torch.Generator().manual_seed(seed)
    rows, vectors = (torch.randn(n, 4, generator=draw, dtype=torch.float64) for n in (sum(lengths), len(lengths)))
    return Encoded(torch.tensor(lengths), {"tokens": rows.to(dtype)}, {"embeds": vectors.to(dtype)})


def naive(measure: str, text: Tensor, image: Tensor) -> float:
    pairs = list(zip(text.tolist(), image.tolist(), strict=True))
    if measure == "order":
        return -(sum(max(0.0, t - i) ** 2 for t, i in pairs) ** 0.5)
    product = sum(t * i for t, i in pairs)
    return product / float(text.norm() * image.norm()) if measure == "cosine" else product


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from(MEASURES))
def test_vectors_equal_the_loop(texts: int, images: int, seed: int, measure: Any) -> None:
    a, b = encoded([1] * texts, seed), encoded([1] * images, seed + 1)
    left, right = a.vectors["embeds"], b.vectors["embeds"]
    expected = torch.tensor([[naive(measure, t, i) for i in right] for t in left], dtype=torch.float64)
    scorer = VectorScorer(measure)
    torch.testing.assert_close(scorer(a, b), expected)
    pairs = all_pairs(texts, images).flip(0)
    torch.testing.assert_close(scorer(a, b, pairs), expected[pairs[:, 0], pairs[:, 1]])


@pytest.mark.parametrize("measure", MEASURES)
def test_blocks_of_vectors_change_nothing(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, scorer = encoded([1] * 5, 0), encoded([1] * 3, 1), VectorScorer(measure)
    pairs = all_pairs(5, 3)
    whole = scorer(a, b), scorer(a, b, pairs)
    monkeypatch.setattr(scorers, "ENTRIES", 1)
    torch.testing.assert_close((scorer(a, b), scorer(a, b, pairs)), whole)


@pytest.mark.parametrize("measure", MEASURES)
def test_gradients_of_vectors(measure: Any) -> None:
    a, b = encoded([1, 1, 1], 2), encoded([1, 1], 3)
    leaves = a.vectors["embeds"].requires_grad_(), b.vectors["embeds"].requires_grad_()

    def scores(x: Tensor, y: Tensor) -> Tensor:
        return VectorScorer(measure)(
            Encoded(a.lengths, vectors={"embeds": x}), Encoded(b.lengths, vectors={"embeds": y})
        )

    assert torch.autograd.gradcheck(scores, leaves)


def test_order_of_equal_vectors_is_zero_with_a_finite_gradient() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    side = Encoded(torch.ones(2, dtype=torch.int64), vectors={"embeds": x})
    scores = VectorScorer("order")(side, side)
    scores.sum().backward()
    assert not scores.any() and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("scorer", [*map(VectorScorer, MEASURES), AlignmentScorer()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(scorer: Any, dtype: torch.dtype) -> None:
    a, b = encoded([4, 6], 4, dtype), encoded([2, 3, 5], 5, dtype)
    wide = [
        Encoded(x.lengths, {"tokens": x.rows["tokens"].float()}, {"embeds": x.vectors["embeds"].float()})
        for x in (a, b)
    ]
    assert torch.equal(scorer(a, b), scorer(*wide)) and scorer(a, b).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scorer(a, b), scorer(*wide))


@pytest.mark.parametrize("scorer", [*map(VectorScorer, MEASURES), AlignmentScorer()])
def test_no_items_on_a_side(scorer: Any) -> None:
    none, some = encoded([]), encoded([4, 5])
    assert scorer(none, some).shape == (0, 2) and scorer(some, none).shape == (2, 0)
    assert scorer(some, some, torch.zeros(0, 2, dtype=torch.int64)).shape == (0,)


def test_alignment_passes_its_options_on() -> None:
    a, b = encoded([5, 7, 4], 6), encoded([3, 4], 7)
    rows = a.rows["tokens"], a.lengths, b.rows["tokens"], b.lengths
    torch.testing.assert_close(AlignmentScorer()(a, b), alignment_scores(*rows))
    options = {"aggregation": "symm", "clamp": "never"}
    torch.testing.assert_close(AlignmentScorer(**options)(a, b), alignment_scores(*rows, **options))
    scorer = AlignmentScorer("mean", "batch", (71, 71))
    torch.testing.assert_close(scorer(a, b), alignment_scores(*rows, aggregation="mean", widths=(71, 71)))


@pytest.mark.parametrize(
    "scorer",
    [*map(VectorScorer, MEASURES), AlignmentScorer("symm", "always"), AlignmentScorer("mean", "batch", (9, 9))],
)
def test_tiles_and_lists_give_the_scores_of_one_call(scorer: Any) -> None:
    a, b = encoded([5, 7, 4, 2, 9, 6], 8), encoded([3, 4, 1, 8], 9)
    whole = scorer(a, b)
    torch.testing.assert_close(score_matrix(scorer, a, b, tokens=1), whole)
    pairs = all_pairs(6, 4)[::3]
    torch.testing.assert_close(score_pairs(scorer, a, b, pairs, tokens=1), whole[pairs[:, 0], pairs[:, 1]])


def test_unknown_options_name_the_near_ones() -> None:
    with pytest.raises(ConfigError, match="aggregation 'MrSW' is not known; did you mean MrSw"):
        AlignmentScorer("MrSW")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="clamp 'mostly'"):
        AlignmentScorer(clamp="mostly")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="measure 'dots' is not known; did you mean dot"):
        VectorScorer("dots")  # type: ignore[arg-type]
