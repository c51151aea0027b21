"""What goes wrong on one rank of two: all of them end, say why, and the run goes on to the same end, to the bit."""

from __future__ import annotations

import json
import math
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from crossmodal.data.samplers import GlobalOrder
from crossmodal.model.checksums import check_sums
from crossmodal.train import checkpoints, trainer
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.setup import open_data

from ..launchers import ROOT, run, torchrun
from ..recipes import write_recipe
from .rank_worker import Noted
from .runs import Job, assert_same, assert_same_run, exit_codes, hidden, of_two_ranks, recipe, train

pytestmark = pytest.mark.dist

MATCHED = {"losses": [{"use": "masked_words", "tag": "mlm"}]}
LAUNCHER = -1


def assert_no_traceback_of_ours(said: str) -> None:
    """Launchers end with one of their own."""
    assert f'File "{ROOT / "crossmodal"}' not in said, said


def assert_ended(job: Job, codes: dict[int, int]) -> None:
    """With these exit codes of its ranks: torchrun reports all, horovodrun at least one."""
    assert_no_traceback_of_ours(job.said)
    found = exit_codes(job.said)
    assert found == codes or (job.launcher == "horovodrun" and found and found.items() <= codes.items()), job.said


def assert_goes_on_to_the_same_end(source: Path, folder: Path, unbroken: Path) -> None:
    with Job("torchrun", source, folder) as job:
        assert job.wait() == 0, job.said
    assert_same_run(folder, unbroken)


def test_a_signal_to_one_rank_ends_all_of_them_when_the_step_is_saved(
    tiny_world: Path, two_ranks: Path, tmp_path: Path
) -> None:
    """One run that is stopped in each of these ways, resumed by another launcher, too."""
    source, folder = write_recipe(tmp_path / "r.yaml", of_two_ranks(tiny_world)), tmp_path / "run"
    reached = 0
    for launcher, number, rank in (
        ("torchrun", signal.SIGTERM, 1),
        ("horovodrun", signal.SIGTERM, 1),
        ("torchrun", signal.SIGUSR1, 0),
        ("torchrun", signal.SIGTERM, LAUNCHER),
    ):
        with Job(launcher, source, folder) as job:
            job.wait_for_steps(reached)
            job.kill(number, rank)
            job.wait()
        assert_no_traceback_of_ours(job.said)
        assert f"stopped by {number.name}; go on with crossmodal train " in job.said
        if rank != LAUNCHER:
            assert_ended(job, {0: 128 + number, 1: 128 + number})
        assert job.process.returncode != 0
        ((step, _),) = checkpoints.steps(folder)
        assert reached < step < 24 and not hidden(folder)
        reached = step
    assert_goes_on_to_the_same_end(source, folder, two_ranks)


def test_a_killed_rank_ends_the_job_and_the_others_say_so(tiny_world: Path, two_ranks: Path, tmp_path: Path) -> None:
    source = write_recipe(tmp_path / "r.yaml", of_two_ranks(tiny_world, save_every=2))
    folder = tmp_path / "run"
    reached = 0
    for launcher, rank, reported in (("torchrun", 1, -9), ("horovodrun", 0, 128 + 9)):
        with Job(launcher, source, folder) as job:
            job.wait_for_steps(reached + 2)
            job.kill(signal.SIGKILL, rank)
            assert job.wait() != 0
        assert_ended(job, {rank: reported, 1 - rank: 75})
        assert f"error: rank {1 - rank} has lost the others: " in job.said and "with --resume" in job.said
        assert "stopped by" not in job.said
        step, _ = checkpoints.steps(folder)[-1]
        assert step > reached
        reached = step
    assert_goes_on_to_the_same_end(source, folder, two_ranks)


def test_a_disk_that_is_full_for_the_rank_that_writes(tiny_world: Path, two_ranks: Path, tmp_path: Path) -> None:
    """From some step on rank 0 may not write files as large as a checkpoint's."""
    source = write_recipe(tmp_path / "r.yaml", of_two_ranks(tiny_world, save_every=3))
    folder = tmp_path / "run"
    with Job("torchrun", source, folder) as job:
        job.wait_for_steps(3)
        most = (two_ranks / "checkpoints" / "step_24" / "training.pt").stat().st_size // 2
        resource.prlimit(job.ranks[0], resource.RLIMIT_FSIZE, (most, most))
        job.wait()
    assert_ended(job, {0: 2, 1: 75})
    (line,) = (line for line in job.said.splitlines() if "could not be written" in line)
    assert line.startswith(f"error: {folder / 'checkpoints'}/step_") and "file too large" in line
    step, last = checkpoints.steps(folder)[-1]
    assert 3 <= step < 24 and not hidden(folder)
    check_sums(last)
    assert_goes_on_to_the_same_end(source, folder, two_ranks)


# --- with what each rank has seen ----------------------------------------------------------------------------------


def faulty(world: Path, **options: Any) -> dict[str, Any]:
    stream = {"data": {"use": "train", "draw": "test_faulty", **options}, **MATCHED, "name": "faulty"}
    return recipe(world, streams=[stream], steps=24, batch=3, accumulate=1, validation=None)


def anchors_of(values: dict[str, Any], step: int, rank: int) -> list[str]:
    """The captions that one of two ranks trains on in a step."""
    anchors = open_data(parse_recipe(values).data["train"]).anchors
    order = GlobalOrder(len(anchors), values["batch"], seed=values["seed"], stream="faulty", rank=rank, world=2)
    return [anchors[i][1] for i in order.slice(step)[1].tolist()]


def train_noted(values: dict[str, Any], tmp_path: Path, launcher: list[str], *more: object) -> tuple[Any, Path]:
    """`rank_worker` under a launcher."""
    notes = tmp_path / "notes"
    notes.mkdir(exist_ok=True)
    source = write_recipe(tmp_path / "r.yaml", values)
    words = ["-m", "tests.train.rank_worker", notes, "--config", source, "--output", tmp_path / "run", *more]
    return run([*launcher, *map(str, words)]), notes


def test_numbers_that_are_not_finite_on_one_rank_skip_the_step_on_all(tiny_world: Path, tmp_path: Path) -> None:
    """Twice; the second time is once too many."""
    values = faulty(tiny_world)
    bad = {3: anchors_of(values, 2, rank=1)[0], 6: anchors_of(values, 5, rank=0)[2]}
    values = faulty(tiny_world, spoilt=list(bad.values())) | {"max_skipped": 1, "save_every": 1}
    done, notes = train_noted(values, tmp_path, torchrun(2))
    assert_no_traceback_of_ours(done.stderr)
    assert "error: the losses or gradients of 2 steps were not finite, max_skipped allows 1; " in done.stderr
    folder = tmp_path / "run"
    rows = [json.loads(line) for line in (folder / "not_finite.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]
    for row in rows:
        held = [{text for ((text, _),) in batch["groups"]} for batch in row["batches"]]
        assert held == [set(anchors_of(values, row["step"] - 1, rank)) for rank in (0, 1)]
        losses = [float(batch["losses"]["mlm"]) for batch in row["batches"]]
        assert [math.isnan(loss) for loss in losses] == [bad[row["step"]] in ids for ids in held]
    assert checkpoints.latest(folder)[1]["step"] == 5  # type: ignore[index]
    a, b = (torch.load(notes / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_same(a, b)
    assert a["skipped"] == 2 and all(weight.isfinite().all() for weight in a["weights"].values())


def test_a_loader_process_that_is_killed_on_one_rank_names_what_it_was_reading(
    tiny_world: Path, tmp_path: Path
) -> None:
    values = faulty(tiny_world)
    reading = anchors_of(values, 4, rank=1)
    values = faulty(tiny_world, deadly=reading[1]) | {"workers": 1}
    done, _ = train_noted(values, tmp_path, torchrun(2))
    assert done.returncode == 1
    assert_no_traceback_of_ours(done.stderr)
    said = [line for line in done.stderr.splitlines() if "error: a process that reads batches" in line]
    assert len(said) == 1, done.stderr
    assert "Killed" in said[0] or "exited unexpectedly" in said[0]
    assert f"while it read the batch of the anchors {', '.join(reading)}; " in said[0]
    assert exit_codes(done.stderr) == {0: 75, 1: 2}


def test_other_ranks_go_on_with_what_an_epoch_has_left(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 72 anchors two ranks see 30, three 24, and one process the other 18, with its own batches."""
    values = recipe(tiny_world, streams=[{"data": {"use": "train", "draw": "masked_words"}, **MATCHED}],
                    accumulate=1, validation=None, keep=9)  # fmt: skip
    for ranks, batch, steps, resume in ((2, 5, 3, []), (3, 4, 5, ["--resume"])):
        done, notes = train_noted({**values, "batch": batch, "steps": steps}, tmp_path, torchrun(ranks), *resume)
        assert done.returncode == 0, done.stderr
    monkeypatch.setattr(trainer, "StreamLoader", Noted)
    monkeypatch.setattr(Noted, "notes", notes, raising=False)
    train({**values, "batch": 7, "steps": 9}, tmp_path / "run", resume=True)
    rows = [json.loads(line) for file in notes.glob("*.jsonl") for line in file.read_text().splitlines()]
    seen = [[id for row in rows if row["epoch"] == epoch for id in row["ids"]] for epoch in (0, 1)]
    assert sorted(seen[0]) == sorted(f"train_{image:02d}_{n}" for image in range(24) for n in range(3))
    assert len(set(seen[1])) == len(seen[1]) == 7
    held = {file.stem: sum(len(json.loads(line)["ids"]) for line in file.read_text().splitlines())
            for file in notes.glob("*.jsonl")}  # fmt: skip
    assert held == {"rank_0": 15 + 8 + 25, "rank_1": 15 + 8, "rank_2": 8}
