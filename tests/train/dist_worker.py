"""Trains and scores the cases of `test_distributed.py` on this process's rank and writes down what came out.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.train.dist_worker CORPUS OUTPUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crossmodal.evaluate.retrieval import score_corpus
from crossmodal.train.distributed import OneProcess, connect
from crossmodal.train.metrics import read_metrics
from crossmodal.train.recipe import Recipe
from crossmodal.train.trainer import Trainer

from .tiny import pools, recipe, tiny_config

GLOBAL_BATCH = 6
"""Anchors of an update over all ranks. The corpus has 25, so the fifth update of an epoch has one anchor."""

MARGIN = {"use": "margin_ranking", "margin": 0.2}
PRETRAINING = {"config": tiny_config(pretraining=True), "dropout": 0.0}
MASKED = {
    "data": {"use": "train", "draw": "masked_words", "probability": 0.3},
    "losses": [{"use": "masked_words", "weight": 0.5}, {"use": "itm"}],
}


def _iais(alignment: str, side: str) -> dict[str, Any]:
    weight = {"schedule": "exp", "scale": 8.0}
    return {"use": "iais", "alignment": alignment, "side": side, "weight": weight}


def _both_ways(alignment: str, *sides: str) -> list[dict[str, Any]]:
    text, image = sides if len(sides) == 2 else 2 * sides
    return [pools("text", MARGIN, _iais(alignment, text)), pools("image", MARGIN, _iais(alignment, image))]


Case = Callable[[dict[str, Any], int, bool], Recipe]


def _case(*streams: dict[str, Any], accumulate: int = 1, **changes: Any) -> Case:
    """A recipe from (data, anchors a rank, whether to accumulate)."""

    def make(data: dict[str, Any], batch: int, accumulating: bool) -> Recipe:
        return recipe(data, *streams, batch=batch, accumulate=accumulate if accumulating else 1, **changes)

    return make


CASES: dict[str, Case] = {
    "margin": _case(pools("text", MARGIN), pools("image", MARGIN)),
    "iais_singular": _case(*_both_ways("singular", "linguistic", "visual")),
    "iais_distributed": _case(*_both_ways("distributed", "linguistic", "visual")),
    "iais_both_sides": _case(*_both_ways("singular", "both")),
    "masked_words": _case(pools("text", MARGIN), MASKED, model=PRETRAINING),
    "accumulated": _case(*_both_ways("singular", "linguistic", "visual"), MASKED, accumulate=2, model=PRETRAINING),
    "mixed": _case({**pools("image", MARGIN), "ratio": 1.0}, {**MASKED, "ratio": 2.0}, model=PRETRAINING),
}


def run_case(name: str, data: dict[str, Any], output: Path, ranks: OneProcess) -> dict[str, Any]:
    """Train a case with GLOBAL_BATCH anchors an update, whatever the number of ranks, and score the corpus.

    Under several ranks, a case that accumulates does so; one process takes its whole batch at once.
    """
    made = CASES[name](data, GLOBAL_BATCH // ranks.size, ranks.size > 1)
    trainer = Trainer(made, output / name, ranks)
    trainer.model.double()
    initial = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    scored = score_corpus(trainer.model, trainer.corpus("val"), tokens=200, ranks=ranks)
    return {
        "initial": initial,
        "weights": trainer.model.state_dict(),
        "logged": read_metrics(output / name),
        "scores": scored.scores,
        "metrics": scored.metrics(),
        "without_gradient": [n for n, p in trainer.model.named_parameters() if p not in trainer.engine.optimizer.state],
    }


def main(corpus: Path, output: Path) -> None:
    ranks = connect()
    data = json.loads(corpus.read_text())
    try:
        found = {name: run_case(name, data, output, ranks) for name in CASES}
        torch.save(found, output / f"rank_{ranks.rank}.pt")
    finally:
        ranks.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
