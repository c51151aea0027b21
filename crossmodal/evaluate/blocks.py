"""Score matrices as blocks of rows, read twice: a whole matrix, a list of blocks, or anything that gives them anew."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from crossmodal.errors import DataError

Matrix = Tensor | np.ndarray
Scores = Matrix | Iterable[Matrix]

_CHUNK = 1 << 22  # entries of a block: bounds the extra memory to a few tens of MB


def row_blocks(scores: Scores) -> Iterator[tuple[int, Tensor]]:
    """(first row, block (n,B)) over the whole matrix, in blocks of a few million entries.

    Raises DataError for blocks that are no matrices or differ in width.
    """
    start, width = 0, None
    for block in [scores] if isinstance(scores, (Tensor, np.ndarray)) else scores:
        if block.ndim != 2:
            raise DataError(f"scores have the shape {tuple(block.shape)}: give (texts, images) matrices")
        if width is not None and block.shape[1] != width:
            raise DataError(
                f"the scores from caption {start} on have {block.shape[1]} images, those before {width}: "
                "score every caption against the same images"
            )
        width = int(block.shape[1])
        step = max(1, _CHUNK // max(1, width))
        for low in range(0, block.shape[0], step):
            part = block[low : low + step]
            # A copy of the rows: a read-only array (mapped file) can't be shared with a tensor.
            yield start + low, part.detach() if isinstance(part, Tensor) else torch.tensor(part)
        start += int(block.shape[0])


def rereadable(scores: Scores) -> Scores:
    """The scores in a form that can be read again: what a generator gives is kept in a temporary file."""
    return _Spooled(scores) if isinstance(scores, Iterator) else scores


class _Spooled:
    """Blocks that could be read once, in their own types, in a file without a name that ends with this object."""

    def __init__(self, scores: Scores) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  it is read as often as this object
        self.kinds: list[tuple[torch.dtype, torch.Size]] = []
        for _, block in row_blocks(scores):
            self.file.write(_bytes(block.cpu().contiguous()))
            self.kinds.append((block.dtype, block.shape))

    def __iter__(self) -> Iterator[Tensor]:
        offset = 0
        for dtype, shape in self.kinds:
            block = torch.empty(shape, dtype=dtype)
            self.file.seek(offset)
            offset += self.file.readinto(_bytes(block))
            yield block


def _bytes(block: Tensor) -> memoryview:
    """The memory of a contiguous block, also of types that numpy lacks."""
    return block.view(torch.uint8).numpy().data
