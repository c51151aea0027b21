"""Trains and scores the cases of `test_distributed.py` on this process's rank and writes down what came out.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.train.dist_worker WORLD TEXTS OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from crossmodal.evaluate.plots import read_metrics
from crossmodal.evaluate.retrieval import score_corpus
from crossmodal.train.distributed import OneProcess, connect
from crossmodal.train.recipe import Recipe, parse_recipe
from crossmodal.train.trainer import Trainer

from ..recipes import tiny_recipe

ANCHORS = 25
GLOBAL_BATCH = 6
"""Anchors of an update over all ranks; an epoch of 25 ends with an update of a single anchor."""
STEPS = 7

MASKED = {
    "data": {"use": "train", "draw": "masked_words", "probability": 0.3},
    "losses": [{"use": "masked_words", "weight": 0.5}, {"use": "itm"}],
}


def _pools(anchor: str, *more: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": {"use": "train", "draw": "pools", "anchor": anchor, "pool": 6},
        "miner": {"use": "hardest", "keep": 3},
        "losses": [{"use": "margin_ranking", "tag": "rank_loss"}, *more],
    }


def _with_iais(alignment: str, text: str, image: str) -> list[dict[str, Any]]:
    def loss(side: str) -> dict[str, Any]:
        weight = {"schedule": "exp", "scale": 8.0}
        return {"use": "iais", "alignment": alignment, "side": side, "weight": weight, "tag": "self_attn_loss"}

    return [_pools("text", loss(text)), _pools("image", loss(image))]


CASES: dict[str, list[dict[str, Any]]] = {
    "margin": [_pools("text"), _pools("image")],
    "iais_singular": _with_iais("singular", "linguistic", "visual"),
    "iais_distributed": _with_iais("distributed", "linguistic", "visual"),
    "iais_both_sides": _with_iais("singular", "both", "both"),
    "masked_words": [_pools("text"), MASKED],
    "accumulated": [*_with_iais("singular", "linguistic", "visual"), MASKED],
    "mixed": [{**_pools("image"), "ratio": 1.0}, {**MASKED, "ratio": 2.0}],
}


def losses_of(case: str) -> set[str]:
    return {loss["use"] for stream in CASES[case] for loss in stream["losses"]}


def make_recipe(case: str, world: Path, texts: Path, ranks: int) -> Recipe:
    """The case for so many ranks. `accumulated` takes two micro-steps under several, one where it is alone."""
    values = tiny_recipe(
        world,
        steps=STEPS,
        batch=GLOBAL_BATCH // ranks,
        accumulate=2 if case == "accumulated" and ranks > 1 else 1,
        data={"train": {"texts": str(texts), "images": str(world / "regions" / "train")}},
        streams=CASES[case],
        optimizer={"lr": 0.01, "warmup": 2, "weight_decay": 0.1, "clip": 0.5},
        validation={"every": STEPS},
    )
    # Weights spread widely, so that attention and ranking are far from uniform.
    pretraining = "masked_words" in losses_of(case)
    config = {**values["model"]["config"], "initializer_range": 0.2, "pretraining": pretraining}
    values["model"] = {"config": config, "dropout": 0.0}
    return parse_recipe(values)


def run_case(case: str, world: Path, texts: Path, output: Path, ranks: OneProcess) -> dict[str, Any]:
    """Train a case in float64 with GLOBAL_BATCH anchors an update over all ranks, then score its corpus."""
    trainer = Trainer(make_recipe(case, world, texts, ranks.size), output / case, ranks)
    trainer.model.double()
    initial = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.train()
    scored = score_corpus(trainer.model, trainer.corpus("train"), tokens=200, ranks=ranks)
    stepped = trainer.engine.optimizer.state
    return {
        "initial": initial,
        "weights": trainer.model.state_dict(),
        "unused": [name for name, parameter in trainer.model.named_parameters() if parameter not in stepped],
        "logged": read_metrics(output / case / "metrics.jsonl"),
        "scores": scored.scores,
        "metrics": scored.metrics(),
    }


def main(world: Path, texts: Path, output: Path) -> None:
    ranks = connect()
    try:
        found = {case: run_case(case, world, texts, output, ranks) for case in CASES}
        torch.save(found, output / f"rank_{ranks.rank}.pt")
    finally:
        ranks.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
