"""Evaluate a model on a corpus and write everything that says how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossmodal.data.corpus import Corpus
from crossmodal.model.base import Model
from crossmodal.retrieve.scoring import TOKENS

from .bootstrap import Intervals, bootstrap
from .folds import run_protocol
from .ranks import Ranks, TieRule, ranks
from .recall import RetrievalMetrics, chance
from .results import published_lines, results_table, save_results
from .retrieval import Scored, score_corpus

if TYPE_CHECKING:
    from crossmodal.train.distributed import OneProcess


@dataclass(frozen=True)
class Evaluation:
    """The scores of a corpus and what they say; `intervals` are of the full gallery's queries."""

    scored: Scored
    ranks: Ranks
    metrics: RetrievalMetrics
    intervals: Intervals
    chance: RetrievalMetrics


def evaluate_corpus(
    model: Model,
    corpus: Corpus,
    *,
    folds: int = 1,
    ties: TieRule = "average",
    reference_count: bool = False,
    tokens: int = TOKENS,
    process: OneProcess | None = None,
    progress: bool = True,
) -> Evaluation:
    """Score every caption against every image and count (spec section 13)."""
    scored = score_corpus(model, corpus, tokens=tokens, ranks=process, progress=progress)
    # Folds are runs of consecutive images of the caption file; the columns stand in evaluation order.
    order = [corpus.column_of[p, image] for p, part in enumerate(corpus.parts) for image in part.texts.images]
    protocol = run_protocol(
        scored.scores, scored.image_of, folds=folds, order=order, ties=ties, reference_count=reference_count
    )
    whole = protocol.ranks[0] if folds == 1 else ranks(scored.scores, scored.image_of, ties=ties)
    intervals = bootstrap(whole, image_of=scored.image_of) if folds == 1 else {}
    expected = chance(scored.image_of, len(scored.image_ids)) if folds == 1 else {}
    return Evaluation(scored, whole, protocol.metrics, intervals, expected)


def save_evaluation(folder: Path, found: Evaluation, settings: dict[str, Any]) -> Path:
    """scores.npz, ranks.npz and results.json in `folder`."""
    return save_results(
        folder,
        found.scored.scores,
        found.scored.text_ids,
        found.scored.image_ids,
        found.ranks,
        found.metrics,
        settings,
        intervals=found.intervals or None,
        chance=found.chance or None,
    )


def describe_evaluation(found: Evaluation) -> str:
    """The table for the terminal: recalls with intervals and chance, then the published lines."""
    table = results_table(found.metrics, intervals=found.intervals or None, chance=found.chance or None)
    return f"{table}\n\n{published_lines(found.metrics)}"
