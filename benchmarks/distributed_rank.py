"""What a process of `distributed.py` does, in turns with the others: train, score a corpus, or rest. It times itself.

    torchrun --nproc-per-node 2 distributed_rank.py WORLD OUTPUT --name torchrun --processes 3 -- - flat all

WORLD holds recipe.json, whose `batch` is that of all ranks together. Start-up is not in any of the times.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from crossmodal.data.batches import Batch
from crossmodal.evaluate.job import ScoringJob
from crossmodal.train.distributed import OneProcess, connect
from crossmodal.train.recipe import load_recipe
from crossmodal.train.setup import build_model, open_data
from crossmodal.train.trainer import Trainer

SHARES = ("compute", "data", "communication")
WAYS = ("flat", "overlapped")
REST = "-"
PATIENCE = 900.0
"""Seconds after which a turn, or a launch, is given up."""


def train(world: Path, output: Path, way: str, warm_up: int, ranks: OneProcess) -> dict[str, Any]:
    """Wall and CPU seconds of every update after the first `warm_up`, from one beginning to the next; on rank 0 also
    the logged shares."""
    recipe = load_recipe(world / "recipe.json", [f"distributed.gradients={way}"])
    recipe = recipe.model_copy(update={"batch": recipe.batch // ranks.size})
    trainer = Trainer(recipe, output, ranks, progress=False, signals=False)
    begun: list[tuple[float, float]] = []
    whole = trainer.engine.update

    def update(step: int, batches: Sequence[Sequence[Batch]]) -> dict[str, float]:
        begun.append((time.perf_counter(), time.process_time()))
        return whole(step, batches)

    trainer.engine.update = update  # type: ignore[method-assign]
    trainer.train()
    wall, cpu = (np.diff(times)[warm_up:].tolist() for times in zip(*begun, strict=True))
    return {"wall": wall, "cpu": cpu, **(_logged(output, warm_up) if ranks.rank == 0 else {})}


def _logged(output: Path, warm_up: int) -> dict[str, float]:
    """The mean share of the time of each of SHARES."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    counted = [row for row in rows if row["step"] > warm_up]
    return {name: fmean(row["value"] for row in counted if row["name"] == f"time/{name}") for name in SHARES}


class Scoring:
    """A corpus of the recipe and a model, ready to score it."""

    def __init__(self, world: Path, name: str, ranks: OneProcess) -> None:
        recipe = load_recipe(world / "recipe.json")
        few, self.corpus = open_data(recipe.data["few"]), open_data(recipe.data[name])
        self.model, self.ranks = build_model(recipe.model, lambda: few), ranks
        ScoringJob(self.model, few).run()

    def __call__(self) -> dict[str, float]:
        exchanged = self.ranks.seconds
        start, cpu = time.perf_counter(), time.process_time()
        job = ScoringJob(self.model, self.corpus, ranks=self.ranks)
        encoded = time.perf_counter()
        job.run()
        end = time.perf_counter()
        return {
            "pairs": job.pairs,
            "wall": end - start,
            "cpu": time.process_time() - cpu,
            "data": encoded - start,
            "communication": self.ranks.seconds - exchanged,
        }


def meet(output: Path, turn: int, processes: int) -> None:
    """Wait until all processes have come to this turn. Raises TimeoutError where some do not come."""
    end = time.monotonic() + PATIENCE
    (output / f"turn_{turn}_{os.getpid()}").touch()
    while len(list(output.glob(f"turn_{turn}_*"))) < processes:
        if time.monotonic() > end:
            raise TimeoutError(f"not all of {processes} processes came to turn {turn}")
        time.sleep(0.01)


def main(ranks: OneProcess) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("world", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("turns", nargs="+", help="a way of distributed.gradients, a corpus, or - for a rest")
    parser.add_argument("--name", required=True, help="what the file of results is called, before the rank")
    parser.add_argument("--processes", type=int, required=True, help="how many take turns")
    parser.add_argument("--warm-up", type=int, default=2, help="updates that are not counted")
    given = parser.parse_args()
    scorings = {name: Scoring(given.world, name, ranks) for name in {*given.turns} - {*WAYS, REST}}
    found: list[dict[str, Any]] = []
    for turn, task in enumerate(given.turns):
        meet(given.output, turn, given.processes)
        if task in WAYS:
            found.append(train(given.world, given.output / f"{given.name}_{turn}", task, given.warm_up, ranks))
        elif task != REST:
            found.append(scorings[task]())
    (given.output / f"{given.name}_{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with connect() as connected:
        main(connected)
