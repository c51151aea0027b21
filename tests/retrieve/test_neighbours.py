"""The nearest others against the whole matrix, whatever the blocks."""

from __future__ import annotations

import pytest
import torch

from crossmodal.retrieve.neighbours import nearest_others


@pytest.mark.parametrize("block", [1, 20, 33, 10_000])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_equal_to_the_whole_matrix(k: int, block: int) -> None:
    vectors = torch.randn(17, 4, generator=torch.Generator().manual_seed(0))
    scores = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    expected = scores.argsort(dim=1, descending=True)[:, : min(k, 16)]
    assert torch.equal(nearest_others(vectors, k, block=block), expected)


def test_equal_ones_come_by_their_number_and_never_itself() -> None:
    assert nearest_others(torch.ones(4, 2), 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


@pytest.mark.parametrize("count", [0, 1])
def test_without_others_there_are_none(count: int) -> None:
    assert nearest_others(torch.ones(count, 2), 3).shape == (count, 0)
