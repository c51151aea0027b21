"""The naive forms that the fast ones must equal: full sorts and plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def naive_rank(scores: Sequence[float], right: set[int], ties: str) -> float:
    """Sort a gallery and look for the best right item, the equals ordered by the tie rule.

    The average is that of the first and the last place, as every order of the equals is as likely.
    """
    if not right:
        return math.nan
    if ties == "average":
        return (naive_rank(scores, right, "optimistic") + naive_rank(scores, right, "pessimistic")) / 2
    wins = ties == "optimistic"
    best = max(scores[i] for i in right)
    gallery = [i for i in range(len(scores)) if i not in right or scores[i] == best]
    order = sorted(gallery, key=lambda i: (-scores[i], (i not in right) if wins else (i in right)))
    return float(next(place for place, i in enumerate(order) if i in right))


def naive_ranks(scores: np.ndarray, columns: Sequence[Sequence[int]], ties: str) -> tuple[list[float], list[float]]:
    """(image retrieval, text retrieval) ranks of a (texts, images) matrix; columns: each caption's images."""
    image = [naive_rank(row.tolist(), set(right), ties) for row, right in zip(scores, columns, strict=True)]
    texts_of = [{t for t, right in enumerate(columns) if i in right} for i in range(scores.shape[1])]
    text = [naive_rank(scores[:, i].tolist(), right, ties) for i, right in enumerate(texts_of)]
    return image, text
