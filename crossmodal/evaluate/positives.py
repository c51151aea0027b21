"""Which captions belong to which images: any number on either side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from crossmodal.errors import DataError

Positives = Tensor | np.ndarray | Sequence[int] | Sequence[Sequence[int]]


def positive_pairs(positives: Positives) -> Tensor:
    """The right pairs as (P,2) int64 rows (caption, image column), sorted, each once.

    positives: (A,) the image column of each caption, or a list for each caption of its image columns: an
    empty list is a caption of no image in the gallery (it only distracts), several columns are several images
    that are all right. An image that no caption names only distracts.
    """
    pairs: list[tuple[int, int]] = []
    given = positives.tolist() if isinstance(positives, (Tensor, np.ndarray)) else positives
    for row, value in enumerate(given):
        for column in value if isinstance(value, Sequence) else [value]:
            if int(column) != column or column < 0:
                raise DataError(f"caption {row} belongs to image {column}: give columns counted from 0")
            pairs.append((row, int(column)))
    if not pairs:
        raise DataError("no caption belongs to any image: there is nothing to rank")
    unique: Tensor = torch.tensor(pairs, dtype=torch.int64).unique(dim=0)
    return unique


def image_columns(text_ids: Sequence[str], image_ids: Sequence[str], image_of: Mapping[str, str]) -> Tensor:
    """(texts,) the column of each caption's image, from the ids of a score matrix's rows and columns.

    Raises DataError for a caption whose image is unknown or not among `image_ids`.
    """
    column = {image: i for i, image in enumerate(image_ids)}
    out = []
    for text in text_ids:
        image = image_of.get(text)
        if image is None or image not in column:
            raise DataError(f"the image of caption {text!r} ({image}) is not among the {len(column)} images scored")
        out.append(column[image])
    return torch.tensor(out, dtype=torch.int64)


def columns_from_lists(texts_of: Sequence[Sequence[int]], texts: int) -> list[list[int]]:
    """The image columns of each of `texts` captions, from the caption rows of each image."""
    out: list[list[int]] = [[] for _ in range(texts)]
    for column, rows in enumerate(texts_of):
        for row in rows:
            if not 0 <= row < texts:
                raise DataError(f"image {column} lists caption {row}, but there are {texts} captions")
            out[row].append(column)
    return out
