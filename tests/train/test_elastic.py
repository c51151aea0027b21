"""Horovod elastic on one machine: after a loss the ranks that are left go on from the last checkpoint by themselves."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import pytest

from crossmodal.train import checkpoints

from ..commands import command
from ..recipes import write_recipe
from .runs import Job, assert_same_run, exit_codes, of_two_ranks, rows_of

pytestmark = pytest.mark.dist


def test_a_killed_rank_leaves_a_run_of_one_rank(tiny_world: Path, two_ranks: Path, tmp_path: Path) -> None:
    """Until the loss it is the run of two ranks, then that of one process which resumes it; rank 0 is another one."""
    source = write_recipe(tmp_path / "r.yaml", of_two_ranks(tiny_world, save_every=1, keep=24))
    # Horovod shuts out a host that a rank was lost on: the machine is one host under either name.
    hosts = tmp_path / "hosts.sh"
    hosts.write_text("#!/bin/sh\necho localhost:1\necho 127.0.0.1:1\n")
    hosts.chmod(0o755)
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    with Job("horovodrun", source, run, "--min-np", 1, "--max-np", 2, "--host-discovery-script", hosts) as job:
        job.wait_for_steps(2)
        job.kill(signal.SIGKILL, 0)
        assert job.wait() == 0, job.said
    (found,) = re.findall(r"resumed from .* at step (\d+) of 24", job.said)
    step = int(found)
    assert 2 <= step < 24 and "rank 0 of 1 on" in job.said and exit_codes(job.said) == {0: 137}
    assert [row for row in rows_of(run) if row["step"] <= step] == [r for r in rows_of(two_ranks) if r["step"] <= step]

    shutil.copytree(run, resumed)
    for number, folder in checkpoints.steps(resumed):
        if number > step:
            shutil.rmtree(folder)
    shutil.rmtree(resumed / "last")
    assert command("train", "--config", source, "--output", resumed, "--resume") == 0
    assert_same_run(run, resumed)
