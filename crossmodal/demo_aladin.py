"""ALADIN on the built-in world (`crossmodal demo --system aladin`): train the alignment head, distil the matching head
from it, and compare what ways of searching find with what they cost.

Beside it the same backbone is trained by InfoNCE on its matching head alone, from the same weights and for as many
steps, in a process of its own.
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

from crossmodal.data.corpus import Corpus
from crossmodal.demo_world import demo_recipe, fresh_world, side_by_side, train
from crossmodal.evaluate.examples import example_images, example_queries, pictures_in
from crossmodal.evaluate.job import EncodedCorpus
from crossmodal.evaluate.plots import plot_cost, plot_curves, plot_recall, read_metrics, save_figure
from crossmodal.evaluate.ranks import ranks
from crossmodal.evaluate.recall import KS, NAMES, RetrievalMetrics, chance
from crossmodal.evaluate.report import Shown, Table, write_report
from crossmodal.evaluate.results import text_table
from crossmodal.evaluate.retrieval import score_corpus
from crossmodal.files import write_whole
from crossmodal.model.base import Model, all_pairs
from crossmodal.model.checkpoints import load
from crossmodal.retrieve.cascade import DEPTH, Stage, run_cascade
from crossmodal.retrieve.scoring import score_pairs
from crossmodal.train.metrics import FILE
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.setup import open_data

log = logging.getLogger("crossmodal")

KEEP = 20
"""Candidates of the matching head that the alignment head scores again."""
SHOWN = [f"{side}_r{k}" for side in ("txt", "img") for k in KS] + ["r_mean"]


@dataclass(frozen=True)
class Way:
    """A way of searching: what it finds on the test scenes, how many pairs were scored one by one, and how long all
    scoring took for a query, a caption or an image, once both sides were encoded."""

    metrics: RetrievalMetrics
    pairs: int
    milliseconds: float

    @property
    def r1(self) -> float:
        """The mean of both directions."""
        return (self.metrics["txt_r1"] + self.metrics["img_r1"]) / 2


def run_demo_aladin(output: Path, *, seed: int = 0, quick: bool = False, uniter: Path | None = None) -> dict[str, Any]:
    """Run everything into `output` and return what demo.json holds.

    uniter: the folder of a main demo on the same world, whose cross-encoder is measured too. Raises ConfigError where
    the output folder is not empty, CheckpointError where there is no such run.
    """
    start = time.monotonic()
    cross_encoder = load(uniter / "plain") if uniter else None
    world = fresh_world(output, seed, quick)
    recipe = partial(demo_recipe, world=world, seed=seed, quick=quick)
    align, distil, contrast = recipe("demo-align"), recipe("demo-distil"), recipe("demo-contrast")
    contrast["steps"] = align["steps"] + distil["steps"]
    log.info("training ALADIN, and beside it the same backbone by InfoNCE")
    heads = side_by_side(
        {"contrast": partial(_train_contrast, contrast, output), "aladin": partial(_train_heads, align, distil, output)}
    )
    corpus = open_data(parse_recipe(align).data["test"])
    log.info("searching %d captions and %d images", len(corpus), len(corpus.image_keys))
    ways = _ways(load(heads["aladin"]), load(heads["contrast"]), corpus, cross_encoder)
    expected = chance(corpus.image_of_texts(), len(corpus.image_keys))
    summary = _summary(ways, expected, align["steps"], distil["steps"], time.monotonic() - start)
    write_whole(output / "demo.json", lambda path: path.write_text(json.dumps(summary, indent=2)))
    print(text_table([["", *SHOWN, "pairs", "ms a query"], *_rows(ways, expected)]))
    print(f"the distilled matching head reaches {summary['distilled_share']:.0%} of the alignment head's R@1")
    report = _report(output, world, ways, expected, load(heads["aladin"]), corpus)
    log.info("%.0f seconds; figures: %s; report: %s", summary["seconds"], output / "demo.json", report)
    return summary


def _train_heads(align: Mapping[str, Any], distil: Mapping[str, Any], output: Path, progress: bool) -> Path:
    """The alignment head, then the matching head from it."""
    taught = train(align, output / "align", progress)
    return train({**distil, "model": {**distil["model"], "checkpoint": str(taught)}}, output / "distil", progress)


def _train_contrast(recipe: Mapping[str, Any], output: Path, progress: bool) -> Path:
    return train(recipe, output / "contrast", progress)


def _ways(aladin: Model, contrast: Model, corpus: Corpus, cross_encoder: Model | None) -> dict[str, Way]:
    positives = corpus.image_of_texts()
    queries = len(corpus) + len(corpus.image_keys)

    def stages(model: Model, *scorers: str) -> list[Stage]:
        encoded = EncodedCorpus.of(model, corpus)
        keeps = [KEEP] * (len(scorers) - 1) + [DEPTH]
        return [
            Stage(encoded.texts, encoded.images, model.scorers[scorer], keep, scorer)
            for scorer, keep in zip(scorers, keeps, strict=True)
        ]

    def way(found: list[Stage]) -> Way:
        for stage in found:  # the first call of everything is slow
            score_pairs(stage.scorer, stage.texts, stage.images, all_pairs(4, 4))
        results = run_cascade(found, positives.tolist())
        seconds = sum(stage.seconds for stage in results)
        return Way(results[-1].metrics, results[-1].pairs, 1000 * seconds / queries)

    ways = {
        "matching, distilled": way(stages(aladin, "matching")),
        "alignment": way(stages(aladin, "alignment")),
        f"matching, then alignment on {KEEP}": way(stages(aladin, "matching", "alignment")),
        "matching, by InfoNCE": way(stages(contrast, "matching")),
    }
    if cross_encoder is not None:
        ways["UNITER"] = way(stages(cross_encoder, "itm"))
    return ways


def _summary(
    ways: Mapping[str, Way], expected: RetrievalMetrics, align: int, distil: int, seconds: float
) -> dict[str, Any]:
    return {
        "steps": {"align": align, "distil": distil, "contrast": align + distil},
        "seconds": round(seconds, 1),
        "chance": {name: expected[name] for name in NAMES},
        "distilled_share": ways["matching, distilled"].r1 / max(ways["alignment"].r1, 1e-9),
        "ways": {
            name: {**{n: way.metrics[n] for n in NAMES}, "pairs": way.pairs, "ms_a_query": round(way.milliseconds, 4)}
            for name, way in ways.items()
        },
    }


def _rows(ways: Mapping[str, Way], expected: RetrievalMetrics) -> list[list[str]]:
    """Recall in percent and cost of every way, then chance."""
    rows = [
        [name, *(f"{100 * way.metrics[n]:.1f}" for n in SHOWN), f"{way.pairs:,}", f"{way.milliseconds:.3f}"]
        for name, way in ways.items()
    ]
    return [*rows, ["chance", *(f"{100 * expected[n]:.2f}" for n in SHOWN), "-", "-"]]


def _report(
    output: Path, world: Path, ways: Mapping[str, Way], expected: RetrievalMetrics, model: Model, corpus: Corpus
) -> Path:
    """report.html and cost.png: figures of every way, and example queries of the distilled matching head."""
    pictures = pictures_in(world / "images" / "test")
    scored = score_corpus(model, corpus, scorer="matching")
    ranked = ranks(scored.scores, scored.image_of)
    cost = plot_cost({name: (way.milliseconds, way.r1) for name, way in ways.items()}, title="effectiveness and cost")
    save_figure(cost, output / "cost.png")
    curves = {name: read_metrics(output / name / FILE) for name in ("align", "distil", "contrast")}
    losses = ["train/alignment_loss", "train/distillation_loss", "train/contrastive_loss"]
    figures = [
        Shown("Effectiveness and cost", cost, "mean recall at 1 of every way of searching against its cost"),
        Shown("Recall", plot_recall({name: way.metrics for name, way in ways.items()}, chance=expected),
              "bars of recall at 1, 5 and 10 in both directions"),
        Shown("Training", plot_curves(curves, losses), "losses of the alignment, distillation and contrastive runs"),
    ]  # fmt: skip
    return write_report(
        output / "report.html",
        title="Align, distil, search",
        intro=f"{len(corpus)} captions and {len(corpus.image_keys)} images not seen in training. Example queries are "
        "those of the distilled matching head.",
        tables=[
            Table(
                "Ways of searching",
                ["", *SHOWN, "pairs", "ms a query"],
                _rows(ways, expected),
                "Recall in percent; the pairs that the last stage scored; scoring time once both sides are encoded.",
            )
        ],
        figures=figures,
        queries=[
            *example_queries(scored, corpus, ranked.image, pictures),
            *example_images(scored, corpus, ranked.text, pictures),
        ],
    )
