"""Counting by bytes against plain comparisons, at the sizes where pieces, words and bytes end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.evaluate import counting
from crossmodal.evaluate.counting import Counts, count


def plain(block: Tensor, rows: Tensor, columns: Tensor) -> Counts:
    exact = block.double()
    by_row = torch.stack([(exact > rows[:, None]).sum(1), (exact == rows[:, None]).sum(1)])
    by_column = torch.stack([(exact > columns).sum(0), (exact == columns).sum(0)])
    return Counts(by_row, by_column, float(exact.sum()))


def same(found: Counts, expected: Counts) -> None:
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.columns, expected.columns)
    assert math.isnan(found.total) == math.isnan(expected.total)


@pytest.mark.parametrize("height", [1, 254, 255, 256, 600])
@pytest.mark.parametrize("width", [1, 7, 8, 2039, 2040, 2041, 4081])
def test_every_width_and_height(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_PIECE", 1 << 30)  # only bytes bound a piece
    draw = torch.Generator().manual_seed(height * width)
    block = torch.randint(0, 3, (height, width), generator=draw).float()
    rows, columns = torch.full((height,), 1.0).double(), torch.randint(0, 4, (width,), generator=draw).double()
    same(count(block, rows, columns), plain(block, rows, columns))


def test_a_full_byte_does_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """255 outcomes of one byte, along rows (the eight counts of a word) and along columns, are all true."""
    monkeypatch.setattr(counting, "_PIECE", 1 << 30)
    block = torch.ones(255 * 2, 8 * 255 * 2)
    found = count(block, torch.zeros(len(block)).double(), torch.ones(block.shape[1]).double())
    assert found.rows[0].eq(block.shape[1]).all() and found.rows[1].eq(0).all()
    assert found.columns[0].eq(0).all() and found.columns[1].eq(len(block)).all()


values = st.sampled_from([-math.inf, -1.0, 0.0, -0.0, 1.0, 1.0 + 2**-30, math.inf, math.nan])


@given(st.data(), st.integers(1, 9), st.integers(1, 9), st.sampled_from(["float16", "float32", "float64"]))
def test_any_values_in_any_type(data: st.DataObject, n: int, width: int, kind: str) -> None:
    def drawn(size: int) -> Tensor:
        return torch.tensor(data.draw(st.lists(values, min_size=size, max_size=size)), dtype=torch.float64)

    block, rows, columns = drawn(n * width).view(n, width).to(getattr(torch, kind)), drawn(n), drawn(width)
    expected = plain(block, rows, columns)
    same(count(block, rows, columns), expected)
    same(counting._by_device(block.double(), rows, columns), expected)  # what a GPU runs


def test_a_threshold_that_float32_cannot_hold() -> None:
    block, near = torch.tensor([[1.0]]), torch.tensor([1.0 - 2**-40], dtype=torch.float64)
    assert count(block, near, near).rows.tolist() == [[1], [0]]


def test_other_layouts_of_the_same_scores() -> None:
    scores = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (40, 60))).float()
    rows, columns = scores[:, 0].double(), scores[0].double()
    expected = count(scores, rows, columns)
    same(count(scores.T.contiguous().T, rows, columns), expected)
    same(count(torch.cat([scores, scores], dim=1)[:, 60:], rows, columns), expected)
    same(count(scores.long(), rows, columns), expected)
