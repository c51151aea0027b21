"""A cascade of a model's own scorers over a corpus: what each stage finds, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crossmodal.data.corpus import Corpus
from crossmodal.errors import ConfigError
from crossmodal.files import write_whole
from crossmodal.model.base import Model, check_scorers, inference
from crossmodal.retrieve.cascade import Ranked, Stage, run_cascade
from crossmodal.retrieve.scoring import TOKENS

from .job import EncodedCorpus
from .ranks import TieRule
from .recall import KS
from .results import text_table

FILE = "cascade.json"

Steps = Sequence[tuple[str, int | None]]
"""The scorer of each stage, and how many candidates it keeps for the next one; None for the last."""


def parse_cascade(text: str, model: str, scorers: Sequence[str]) -> Steps:
    """``matching:20,alignment`` as stages. Raises ConfigError for a scorer that the model lacks, and other text."""
    words = [word.partition(":") for word in text.split(",")]
    kept = [keep.strip() for _, _, keep in words]
    if len(words) < 2 or kept[-1] or not all(keep.isdigit() for keep in kept[:-1]):
        raise ConfigError(
            f"--cascade {text!r} does not name stages; write SCORER:KEEP,SCORER, such as {scorers[-1]}:20,{scorers[0]}"
        )
    names = [name.strip() for name, _, _ in words]
    check_scorers(names, model, scorers)
    return [(name, int(keep) if keep else None) for name, keep in zip(names, kept, strict=True)]


def evaluate_cascade(
    model: Model,
    corpus: Corpus,
    steps: Steps,
    encoded: EncodedCorpus | None = None,
    *,
    ties: TieRule = "average",
    tokens: int = TOKENS,
) -> list[Ranked]:
    """Every stage's ranks of the whole gallery, both ways; what is not `encoded` is read and encoded first."""
    encoded = encoded or EncodedCorpus.of(model, corpus)
    with inference(model), tqdm(unit="pair", unit_scale=True) as bar:
        stages = [Stage(encoded.texts, encoded.images, model.scorers[name], keep, name) for name, keep in steps]
        return run_cascade(stages, corpus.image_of_texts(), ties=ties, tokens=tokens, progress=bar.update)


def save_cascade(folder: Path, found: Sequence[Ranked], steps: Steps, settings: dict[str, Any]) -> Path:
    """The metrics and the cost of every stage in ``folder/cascade.json``."""
    stages = [
        {"scorer": stage.name, "keep": keep, "pairs": stage.pairs, "seconds": stage.seconds, "metrics": stage.metrics}
        for stage, (_, keep) in zip(found, steps, strict=True)
    ]
    text = json.dumps({"stages": stages, "settings": settings}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_whole(folder / FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def describe_cascade(found: Sequence[Ranked], steps: Steps) -> str:
    """A line a stage: pairs scored, seconds, recalls of both directions in percent."""
    rows = [["stage", "keeps", "pairs", "seconds", *(f"{way} R@{k}" for way in ("image", "text") for k in KS), "mean"]]
    for stage, (_, keep) in zip(found, steps, strict=True):
        recalls = [stage.metrics[f"{side}_r{k}"] for side in ("img", "txt") for k in KS]
        percents = [f"{100 * value:.2f}" for value in (*recalls, stage.metrics["r_mean"])]
        rows.append([stage.name, str(keep or "-"), f"{stage.pairs:,}", f"{stage.seconds:.2f}", *percents])
    return text_table(rows)
