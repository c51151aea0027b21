"""A run that goes on is the unbroken one, whatever ended it and whatever it left."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crossmodal.errors import CheckpointError, ConfigError
from crossmodal.model.checkpoints import fingerprint, load
from crossmodal.model.checksums import SUMS, read_sums
from crossmodal.train import checkpoints
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.trainer import Trainer

from .runs import MIXED, Dying, Killed, assert_same_run, recipe, rows_of, train


def killed(values: dict[str, Any], output: Path, before: int) -> Path:
    """A run that ended before the update `before` = 0, 1, ..."""
    dying = Dying(parse_recipe(values), output)
    dying.last = before
    with pytest.raises(Killed):
        dying.train()
    return output


def resumed(values: dict[str, Any], output: Path) -> Trainer:
    torch.rand(3)  # another process would have another random state
    return train(values, output, resume=True)


@pytest.fixture(scope="module")
def values(tiny_world: Path) -> dict[str, Any]:
    return recipe(tiny_world, steps=6, optimizer={"lr": 0.01})


@pytest.fixture(scope="module")
def whole(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unbroken run of `values`, to be read only."""
    return train(values, tmp_path_factory.mktemp("whole") / "run").output


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of the unbroken run."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def broken(values: dict[str, Any], tmp_path: Path) -> Path:
    """The run of `values`, killed in step 6: step_2 and step_4 are there."""
    return killed(values, tmp_path / "broken", 5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"workers": 2},
        {"streams": MIXED},
        {"streams": MIXED, "workers": 1, "precision": "fp16"},
        {"batch": 17, "accumulate": 3, "optimizer": {"use": "adamw"}},  # 72 anchors: epochs end within the run
        {"validation": {"every": 3}, "save_every": 2},
    ],
    ids=["plain", "workers", "mixed", "mixed_workers_fp16", "over_epochs", "more_saves"],
)
def test_a_resumed_run_is_an_unbroken_one_to_the_bit(tiny_world: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """With dropout: weights, optimizer, scaler, random states and everything logged."""
    values = recipe(tiny_world, steps=7, **changes)
    assert values["model"]["dropout"] == 0.1
    run = killed(values, tmp_path / "broken", 5)
    assert [step for step, _ in checkpoints.steps(run)] == ([3, 4] if "save_every" in changes else [2, 4])
    assert max(row["step"] for row in rows_of(run)) == 5  # behind the checkpoint: an orphan
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "na')  # and a row that was being written
    assert resumed(values, run).step == 7
    assert_same_run(run, train(values, tmp_path / "whole").output)
    state = checkpoints.read_training(run / "checkpoints" / "step_7")
    assert state["step"] == 7 and len(state["optimizer"]["state"]) > 30


# --- at a step that is due -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["validate", "_write_last"])
def test_nothing_is_lost_where_validation_or_the_last_write_is_cut_off(
    call: str, values: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(parse_recipe(values), tmp_path / "run")
    original = getattr(trainer, call)

    def cut_off() -> Any:
        if trainer.step == 6:
            raise Killed
        return original()

    monkeypatch.setattr(trainer, call, cut_off)
    with pytest.raises(Killed):
        trainer.train()
    assert [step for step, _ in checkpoints.steps(tmp_path / "run")] == [4, 6]
    again = Trainer(parse_recipe(values), tmp_path / "run", resume=True)
    assert again.step == 6
    last = {row["name"].removeprefix("valid/"): row["value"] for row in rows_of(whole) if row["step"] == 6}
    assert again.train().items() <= last.items()
    assert_same_run(tmp_path / "run", whole)


def test_validation_is_repeated_where_its_rows_are_not_all_there(
    values: dict[str, Any], whole: Path, finished: Path
) -> None:
    text = (finished / "metrics.jsonl").read_text()
    for cut in (text.index('"step": 6, "name": "valid/') + 60, len(text) - 20):
        (finished / "metrics.jsonl").write_text(text[:cut])
        resumed(values, finished)
        assert_same_run(finished, whole)


def test_a_finished_run_gives_its_metrics_and_leaves_its_files_alone(
    values: dict[str, Any], whole: Path, finished: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    metrics = Trainer(parse_recipe(values), finished, resume=True).train()
    assert metrics and metrics == {
        row["name"].removeprefix("valid/"): row["value"]
        for row in rows_of(whole)
        if row["step"] == 6 and row["name"].startswith("valid/")
    }
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before
    assert_same_run(finished, whole)


@pytest.mark.parametrize("damage", [shutil.rmtree, lambda last: (last / "model.safetensors").write_bytes(b"cut off")])
def test_a_finished_run_writes_its_last_checkpoint_again(
    damage: Callable[[Path], object], values: dict[str, Any], whole: Path, finished: Path
) -> None:
    damage(finished / "last")
    resumed(values, finished)
    assert_same_run(finished, whole)


def test_the_best_checkpoint_says_of_which_step_it_is(values: dict[str, Any], whole: Path) -> None:
    values_at = {row["step"]: row["value"] for row in rows_of(whole) if row["name"] == "valid/r_mean"}
    best = json.loads((whole / "best" / "best.json").read_text())
    assert best == {"step": best["step"], "metric": "r_mean", "value": max(values_at.values())}
    assert values_at[best["step"]] == best["value"] and list(values_at) == [2, 4, 6]
    assert "best.json" in (read_sums(whole / "best") or {})


# --- damaged checkpoints -------------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", flip),
        ("model.safetensors", cut),
        ("training.pt", flip),
        ("training.pt", cut),
        ("model.json", flip),
        (SUMS, cut),
        ("training.pt", Path.unlink),
    ],
)
def test_the_last_good_checkpoint_is_taken_where_later_ones_are_damaged(
    name: str,
    damage: Callable[[Path], object],
    values: dict[str, Any],
    whole: Path,
    broken: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(broken / "checkpoints" / "step_4" / name)
    with caplog.at_level(logging.WARNING, logger="crossmodal"):
        trainer = Trainer(parse_recipe(values), broken, resume=True)
    assert trainer.step == 2
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"going on from {broken / 'checkpoints' / 'step_2'}, since step_4 cannot be used (")
    assert name in said and "\n" not in said
    trainer.train()
    assert (broken / "checkpoints" / "step_4.damaged").is_dir()
    assert_same_run(broken, whole)


def test_a_truncated_checkpoint_of_another_tool_is_passed_over_too(
    values: dict[str, Any], whole: Path, broken: Path
) -> None:
    """Without checksums, what cannot be read is known."""
    for step in (2, 4):
        (broken / "checkpoints" / f"step_{step}" / SUMS).unlink()
    cut(broken / "checkpoints" / "step_4" / "model.safetensors")
    assert resumed(values, broken).output == broken
    assert (broken / "checkpoints" / "step_4.damaged").is_dir()
    assert_same_run(broken, whole)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_in_one_sentence(
    values: dict[str, Any], broken: Path
) -> None:
    for step in (2, 4):
        flip(broken / "checkpoints" / f"step_{step}" / "training.pt")
    with pytest.raises(CheckpointError) as error:
        Trainer(parse_recipe(values), broken, resume=True)
    said = str(error.value)
    assert said.startswith(f"each of the 2 checkpoints in {broken / 'checkpoints'} is damaged (")
    assert "step_4/training.pt is damaged: its content does not match SHA256SUMS" in said and "\n" not in said
    assert said.endswith("start again with a new output folder")
    assert [step for step, _ in checkpoints.steps(broken)] == [2, 4]  # nothing was renamed


def test_a_damaged_best_checkpoint_is_said_and_written_anew(
    values: dict[str, Any], whole: Path, broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best_step = json.loads((whole / "best" / "best.json").read_text())["step"]
    assert best_step == 6  # so that it is written after the damage
    flip(broken / "best" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"best/model\.safetensors is damaged"):
        load(broken)
    resumed(values, broken)
    assert "best cannot be used" in caplog.text
    assert_same_run(broken, whole)


@pytest.mark.parametrize("renamed", [True, False], ids=["between_the_renames", "before_them"])
def test_a_checkpoint_that_was_being_replaced_is_put_in_place(
    renamed: bool, values: dict[str, Any], whole: Path, broken: Path
) -> None:
    """Killed while step_4 was written a second time (after it had been resumed from before it)."""
    folder = broken / "checkpoints"
    shutil.copytree(folder / "step_4", folder / ".step_4.partial")
    shutil.copytree(broken / "best", broken / ".best.partial")
    if renamed:
        (folder / "step_4").rename(folder / ".step_4.old")
        (broken / "best").rename(broken / ".best.old")
    else:
        cut(folder / ".step_4.partial" / "training.pt")
        cut(broken / ".best.partial" / "model.safetensors")
    trainer = Trainer(parse_recipe(values), broken, resume=True)
    assert trainer.step == 4 and trainer.best > 0
    trainer.train()
    assert_same_run(broken, whole)


def test_the_best_of_steps_that_are_gone_over_again_does_not_count(
    values: dict[str, Any], whole: Path, finished: Path
) -> None:
    best = json.loads((whole / "best" / "best.json").read_text())
    assert best["step"] == 6
    flip(finished / "checkpoints" / "step_6" / "training.pt")
    again = Trainer(parse_recipe(values), finished, resume=True)
    assert (again.step, again.best) == (4, -1.0)
    again.train()
    assert again.best == best["value"]
    assert_same_run(finished, whole)


# --- before the first checkpoint -----------------------------------------------------------------------------------


def test_a_run_without_a_checkpoint_yet_starts_from_the_beginning(
    values: dict[str, Any], whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = killed(values, tmp_path / "run", 1)
    assert [row["step"] for row in rows_of(run)] and not checkpoints.steps(run)
    resumed(values, run)
    assert f"{run} holds no checkpoint yet: starting from the beginning" in caplog.text
    assert_same_run(run, whole)


@pytest.mark.parametrize("content", [None, "", "notes.txt", ".download.partial"])
def test_a_folder_that_is_no_run_is_not_resumed(content: str | None, values: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    if content is not None:
        run.mkdir()
    if content:
        (run / content).write_text("mine")
    with pytest.raises(CheckpointError, match=r"run holds no checkpoint to resume from \(checkpoints/step_\*\)"):
        Trainer(parse_recipe(values), run, resume=True)
    assert (run.exists(), list(run.glob("*"))) == (content is not None, [run / content] if content else [])


def test_a_start_that_was_killed_before_it_wrote_anything_whole_is_no_used_folder(
    values: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / ".recipe.yaml.123.partial").write_text("na")
    assert Trainer(parse_recipe(values), tmp_path).step == 0


# --- another recipe ------------------------------------------------------------------------------------------------


def test_what_differs_from_the_recipe_of_the_run_is_said(
    values: dict[str, Any], broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = {**values, "steps": 8, "optimizer": {**values["optimizer"], "lr": 0.02}}
    changed["streams"] = [*values["streams"][:1], {**values["streams"][1], "miner": {"use": "hardest", "keep": 2}}]
    trainer = Trainer(parse_recipe(changed), broken, resume=True)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == ["going on with another recipe than before; what differs: steps, streams.1.miner.keep, optimizer.lr"]
    assert trainer.step == 4
    caplog.clear()
    Trainer(parse_recipe(changed), broken, resume=True)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_recipes_that_the_checkpoint_does_not_fit_are_refused(values: dict[str, Any], broken: Path) -> None:
    def refuse(error: type[Exception], said: str, **changes: Any) -> None:
        changed = {**values, **changes}
        with pytest.raises(error, match=said) as found:
            Trainer(parse_recipe(changed), broken, resume=True)
        assert "\n" not in str(found.value)

    refuse(ConfigError, r"step_4 is at step 4, the recipe has 3 steps; raise steps to go on", steps=3)
    model = {**values["model"], "config": {**values["model"]["config"], "intermediate_size": 128}}
    refuse(
        CheckpointError, r"step_4 has other shapes than the model in 6 tensors: .*\(64, 32\) instead of", model=model
    )
    refuse(CheckpointError, r"step_4 was trained with another optimizer, precision", precision="fp16")
    adam = {**values["optimizer"], "use": "adam"}
    refuse(ConfigError, "the optimizer published_adamw, whose state does not fit adam; resume with", optimizer=adam)
    assert checkpoints.steps(broken)[-1][0] == 4 and "recipe.yaml" in {path.name for path in broken.iterdir()}


def test_training_goes_on_where_the_steps_were_raised(values: dict[str, Any], finished: Path, whole: Path) -> None:
    more = {**values, "steps": 7, "optimizer": {**values["optimizer"], "betas": [0.8, 0.9], "weight_decay": 0.3}}
    trainer = resumed(more, finished)
    groups = trainer.engine.optimizer.param_groups
    assert [(group["betas"], group["weight_decay"]) for group in groups] == [((0.8, 0.9), 0.3), ((0.8, 0.9), 0.0)]
    assert [step for step, _ in checkpoints.steps(finished)] == [6, 7]
    assert fingerprint(finished / "last") == fingerprint(finished / "checkpoints" / "step_7") != fingerprint(whole)
