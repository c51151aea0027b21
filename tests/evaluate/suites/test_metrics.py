"""The counting rules against plain loops, and their degenerate cases."""

from __future__ import annotations

import math
from statistics import mean as average
from statistics import median

import pytest
import torch
from torch import Tensor

from crossmodal.evaluate.suites.aro_relations import SYMMETRIC
from crossmodal.evaluate.suites.metrics import (
    Share,
    by_category,
    choose,
    index_ranks,
    mean,
    means,
    paired_metrics,
    precision_at_r,
    two_class,
    winoground,
)


def tied(*shape: int, seed: int = 0) -> Tensor:
    """Small whole numbers: many exact ties."""
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("right", [0, 1, 2])
@pytest.mark.parametrize("tie_wins", [False, True])
def test_choice_is_the_published_argmax(right: int, tie_wins: bool) -> None:
    scores = tied(60, 3)
    found = choose(scores, right, tie_wins=tie_wins)
    for row, correct, equal in zip(scores.tolist(), found.correct.tolist(), found.tied.tolist(), strict=True):
        others = [score for column, score in enumerate(row) if column != right]
        assert correct == (row[right] >= max(others) if tie_wins else row[right] > max(others))
        assert equal == (row[right] == max(others))
    share = found.share()
    assert share.count == 60 and 0 < share.ties < 60
    assert share.value == average(map(float, found.correct))


def test_shares_of_categories_and_their_means() -> None:
    verdicts = choose(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]]), 0)
    rows = by_category(verdicts, {"a": [0, 1, 2], "b": [3]})
    assert rows == {"a": Share(1 / 3, 3, 1), "b": Share(1.0, 1, 0)}
    assert by_category(verdicts, {"a": [0, 1, 2], "b": [3]}, least=2) == {"a": rows["a"]}
    assert mean(rows.values()) == Share(2 / 3, 4, 1)
    assert math.isnan(mean([]).value) and mean([]).count == 0
    assert means(rows, {"all": ["a", "b"], "some": ["a", "c"], "none": ["c"]}) == {
        "all": Share(2 / 3, 4, 1),
        "some (1 of 2)": Share(1 / 3, 3, 1),
    }


def test_two_class_protocol_leaves_undecided_foils_out() -> None:
    logits = tied(200, 2, 2, seed=1)
    kept = [pair for pair in logits.tolist() if pair[1][0] != pair[1][1]]
    fits = [caption[1] > caption[0] for caption, _ in kept]
    refused = [foil[0] >= foil[1] for _, foil in kept]
    found = two_class(logits)
    assert found["acc"].value == pytest.approx((sum(fits) + sum(refused)) / (2 * len(kept)))
    assert found["p_c"].value == pytest.approx(average(fits)) and found["p_f"].value == pytest.approx(average(refused))
    assert found["acc_r"].value == pytest.approx(average(c[1] > f[1] for c, f in kept))
    assert all(share.count == len(kept) and share.ties == 200 - len(kept) for share in found.values())
    assert math.isnan(two_class(torch.zeros(3, 2, 2))["acc"].value)


def test_winoground() -> None:
    scores = tied(300, 2, 2, seed=2)
    text, image = [], []
    for s in scores.tolist():  # s[image][caption]
        text.append(s[0][0] > s[0][1] and s[1][1] > s[1][0])
        image.append(s[0][0] > s[1][0] and s[1][1] > s[0][1])
    found = winoground(scores)
    assert found["text score"].value == pytest.approx(average(text))
    assert found["image score"].value == pytest.approx(average(image))
    assert found["group score"].value == pytest.approx(average(a and b for a, b in zip(text, image, strict=True)))
    assert 0 < found["text score"].ties <= found["group score"].ties
    assert math.isnan(winoground(torch.empty(0, 2, 2))["group score"].value)


def test_ranks_by_index_are_those_of_a_stable_sort() -> None:
    scores = tied(20, 20, seed=3)
    for column, rank in enumerate(index_ranks(scores, torch.arange(20)).tolist()):
        order = sorted(range(20), key=lambda i: (-scores[column, i], i))
        assert order.index(column) == rank


@pytest.mark.parametrize("count", [1, 6, 7])
def test_validation_metrics(count: int) -> None:
    scores = tied(count, count, seed=4)
    found = paired_metrics(scores)
    for name, matrix in (("image_to_text", scores), ("text_to_image", scores.T)):
        rank = index_ranks(matrix, torch.arange(count)).tolist()
        assert found[f"{name}_mean_rank"] == pytest.approx(average(rank) + 1)
        assert found[f"{name}_median_rank"] == math.floor(median(rank)) + 1
        assert found[f"{name}_R@5"] == pytest.approx(average(r < 5 for r in rank))
    assert len(found) == 10


def test_precision_at_r() -> None:
    generator = torch.Generator().manual_seed(5)
    scores = torch.rand(12, 9, generator=generator)
    positives = [[int(i) for i in torch.randperm(9, generator=generator)[: n % 4]] for n in range(12)]
    rp, ap = [], []
    for row, right in zip(scores.tolist(), positives, strict=True):
        if right:
            first = sorted(range(9), key=lambda i: -row[i])[: len(right)]
            hits = [i in right for i in first]
            rp.append(sum(hits) / len(right))
            ap.append(sum(sum(hits[: k + 1]) / (k + 1) for k in range(len(right)) if hits[k]) / len(right))
    found = precision_at_r(scores, positives)
    assert found["rp"].value == pytest.approx(average(rp)) and found["rp"].count == 9
    assert found["map_at_r"].value == pytest.approx(average(ap))


def test_the_list_of_symmetric_relations_is_whole() -> None:
    assert len(SYMMETRIC) == 157 and {"adjusting", "holding onto", "on the side of", "around"} <= SYMMETRIC
    assert not SYMMETRIC & {"", "on", "holding", "wearing"}
