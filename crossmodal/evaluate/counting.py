"""How many scores of a block are better than a threshold of their row or column, and how many equal it.

Exactly, and not much slower than memory is read: this is all the work of ranking.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_PIECE = 1 << 19  # scores compared at once by a processor: about what its caches hold
_BYTE = 255


class Counts(NamedTuple):
    """(better, equal) of every row (2,n) and of every column (2,B), int64 on the host.

    total: the sum of all scores; NaN where one of them is, or where there are opposite infinities.
    """

    rows: Tensor
    columns: Tensor
    total: float


def count(block: Tensor, rows: Tensor, columns: Tensor) -> Counts:
    """Compare a block (n,B) with thresholds `rows` (n,) and `columns` (B,), float64 on the host.

    Nothing is better than NaN, or equals it.
    """
    kind = _exact(block, rows, columns)
    rows, columns = rows.to(kind), columns.to(kind)
    if block.device.type == "cpu":
        return _by_processor(block, rows, columns)
    return _by_device(block.to(kind), rows.to(block.device), columns.to(block.device))


def _exact(block: Tensor, *thresholds: Tensor) -> torch.dtype:
    """The type to compare in: float32 where it holds everything exactly, else float64."""
    narrow = block.dtype.is_floating_point and block.dtype.itemsize <= 4
    fits = narrow and all(torch.equal(t.float().double().nan_to_num(0), t.nan_to_num(0)) for t in thresholds)
    return torch.float32 if fits else torch.float64


def _by_device(block: Tensor, rows: Tensor, columns: Tensor) -> Counts:
    compares = (torch.gt, torch.eq)
    of_rows = torch.stack([compare(block, rows[:, None]).sum(1) for compare in compares])
    of_columns = torch.stack([compare(block, columns).sum(0) for compare in compares])
    return Counts(of_rows.cpu(), of_columns.cpu(), float(block.sum()))


def _by_processor(block: Tensor, rows: Tensor, columns: Tensor) -> Counts:
    """The same, several times as fast as PyTorch is with booleans.

    Outcomes are bytes, added eight at a time as words of 64 bits: never more than 255 of them, so that no byte
    overflows into its neighbour.
    """
    n, width = block.shape
    height = min(_BYTE, max(1, _PIECE // max(1, width)))
    groups = -(-width // (8 * _BYTE))
    outcome = np.zeros((height, groups, _BYTE), np.uint64)  # zero beyond the width
    flags = outcome.view(bool).reshape(height, -1)[:, :width]
    of_rows, of_columns = np.zeros((2, n), np.int64), np.zeros((2, width), np.int64)
    low, across, total = rows[:, None].numpy(), columns.numpy(), 0.0
    for top in range(0, n, height):
        piece = block[top : top + height].to(rows.dtype)
        total += float(piece.sum())
        scores, size, here = piece.numpy(), len(piece), slice(top, top + height)
        for i, compare in enumerate((np.greater, np.equal)):
            compare(scores, low[here], out=flags[:size])
            eights = np.add.reduce(outcome[:size], axis=2)  # (size, groups), each eight counts of a byte
            of_rows[i, here] = eights.view(np.uint8).sum(1, dtype=np.int64)
            compare(scores, across, out=flags[:size])
            eights = np.add.reduce(outcome[:size], axis=0)  # (groups, 255)
            of_columns[i] += eights.view(np.uint8).reshape(-1)[:width]
    return Counts(torch.from_numpy(of_rows), torch.from_numpy(of_columns), total)
