from __future__ import annotations

import math

import pytest
import torch

from crossmodal.losses.pretraining import (
    masked_region_classes,
    masked_region_features,
    masked_region_kl,
    masked_words,
)
from crossmodal.losses.transport import transport_distance, word_region_alignment


def test_masked_words_averages_over_words_and_says_how_many() -> None:
    logits, targets = torch.randn(5, 7).double(), torch.tensor([1, 0, 6, 3, 3])
    mean, count = masked_words(logits, targets)
    expected = [-float(row.log_softmax(0)[t]) for row, t in zip(logits, targets, strict=True)]
    assert count == 5 and float(mean) == pytest.approx(sum(expected) / 5)


def test_no_masked_word_counts_nothing() -> None:
    logits = torch.randn(0, 7, requires_grad=True)
    mean, count = masked_words(logits, torch.empty(0, dtype=torch.int64))
    assert count == 0 and float(mean.detach()) == 0


def test_region_features_are_averaged_over_elements() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    mean, count = masked_region_features(a, b)
    assert count == 12 and float(mean) == pytest.approx(float(((a - b) ** 2).mean()))


def test_the_background_is_never_a_target() -> None:
    labels = torch.tensor([[0.9, 0.06, 0.04], [0.2, 0.1, 0.7]])
    logits = torch.randn(2, 3).double()
    mean, count = masked_region_classes(logits, labels)
    expected = -(logits[0].log_softmax(0)[1] + logits[1].log_softmax(0)[2]) / 2
    assert count == 2 and float(mean) == pytest.approx(float(expected))


def test_kl_is_averaged_over_all_elements() -> None:
    labels = torch.tensor([[0.5, 0.5, 0.0]]).double()
    logits = torch.randn(1, 3).double()
    predicted = logits[0].softmax(0).tolist()
    expected = sum(p * math.log(p / q) for p, q in zip([0.5, 0.5], predicted, strict=False)) / 3
    mean, count = masked_region_kl(logits, labels)
    assert count == 3 and float(mean) == pytest.approx(expected)


def none(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.bool)


def test_transport_of_equal_sets_costs_almost_nothing() -> None:
    states = torch.eye(4).double()[None]
    assert float(transport_distance(states, states, none(1, 4), none(1, 4))) == pytest.approx(0, abs=1e-3)


def test_transport_ignores_padding() -> None:
    draw = torch.Generator().manual_seed(0)
    words, regions = torch.randn(1, 3, 5, generator=draw), torch.randn(1, 4, 5, generator=draw)
    plain = transport_distance(words, regions, none(1, 3), none(1, 4))
    wide_words = torch.cat([words, torch.randn(1, 2, 5)], dim=1)
    wide_regions = torch.cat([regions, torch.randn(1, 1, 5)], dim=1)
    word_pad = torch.tensor([[False, False, False, True, True]])
    region_pad = torch.tensor([[False, False, False, False, True]])
    torch.testing.assert_close(transport_distance(wide_words, wide_regions, word_pad, region_pad), plain)


def test_alignment_takes_matched_pairs_closer_and_others_apart() -> None:
    draw = torch.Generator().manual_seed(1)
    words = torch.randn(2, 3, 4, generator=draw).double().requires_grad_()
    regions = torch.randn(2, 2, 4, generator=draw).double()
    distance = transport_distance(words, regions, none(2, 3), none(2, 2))
    loss = word_region_alignment(words, regions, none(2, 3), none(2, 2), torch.tensor([[1], [0]]))
    assert float(loss.detach()) == pytest.approx(float((distance[0] - distance[1]).detach() / 2))
    loss.backward()
    assert words.grad is not None and words.grad.isfinite().all()
