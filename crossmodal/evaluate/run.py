"""Evaluate a model on a corpus and write everything that says how good it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from crossmodal.data.corpus import Corpus
from crossmodal.errors import ConfigError
from crossmodal.model.base import Model, check_scorers
from crossmodal.retrieve.scoring import TOKENS, Progress

from .bootstrap import Intervals, bootstrap
from .folds import check_folds, run_protocol
from .job import EncodedCorpus, ScoringJob
from .ranks import Ranks, TieRule, ranks
from .recall import KS, RetrievalMetrics, chance
from .relevances import file_order, ndcg_of_corpus
from .results import published_lines, results_table, save_results, stored_key
from .scored import Scored

if TYPE_CHECKING:
    from crossmodal.train.distributed import OneProcess

log = logging.getLogger("crossmodal")


@dataclass(frozen=True)
class Counting:
    """How scores become recalls: see `run_protocol`."""

    folds: int = 1
    ties: TieRule = "average"
    reference_count: bool = False

    def check(self, corpus: Corpus) -> None:
        """Raises ConfigError where the corpus does not allow it: better before its scoring than after."""
        images = len(corpus.image_keys)
        check_folds(self.folds, images)
        if self.reference_count and min(images // self.folds, len(corpus)) < KS[-1]:
            raise ConfigError(
                f"the published count takes lists of {KS[-1]}, but there are {len(corpus)} captions and {images} "
                f"images in {self.folds} folds; leave --reference-count out"
            )


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
    counting: Counting = Counting(),
    tokens: int = TOKENS,
    process: OneProcess | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score every caption against every image and count (spec section 13)."""
    counting.check(corpus)
    scored = ScoringJob(model, corpus, tokens=tokens, ranks=process).run(progress)
    return evaluate_scores(scored, corpus, counting)


def evaluate_into(
    folder: Path,
    model: Model,
    corpus: Corpus,
    settings: dict[str, Any],
    encoded: EncodedCorpus | None = None,
    *,
    scorer: str | None = None,
    counting: Counting = Counting(),
    relevances: Mapping[str, Tensor] | None = None,
    tokens: int = TOKENS,
    process: OneProcess | None = None,
) -> Evaluation | None:
    """Evaluate and save into `folder`, going on where an earlier call was stopped; on rank 0, the others get None.

    Finished tiles are kept in the folder until the results take their place, and those serve a later call with
    another way of counting. Says beforehand how many pairs there are, how many are kept, and how long the rest
    will take. relevances: of captions to images, for NDCG (`relevances.open_relevances`).
    """
    counting.check(corpus)
    job = ScoringJob(model, corpus, encoded, scorer=scorer, tokens=tokens, ranks=process, output=folder)
    first = process is None or process.rank == 0
    if first:
        _announce(job, folder)
    with tqdm(total=job.rest, unit="pair", unit_scale=True, disable=not first or not job.rest) as bar:
        scored = job.run(bar.update)
    if not first:
        return None
    found = evaluate_scores(scored, corpus, counting, relevances)
    size = process.size if process else 1
    of_model = {"model": model.name, "config": model.config_dict}
    save_evaluation(folder, found, {**settings, **of_model, **vars(counting), "processes": size})
    job.forget()
    return found


def evaluate_heads(
    folder: Path,
    model: Model,
    corpus: Corpus,
    settings: dict[str, Any],
    encoded: EncodedCorpus | None = None,
    *,
    scorers: Sequence[str] = (),
    counting: Counting = Counting(),
    relevances: Mapping[str, Tensor] | None = None,
    tokens: int = TOKENS,
    process: OneProcess | None = None,
) -> dict[str, Evaluation]:
    """`evaluate_into` by each of these scorers, all of the model's where none is named; every item is encoded once.

    A model of several scorers gets a folder for each, with its name. Ranks other than the first get nothing.
    Raises ConfigError for a scorer that the model lacks.
    """
    counting.check(corpus)
    check_scorers(scorers, model.name, model.scorer_names)
    encoded = encoded or EncodedCorpus.of(model, corpus, identify=True)
    found = {}
    for name in scorers or model.scorer_names:
        if len(model.scorer_names) > 1:
            log.info("scorer %s", name)
        into = folder / name if len(model.scorer_names) > 1 else folder
        of_one = evaluate_into(
            into, model, corpus, {**settings, "scorer": name}, encoded,
            scorer=name, counting=counting, relevances=relevances, tokens=tokens, process=process,
        )  # fmt: skip
        if of_one is not None:
            found[name] = of_one
    return found


def evaluate_scores(
    scored: Scored, corpus: Corpus, counting: Counting, relevances: Mapping[str, Tensor] | None = None
) -> Evaluation:
    """Recalls of a corpus from its scores, with intervals and chance where the gallery is whole; NDCG by relevances."""
    folds, ties = counting.folds, counting.ties
    counted = run_protocol(
        scored.scores,
        scored.image_of,
        folds=folds,
        order=file_order(corpus),
        ties=ties,
        reference_count=counting.reference_count,
    )
    metrics = counted.metrics | ndcg_of_corpus(scored, relevances or {}, corpus, folds=folds)
    whole = counted.ranks[0] if folds == 1 else ranks(scored.scores, scored.image_of, ties=ties)
    intervals = bootstrap(whole, image_of=scored.image_of) if folds == 1 else {}
    expected = chance(scored.image_of, len(scored.image_ids)) if folds == 1 else {}
    return Evaluation(scored, whole, metrics, intervals, expected)


def save_evaluation(folder: Path, found: Evaluation, settings: dict[str, Any]) -> Path:
    """scores.npz, ranks.npz and results.json in `folder`."""
    exact = found.scored.scores.dtype == torch.float32  # what is stored is what was scored
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
        key=found.scored.key if exact else None,
    )


def describe_heads(found: Mapping[str, Evaluation], model: str) -> str:
    """`describe_evaluation` of every scorer of a model, under its name where there are several."""
    said = {name: describe_evaluation(of_one, model, name) for name, of_one in found.items()}
    return "\n\n".join(f"scorer {name}\n{lines}" if len(said) > 1 else lines for name, lines in said.items())


def describe_evaluation(found: Evaluation, model: str, scorer: str | None = None) -> str:
    """The table for the terminal: recalls with intervals and chance, then the published lines."""
    table = results_table(found.metrics, intervals=found.intervals or None, chance=found.chance or None)
    return f"{table}\n\n{published_lines(found.metrics, model, scorer)}"


def _announce(job: ScoringJob, folder: Path) -> None:
    images, captions = len(job.corpus.image_keys), len(job.corpus)
    if job.kept:
        log.info("%s of %s pairs were scored before and are kept", f"{job.kept:,}", f"{job.pairs:,}")
    elif job.starts_anew:
        log.info("what an evaluation with other weights, data or options has left in %s is of no use here", folder)
    if stored_key(folder) not in (None, job.key):
        log.info("the results of another evaluation in %s will be replaced", folder)
    if job.kept < job.pairs:
        rest = f", {_short(job.pairs - job.kept)} to go" if job.kept else ""
        log.info(
            "%s images x %s captions, %s pairs%s: %s",
            f"{images:,}", f"{captions:,}", _short(job.pairs), rest, about(job.estimate()),
        )  # fmt: skip


def about(seconds: float) -> str:
    """A duration as people say it: `about 2 h 10 min`."""
    if seconds < 1:
        return "less than a second"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    hours, minutes = divmod(round(minutes, -1), 60)  # tens of minutes are as much as an estimate can say
    if hours < 24:
        return f"about {hours} h {minutes} min" if minutes else f"about {hours} h"
    days, hours = divmod(hours + (minutes >= 30), 24)
    return f"about {days} d {hours} h" if hours else f"about {days} d"


def _short(count: int) -> str:
    """A number of pairs: `5.0 M`, or the number itself where it is small."""
    return f"{count / 1e6:.1f} M" if count >= 1_000_000 else f"{count:,}"
