"""Signals, to real processes: a command that trains, and a library's."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from crossmodal.train import checkpoints
from crossmodal.train.interrupts import Interrupted, Interrupts
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.trainer import Trainer

from ..commands import command
from ..recipes import write_recipe
from .runs import assert_same_run, recipe, rows_of, run_to_the_end, start, wait_until

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
SLOW = {"validation": {"every": 2}, "token_budget": 1}
"""Validation pair by pair."""


def ended(process: subprocess.Popen[bytes], log: Path) -> str:
    """What it said, once it has ended; none of it a traceback."""
    process.wait(60)
    said = log.read_text()
    assert "Traceback" not in said
    return said


def many(world: Path, **changes: Any) -> dict[str, Any]:
    """Enough steps for a signal to come before their end."""
    return recipe(world, steps=16, validation={"every": 8}, **changes)


@pytest.fixture(scope="module")
def whole(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of `many`."""
    folder = tmp_path_factory.mktemp("whole")
    return run_to_the_end(write_recipe(folder / "r.yaml", many(tiny_world)), folder / "run")


@pytest.mark.parametrize(
    ("number", "workers", "whole_group"),
    [(signal.SIGTERM, 0, False), (signal.SIGINT, 2, True), (signal.SIGTERM, 2, True)],
    ids=["kill", "ctrl_c_with_workers", "group_with_workers"],
)
def test_a_signal_ends_training_when_the_step_is_saved(
    number: signal.Signals, workers: int, whole_group: bool, tiny_world: Path, whole: Path, tmp_path: Path
) -> None:
    """Exit code, the line that says how to go on, and the run to which that leads."""
    source = write_recipe(tmp_path / "r.yaml", many(tiny_world, workers=workers))
    run, log = tmp_path / "a run", tmp_path / "log"
    process = start(source, run, log=log)
    wait_until(lambda: (run / "metrics.jsonl").is_file(), process)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    said = ended(process, log)
    assert process.returncode == 128 + number
    ((step, _),) = checkpoints.steps(run)
    assert 0 < step < 8 and max(row["step"] for row in rows_of(run)) == step
    (line,) = (line for line in said.splitlines() if "stopped by" in line)
    told, _, words = line.partition("; go on with crossmodal ")
    assert told == f"stopped by {number.name}"
    assert command(*shlex.split(words)) == 0
    assert_same_run(run, whole)


def test_a_second_signal_ends_it_at_once_with_the_last_checkpoint_whole(tiny_world: Path, tmp_path: Path) -> None:
    """In the middle of a step of many micro-steps."""
    values = recipe(tiny_world, steps=3, save_every=1)
    run, log = tmp_path / "run", tmp_path / "log"
    assert command("train", "--config", write_recipe(tmp_path / "r.yaml", {**values, "steps": 1}), "--output", run) == 0
    long = write_recipe(tmp_path / "long.yaml", {**values, "batch": 72, "accumulate": 72})
    process = start(long, run, "--resume", log=log)
    wait_until(lambda: "33%" in log.read_text(), process)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: "a second signal ends it at once" in log.read_text(), process)
    while process.poll() is None:  # those that come together with the first count as one
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    said = ended(process, log)
    assert process.returncode == 128 + signal.SIGINT and "ended at once by SIGINT; go on with crossmodal" in said
    folder, state = checkpoints.latest(run) or (None, {})
    assert folder == run / "checkpoints" / "step_1" and state["step"] == 1


def test_a_signal_during_validation_does_not_wait_for_its_end(tiny_world: Path, tmp_path: Path) -> None:
    values = recipe(tiny_world, steps=3, **SLOW)
    source = write_recipe(tmp_path / "r.yaml", values)
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(source, run, log=log)
    wait_until(lambda: (run / "checkpoints" / "step_2").is_dir(), process)
    process.terminate()
    ended(process, log)
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(row["name"].startswith("valid/") for row in rows_of(run)) and not (run / "best").exists()
    assert command("train", "--config", source, "--output", run, "--resume") == 0
    assert_same_run(run, run_to_the_end(source, tmp_path / "whole"))


# --- in a program that uses the library ----------------------------------------------------------------------------


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in HANDLED]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_handlers_are_those_of_the_program_before_and_after(
    number: signal.Signals, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = parse_recipe(recipe(tiny_world, steps=4))
    trainer = Trainer(values, tmp_path / "run")
    before = handlers()
    update = trainer.engine.update

    def signalled(step: int, batches: Any) -> dict[str, float]:
        if step == 2:
            assert handlers()[:2] != before[:2]
            signal.raise_signal(number)
        return update(step, batches)

    monkeypatch.setattr(trainer.engine, "update", signalled)
    with pytest.raises(Interrupted) as end:
        trainer.train()
    assert end.value.code == 128 + number and "--resume" in str(end.value)
    assert handlers() == before
    assert checkpoints.steps(tmp_path / "run")[-1][0] == trainer.step == 3
    trainer.engine.update = update  # type: ignore[method-assign]
    assert trainer.train()  # the same object goes on, too
    assert trainer.step == 4 and handlers() == before


def test_without_signals_and_in_another_thread_nothing_is_handled(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = handlers()
    seen: list[Any] = []

    def train(folder: str, **options: Any) -> None:
        trainer = Trainer(parse_recipe(recipe(tiny_world, steps=1)), tmp_path / folder, **options)
        update = trainer.engine.update

        def watched(step: int, batches: Any) -> dict[str, float]:
            seen.append(handlers())
            return update(step, batches)

        monkeypatch.setattr(trainer.engine, "update", watched)
        trainer.train()

    train("here", signals=False)
    thread = threading.Thread(target=train, args=("there",))
    thread.start()
    thread.join()
    assert seen == [before, before] and (tmp_path / "there" / "last").is_dir()


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts("") as interrupts:
            signal.raise_signal(signal.SIGINT)
            assert interrupts.asked is None
            signal.raise_signal(signal.SIGTERM)
            assert interrupts.asked == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_at_once_raises_where_the_signal_comes_and_before() -> None:
    with Interrupts("try again") as interrupts:
        with pytest.raises(Interrupted, match="stopped by SIGTERM; try again"), interrupts.at_once():
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it went on")
        with pytest.raises(Interrupted), interrupts.at_once():
            pytest.fail("it began although it was asked to end")
    with Interrupts("") as interrupts:
        with interrupts.at_once():
            pass
        signal.raise_signal(signal.SIGTERM)  # noted, not raised
        with pytest.raises(Interrupted):
            interrupts.stop_if_asked()
