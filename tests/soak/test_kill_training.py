"""`kill -9` while training and saving: every restart goes on, and the run ends as an unbroken one, to the bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..recipes import tiny_recipe, write_recipe
from ..train.runs import ROOT, assert_same_run, hidden, run_to_the_end, start, wait_until

pytestmark = pytest.mark.soak

Record = Callable[[str, object], None]

STEPS_A_KILL = 8
"""More than a process makes before it is killed, so that none comes to the end."""


def recipe(world: Path, file: Path, steps: int, **changes: Any) -> Path:
    """Every step writes a checkpoint, every seventh validates."""
    values = tiny_recipe(world, steps=steps, save_every=1, validation={"every": 7}, batch=2, accumulate=1, **changes)
    return write_recipe(file, values)


@pytest.fixture(scope="module")
def whole(tiny_world: Path, kills: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run."""
    folder = tmp_path_factory.mktemp("whole")
    return run_to_the_end(recipe(tiny_world, folder / "r.yaml", STEPS_A_KILL * kills(50, 3)), folder / "run")


def test_a_command_that_is_killed_and_repeated_ends_as_an_unbroken_one(
    tiny_world: Path, whole: Path, tmp_path: Path, kills: Callable[..., int], record_property: Record
) -> None:
    """At random moments after training began. What is repeated is ``train_itm.py ... --resume``."""
    wanted, draw = kills(50, 3), random.Random(0)
    source = recipe(tiny_world, tmp_path / "r.yaml", STEPS_A_KILL * wanted)
    broken, log = tmp_path / "broken", tmp_path / "broken.log"
    done = saving = 0
    while done < wanted:
        log.write_bytes(b"")
        # Without a recipe in its folder, a run was killed before it had begun.
        process = start(source, broken, *(["--resume"] if (broken / "recipe.yaml").is_file() else []), log=log)
        wait_until(lambda: b"device cpu" in log.read_bytes(), process)
        time.sleep(draw.uniform(0, 0.6))
        process.kill()
        assert process.wait() == -signal.SIGKILL, log.read_text()
        done += 1
        saving += any(name.startswith(".step_") for name in hidden(broken))
    assert start(source, broken, "--resume").wait() == 0
    record_property("kills of the training command", done)
    record_property("of them with a half-written checkpoint left", saving)
    assert_same_run(broken, whole)


@pytest.mark.parametrize(("kind", "workers"), [("moments", 1), ("changes", 0)])
def test_a_kill_at_any_change_on_the_disk_loses_nothing(
    kind: str,
    workers: int,
    tiny_world: Path,
    whole: Path,
    tmp_path: Path,
    kills: Callable[..., int],
    record_property: Record,
) -> None:
    """At random moments with a worker, and before a file or folder is opened for writing, renamed or removed."""
    wanted = kills(50, 3)
    source = recipe(tiny_world, tmp_path / "r.yaml", STEPS_A_KILL * wanted, workers=workers)
    broken = tmp_path / "broken"
    worker = [sys.executable, "-m", "tests.train.kill_worker", kind, str(source), str(broken), str(wanted)]
    told = subprocess.run(worker, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-3000:]
    places = told.stdout.split()
    record_property(f"kills of training in a fork, {kind}, {workers} workers", len(places))
    if kind == "changes":
        record_property("of them at a rename or removal", sum(not place.startswith("open") for place in places))
    assert len(places) == wanted
    assert_same_run(broken, whole)
