"""Ranks by counting: how many items score better than the right one. Nothing is ever sorted.

Score matrices are (texts, images), a higher score is a better match, and rank 0 is the best. The rank of a
query is that of its best right item: the number of wrong items scored strictly better, plus a share of the
*equal others* (wrong items with exactly the same score) that the tie rule states:

    optimistic   0     the right item wins every tie
    average      1/2   the default: what a random order of the equals gives on average
    pessimistic  1     the right item loses every tie
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from crossmodal.errors import ConfigError, DataError

from .blocks import Scores, rereadable, row_blocks
from .counting import count
from .positives import Positives, positive_pairs

TieRule = Literal["optimistic", "average", "pessimistic"]

_SHARE = {"optimistic": 0.0, "average": 0.5, "pessimistic": 1.0}


@dataclass(frozen=True)
class Ranks:
    """The rank of every query in both directions, under one tie rule.

    image: (texts,) float64, image retrieval: where a caption finds its image. NaN: the caption has none.
    text:  (images,) float64, text retrieval: where an image finds the best of its captions. NaN: it has none.
    image_ties (texts,), text_ties (images,): how many wrong items have exactly the score of the right one.
    """

    image: Tensor
    text: Tensor
    image_ties: Tensor
    text_ties: Tensor
    ties: TieRule = "average"

    def under(self, ties: TieRule) -> Ranks:
        """The same scores ranked under another tie rule."""
        share = tie_share(ties) - _SHARE[self.ties]
        image, text = self.image + share * self.image_ties, self.text + share * self.text_ties
        return replace(self, image=image, text=text, ties=ties)


def ranks(scores: Scores, positives: Positives, *, ties: TieRule = "average") -> Ranks:
    """Rank both directions of a score matrix.

    scores: (A,B) tensor or array of any float type, or an iterable of its row blocks (n,B) in order: a list, or
        an object that gives them anew each time, such as `crossmodal.retrieve.product.Product`. They are read
        twice, a few million entries at a time; what a generator gives is kept in a temporary file meanwhile.
    positives: (A,) the image column of each caption, or for each caption a list of its image columns (none,
        one or several; see `positive_pairs`).

    Raises DataError for NaN scores, blocks of unequal width, scores that change between the two readings, and
    positives that don't fit the matrix.

    >>> ranks(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), [0, 1, 1]).image.tolist()
    [0.0, 1.0, 0.0]
    """
    share = tie_share(ties)
    pairs = positive_pairs(positives)  # (P,2) sorted by caption
    scores = rereadable(scores)
    right, images = _right_scores(scores, pairs, len(positives))
    image = _Queries.of(pairs[:, 0], right, len(positives))
    text = _Queries.of(pairs[:, 1], right, images)
    _read_again(scores, pairs, right, image, text)
    return Ranks(image.ranks(share), text.ranks(share), image.equal, text.equal, ties)


def ranks_from_lists(
    images_of_text: Sequence[Sequence[int]], texts_of_image: Sequence[Sequence[int]], positives: Positives
) -> Ranks:
    """Ranks from lists of the best items, best first (what an index or a cascade returns).

    images_of_text: for each caption the image columns found; texts_of_image: for each image the caption rows
    found. A right item that isn't in its list has rank infinity, so only recall@K within the lists' depth can
    be read from the result. Lists have an order, hence no ties.
    """
    pairs = positive_pairs(positives)
    if len(images_of_text) != len(positives):
        raise DataError(f"{len(images_of_text)} lists of images for {len(positives)} captions: give one each")
    _check_columns(pairs, len(texts_of_image))
    image = _listed(images_of_text, pairs)
    text = _listed(texts_of_image, pairs.flip(1))
    none = torch.zeros(len(image), dtype=torch.int64), torch.zeros(len(text), dtype=torch.int64)
    return Ranks(image, text, *none)


@dataclass
class _Queries:
    """The queries of one direction: `best`, the largest right score of each, float64, NaN where there is none, and
    how many wrong items are better than it and equal to it, int64."""

    best: Tensor
    better: Tensor
    equal: Tensor

    @staticmethod
    def of(queries: Tensor, right: Tensor, count: int) -> _Queries:
        """From the query (P,) and the score (P,) of every right pair. The right items are taken off beforehand."""
        best = torch.full((count,), torch.nan, dtype=torch.float64)
        best.scatter_reduce_(0, queries, right, "amax", include_self=False)
        equal = torch.zeros(count, dtype=torch.int64)
        equal.scatter_add_(0, queries, -(right == best[queries]).long())
        return _Queries(best, torch.zeros(count, dtype=torch.int64), equal)

    def ranks(self, share: float) -> Tensor:
        return torch.where(self.best.isnan(), torch.nan, self.better.double() + share * self.equal.double())


def _right_scores(scores: Scores, pairs: Tensor, texts: int) -> tuple[Tensor, int]:
    """First reading: the scores of the right pairs (P,) in float64, which holds every other float exactly, and B."""
    right = torch.empty(len(pairs), dtype=torch.float64)
    rows = read = images = 0
    for start, block in row_blocks(scores):
        if rows == 0:
            images = block.shape[1]
            _check_columns(pairs, images)
        rows = start + len(block)
        mine = _within(pairs, start, rows)
        right[read : read + len(mine)] = _taken(block, mine)
        read += len(mine)
    if rows != texts:
        raise DataError(f"{rows} rows of scores for {texts} captions: give one row of scores each")
    return right, images


def _read_again(scores: Scores, pairs: Tensor, right: Tensor, image: _Queries, text: _Queries) -> None:
    """Second reading: add to the counts of both directions."""
    rows = read = 0
    for start, block in row_blocks(scores):
        rows = start + len(block)
        if rows > len(image.best):
            break
        mine = _within(pairs, start, rows)
        counts = count(block, image.best[start:rows], text.best)
        if math.isnan(counts.total):
            _refuse_nan(block, start)
        image.better[start:rows] += counts.rows[0]
        image.equal[start:rows] += counts.rows[1]
        text.better += counts.columns[0]
        text.equal += counts.columns[1]
        _refuse_changed(mine, start, right[read : read + len(mine)], _taken(block, mine))
        read += len(mine)
    if rows != len(image.best):
        raise DataError(
            f"{len(image.best)} rows of scores at first and {rows} when read again; give the same blocks each time"
        )


def _within(pairs: Tensor, start: int, stop: int) -> Tensor:
    """The pairs of the captions from `start` to `stop`, counted from `start`."""
    low, high = np.searchsorted(pairs[:, 0].numpy(), [start, stop]).tolist()
    return pairs[low:high] - torch.tensor([start, 0])


def _taken(block: Tensor, pairs: Tensor) -> Tensor:
    row, column = pairs.to(block.device).unbind(1)
    return block[row, column].double().cpu()


def _refuse_nan(block: Tensor, start: int) -> None:
    for row, column in block.isnan().nonzero()[:1].tolist():
        raise DataError(
            f"the score of caption {start + row} with image {column} is NaN: a NaN has no rank; "
            "find out why the model gave it"
        )


def _refuse_changed(pairs: Tensor, start: int, first: Tensor, again: Tensor) -> None:
    for i in (first != again).nonzero()[:1].flatten().tolist():
        row, column = pairs[i].tolist()
        raise DataError(
            f"the score of caption {start + row} with image {column} was {float(first[i])} at first and "
            f"{float(again[i])} when read again; give blocks that are the same each time"
        )


def _listed(lists: Sequence[Sequence[int]], pairs: Tensor) -> Tensor:
    """The first position of a right item in each query's list; infinity if none is there, NaN without any."""
    out = torch.full((len(lists),), torch.nan, dtype=torch.float64)
    right: dict[int, set[int]] = {}
    for query, item in pairs.tolist():
        right.setdefault(query, set()).add(item)
    for query, items in right.items():
        hits = (position for position, found in enumerate(lists[query]) if int(found) in items)
        out[query] = float(next(hits, torch.inf))
    return out


def _check_columns(pairs: Tensor, images: int) -> None:
    if len(pairs) and (largest := int(pairs[:, 1].max())) >= images:
        row = int(pairs[pairs[:, 1] == largest][0, 0])
        raise DataError(f"caption {row} belongs to image {largest}, but the scores have {images} images")


def tie_share(ties: str) -> float:
    if ties not in _SHARE:
        raise ConfigError(f"ties: {ties!r} is no tie rule: choose {', '.join(get_args(TieRule))}")
    return _SHARE[ties]
