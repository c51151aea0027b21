"""How the published benchmarks count: pure functions of scores (CE-CLIP, spec section 6)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossmodal.evaluate.positives import Positives, positive_pairs
from crossmodal.retrieve.scoring import best_of

_QUERIES = 1024  # whose rows are looked at together


@dataclass(frozen=True)
class Share:
    """A share of cases between 0 and 1, NaN of no case; `ties` of the `count` cases were exact ties."""

    value: float
    count: int
    ties: int = 0


@dataclass(frozen=True)
class Verdicts:
    """correct, tied (N,) bool: was the right one chosen, and did a wrong one have exactly its score?"""

    correct: Tensor
    tied: Tensor

    def share(self, of: Sequence[int] | None = None) -> Share:
        """Of all N, or of those whose numbers are given."""
        correct, tied = (x if of is None else x[list(of)] for x in (self.correct, self.tied))
        value = float(correct.double().mean()) if len(correct) else math.nan
        return Share(value, len(correct), int(tied.sum()))


def choose(scores: Tensor, right: int, *, tie_wins: bool = False) -> Verdicts:
    """scores (N,C), C at least 2: column `right` must be higher than every other; where `tie_wins`, not lower."""
    own = scores[:, right]
    best = scores[:, [c for c in range(scores.shape[1]) if c != right]].amax(dim=1)
    return Verdicts(own >= best if tie_wins else own > best, own == best)


def by_category(verdicts: Verdicts, categories: Mapping[str, Sequence[int]], *, least: int = 1) -> dict[str, Share]:
    """The share of each category of at least so many cases."""
    return {name: verdicts.share(numbers) for name, numbers in categories.items() if len(numbers) >= least}


def mean(shares: Iterable[Share]) -> Share:
    """The unweighted mean, over the cases and ties of all; NaN of none."""
    given = list(shares)
    value = sum(share.value for share in given) / len(given) if given else math.nan
    return Share(value, sum(share.count for share in given), sum(share.ties for share in given))


def means(rows: Mapping[str, Share], groups: Mapping[str, Sequence[str]]) -> dict[str, Share]:
    """The mean of the rows of each group; where only some are there the name says so: `avg (3 of 11)`."""
    found = {}
    for name, members in groups.items():
        given = [rows[member] for member in members if member in rows]
        if given:
            partial = "" if len(given) == len(members) else f" ({len(given)} of {len(members)})"
            found[name + partial] = mean(given)
    return found


def two_class(logits: Tensor) -> dict[str, Share]:
    """VALSE's official figures (section 6.4) from logits (N,2,2): sentence (caption, foil), class (no fit, fit).

    Pairs whose foil has equal logits are left out, and are the ties of all four figures.

    p_c    captions found to fit                 p_f    foils found not to fit
    acc    both of them                          acc_r  captions that fit better than their foils
    """
    decided = logits[:, 1, 0] != logits[:, 1, 1]
    caption, foil = logits[decided].unbind(dim=1)
    fits, refused = caption[:, 1] > caption[:, 0], foil[:, 0] >= foil[:, 1]
    answers = {
        "acc": torch.cat([fits, refused]),
        "p_c": fits,
        "p_f": refused,
        "acc_r": caption[:, 1] > foil[:, 1],
    }
    count, undecided = len(caption), int((~decided).sum())
    return {k: Share(float(v.double().mean()) if count else math.nan, count, undecided) for k, v in answers.items()}


def winoground(scores: Tensor) -> dict[str, Share]:
    """Text, image and group score (section 6.7) from scores (N,2,2): image, caption. All comparisons are strict."""
    own = scores.diagonal(dim1=1, dim2=2)  # (N,2)
    other_caption = torch.stack([scores[:, 0, 1], scores[:, 1, 0]], dim=1)  # each image with the other's caption
    other_image = other_caption.flip(1)  # each caption with the other's image
    text, image = (own > other_caption).all(dim=1), (own > other_image).all(dim=1)
    text_tied, image_tied = (own == other_caption).any(dim=1), (own == other_image).any(dim=1)
    return {
        "text score": Verdicts(text, text_tied).share(),
        "image score": Verdicts(image, image_tied).share(),
        "group score": Verdicts(text & image, text_tied | image_tied).share(),
    }


def index_ranks(scores: Tensor, right: Tensor) -> Tensor:
    """(N,) how many of a row of scores (N,C) come before column `right` (N,): higher ones, and equal ones before it."""
    own = scores.gather(1, right[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < right[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(dim=1)


def paired_metrics(scores: Tensor) -> dict[str, float]:
    """Validation of N pairs (section 6.3) from scores (images, texts), image i with text i.

    `image_to_text_*` and `text_to_image_*`: mean rank from 1, median rank, R@1, R@5, R@10. Of equal scores the
    smaller index comes first.
    """
    found = {}
    right = torch.arange(len(scores), device=scores.device)
    for name, matrix in (("image_to_text", scores), ("text_to_image", scores.T)):
        rank = index_ranks(matrix, right).double()
        found[f"{name}_mean_rank"] = float(rank.mean()) + 1
        found[f"{name}_median_rank"] = math.floor(float(rank.quantile(0.5))) + 1.0
        found |= {f"{name}_R@{k}": float((rank < k).double().mean()) for k in (1, 5, 10)}
    return found


def precision_at_r(scores: Tensor, positives: Positives) -> dict[str, Share]:
    """`rp` (R-precision) and `map_at_r` of a matrix (Q,G), over the queries that have positives.

        rp = hits among the first R / R        map@R = 1/R sum_{k<=R} [the k-th hits] * (hits among the first k) / k

    R is how many gallery columns are right for the query. Equal scores stand in the order of the gallery.
    """
    pairs = positive_pairs(positives)
    queries, amounts = pairs[:, 0].unique(return_counts=True)
    columns = torch.arange(scores.shape[1])
    rp, average = [], []
    for rows, counts in zip(queries.split(_QUERIES), amounts.split(_QUERIES), strict=True):
        here = scores[rows]
        order = best_of(here, columns.expand_as(here), int(counts.max())).indices  # (n,R)
        mine = pairs[(pairs[:, 0] >= rows[0]) & (pairs[:, 0] <= rows[-1])]
        right = torch.zeros(here.shape, dtype=torch.bool)
        right[torch.searchsorted(rows, mine[:, 0].contiguous()), mine[:, 1]] = True
        place = torch.arange(1, order.shape[1] + 1)
        hits = right.gather(1, order) & (place <= counts[:, None])
        precision = hits.cumsum(dim=1).double() / place
        rp.append(hits.sum(dim=1).double() / counts)
        average.append((precision * hits).sum(dim=1).double() / counts)
    found = {"rp": torch.cat(rp), "map_at_r": torch.cat(average)}
    return {name: Share(float(values.mean()), len(queries)) for name, values in found.items()}
