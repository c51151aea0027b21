"""The main job on the built-in world: build it, train a small UNITER from scratch, compare IAIS with plain
hard negatives, and say how good both are (`crossmodal demo`).

Budgets are in steps. Both arms start from the same weights and take the same number of steps, side by side in
two processes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crossmodal.data.corpus import Corpus
from crossmodal.demo_world import QUICK_WORLD, demo_recipe, fresh_world, side_by_side, train
from crossmodal.evaluate.edits import edit_accuracy
from crossmodal.evaluate.examples import (
    example_attention,
    example_images,
    example_queries,
    matched_batch,
    pictures_in,
)
from crossmodal.evaluate.plots import plot_curves, plot_edits, plot_recall, read_metrics
from crossmodal.evaluate.recall import NAMES
from crossmodal.evaluate.relation_distance import self_distance
from crossmodal.evaluate.report import Shown, Table, write_report
from crossmodal.evaluate.report_retrieval import recall_table
from crossmodal.evaluate.results import text_table
from crossmodal.evaluate.run import Evaluation, evaluate_corpus, save_evaluation
from crossmodal.files import write_whole
from crossmodal.model.base import Model, inference
from crossmodal.model.checkpoints import load
from crossmodal.model.uniter import ATTENTION_FIELDS
from crossmodal.train.metrics import FILE
from crossmodal.train.published import add_iais
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.setup import open_data

log = logging.getLogger("crossmodal")

ARMS = ("iais", "plain")
EDITS = ("replaced_kind", "replaced_colour", "swapped_colours", "swapped_relation")


@dataclass(frozen=True)
class Arm:
    """What one arm gives on the test scenes."""

    found: Evaluation
    edits: dict[str, float]
    relation_distance: float


def run_demo(output: Path, *, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Run everything into `output` and return what demo.json holds. Raises ConfigError where it is not empty."""
    start = time.monotonic()
    world = fresh_world(output, seed, quick)
    words = train(_recipe("demo-words", world, seed, quick), output / "words")
    matching = train(_recipe("demo-match", world, seed, quick, words), output / "matching")
    recipes = {arm: _recipe("demo-hard", world, seed, quick, matching, iais=arm == "iais") for arm in ARMS}
    log.info("training the two arms side by side: %s", " and ".join(ARMS))
    arms = side_by_side({arm: partial(_run_arm, recipe, output / arm) for arm, recipe in recipes.items()})
    corpus = open_data(parse_recipe(recipes["plain"]).data["test"])
    summary = _summary(arms, time.monotonic() - start)
    write_whole(output / "demo.json", lambda path: path.write_text(json.dumps(summary, indent=2)))
    print(_table(arms))
    report = _report(output, world, arms, corpus)
    log.info("%.0f seconds; figures: %s; report: %s", summary["seconds"], output / "demo.json", report)
    return summary


def _recipe(
    name: str, world: Path, seed: int, quick: bool, checkpoint: Path | None = None, *, iais: bool = False
) -> dict[str, Any]:
    values = demo_recipe(name, world, seed, quick, checkpoint)
    if quick and "validation" in values:
        values["validation"]["gallery"] = QUICK_WORLD["val"]
    if iais:
        add_iais(values, "singular")
    return values


def _run_arm(recipe: Mapping[str, Any], run: Path, progress: bool) -> Arm:
    """Train one arm and evaluate it on the test scenes; one of the two shows its progress."""
    model, corpus = load(train(recipe, run, progress)), open_data(parse_recipe(recipe).data["test"])
    pairs = len(corpus) * len(corpus.image_keys)
    with tqdm(total=pairs, unit="pair", unit_scale=True, disable=not progress) as bar:
        found = evaluate_corpus(model, corpus, progress=bar.update)
    save_evaluation(run / "test", found, {"checkpoint": str(run / "last"), "split": "test"})
    texts = corpus.parts[0].texts.path
    negatives = json.loads((texts.parent.parent / "negatives_test.json").read_text())
    return Arm(found, edit_accuracy(model, corpus, found.scored, negatives), _relation_distance(model, corpus))


def _relation_distance(model: Model, corpus: Corpus, size: int = 100) -> float:
    """ISD, singular, both sides, mean over the matched pairs of the corpus."""
    total = 0.0
    with inference(model):
        for start in range(0, len(corpus), size):
            batch = matched_batch(model, corpus, range(start, min(start + size, len(corpus))))
            fields = model(batch, ATTENTION_FIELDS)
            total += float(self_distance(*(fields[name] for name in ATTENTION_FIELDS)).sum())
    return total / len(corpus)


def _summary(arms: Mapping[str, Arm], seconds: float) -> dict[str, Any]:
    chance = next(iter(arms.values())).found.chance
    return {
        "chance": {**{name: chance[name] for name in NAMES}, "edits": 0.5},
        "seconds": round(seconds, 1),
        "arms": {
            name: {
                **{metric: arm.found.metrics[metric] for metric in NAMES},
                "edits": {kind: arm.edits[kind] for kind in EDITS if kind in arm.edits},
                "relation_distance": arm.relation_distance,
            }
            for name, arm in arms.items()
        },
    }


def _table(arms: Mapping[str, Arm]) -> str:
    """Recall and accuracy by kind of edit in percent, beside chance."""
    chance = next(iter(arms.values())).found.chance
    rows = [["", *arms, "chance"]]
    for metric in NAMES:
        rows.append(
            [metric, *(f"{100 * a.found.metrics[metric]:.1f}" for a in arms.values()), f"{100 * chance[metric]:.2f}"]
        )
    for kind in EDITS:
        rows.append([kind, *(f"{100 * a.edits[kind]:.1f}" if kind in a.edits else "-" for a in arms.values()), "50.00"])
    rows.append(["relation distance", *(f"{a.relation_distance:.4f}" for a in arms.values()), "-"])
    return text_table(rows)


def _report(output: Path, world: Path, arms: Mapping[str, Arm], corpus: Corpus) -> Path:
    """report.html: figures of both arms, and example queries and attention of the arm with IAIS."""
    pictures = pictures_in(world / "images" / "test")
    shown = arms["iais"].found
    chance = shown.chance
    kinds = [kind for kind in EDITS if kind in arms["iais"].edits]
    edits = Table(
        "Accuracy by kind of edit",
        ["", *(kind.replace("_", " ") for kind in kinds), "relation distance"],
        [
            [name, *(f"{100 * arm.edits[kind]:.1f}" for kind in kinds), f"{arm.relation_distance:.4f}"]
            for name, arm in arms.items()
        ],
        "How often the true caption scores above a minimally edited, false one, in percent (chance 50); and how far "
        "the attentions within each modality are from each other (lower is closer).",
    )
    curves = {name: read_metrics(output / name / FILE) for name in arms}
    first = {
        "masked words": read_metrics(output / "words" / FILE),
        "matching": read_metrics(output / "matching" / FILE),
    }
    figures = [
        Shown("First phases", plot_curves(first, ["train/loss"]), "loss of the masked-word and matching phases"),
        Shown(
            "Hard negatives", plot_curves(curves, ["train/rank_loss", "train/self_attn_loss"]), "losses of both arms"
        ),
        Shown(
            "Recall",
            plot_recall(
                {name: arm.found.metrics for name, arm in arms.items()},
                intervals={name: arm.found.intervals for name, arm in arms.items()},
                chance=chance,
            ),
            "bars of recall at 1, 5 and 10 in both directions with confidence intervals",
        ),
        Shown("Edits", plot_edits({name: arm.edits for name, arm in arms.items()}), "bars of accuracy by kind of edit"),
    ]
    queries = example_queries(shown.scored, corpus, shown.ranks.image, pictures)
    return write_report(
        output / "report.html",
        title="Image-text retrieval on the built-in world",
        intro=f"{len(shown.scored.text_ids)} captions and {len(shown.scored.image_ids)} images not seen in training. "
        "Example queries and attention are those of the arm with IAIS.",
        tables=[recall_table({name: arm.found for name, arm in arms.items()}), edits],
        figures=figures,
        queries=[*queries, *example_images(shown.scored, corpus, shown.ranks.text, pictures)],
        attention=example_attention(load(output / "iais" / "last"), corpus, pictures, count=3),
    )
