"""Runs on the tiny corpus, in this process and in others, and whether two of them are the same."""

from __future__ import annotations

import json
import os
import re
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
from ..launchers import LAUNCHERS, end, ranks_of
from ..launchers import start as launch
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
    """What was logged, but for where the time went: that differs from run to run."""
    return [row for row in read_metrics(run / "metrics.jsonl") if not row["name"].startswith("time/")]


def run_to_the_end(recipe: Path, output: Path, *more: object) -> Path:
    """An unbroken run, in this process."""
    assert command("train", "--config", recipe, "--output", output, *more) == 0
    return output


# --- of two ranks --------------------------------------------------------------------------------------------------


def of_two_ranks(world: Path, **changes: Any) -> dict[str, Any]:
    """What the fixture `two_ranks` has trained; with `save_every` it gives the same."""
    return recipe(world, **{"steps": 24, "batch": 3, "keep": 1, "validation": {"every": 12}, **changes})


class Job:
    """``train_itm.py --config source --output folder`` on two ranks, with --resume where the run is there already.

    A context, behind which nothing is left of it. `said` is what launcher and ranks wrote.
    """

    def __init__(self, launcher: str, source: Path, folder: Path, *options: object) -> None:
        self.launcher, self.folder = launcher, folder
        resume = ["--resume"] if (folder / "recipe.yaml").is_file() else []
        words = ["train_itm.py", "--config", source, "--output", folder, *resume]
        self.log = folder.with_suffix(".log")
        with self.log.open("w") as said:
            command = [*LAUNCHERS[launcher](2, *options), *map(str, words)]
            self.process = launch(command, stdout=said, stderr=subprocess.STDOUT)
        self.ranks: dict[int, int] = {}

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)

    def wait_for_steps(self, step: int) -> None:
        """Until it is behind a step, and neither validates nor is about to; `ranks` holds the processes then."""
        wait_until(lambda: logged_steps(self.folder) > step and logged_steps(self.folder) % 12 < 9, self.process)
        assert self.process.poll() is None, self.said
        self.ranks = ranks_of(self.process)

    def wait_for_new_ranks(self) -> None:
        """Until other processes than those in `ranks`, which takes them up, are there for both ranks."""
        before = set(self.ranks.values())

        def there() -> bool:
            self.ranks = ranks_of(self.process)
            return len(self.ranks) == 2 and before.isdisjoint(self.ranks.values())

        wait_until(there, self.process)
        assert self.process.poll() is None, self.said

    def wait_for_a_step(self) -> None:
        """Until one more is logged."""
        file = self.folder / "metrics.jsonl"
        before = file.stat().st_mtime_ns if file.is_file() else 0
        wait_until(lambda: file.is_file() and file.stat().st_mtime_ns > before, self.process)
        assert self.process.poll() is None, self.said

    def kill(self, number: int, rank: int) -> None:
        """Send a signal to a rank, or to the launcher where it is negative."""
        os.kill(self.process.pid if rank < 0 else self.ranks[rank], number)

    def wait(self) -> int:
        """Its exit code; it fails where the job does not end."""
        return self.process.wait(PATIENCE)

    @property
    def said(self) -> str:
        return self.log.read_text()


def exit_codes(said: str) -> dict[int, int]:
    """The exit codes of the ranks that failed, as a launcher has reported them."""
    found = re.findall(r"rank +: (\d+) \(local_rank: \d+\)\s+exitcode +: (-?\d+)", said)  # torchrun
    found += re.findall(r"Process (\d+) exit with status code (\d+)\.", said)  # horovodrun
    return {int(rank): int(code) for rank, code in found}


def logged_steps(run: Path) -> int:
    """The last step in metrics.jsonl, which may be written to right now."""
    file = run / "metrics.jsonl"
    *lines, _ = file.read_text().split("\n") if file.is_file() else [""]
    return json.loads(lines[-1])["step"] if lines else 0
