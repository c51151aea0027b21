"""Ranks by counting: how many items score better than the right one. Nothing is ever sorted.

Score matrices are (texts, images), a higher score is a better match, and rank 0 is the best. The rank of a
query is that of its best right item: the number of wrong items scored strictly better, plus a share of the
*equal others* (wrong items with exactly the same score) that the tie rule states:

    optimistic   0     the right item wins every tie
    average      1/2   the default: what a random order of the equals gives on average
    pessimistic  1     the right item loses every tie
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from crossmodal.errors import ConfigError, DataError

from .positives import Positives, positive_pairs

TieRule = Literal["optimistic", "average", "pessimistic"]
Matrix = Tensor | np.ndarray
Scores = Matrix | Iterable[Matrix]

_SHARE = {"optimistic": 0.0, "average": 0.5, "pessimistic": 1.0}
_CHUNK = 1 << 22  # entries compared at once: bounds the extra memory to a few tens of MB


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
        share = _share(ties) - _SHARE[self.ties]
        image, text = self.image + share * self.image_ties, self.text + share * self.text_ties
        return replace(self, image=image, text=text, ties=ties)


def ranks(scores: Scores, positives: Positives, *, ties: TieRule = "average") -> Ranks:
    """Rank both directions of a score matrix.

    scores: (A,B) tensor or array of any float type, or an iterable of its row blocks (n,B) in order. Blocks
        are compared a few million entries at a time. They are read twice; a generator, which can be read only
        once, is kept in a temporary file meanwhile.
    positives: (A,) the image column of each caption, or for each caption a list of its image columns (none,
        one or several; see `positive_pairs`).

    Raises DataError for NaN scores, blocks of unequal width, and positives that don't fit the matrix.

    >>> ranks(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), [0, 1, 1]).image.tolist()
    [0.0, 1.0, 0.0]
    """
    share = _share(ties)
    pairs = positive_pairs(positives)  # (P,2) sorted by caption
    scores = rereadable(scores)
    right, better, equal, images = _count_images(scores, pairs, len(positives))
    text_better, text_equal = _count_texts(scores, pairs, right, images)
    return Ranks(
        image=_ranked(better, equal, share, pairs[:, 0]),
        text=_ranked(text_better, text_equal, share, pairs[:, 1]),
        image_ties=equal,
        text_ties=text_equal,
        ties=ties,
    )


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


def row_blocks(scores: Scores) -> Iterator[tuple[int, Tensor]]:
    """(first row, block (n,B)) over the whole matrix, in blocks of a few million entries."""
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
    """The scores in a form that can be read again: a generator is written to a mapped temporary file."""
    if isinstance(scores, (Tensor, np.ndarray)) or iter(scores) is not scores:
        return scores
    width = 0
    # The file lives as long as the mapping; its name goes at once.
    with tempfile.NamedTemporaryFile() as file:
        rows = 0
        for _, block in row_blocks(scores):
            width = block.shape[1]
            rows += len(block)
            file.write(block.double().cpu().numpy().tobytes())
        file.flush()
        flat = torch.from_file(file.name, shared=False, size=rows * width, dtype=torch.float64)
    return flat.view(rows, width)


def _count_images(scores: Scores, pairs: Tensor, texts: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """One pass: the score of every right pair (P,), per caption the images better and equal (A,), and B."""
    right, better, equal = [], [], []
    rows, images = 0, 0
    for start, block in row_blocks(scores):
        if rows == 0:
            images = block.shape[1]
            _check_columns(pairs, images)
        if bool(block.isnan().any()):
            row, column = block.isnan().nonzero()[0].tolist()
            raise DataError(
                f"the score of caption {start + row} with image {column} is NaN: a NaN has no rank; "
                "find out why the model gave it"
            )
        rows = start + len(block)
        low, high = torch.searchsorted(pairs[:, 0].contiguous(), torch.tensor([start, rows])).tolist()
        mine = pairs[low:high].to(block.device)
        row = mine[:, 0] - start
        hit = block[row, mine[:, 1]].double()
        best = _largest(hit, row, len(block))
        b, e = _compare(block, best[:, None], dim=1)
        e -= _equals_best(hit, row, best)
        right.append(hit.cpu())
        better.append(b.cpu())
        equal.append(e.cpu())
    if rows != texts:
        raise DataError(f"{rows} rows of scores for {texts} captions: give one row of scores each")
    return torch.cat(right), torch.cat(better), torch.cat(equal), images


def _count_texts(scores: Scores, pairs: Tensor, right: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Second pass: per image the captions better than its best right one, and equal to it: (B,), (B,)."""
    best = _largest(right, pairs[:, 1], images)
    better = torch.zeros(images, dtype=torch.int64)
    equal = -_equals_best(right, pairs[:, 1], best)
    for _, block in row_blocks(scores):
        b, e = _compare(block, best.to(block.device), dim=0)
        better += b.cpu()
        equal += e.cpu()
    return better, equal


def _compare(block: Tensor, best: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    # float64 holds every float16, bfloat16 and float32 exactly, so the stored scores are compared.
    exact = block.double()
    return (exact > best).sum(dim), (exact == best).sum(dim)


def _largest(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """The largest value of each group; NaN where a group has none: nothing beats or equals NaN."""
    out = torch.full((count,), torch.nan, dtype=torch.float64, device=values.device)
    return out.scatter_reduce(0, groups, values, "amax", include_self=False)


def _equals_best(values: Tensor, groups: Tensor, best: Tensor) -> Tensor:
    """How many right items have the best score of their group, the best itself included."""
    return torch.zeros_like(best, dtype=torch.int64).scatter_add(0, groups, (values == best[groups]).long())


def _ranked(better: Tensor, equal: Tensor, share: float, queries: Tensor) -> Tensor:
    out = torch.full((len(better),), torch.nan, dtype=torch.float64)
    known = queries.unique()
    out[known] = better[known].double() + share * equal[known].double()
    return out


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


def _share(ties: str) -> float:
    if ties not in _SHARE:
        raise ConfigError(f"ties: {ties!r} is no tie rule: choose {', '.join(get_args(TieRule))}")
    return _SHARE[ties]
