"""CLIP on the built-in world (`crossmodal demo --system clip`): a small one from pixels, then CE-CLIP's losses on wrong
captions, and beside them as many steps without.

The truth is known: every wrong caption is false of its picture, and accuracy is told by kind of edit.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crossmodal.data.corpus import Corpus
from crossmodal.data.scene_captions import EDITS
from crossmodal.data.scene_pictures import write_picture_world
from crossmodal.demo_world import demo_recipe, fresh_world, side_by_side, train
from crossmodal.evaluate.edits import edit_accuracy
from crossmodal.evaluate.examples import example_images, example_queries, pictures_in
from crossmodal.evaluate.plots import plot_curves, plot_edits, plot_recall, read_metrics, save_figure
from crossmodal.evaluate.recall import NAMES
from crossmodal.evaluate.report import Shown, Table, write_report
from crossmodal.evaluate.report_retrieval import recall_table
from crossmodal.evaluate.results import text_table
from crossmodal.evaluate.run import Evaluation, evaluate_corpus, save_evaluation
from crossmodal.files import write_whole
from crossmodal.model.checkpoints import load
from crossmodal.train.metrics import FILE
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.setup import open_data

log = logging.getLogger("crossmodal")

SHOWN = ("txt_r1", "img_r1", "r_mean")


@dataclass(frozen=True)
class State:
    """What a checkpoint gives on the test scenes."""

    found: Evaluation
    edits: dict[str, float]

    @property
    def mean(self) -> float:
        return sum(self.edits.values()) / len(self.edits)

    @property
    def r1(self) -> float:
        """The mean of both directions."""
        return (self.found.metrics["txt_r1"] + self.found.metrics["img_r1"]) / 2


def run_demo_clip(output: Path, *, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Run everything into `output` and return what demo.json holds. Raises ConfigError where it is not empty."""
    start = time.monotonic()
    world = fresh_world(output, seed, quick, write_picture_world)
    recipe = partial(demo_recipe, world=world, seed=seed, quick=quick)
    places = train(recipe("demo-places"), output / "places")
    clip = train(recipe("demo-clip", checkpoint=places), output / "clip")
    recipes = {"ce_clip": recipe("demo-ce-clip", checkpoint=clip)}
    recipes["control"] = control_of(recipes["ce_clip"])
    log.info("training with wrong captions, and as many steps without, side by side")
    arms = side_by_side({name: partial(_train, values, output / name) for name, values in recipes.items()})
    corpus = open_data(parse_recipe(recipes["ce_clip"]).data["test"])
    negatives = json.loads((world / "negatives_test.json").read_text())
    log.info("testing on %d captions of %d scenes and %d edits", len(corpus), len(corpus.image_keys), len(negatives))
    states = {
        name: _test(folder, corpus, negatives, output / name / "test")
        for name, folder in {"clip": clip, "control": arms["control"], "ce_clip": arms["ce_clip"]}.items()
    }
    summary = _summary(states, {name: values["steps"] for name, values in recipes.items()}, time.monotonic() - start)
    write_whole(output / "demo.json", lambda path: path.write_text(json.dumps(summary, indent=2)))
    print(text_table([["", *_columns()], *_rows(states)]))
    print(
        f"against as many steps without wrong captions: {100 * summary['edits_gained']:+.1f} points on the mean of the "
        f"edits, {100 * summary['r1_gained']:+.1f} on R@1"
    )
    report = _report(output, world, states, corpus)
    log.info("%.0f seconds; figures: %s; report: %s", summary["seconds"], output / "demo.json", report)
    return summary


def control_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The same training without the wrong captions: CLIP's loss on the same pairs."""
    values = deepcopy(dict(recipe))
    values["name"] = "control"
    (stream,) = values["streams"]
    stream["data"]["draw"] = "matched"
    stream["losses"] = [{"use": "clip_info_nce", "tag": "contrastive_loss"}]
    return values


def _train(recipe: Mapping[str, Any], run: Path, progress: bool) -> Path:
    return train(recipe, run, progress)


def _test(checkpoint: Path, corpus: Corpus, negatives: list[dict[str, str]], output: Path) -> State:
    model = load(checkpoint)
    found = evaluate_corpus(model, corpus)
    save_evaluation(output, found, {"checkpoint": str(checkpoint), "split": "test"})
    accuracy = edit_accuracy(model, corpus, found.scored, negatives)
    return State(found, {kind: accuracy[kind] for kind in EDITS if kind in accuracy})


def _summary(states: Mapping[str, State], steps: Mapping[str, int], seconds: float) -> dict[str, Any]:
    chance = states["clip"].found.chance
    return {
        "steps": dict(steps),
        "seconds": round(seconds, 1),
        "chance": {**{name: chance[name] for name in NAMES}, "edits": 0.5},
        "states": {
            name: {
                **{metric: state.found.metrics[metric] for metric in NAMES},
                "edits": state.edits,
                "edits_mean": state.mean,
            }
            for name, state in states.items()
        },
        "edits_gained": states["ce_clip"].mean - states["control"].mean,
        "r1_gained": states["ce_clip"].r1 - states["control"].r1,
    }


def _columns() -> list[str]:
    return [*SHOWN, *EDITS, "edits' mean"]


def _rows(states: Mapping[str, State]) -> list[list[str]]:
    """Recall and accuracy by kind of edit in percent, chance last."""
    chance = states["clip"].found.chance
    rows = [
        [
            name,
            *(f"{100 * state.found.metrics[metric]:.1f}" for metric in SHOWN),
            *(f"{100 * state.edits[kind]:.1f}" if kind in state.edits else "-" for kind in EDITS),
            f"{100 * state.mean:.1f}",
        ]
        for name, state in states.items()
    ]
    return [*rows, ["chance", *(f"{100 * chance[metric]:.2f}" for metric in SHOWN), *["50.0"] * (len(EDITS) + 1)]]


def _report(output: Path, world: Path, states: Mapping[str, State], corpus: Corpus) -> Path:
    """report.html and edits.png: figures of all states, and example queries of the one with wrong captions."""
    pictures = pictures_in(world / "images" / "test")
    shown = states["ce_clip"].found
    edits = plot_edits({name: state.edits for name, state in states.items()})
    save_figure(edits, output / "edits.png")
    recall = plot_recall(
        {name: state.found.metrics for name, state in states.items()},
        intervals={name: state.found.intervals for name, state in states.items()},
        chance=shown.chance,
    )
    first = {name: read_metrics(output / name / FILE) for name in ("places", "clip", "control")}
    last = {"ce_clip": read_metrics(output / "ce_clip" / FILE)}
    terms = ["train/ce_clip_loss/itc", "train/ce_clip_loss/cmr", "train/ce_clip_loss/imc"]
    figures = [
        Shown("Edits", edits, "bars of accuracy by kind of edit"),
        Shown("Recall", recall, "bars of recall at 1, 5 and 10 in both directions with confidence intervals"),
        Shown("CLIP's loss", plot_curves(first, ["train/contrastive_loss"]), "contrastive loss of the three phases"),
        Shown("CE-CLIP's terms", plot_curves(last, terms), "terms of CE-CLIP's loss"),
    ]
    return write_report(
        output / "report.html",
        title="CLIP with wrong captions",
        intro=f"{len(corpus)} captions and {len(corpus.image_keys)} images not seen in training. Example queries are "
        "those of the model with wrong captions.",
        tables=[
            Table(
                "Before and after",
                ["", *_columns()],
                _rows(states),
                "In percent. Edits: how often the true caption scores above a minimally edited, false one.",
            ),
            recall_table({name: state.found for name, state in states.items()}),
        ],
        figures=figures,
        queries=[
            *example_queries(shown.scored, corpus, shown.ranks.image, pictures),
            *example_images(shown.scored, corpus, shown.ranks.text, pictures),
        ],
    )
