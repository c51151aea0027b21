"""`kill -9` to one of two ranks: torchrun starts them again by itself, and the run ends as an unbroken one, to the bit.

At three kinds of moments: while the ranks start, while rank 0 writes a checkpoint, and while they train.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..recipes import write_recipe
from ..train.runs import Job, assert_same_run, hidden, of_two_ranks, wait_until

pytestmark = [pytest.mark.soak, pytest.mark.dist]

KINDS = ("start", "saving", "training")
STEPS_A_KILL = 8
"""More than ranks make before one of them is killed, so that they never come to the end."""
STARTING = 4.0
"""Seconds within which starting ranks are killed: imports, the meeting, the folder, the first step."""


def test_a_job_whose_ranks_are_killed_ends_as_an_unbroken_one(
    tiny_world: Path, tmp_path: Path, kills: Callable[..., int], record_property: Callable[[str, object], None]
) -> None:
    wanted, draw = kills(21, 3), random.Random(0)
    every = {"save_every": 1, "validation": {"every": 7}}
    source = write_recipe(tmp_path / "r.yaml", of_two_ranks(tiny_world, steps=STEPS_A_KILL * wanted, **every))
    run = tmp_path / "broken"
    counts = dict.fromkeys((*KINDS, "before the run's folder was there", "that left a half-written checkpoint"), 0)
    with Job("torchrun", source, run, "--max-restarts", wanted) as job:
        for number in range(wanted):
            job.wait_for_new_ranks()
            kind = KINDS[number % len(KINDS)]
            if kind == "start":
                time.sleep(draw.uniform(0, STARTING))
            else:
                job.wait_for_a_step()
            if kind == "training":
                time.sleep(draw.uniform(0, 0.6))
            if kind == "saving":
                wait_until(lambda: saving(run), job.process)
            job.kill(signal.SIGKILL, 0 if kind == "saving" else draw.randrange(2))
            counts[kind] += 1
            counts["before the run's folder was there"] += not run.exists()
            counts["that left a half-written checkpoint"] += saving(run)
        assert job.wait() == 0, job.said
    for kind, count in counts.items():
        record_property(f"kills of one of two ranks, {kind}", count)
    assert sum(counts[kind] for kind in KINDS) == wanted == job.said.count("failed (exitcode: ")
    with Job("torchrun", source, tmp_path / "whole") as unbroken:
        assert unbroken.wait() == 0, unbroken.said
    assert_same_run(run, tmp_path / "whole")


def saving(run: Path) -> bool:
    return any(name.startswith(".step_") for name in hidden(run))
