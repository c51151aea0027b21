"""What the demos share: a fresh built-in world, the shipped recipes on it, and jobs side by side."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from crossmodal.data.parallel import end_with_parent
from crossmodal.data.scenes import write_world
from crossmodal.errors import ConfigError
from crossmodal.train.recipe import parse_recipe, read_config
from crossmodal.train.trainer import Trainer

QUICK_WORLD = {"train": 60, "val": 12, "test": 12}
QUICK_STEPS = 4

T = TypeVar("T")


def fresh_world(output: Path, seed: int, quick: bool, write: Callable[..., Path] = write_world) -> Path:
    """A world in the output folder, as `write` writes it. Raises ConfigError where that is not empty."""
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"the output folder {output} is not empty; choose another, or leave --output out")
    sizes: dict[str, Any] = QUICK_WORLD if quick else {"workers": os.cpu_count() or 1}
    return write(output / "world", seed=seed, **sizes)


def demo_recipe(name: str, world: Path, seed: int, quick: bool, checkpoint: Path | None = None) -> dict[str, Any]:
    """The mapping of a shipped recipe on this world, from this checkpoint; `quick` for a few steps on a tiny one."""
    values = read_config(name)
    values["seed"] = seed
    for data in values["data"].values():
        data["texts"], data["images"] = _within(world, data["texts"]), _within(world, data["images"])
    if "tokenizer" in values["model"]:
        values["model"]["tokenizer"] = _within(world, values["model"]["tokenizer"])
    if checkpoint is not None:
        values["model"]["checkpoint"] = str(checkpoint)
    if quick:
        values["steps"] = QUICK_STEPS
        if "validation" in values:
            values["validation"]["every"] = QUICK_STEPS
        for stream in values["streams"]:
            if "pool" in stream["data"]:
                stream["data"]["pool"] = QUICK_WORLD["train"] // 5
    return values


def _within(folder: Path, names: str | list[str]) -> Any:
    return str(folder / names) if isinstance(names, str) else [str(folder / name) for name in names]


def train(values: Mapping[str, Any], run: Path, progress: bool = True) -> Path:
    """Train a recipe; the checkpoint folder of its last step."""
    Trainer(parse_recipe(values), run, progress=progress, signals=False).train()  # nothing could go on with a demo
    return run / "last"


def side_by_side(jobs: Mapping[str, Callable[[bool], T]]) -> dict[str, T]:
    """Jobs at once, each in a process of its own with its share of the cores; the last one shows its progress."""
    threads = max(1, (os.cpu_count() or 1) // len(jobs))
    context = multiprocessing.get_context("spawn")
    shown = list(jobs)[-1]
    with ProcessPoolExecutor(len(jobs), mp_context=context, initializer=_begin, initargs=(threads,)) as pool:
        running = {name: pool.submit(job, name == shown) for name, job in jobs.items()}
        return {name: job.result() for name, job in running.items()}


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    end_with_parent()
