"""Recall: the published names, the correct and the published count, chance."""

from __future__ import annotations

import itertools

import pytest
import torch

from crossmodal.errors import ConfigError
from crossmodal.evaluate.recall import KS, NAMES, chance, ranks, ranks_from_lists, recall

from .test_ranks import HAND, IMAGE_OF


def test_names_and_values_by_hand() -> None:
    found = recall(ranks(HAND, IMAGE_OF, ties="pessimistic"))  # image ranks 0 2 2 1 1, text ranks 0 2 1
    assert tuple(found)[: len(NAMES)] == NAMES
    assert found["img_r1"] == 1 / 5 and found["img_r5"] == found["img_r10"] == 1
    assert found["txt_r1"] == 1 / 3 and found["txt_r5"] == found["txt_r10"] == 1
    assert found["img_r_mean"] == pytest.approx((1 / 5 + 2) / 3)
    assert found["r_mean"] == pytest.approx((found["img_r_mean"] + found["txt_r_mean"]) / 2)
    assert found["rsum"] == pytest.approx(4 + 1 / 5 + 1 / 3)
    assert found["img_median_rank"] == 2 and found["txt_median_rank"] == 2  # counted from 1
    assert found["img_ties"] == 2 and found["txt_ties"] == 2


def test_queries_without_a_right_item_do_not_count() -> None:
    found = recall(ranks(torch.eye(3), [[0], [], [2]]))
    assert found["img_r1"] == 1 and found["txt_r1"] == 1


def test_reference_count_adds_the_hits_of_the_first_rows() -> None:
    scores = torch.randn(40, 12, generator=torch.Generator().manual_seed(3))
    image_of = torch.arange(40) % 12
    ranked = ranks(scores, image_of)
    # The published form, spelled out: hits as (row, position) pairs, and all of both columns compared with K.
    hits = (scores.topk(10, dim=1).indices == image_of[:, None]).nonzero()
    correct, published = recall(ranked), recall(ranked, reference_count=True)
    for k in KS:
        assert published[f"img_r{k}"] == pytest.approx(int((hits < k).sum()) / 40)
        assert published[f"txt_r{k}"] == correct[f"txt_r{k}"]
    assert published["r_mean"] > correct["r_mean"]
    assert published["r_mean"] == pytest.approx((published["img_r_mean"] + published["txt_r_mean"]) / 2)


def test_reference_count_needs_ten_of_each() -> None:
    ranked = ranks(torch.eye(9), range(9))
    assert recall(ranked)["img_r10"] == 1  # the correct count doesn't
    with pytest.raises(ConfigError, match="here are 9 and 9"):
        recall(ranked, reference_count=True)


def test_median_of_items_that_were_not_found() -> None:
    found = recall(ranks_from_lists([[0], [0], [0]], [[2], [2], [2]], [0, 1, 2]))
    assert found["img_median_rank"] == float("inf")


@pytest.mark.parametrize("image_of", [[0, 0, 1, 2], [0, 1, 1, 1], [[0], [0, 2], [], [1]]])
def test_chance_is_the_mean_over_all_orders(image_of: list[int]) -> None:
    expected = chance(image_of, 3)
    captions = itertools.permutations(torch.arange(4.0))
    text = [recall(ranks(torch.stack(order)[:, None].expand(4, 3), image_of)) for order in captions]
    images = itertools.permutations(torch.arange(3.0))
    image = [recall(ranks(torch.stack(order)[None].expand(4, 3), image_of)) for order in images]
    for k in KS:
        assert sum(m[f"txt_r{k}"] for m in text) / len(text) == pytest.approx(expected[f"txt_r{k}"])
        assert sum(m[f"img_r{k}"] for m in image) / len(image) == pytest.approx(expected[f"img_r{k}"])


def test_chance_of_the_usual_galleries() -> None:
    found = chance(torch.arange(1000) // 5, 200)
    assert found["img_r1"] == found["txt_r1"] == 0.005
    assert found["img_r10"] == 0.05
    assert tuple(found) == NAMES
