"""The scores of a dual encoder as a product of two sets of vectors, a block of rows at a time, never held whole.

ranks(Product(text_vectors, image_vectors), image_of)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1 << 21  # scores of a block: 8 MB in float32


@dataclass(frozen=True)
class Product:
    """texts (A,D) times images (B,D), iterated over as blocks of rows (n,B), the same ones in every iteration.

    A block is one matrix product of the same rows each time, so that no score differs between two iterations.
    Scores are float32 at least. `block` bounds the scores of a block, except that a row is never cut. Vectors
    are taken as they are: normalise them for the cosine.
    """

    texts: Tensor
    images: Tensor
    block: int = _BLOCK

    @torch.no_grad()
    def __iter__(self) -> Iterator[Tensor]:
        texts, images = self.texts, self.images
        if images.dtype.itemsize < 4:
            images = images.float()
        rows = max(1, self.block // max(1, len(images)))
        for part in texts.split(rows):
            yield part.to(images.dtype) @ images.T
