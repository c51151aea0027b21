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
    if isinstance(positives, (Tensor, np.ndarray)) and positives.ndim == 1:
        columns = torch.as_tensor(positives)
        rows = torch.arange(len(columns))
    else:
        given = [value if isinstance(value, Sequence) else [value] for value in positives]
        rows = torch.tensor([row for row, named in enumerate(given) for _ in named], dtype=torch.int64)
        columns = torch.tensor([column for named in given for column in named])
    for i in ((columns < 0) | (columns != columns.long())).nonzero()[:1].flatten().tolist():
        raise DataError(f"caption {int(rows[i])} belongs to image {columns[i].item()}: give columns counted from 0")
    if not len(rows):
        raise DataError("no caption belongs to any image: there is nothing to rank")
    pairs = torch.stack([rows, columns.long().cpu()], dim=1)
    if not torch.equal(rows, torch.arange(len(positives))):  # not one each
        pairs = torch.tensor(sorted(set(map(tuple, pairs.tolist()))), dtype=torch.int64)
    return pairs


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
