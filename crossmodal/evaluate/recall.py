"""Recall@1, 5, 10 both ways, under the published names.

`txt_*` is text retrieval (the query is an image), `img_*` is image retrieval (the query is a caption), as
UNITER and IAIS print them. All recalls are fractions.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from torch import Tensor

from crossmodal.errors import ConfigError

from .positives import Positives, positive_pairs
from .ranks import Ranks, TieRule, ranks, ranks_from_lists

__all__ = [
    "KS",
    "NAMES",
    "Ranks",
    "RetrievalMetrics",
    "TieRule",
    "chance",
    "ranks",
    "ranks_from_lists",
    "recall",
]

KS = (1, 5, 10)
NAMES = ("txt_r1", "txt_r5", "txt_r10", "txt_r_mean", "img_r1", "img_r5", "img_r10", "img_r_mean", "r_mean")

RetrievalMetrics = dict[str, float]


def recall(ranked: Ranks, *, reference_count: bool = False) -> RetrievalMetrics:
    """The retrieval metrics of `ranks(...)`; queries without a right item don't count.

    txt_r1, txt_r5, txt_r10, img_r1, ...: share of queries with rank < K.
    txt_r_mean, img_r_mean: mean of the three recalls; r_mean: mean of both directions.
    rsum: the sum of the six recalls, a fraction too (papers print it times 100, at most 600).
    txt_median_rank, img_median_rank, txt_mean_rank, img_mean_rank: counted from 1 as papers do, so 1 is the best.
    txt_ties, img_ties: how many queries have a wrong item with exactly the right one's score.

    reference_count: reproduce the count of the published UNITER and IAIS code. It looks for each caption's
        image in a list of 10, gets the hits as (caption row, position) pairs, and compares *both* columns
        with K. So every hit among the first K caption rows counts once more: `img_r*` and `r_mean` come out
        too high by up to K divided by the number of captions, and may exceed 1 in small galleries. The lists
        of 10 need at least 10 captions and 10 images; ConfigError otherwise.
    """
    out: RetrievalMetrics = _one_way("txt", ranked.text) | _one_way("img", ranked.image)
    if reference_count:
        out |= _over_counted(ranked)
    for side in ("txt", "img"):
        out[f"{side}_r_mean"] = sum(out[f"{side}_r{k}"] for k in KS) / len(KS)
    out["r_mean"] = (out["txt_r_mean"] + out["img_r_mean"]) / 2
    out["rsum"] = sum(out[f"{side}_r{k}"] for side in ("txt", "img") for k in KS)
    out["txt_median_rank"], out["img_median_rank"] = _median(ranked.text), _median(ranked.image)
    out["txt_mean_rank"], out["img_mean_rank"] = _mean(ranked.text), _mean(ranked.image)
    out["txt_ties"] = float((ranked.text_ties > 0).sum())
    out["img_ties"] = float((ranked.image_ties > 0).sum())
    return {name: out[name] for name in NAMES} | {k: v for k, v in out.items() if k not in NAMES}


def chance(positives: Positives, images: int) -> RetrievalMetrics:
    """What a random order of the gallery gives on average: the nine published names.

    A query with c right items in a gallery of n is hit with probability 1 - C(n-c, K) / C(n, K), exactly.
    """
    pairs = positive_pairs(positives)
    texts = len(positives)
    out: RetrievalMetrics = {}
    for side, queries, gallery in (("txt", pairs[:, 1], texts), ("img", pairs[:, 0], images)):
        right, how_often = queries.bincount().unique(return_counts=True)
        for k in KS:
            hits = sum(
                n * (1 - Fraction(math.comb(gallery - c, k), math.comb(gallery, k))) if k <= gallery else n
                for c, n in zip(right.tolist(), how_often.tolist(), strict=True)
                if c
            )
            out[f"{side}_r{k}"] = float(Fraction(hits, int(how_often[right > 0].sum())))
        out[f"{side}_r_mean"] = sum(out[f"{side}_r{k}"] for k in KS) / len(KS)
    out["r_mean"] = (out["txt_r_mean"] + out["img_r_mean"]) / 2
    return {name: out[name] for name in NAMES}


def _one_way(side: str, rank: Tensor) -> RetrievalMetrics:
    known = rank[~rank.isnan()]
    return {f"{side}_r{k}": int((known < k).sum()) / len(known) for k in KS}


def _over_counted(ranked: Ranks) -> RetrievalMetrics:
    texts, images = len(ranked.image), len(ranked.text)
    depth = KS[-1]
    if min(texts, images) < depth:
        raise ConfigError(
            f"reference_count needs {depth} captions and {depth} images, here are {texts} and {images}: "
            "the published count takes lists of 10; leave it out for the correct count"
        )
    found = ranked.image < depth
    hits = {k: int((ranked.image < k).sum()) + int(found[:k].sum()) for k in KS}
    return {f"img_r{k}": hits[k] / texts for k in KS}


def _median(rank: Tensor) -> float:
    return 1.0 + float(np.median(rank[~rank.isnan()].numpy()))


def _mean(rank: Tensor) -> float:
    return 1.0 + float(rank[~rank.isnan()].mean())
