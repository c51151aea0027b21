"""Runs on the tiny corpus, in this process and in others, and whether two of them are the same."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from crossmodal.data.batches import Batch
from crossmodal.evaluate.plots import read_metrics
from crossmodal.model.checkpoints import read_state
from crossmodal.train import checkpoints
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.trainer import Trainer

from ..commands import command
from ..recipes import tiny_recipe

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
"""Seconds after which a process that should have done something is given up."""


IAIS = {
    "use": "iais",
    "alignment": "singular",
    "side": "linguistic",
    "weight": {"schedule": "exp", "scale": 4.0},
    "tag": "self_attn_loss",
}


def pools(anchor: str, *more: dict[str, Any], **stream: Any) -> dict[str, Any]:
    return {
        "data": {"use": "train", "draw": "pools", "anchor": anchor, "pool": 6},
        "miner": {"use": "hardest", "keep": 3},
        "losses": [{"use": "margin_ranking", "tag": "rank_loss"}, *more],
        **stream,
    }


MIXED = [
    pools("text", IAIS, ratio=2.0),
    {
        "data": {"use": "train", "draw": "masked_words"},
        "losses": [{"use": "masked_words", "tag": "mlm"}],
        "ratio": 1.0,
    },
]


def recipe(world: Path, **changes: Any) -> dict[str, Any]:
    values = tiny_recipe(world, **{"streams": [pools("image"), pools("text", IAIS)], **changes})
    values["model"]["config"] = {**values["model"]["config"], "initializer_range": 0.2, "pretraining": True}
    return values


def train(values: dict[str, Any], output: Path, *, resume: bool = False) -> Trainer:
    trainer = Trainer(parse_recipe(values), output, resume=resume)
    trainer.train()
    return trainer


class Killed(Exception):
    """Stands for the end of the process."""


class Dying(Trainer):
    """Ends after the update `last`, with what was written until then left behind."""

    last: int

    def train(self) -> dict[str, float]:
        whole = self.engine.update

        def update(step: int, batches: Sequence[Sequence[Batch]]) -> dict[str, float]:
            if step == self.last:
                raise Killed
            return whole(step, batches)

        self.engine.update = update  # type: ignore[method-assign]
        return super().train()


def start(recipe: Path, output: Path, *more: object, log: Path | None = None) -> subprocess.Popen[bytes]:
    """``train_itm.py --config recipe --output output ...``, in a process group of its own."""
    words = ["train_itm.py", "--config", recipe, "--output", output, *more]
    with (log or output.with_suffix(".log")).open("ab") as said:
        return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, stderr=said, start_new_session=True)


def wait_until(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Until something is so, or the process has ended; fails where neither comes."""
    end = time.monotonic() + PATIENCE
    while not there() and process.poll() is None:
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the bit, through containers."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype and a.equal(b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{i}")
    else:
        assert a == b, where


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, training state and everything logged, to the bit; and nothing half-written is left."""
    assert rows_of(found) == rows_of(expected)
    names = [f"checkpoints/{folder.name}" for _, folder in checkpoints.steps(expected)]
    assert [f"checkpoints/{folder.name}" for _, folder in checkpoints.steps(found)] == names
    for name in ("best", "last", *names):
        assert_same(read_state(found / name), read_state(expected / name), name)
    assert (found / "best" / "best.json").read_text() == (expected / "best" / "best.json").read_text()
    assert_same(*(checkpoints.read_training(run / names[-1]) for run in (found, expected)), "training")
    assert hidden(found) == []


def hidden(run: Path) -> list[str]:
    """What stands under a temporary name in a run folder."""
    return sorted(path.name for path in (*run.glob(".*"), *run.glob("checkpoints/.*")))


def rows_of(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run / "metrics.jsonl")


def run_to_the_end(recipe: Path, output: Path, *more: object) -> Path:
    """An unbroken run, in this process."""
    assert command("train", "--config", recipe, "--output", output, *more) == 0
    return output
