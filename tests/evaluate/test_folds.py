"""The fold protocol: each fold ranks its own images and captions."""

from __future__ import annotations

import pytest
import torch

from crossmodal.errors import ConfigError
from crossmodal.evaluate.folds import run_protocol
from crossmodal.evaluate.recall import ranks, recall

IMAGE_OF = torch.arange(60) // 3  # 20 images of 3 captions
SCORES = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
SCORES[torch.arange(60), IMAGE_OF] += 1.5


def test_full_gallery() -> None:
    whole = run_protocol(SCORES, IMAGE_OF)
    assert whole.metrics == recall(ranks(SCORES, IMAGE_OF))
    assert len(whole.folds) == len(whole.ranks) == 1


def test_five_folds_are_the_mean_of_five_galleries() -> None:
    found = run_protocol(SCORES, IMAGE_OF, folds=5, ties="optimistic")
    by_hand = [
        recall(ranks(SCORES[12 * f : 12 * f + 12, 4 * f : 4 * f + 4], IMAGE_OF[:12], ties="optimistic"))
        for f in range(5)
    ]
    assert found.folds == by_hand
    for name in by_hand[0]:
        assert found.metrics[name] == pytest.approx(sum(m[name] for m in by_hand) / 5)
    blocks = run_protocol(iter(SCORES.split(7)), IMAGE_OF, folds=5, ties="optimistic")
    assert blocks.folds == by_hand


def test_order_undoes_a_shuffle_of_columns_and_rows() -> None:
    columns = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    place = columns.argsort()  # where each image's column went
    shuffled = run_protocol(SCORES[rows][:, columns], place[IMAGE_OF[rows]], folds=4, order=place.tolist())
    assert shuffled.folds == run_protocol(SCORES, IMAGE_OF, folds=4).folds


def test_folds_that_do_not_divide_the_images() -> None:
    found = run_protocol(SCORES, IMAGE_OF, folds=3)
    assert [len(r.text) for r in found.ranks] == [7, 7, 6]
    assert [len(r.image) for r in found.ranks] == [21, 21, 18]


@pytest.mark.parametrize("folds", [0, 21])
def test_impossible_folds(folds: int) -> None:
    with pytest.raises(ConfigError, match="choose 1 to 20"):
        run_protocol(SCORES, IMAGE_OF, folds=folds)


def test_order_must_name_every_column_once() -> None:
    with pytest.raises(ConfigError, match="20 image columns once"):
        run_protocol(SCORES, IMAGE_OF, folds=2, order=[0] * 20)
