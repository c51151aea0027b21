"""The command line, in this process, and twice through the scripts at the root."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from crossmodal import losses
from crossmodal.evaluate.plots import read_metrics
from crossmodal.model.base import registered

from .commands import command, databases, refused, scores_of
from .recipes import tiny_recipe, write_recipe

ROOT = Path(__file__).resolve().parent.parent


# --- train, test, export -------------------------------------------------------------------------------------------


def test_what_a_run_leaves(trained: Path) -> None:
    expected = {"recipe.yaml", "versions.json", "metrics.jsonl", "tensorboard", "checkpoints", "best", "last"}
    assert {path.name for path in trained.iterdir()} >= expected
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["step_2", "step_4"]
    logged = {(row["step"], row["name"]) for row in read_metrics(trained / "metrics.jsonl")}
    assert {(step, f"train/{name}") for step in (1, 4) for name in ("loss", "rank_loss", "self_attn_loss")} <= logged
    assert {(step, "valid/r_mean") for step in (2, 4)} <= logged
    stored = yaml.safe_load((trained / "recipe.yaml").read_text())
    iais = [stream["losses"][1] for stream in stored["streams"]]
    assert [(loss["alignment"], loss["side"]) for loss in iais] == [("singular", "visual"), ("singular", "linguistic")]
    assert [(loss["weight"]["schedule"], loss["weight"]["scale"]) for loss in iais] == [("exp", 4.0)] * 2


def test_test_of_best_and_last(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("", "best", "last", "checkpoints/step_4"):
        assert command("test", "--checkpoint", trained / name, "--output", tmp_path / f"from_{name}") == 0
    assert "image retrieval R1: " in capsys.readouterr().out
    run_scores, results = scores_of(tmp_path / "from_")
    assert run_scores.shape == (24, 8)
    assert np.array_equal(run_scores, scores_of(tmp_path / "from_best")[0])
    last = scores_of(tmp_path / "from_last")[0]
    assert np.array_equal(last, scores_of(tmp_path / "from_checkpoints/step_4")[0])
    assert results["settings"]["split"] == "test"


def test_an_exported_checkpoint_gives_the_same_scores(
    trained: Path, exported: tuple[Path, Path], tiny_world: Path, tmp_path: Path
) -> None:
    weights, config = exported
    assert command("test", "--checkpoint", trained / "best", "--output", tmp_path / "ours") == 0
    published = ["--model_config", config, *databases(tiny_world), "--output_dir", tmp_path / "published"]
    assert command("test", "--checkpoint", weights, *published, "--batch_size", 400, "--fp16", "--pin_mem") == 0
    ours, results = scores_of(tmp_path / "ours")
    again, same_results = scores_of(tmp_path / "published")
    assert np.array_equal(ours, again)
    assert results["metrics"] == same_results["metrics"]


def test_flags_without_a_meaning_here_are_said_to_be_so(
    exported: tuple[Path, Path], tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, config = exported
    words = ["--model_config", config, *databases(tiny_world), "--output", tmp_path / "out", "--fp16", "--n_workers", 4]
    assert command("test", "--checkpoint", weights, *words) == 0
    assert "--fp16, --n_workers: accepted as published, without a meaning here" in capsys.readouterr().err


def test_boxes_as_the_published_flags_and_training_file_say(
    exported: tuple[Path, Path], tiny_world: Path, tmp_path: Path
) -> None:
    weights, config = exported
    (tmp_path / "hps.json").write_text(json.dumps({"conf_th": 0.2, "max_bb": 100, "min_bb": 10, "num_bb": 4}))
    words = ["--model_config", config, *databases(tiny_world), "--train_config", tmp_path / "hps.json"]
    assert command("test", "--checkpoint", weights, *words, "--min_bb", 10, "--output", tmp_path / "out") == 0
    _, results = scores_of(tmp_path / "out")
    data = results["settings"]["data"]
    assert (data["conf_th"], data["max_bb"], data["min_bb"], data["num_bb"]) == (0.2, 100, 10, 4)


def test_lower_precisions(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {}
    for precision in ("fp32", "bf16", "int8"):
        words = ["--checkpoint", trained, "--output", tmp_path / precision, "--precision", precision]
        assert command("test", *words) == 0
        scores[precision], results = scores_of(tmp_path / precision)
        assert results["settings"]["precision"] == precision
    for precision in ("bf16", "int8"):
        assert not np.array_equal(scores[precision], scores["fp32"])
        assert np.abs(scores[precision] - scores["fp32"]).max() < 0.02
    said = refused(capsys, "test", "--checkpoint", trained, "--output", tmp_path / "x", "--precision", "int16")
    assert "precision 'int16' is unknown; did you mean int8" in said


def test_another_split_folds_and_ties(trained: Path, tmp_path: Path) -> None:
    words = ["--split", "val", "--folds", 2, "--ties", "pessimistic", "--output", tmp_path / "out"]
    assert command("test", "--checkpoint", trained, *words) == 0
    _, results = scores_of(tmp_path / "out")
    settings = results["settings"]
    assert (settings["split"], settings["folds"], settings["ties"]) == ("val", 2, "pessimistic")


def test_results_stand_beside_a_checkpoint_whose_name_has_a_dot(
    exported: tuple[Path, Path], tiny_world: Path, tmp_path: Path
) -> None:
    weights, config = exported
    (tmp_path / "model.v2.pt").write_bytes(weights.read_bytes())
    words = ["--model_config", config, *databases(tiny_world)]
    assert command("test", "--checkpoint", tmp_path / "model.v2.pt", *words) == 0
    assert (tmp_path / "model.v2" / "test_test" / "results.json").is_file()


def test_a_published_configuration_trains_with_its_flags(tiny_world: Path, tmp_path: Path) -> None:
    (tmp_path / "sizes.json").write_text(json.dumps(tiny_recipe(tiny_world)["model"]["config"]))
    published = {
        "train_txt_dbs": [str(tiny_world / "texts/train.db")],
        "train_img_dbs": [str(tiny_world / "regions/train")],
        "val_txt_db": str(tiny_world / "texts/val.db"),
        "val_img_db": str(tiny_world / "regions/val"),
        "model_config": str(tmp_path / "sizes.json"),
        "output_dir": str(tmp_path / "run"),
        "train_batch_size": 2,
        "negative_size": 5,
        "hard_neg_size": 3,
        "inf_minibatch_size": 4,
        "num_train_steps": 9,
        "valid_steps": 9,
        "optim": "adamw",
        "n_workers": 0,
        "pin_mem": True,
    }
    (tmp_path / "published.json").write_text(json.dumps(published))
    flags = ["--num_train_steps", 2, "--betas", 0.8, 0.95, "--config", tmp_path / "published.json", "--seed", 3]
    assert command("train", *flags, "--IAIS", "distributed") == 0
    stored = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (stored["steps"], stored["seed"], stored["optimizer"]["betas"]) == (2, 3, [0.8, 0.95])
    assert stored["validation"]["gallery"] == 4
    assert stored["streams"][0]["losses"][1]["weight"]["scale"] == 2.0
    assert {row["name"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")} >= {
        "valid/recall_1",
        "valid/recall_10",
    }


def test_overrides_and_resuming(recipe_file: Path, tmp_path: Path) -> None:
    words = ["train", "--config", recipe_file, "--output", tmp_path / "run", "--set", "optimizer.lr=0.002"]
    assert command(*words, "--set", "steps=2", "--set", "validation.every=1") == 0
    assert command(*words, "--set", "steps=3", "--set", "validation.every=1", "--resume") == 0
    stored = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (stored["optimizer"]["lr"], stored["steps"]) == (0.002, 3)
    losses_logged = [
        row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["name"] == "train/loss"
    ]
    assert losses_logged == [1, 2, 3]


def test_runs_without_a_name_are_numbered(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "run_007").mkdir(parents=True)
    assert command("train", "--config", recipe_file, "--set", "steps=1", "--set", "validation=null") == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["run_007", "run_008"]
    assert (tmp_path / "runs" / "run_008" / "last" / "model.safetensors").is_file()


def test_a_recipe_that_names_a_test_corpus_is_tested(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_recipe(tmp_path / "r.yaml", tiny_recipe(tiny_world, steps=1, test="test"))
    assert command("train", "--config", source, "--output", tmp_path / "run") == 0
    assert "text retrieval R10: " in capsys.readouterr().out
    assert (tmp_path / "run" / "last" / "test_test" / "results.json").is_file()


def script(name: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / name), *map(str, words)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_the_scripts_at_the_root(tiny_world: Path, tmp_path: Path) -> None:
    source = write_recipe(tmp_path / "recipe.yaml", tiny_recipe(tiny_world))
    done = script("train_itm.py", "--config", source, "--IAIS", "singular", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tested = script("test_itm.py", "--checkpoint", "runs/run_001", "--report", cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    assert "mean of both directions: " in tested.stdout
    assert scores_of(tmp_path / "runs" / "run_001" / "best" / "test_test")[0].shape == (24, 8)
    assert (tmp_path / "runs" / "run_001" / "best" / "test_test" / "report.html").is_file()


def test_a_script_says_what_is_wrong_and_exits_with_2(trained: Path, tmp_path: Path) -> None:
    done = script("test_itm.py", "--checkpoint", trained, "--split", "tset", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    said = f"error: --split 'tset' is not in {trained / 'recipe.yaml'}; did you mean test?"
    assert done.stderr.strip().splitlines()[-1] == said
    assert "Traceback" not in done.stderr


# --- what there is -------------------------------------------------------------------------------------------------


def test_losses_lists_every_loss_with_its_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("losses") == 0
    listed = capsys.readouterr().out
    for name in losses.names():
        assert f"\n{name}: " in f"\n{listed}"
    block = listed[listed.index("margin_ranking: ") :].split("\n")[1:4]
    assert [line.split() for line in block] == [
        ["fields", "rank_scores", "(groups)"],
        ["options", "margin=0.2"],
        ["models", "uniter"],
    ]


def test_losses_says_which_models_can_feed_a_loss_with_a_number_or_a_score_matrix_of_the_recipes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("losses") == 0
    listed = capsys.readouterr().out
    # Other tests may have registered more.
    ours = {name for name, model in registered().items() if model.__module__.startswith("crossmodal.")}
    for name in ("ce_clip", "triplet", "listnet"):
        fed = listed.partition(f"\n{name}: ")[2].partition("models   ")[2].split("\n")[0].split(", ")
        assert [model for model in fed if model in ours] == ["aladin", "clip"]


def test_models_lists_every_model_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("models") == 0
    listed = capsys.readouterr().out
    for name, cls in registered().items():
        assert f"{name}: " in listed
        assert all(field in listed for field in cls.all_fields)


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["train", "--help"], ["test", "-h"], ["data", "--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*words) == 0
    assert "Usage: " in capsys.readouterr().out
