"""Mistakes on the command line: one sentence that says what to do, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from crossmodal.model.checksums import write_sums

from .commands import command, databases, refused
from .recipes import tiny_recipe, write_recipe


def test_unknown_keys_and_several_mistakes_at_once(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["--set", "stepps=3", "--set", "optimizer.lr=-1", "--set", "data.train.text=x"]
    said = refused(capsys, "train", "--config", recipe_file, "--output", tmp_path / "run", *changes)
    assert said.splitlines() == [
        f"error: {recipe_file} cannot be used:",
        "  data.train.text: unknown key; did you mean texts or max_text?",
        "  optimizer.lr: input should be greater than 0, found -1",
        "  stepps: unknown key; did you mean steps or streams or test?",
    ]
    assert not (tmp_path / "run").exists()


def test_components_and_options_that_do_not_exist(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "streams.0.losses.0.use": "margin_rank",
        "streams.0.miner.kep": 2,
        "streams.1.data.draw": "pool",
        "streams.1.losses.0.margn": 1,
    }
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    said = refused(capsys, "train", "--config", recipe_file, "--output", tmp_path / "run", *words)
    assert [line.strip() for line in said.splitlines()[1:]] == [
        "streams.0.miner: unknown option 'kep'; did you mean keep?",
        "streams.0.losses.0.use: no loss is called 'margin_rank'; did you mean margin_ranking?",
        "streams.1.data.draw: no dataset is called 'pool'; did you mean pools?",
        "streams.1.losses.0: unknown option 'margn'; did you mean margin?",
    ]
    assert not (tmp_path / "run").exists()


def test_a_loss_that_the_model_cannot_feed(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tiny_recipe(tiny_world)
    values["streams"][0]["losses"] = [{"use": "masked_words"}]
    source = write_recipe(tmp_path / "r.yaml", values)
    said = refused(capsys, "train", "--config", source, "--output", tmp_path / "run")
    for field in ("word_logits", "word_targets"):
        assert f"the loss masked_words needs the field '{field}', which neither uniter nor" in said
    assert "models that give it: uniter" in said
    assert "losses that can be fed here: iais, itm, margin_ranking" in said
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_is_not_empty(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    said = refused(capsys, "train", "--config", recipe_file, "--output", tmp_path / "run")
    assert said == (
        f"error: the output folder {tmp_path / 'run'} is not empty; choose another, "
        "or add --resume to go on with its run"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_databases_that_are_not_there(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("texts", "images"):
        words = ["--set", f"data.train.{key}=/nowhere/{key}", "--output", tmp_path / "run"]
        assert f"/nowhere/{key}" in refused(capsys, "train", "--config", recipe_file, *words)
    assert not (tmp_path / "run").exists()


def test_resuming_nothing(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--resume needs --output" in refused(capsys, "train", "--config", recipe_file, "--resume")
    said = refused(capsys, "train", "--config", recipe_file, "--resume", "--output", tmp_path / "run")
    assert "holds no checkpoint to resume from" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "itm-flikr-base"], "did you mean itm-flickr-base"),
        (["--config", "itm-flickr-base-hn", "--IAIS", "both"], "--IAIS 'both' is unknown; use singular or distributed"),
        (["--config", "itm-flickr-base", "--IAIS", "singular"], "--IAIS needs streams of hard-negative pools"),
        (["--config", "itm-flickr-base-hn", "--learning_rate", "1"], "unknown option --learning_rate"),
        (["--config", "itm-flickr-base-hn", "stray"], "the argument 'stray' belongs to no option"),
        (["--config", "itm-flickr-base-hn", "--set", "steps"], "--set 'steps' has no '='"),
    ],
)
def test_mistakes_in_training(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "train", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", "tset"], "--split 'tset' is not in"),
        (["--ties", "best"], "--ties 'best' is unknown; use optimistic, average or pessimistic"),
        (["--conf_ht", "0.3"], "unknown option --conf_ht; did you mean conf_th?"),
        (["--conf_th", "high"], "--conf_th takes a number, found 'high'"),
        (["--txt_db", "x"], "--txt_db and --img_db go together"),
        (["--folds", "0"], "0 folds of 8 images"),
        (["--conf_th", "-1", "--num_bb", "5"], "databases there: feat_th0.2_max100_min10"),
    ],
)
def test_mistakes_in_testing(
    words: list[str], said: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "test", "--checkpoint", trained, "--output", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_cannot_be_tested(
    exported: tuple[Path, Path], tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, config = exported
    data = databases(tiny_world)
    assert "nowhere does not exist; check the path" in refused(capsys, "test", "--checkpoint", tmp_path / "nowhere")
    assert "name the data with --txt_db and --img_db" in refused(capsys, "test", "--checkpoint", weights)
    said = refused(capsys, "test", "--checkpoint", config, *data, "--model_config", config)
    assert "cannot be read as plain weights" in said and "weights_only" not in said
    larger = json.loads(config.read_text()) | {"intermediate_size": 128}
    (tmp_path / "larger.json").write_text(json.dumps(larger))
    said = refused(capsys, "test", "--checkpoint", weights, *data, "--model_config", tmp_path / "larger.json")
    assert "has other shapes than the model in 6 tensors: " in said and "(64, 32) instead of (128, 32)" in said


# --- checkpoints that are damaged, of other shapes, or more than data ------------------------------------------------


class Evil:
    """Would run a command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def uses(what: str, checkpoint: Path, config: Path, world: Path, recipe: Path, output: Path) -> list[object]:
    """The words of a command that reads a file of weights."""
    if what == "test":
        return ["test", "--checkpoint", checkpoint, *databases(world), "--model_config", config, "--output", output]
    return ["train", "--config", recipe, "--output", output, "--set", f"model.checkpoint={checkpoint}"]


@pytest.mark.parametrize("what", ["test", "train"])
def test_weights_that_would_run_something_are_refused_by_its_name_and_do_not(
    what: str,
    exported: tuple[Path, Path],
    tiny_world: Path,
    recipe_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evil = tmp_path / "evil.pt"
    torch.save({"uniter.pooler.dense.bias": torch.zeros(32), "x": Evil(f"touch {tmp_path / 'sprung'}")}, evil)
    said = refused(capsys, *uses(what, evil, exported[1], tiny_world, recipe_file, tmp_path / "out"))
    assert said == (
        f"error: {evil} cannot be read as plain weights (it holds posix.system, which is no data, and was not run); "
        "export its state dict again"
    )
    assert [path.name for path in tmp_path.iterdir() if path != recipe_file] == ["evil.pt"]


def test_a_training_state_that_would_run_something_is_refused_by_its_name_and_does_not(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With checksums that fit, as whoever exchanged it would have written them."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for folder in (run / "checkpoints").iterdir():
        torch.save({"step": 2, "optimizer": Evil(f"touch {tmp_path / 'sprung'}")}, folder / "training.pt")
        write_sums(folder)
    said = refused(capsys, "train", "--config", run / "recipe.yaml", "--output", run, "--resume")
    assert said == (
        f"error: each of the 2 checkpoints in {run / 'checkpoints'} is damaged "
        f"({run / 'checkpoints' / 'step_4' / 'training.pt'} cannot be read (it holds posix.system, which is no data, "
        "and was not run)); start again with a new output folder"
    )
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("what", ["test", "train"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_were_cut_off(
    suffix: str,
    what: str,
    exported: tuple[Path, Path],
    trained: Path,
    tiny_world: Path,
    recipe_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = exported[0] if suffix == ".pt" else trained / "best" / "model.safetensors"
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[:-1000])
    said = refused(capsys, *uses(what, cut, exported[1], tiny_world, recipe_file, tmp_path / "out"))
    assert said.startswith(f"error: {cut} cannot be read as plain weights (") and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_checkpoint_folders_that_are_damaged_or_of_other_shapes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(folder: Path) -> str:
        for words in (["test", "--checkpoint", folder], ["export", folder, "--output", tmp_path / "x.pt"]):
            said = refused(capsys, *words)
            assert "\n" not in said
        return said

    cut, other = tmp_path / "cut", tmp_path / "other"
    for folder in (cut, other):
        shutil.copytree(trained / "best", folder)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[:-1])
    assert refuse(cut).startswith(f"error: {cut / 'model.safetensors'} is damaged: its content does not match")
    (cut / "SHA256SUMS").unlink()
    assert refuse(cut).startswith(f"error: {cut / 'model.safetensors'} cannot be read as plain weights (")
    description = (other / "model.json").read_text().replace('"intermediate_size": 64', '"intermediate_size": 128')
    (other / "model.json").write_text(description)
    assert refuse(other).startswith(f"error: {other / 'model.json'} is damaged")
    (other / "SHA256SUMS").unlink()
    assert refuse(other).startswith(f"error: {other} has other shapes than the model in 6 tensors: ")


def test_a_checkpoint_of_other_shapes_is_neither_begun_with_nor_resumed(
    exported: tuple[Path, Path], trained: Path, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = ["--set", "model.config.intermediate_size=128"]
    words = ["train", "--config", recipe_file, "--output", tmp_path / "run", "--set", f"model.checkpoint={exported[0]}"]
    said = refused(capsys, *words, *larger)
    assert f"{exported[0]} has other shapes than the model in 6 tensors: " in said
    assert said.endswith("use the model configuration that it was trained with")
    assert not (tmp_path / "run").exists()
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    before = (run / "recipe.yaml").read_text()
    said = refused(capsys, "train", "--config", run / "recipe.yaml", "--output", run, "--resume", *larger)
    assert f"{run / 'checkpoints' / 'step_4'} has other shapes than the model in 6 tensors: " in said
    assert (run / "recipe.yaml").read_text() == before


def test_a_misspelt_key_of_the_model(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys of other programs, in a file of theirs, are left alone."""
    recipe = yaml.safe_load(recipe_file.read_text())
    config = recipe["model"]["config"]
    config["hiden_size"] = config.pop("hidden_size")
    source = write_recipe(tmp_path / "misspelt.yaml", recipe)
    said = refused(capsys, "train", "--config", source, "--output", tmp_path / "run")
    assert said == "error: the model configuration has the unknown key 'hiden_size'; did you mean hidden_size?"
    assert not (tmp_path / "run").exists()


def test_exports_that_cannot_be(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", trained, "--output", tmp_path / "model.pt", "--layout", "bert"]
    assert "--layout 'bert' is unknown; use uniter" in refused(capsys, *words)
    assert "does not exist" in refused(capsys, "export", tmp_path / "nowhere", "--output", tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", "--config", "nothing", "--debug") == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "error: there is no configuration 'nothing'" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing option '--config'"),
        (["test"], "Missing option '--checkpoint'"),
        (["test", "--checkpoint", "x", "--folds", "two"], "Invalid value for '--folds'"),
    ],
)
def test_usage_errors(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*words) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
