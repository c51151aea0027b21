"""A disk without room: one sentence, nothing half-written, the older checkpoints whole; then the run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossmodal.model.checksums import check_sums
from crossmodal.train import checkpoints

from ..commands import command
from ..full_disk import limited, needs_small_disk, on_small_disk, one_sentence, size_of
from ..recipes import tiny_recipe, write_recipe
from .runs import Dying, Killed, assert_same_run, hidden, parse_recipe, rows_of, run_to_the_end

STEPS = 12


@pytest.fixture(scope="module")
def values(tiny_world: Path) -> dict[str, Any]:
    return tiny_recipe(tiny_world, steps=STEPS, save_every=3, validation={"every": 6})


@pytest.fixture(scope="module")
def whole(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unbroken run of `values`."""
    folder = tmp_path_factory.mktemp("whole")
    return run_to_the_end(write_recipe(folder / "r.yaml", values), folder / "run")


def assert_whole(run: Path, step: int) -> None:
    """All that stands there under its name can be used, and the latest checkpoint is that of `step`."""
    assert checkpoints.steps(run)[-1][0] == step and hidden(run) == []
    for folder in (*(folder for _, folder in checkpoints.steps(run)), run / "best", run / "last"):
        if folder.exists():
            check_sums(folder)
    text = (run / "metrics.jsonl").read_text()
    assert text.endswith("\n") and rows_of(run)
    assert not (run / "last").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "training.pt", "metrics.jsonl"])
def test_a_file_that_cannot_become_so_large(
    file: str, values: dict[str, Any], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files ends writing as a full disk does, in the middle of the file."""
    source, run = write_recipe(tmp_path / "r.yaml", values), tmp_path / "run"
    dying = Dying(parse_recipe(values), run)
    dying.last = 7
    with pytest.raises(Killed):
        dying.train()
    sizes = {path.name: path.stat().st_size for path in (run / "checkpoints" / "step_6").iterdir()}
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    resumed = sum(len(line) for line in lines if json.loads(line)["step"] <= 6)
    limits = {
        "training.pt": sizes["training.pt"] - 100,
        "model.safetensors": sizes["model.safetensors"] - 100,
        "metrics.jsonl": resumed + 300,  # a step's rows, and part of the next one's
    }
    with limited(limits[file]):
        assert command("train", "--config", source, "--output", run, "--resume") == 2
    said = one_sentence(capsys.readouterr().err)
    name = "metrics.jsonl" if file == "metrics.jsonl" else "checkpoints/step_9"
    assert said.startswith(f"error: {run / name} could not be written: file too large (this process may write files of")
    assert said.endswith("free some space and repeat the command, for training with --resume")
    assert_whole(run, 6)
    assert command("train", "--config", source, "--output", run, "--resume") == 0
    assert_same_run(run, whole)


@needs_small_disk
@pytest.mark.parametrize(("checkpoints_that_fit", "reached"), [(1.3, 3), (2.9, 6)])
def test_a_disk_that_is_full(
    checkpoints_that_fit: float, reached: int, values: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    """With room for step_3 and no more; and for step_3, step_6 and part of best."""
    source, disk = write_recipe(tmp_path / "r.yaml", values), tmp_path / "disk"
    disk.mkdir()
    one = size_of(whole / "checkpoints" / f"step_{STEPS}")
    size = 2 * size_of(whole)
    free = int(checkpoints_that_fit * one) - (size_of(whole / "best") if reached == 6 else 0)
    done = on_small_disk(disk, size, free, tmp_path / "kept", "train", "--config", source, "--output", disk / "run")
    assert done.stdout.split() == ["2", "0"], done.stderr
    said = next(line for line in done.stderr.splitlines() if "error: " in line)
    assert f"{disk}/run/" in said and "could not be written: no space left on device (" in said
    assert "Traceback" not in done.stderr
    assert_whole(tmp_path / "kept" / "full" / "run", reached)
    assert_same_run(tmp_path / "kept" / "after" / "run", whole)
