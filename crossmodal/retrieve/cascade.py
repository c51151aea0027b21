"""Cascades: a cheap scorer ranks everything, dearer ones re-rank what it found (DESIGN.md section 8).

results = run_cascade([Stage(texts, images, model.scorers["matching"], keep=50),
                       Stage(texts, images, model.scorers["alignment"])], image_of)
results[-1].metrics["r_mean"], results[-1].pairs, results[-1].seconds
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from crossmodal.errors import ConfigError, DataError
from crossmodal.evaluate.blocks import Scores, rereadable, row_blocks
from crossmodal.evaluate.positives import Positives, positive_pairs
from crossmodal.evaluate.ranks import Ranks, TieRule, ranks, tie_share
from crossmodal.evaluate.recall import KS, RetrievalMetrics, recall
from crossmodal.model.base import Encoded, Scorer

from .scoring import TOKENS, Progress, best_of_blocks, score_blocks, score_pairs

DEPTH = max(KS)


@dataclass(frozen=True)
class Stage:
    """A scorer with both sides as its model encoded them; the items are the same ones in every stage.

    keep: how many candidates of each query the next stage scores again; None keeps all.
    """

    texts: Encoded
    images: Encoded
    scorer: Scorer
    keep: int | None = None
    name: str = ""


@dataclass(frozen=True)
class Ranked:
    """What a stage makes of the candidates, and what it costs.

    images_of_text (A,k), texts_of_image (B,k): the best items, best first, on the host. Those that were scored come
    first, equal ones in the order of the stage before (in the first stage, lower index first); those that fell
    out before are behind them, in the order that they had.
    ranks: of the right items, exact also beyond the lists, where positives were given.
    pairs: how many were scored; seconds: how long that took.
    """

    name: str
    images_of_text: Tensor
    texts_of_image: Tensor
    ranks: Ranks | None
    pairs: int
    seconds: float

    @cached_property
    def metrics(self) -> RetrievalMetrics:
        """Recall and the like, see `recall`; without positives there is none."""
        return recall(self.ranks) if self.ranks else {}


@torch.no_grad()
def run_cascade(
    stages: Sequence[Stage],
    positives: Positives | None = None,
    *,
    ties: TieRule = "average",
    tokens: int = TOKENS,
    progress: Progress | None = None,
) -> list[Ranked]:
    """Rank both directions, stage after stage: one result each.

    The first stage scores every pair, a block at a time; the others score the candidates that the one before
    kept, of captions and of images, each pair once. Lists are as long as the first stage's `keep`, and 10 at least.

    positives: see `ranks`, for the ranks of every stage. A right item that fell out keeps its rank, which is
    then behind all candidates; with positives, the scores of the first stage lie in a temporary file meanwhile.

    Raises ConfigError for stages that don't follow each other, DataError for NaN scores.
    """
    _check(stages)
    run = _Run(positives, ties, tokens, progress)
    results = [run.first(stages[0])]
    for before, stage in pairwise(stages):
        results.append(run.again(stage, results[-1], before.keep))
    return results


def _check(stages: Sequence[Stage]) -> None:
    if not stages:
        raise ConfigError("a cascade without stages ranks nothing; give one at least")
    sizes = [(len(stage.texts), len(stage.images)) for stage in stages]
    for number, stage in enumerate(stages, start=1):
        if sizes[number - 1] != sizes[0]:
            raise ConfigError(
                f"stage {number} has {len(stage.texts)} captions and {len(stage.images)} images, the first one "
                f"{sizes[0][0]} and {sizes[0][1]}; encode the same items for all stages"
            )
        if stage.keep is not None and stage.keep < 1:
            raise ConfigError(f"stage {number} keeps {stage.keep} candidates; keep 1 at least")
    kept = [stage.keep for stage in stages[:-1]]
    for number, (before, after) in enumerate(pairwise(kept), start=2):
        if before is not None and (after is None or after > before):
            raise ConfigError(f"stage {number} keeps {after or 'all'} of the {before} that it is given; keep fewer")


@dataclass(frozen=True)
class _Run:
    positives: Positives | None
    ties: TieRule
    tokens: int
    progress: Progress | None

    def first(self, stage: Stage) -> Ranked:
        """Score every pair once."""
        start = time.perf_counter()
        texts, images = len(stage.texts), len(stage.images)
        depth = max(texts, images) if stage.keep is None else max(stage.keep, DEPTH)
        blocks = score_blocks(stage.scorer, stage.texts, stage.images, tokens=self.tokens, progress=self.progress)
        found = None
        if self.positives is None:
            of_texts, of_images = best_of_blocks(_without_nan(blocks), texts, images, depth)
            seconds = time.perf_counter() - start
        else:
            order = [torch.zeros(0, dtype=torch.int64)]
            kept = rereadable(_noting(_without_nan(blocks), order))
            rows = torch.cat(order)
            of_texts, of_images = best_of_blocks(_numbered(kept, rows), texts, images, depth)
            seconds = time.perf_counter() - start
            found = _in_order(ranks(kept, _of_rows(self.positives, rows), ties=self.ties), rows)
        return Ranked(stage.name, of_texts.indices, of_images.indices, found, texts * images, seconds)

    def again(self, stage: Stage, before: Ranked, keep: int | None) -> Ranked:
        """Score the first `keep` candidates of each query of both directions anew."""
        start = time.perf_counter()
        gallery = len(stage.images)
        of_texts, of_images = before.images_of_text[:, :keep], before.texts_of_image[:, :keep]
        # A pair is numbered caption * B + image; the candidates of both directions share many.
        text_keys = torch.arange(len(of_texts))[:, None] * gallery + of_texts  # (A,k)
        image_keys = of_images * gallery + torch.arange(gallery)[:, None]  # (B,k)
        keys, place = torch.cat([text_keys.flatten(), image_keys.flatten()]).unique(return_inverse=True)
        pairs = torch.stack([keys // gallery, keys % gallery], dim=1)
        scores = score_pairs(
            stage.scorer, stage.texts, stage.images, pairs, tokens=self.tokens, progress=self.progress
        ).cpu()
        _refuse_nan(scores)
        text_scores = scores[place[: text_keys.numel()]].view_as(text_keys)
        image_scores = scores[place[text_keys.numel() :]].view_as(image_keys)
        images_of_text = _reordered(before.images_of_text, text_scores)
        texts_of_image = _reordered(before.texts_of_image, image_scores)
        seconds = time.perf_counter() - start
        found = None
        if self.positives is not None and (was := before.ranks):
            right = positive_pairs(self.positives)
            right_keys = right[:, 0] * gallery + right[:, 1]
            image = _reranked(text_scores, torch.isin(text_keys, right_keys), was.image, was.image_ties, self.ties)
            text = _reranked(image_scores, torch.isin(image_keys, right_keys), was.text, was.text_ties, self.ties)
            found = Ranks(image[0], text[0], image[1], text[1], self.ties)
        return Ranked(stage.name, images_of_text, texts_of_image, found, len(pairs), seconds)


def _without_nan(blocks: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for rows, scores in blocks:
        _refuse_nan(scores)
        yield rows, scores


def _noting(blocks: Iterator[tuple[Tensor, Tensor]], order: list[Tensor]) -> Iterator[Tensor]:
    """The scores alone, while their rows are noted."""
    for rows, scores in blocks:
        order.append(rows)
        yield scores


def _numbered(kept: Scores, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start, block in row_blocks(kept):
        yield rows[start : start + len(block)], block


def _of_rows(positives: Positives, rows: Tensor) -> list[list[int]]:
    """The positives of the captions in this order."""
    of_caption: list[list[int]] = [[] for _ in range(len(positives))]
    for caption, image in positive_pairs(positives).tolist():
        of_caption[caption].append(image)
    return [of_caption[row] for row in rows.tolist()]


def _in_order(found: Ranks, rows: Tensor) -> Ranks:
    """Ranks of captions that came in the order `rows`, as they are numbered."""
    back = rows.argsort()
    return Ranks(found.image[back], found.text, found.image_ties[back], found.text_ties, found.ties)


def _reordered(order: Tensor, scores: Tensor) -> Tensor:
    """The first candidates of order (Q,d) sorted by their scores (Q,k), the highest first; the others stay."""
    k = scores.shape[1]
    best = scores.argsort(dim=1, descending=True, stable=True)
    return torch.cat([order[:, :k].gather(1, best), order[:, k:]], dim=1)


def _reranked(scores: Tensor, right: Tensor, rank: Tensor, equal: Tensor, ties: TieRule) -> tuple[Tensor, Tensor]:
    """Ranks (Q,) and ties (Q,) by counting among scores (Q,k), where `right` (Q,k) bool is a right item.

    Where none of a query is a right item, the rank stays, and is not before the candidates.
    """
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1)
    better = (scores > best[:, None]).sum(dim=1)
    tied = ((scores == best[:, None]) & ~right).sum(dim=1)
    inside = right.any(dim=1)
    behind = rank.clamp(min=scores.shape[1])  # NaN, a query without right items, stays NaN
    return torch.where(inside, better + tie_share(ties) * tied, behind), torch.where(inside, tied, equal)


def _refuse_nan(scores: Tensor) -> None:
    if scores.isnan().any():
        raise DataError("a score is NaN: a NaN has no rank; find out why the model gave it")
