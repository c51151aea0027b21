"""Relation distance against plain loops, its invariants, and the annotation-free form against the loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from crossmodal.errors import ConfigError, DataError
from crossmodal.evaluate.relation_distance import (
    annotated_distance,
    box_iou,
    match_boxes,
    mean_distance,
    merge_attention,
    relation_distance,
    self_distance,
)
from crossmodal.losses.iais import iais


def _attention(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def _naive(a: Tensor, b: Tensor) -> float:
    total = 0.0
    for row_a, row_b in zip(a.tolist(), b.tolist(), strict=True):
        p, q = [x / sum(row_a) for x in row_a], [x / sum(row_b) for x in row_b]
        total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        total += sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))
    return total


def test_equals_the_formula() -> None:
    a, b = 0.3 * _attention(5, 5), 2 * _attention(5, 5, seed=1)
    assert float(relation_distance(a, b)) == pytest.approx(_naive(a, b))
    assert float(relation_distance(a, b, divide_by_n=True)) == pytest.approx(_naive(a, b) / 5)
    soft = _naive(a.softmax(1), b.softmax(1))
    assert float(relation_distance(a, b, normalise="softmax")) == pytest.approx(soft)


def test_zero_for_equal_blocks_symmetric_and_finite_at_zeros() -> None:
    a, b = _attention(4, 4), _attention(4, 4, seed=1)
    assert float(relation_distance(a, 3 * a)) == pytest.approx(0, abs=1e-12)
    assert float(relation_distance(a, b)) == pytest.approx(float(relation_distance(b, a)))
    zeros = torch.eye(4).half()
    assert float(relation_distance(zeros, zeros.flip(0))) > 100
    assert float(relation_distance(zeros, torch.zeros(4, 4))) < math.inf
    assert float(relation_distance(torch.ones(1, 1), torch.ones(1, 1))) == 0


def test_merge_sums_keys_and_averages_queries() -> None:
    attention = _attention(5, 5)
    merged = merge_attention(attention, [[0, 1], [3], [2, 4]])
    torch.testing.assert_close(merged.sum(1), torch.ones(3, dtype=torch.float64))
    assert float(merged[0, 2]) == pytest.approx(float(attention[:2][:, [2, 4]].sum() / 2))
    assert float(merged[1, 1]) == pytest.approx(float(attention[3, 3]))


@pytest.mark.parametrize("groups", [[[]], [[5]], [[-1]]])
def test_groups_outside_the_attention(groups: list[list[int]]) -> None:
    with pytest.raises(DataError, match="0 to 4"):
        merge_attention(_attention(5, 5), groups)


def test_boxes_match_by_overlap() -> None:
    regions = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [8.0, 8.0, 9.0, 9.0]])
    gold = torch.tensor([[0.0, 0.0, 2.0, 1.9], [1.2, 0.0, 3.0, 2.0], [4.0, 4.0, 5.0, 5.0]])
    assert match_boxes(regions, gold).tolist() == [0, 1, -1]
    assert match_boxes(regions, gold, threshold=0.94).tolist() == [0, -1, -1]
    assert match_boxes(torch.zeros(0, 4), gold).tolist() == [-1, -1, -1]
    assert box_iou(regions, regions)[0].tolist() == pytest.approx([1, 1 / 3, 0])
    assert box_iou(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [[0.0]]  # empty boxes overlap nothing


def test_annotated_pair() -> None:
    text, image = _attention(6, 6), _attention(4, 4, seed=1)
    regions = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0], [4.0, 4.0, 5.0, 5.0], [6.0, 6.0, 7.0, 7.0]])
    phrases = [[0, 1], [3], [4, 5]]
    gold = [regions[[2]], regions[[0, 3]], torch.tensor([[9.0, 9.0, 10.0, 10.0]])]  # the third has no region
    expected = relation_distance(
        merge_attention(text, phrases[:2]), merge_attention(image, [[2], [0, 3]]), divide_by_n=True
    )
    found = annotated_distance(text, image, phrases, regions, gold, divide_by_n=True)
    assert found is not None and float(found) == pytest.approx(float(expected))
    assert annotated_distance(text, image, phrases[1:], regions, gold[1:]) is None  # one phrase relates to nothing


def test_mean_over_the_pairs_that_have_one() -> None:
    assert mean_distance([torch.tensor(1.0), None, torch.tensor(2.0)]) == (1.5, 2)
    value, count = mean_distance([None])
    assert math.isnan(value) and count == 0


@pytest.mark.parametrize("alignment", ["singular", "distributed"])
def test_annotation_free_form_is_the_loss(alignment: str) -> None:
    blocks = [_attention(3, *s, seed=i).requires_grad_() for i, s in enumerate([(5, 5), (4, 4), (5, 4), (4, 5)])]
    counts = torch.full((3,), 5), torch.full((3,), 4)
    values = self_distance(*blocks, *counts, alignment=alignment)  # type: ignore[arg-type]
    assert values.shape == (3,) and not values.requires_grad
    loss = iais(*blocks, *counts, alignment=alignment).detach()  # type: ignore[arg-type]
    assert float(values.mean()) == pytest.approx(float(loss))


def test_wrong_blocks_and_options() -> None:
    with pytest.raises(DataError, match="give two"):
        relation_distance(_attention(4, 4), _attention(3, 3))
    with pytest.raises(ConfigError, match="sum or softmax"):
        relation_distance(_attention(4, 4), _attention(4, 4), normalise="max")  # type: ignore[arg-type]
