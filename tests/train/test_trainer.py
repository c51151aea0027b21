from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from crossmodal.errors import ConfigError, DataError
from crossmodal.evaluate.plots import read_metrics
from crossmodal.evaluate.retrieval import score_corpus
from crossmodal.model.checkpoints import load, read_state
from crossmodal.train import checkpoints
from crossmodal.train.recipe import load_recipe, parse_recipe
from crossmodal.train.trainer import Trainer, drawn_stream

from .runs import MIXED, Dying, Killed, assert_same, pools, recipe, rows_of, train


def test_mixed_streams_are_drawn_by_ratio_from_seed_and_step(tiny_world: Path, tmp_path: Path) -> None:
    values = parse_recipe(recipe(tiny_world, steps=3000, streams=MIXED))
    drawn = [drawn_stream(values, step) for step in range(3000)]
    assert abs(drawn.count(0) / 3000 - 2 / 3) < 0.03 and set(drawn) == {0, 1}
    assert drawn != [drawn_stream(values.model_copy(update={"seed": 5}), step) for step in range(3000)]
    assert drawn_stream(parse_recipe(recipe(tiny_world)), 0) is None
    train(recipe(tiny_world, steps=4, streams=MIXED), tmp_path / "run")
    logged = {(row["step"], row["name"]) for row in rows_of(tmp_path / "run")}
    for step in range(4):
        for stream, name in enumerate(("rank_loss", "mlm")):
            assert ((step + 1, f"train/{name}") in logged) == (drawn[step] == stream)


def test_metrics_hold_every_step_and_validation_once(tiny_world: Path, tmp_path: Path) -> None:
    train(recipe(tiny_world, steps=5, log_every=2, validation={"every": 2}), tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    keys = [(row["step"], row["name"]) for row in rows]
    assert len(keys) == len(set(keys))
    assert [step for step, name in keys if name == "train/loss"] == [2, 4, 5]
    assert [step for step, name in keys if name == "valid/r_mean"] == [2, 4, 5]
    assert {"train/rank_loss", "train/self_attn_loss", "train/lr", "train/grad_norm", "valid/txt_r1"} <= {
        name for _, name in keys
    }


def test_the_best_checkpoint_is_that_of_the_highest_mean_of_both_directions(tiny_world: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    trainer = train(recipe(tiny_world, steps=6, keep=9, validation={"every": 1}, optimizer={"lr": 0.01}), output)
    values = {row["step"]: row["value"] for row in rows_of(output) if row["name"] == "valid/r_mean"}
    best = max(values, key=values.__getitem__)  # the first of equals
    assert len(set(values.values())) > 1 and trainer.best == values[best]
    assert_same(read_state(output / "best"), read_state(output / "checkpoints" / f"step_{best}"))
    assert_same(read_state(output / "last"), read_state(output / "checkpoints" / "step_6"))
    model = load(output)  # a run folder stands for its best
    scored = score_corpus(model, trainer.corpus("val"))
    assert scored.metrics()["r_mean"] == values[best]


def test_the_latest_checkpoints_are_kept(tiny_world: Path, tmp_path: Path) -> None:
    train(recipe(tiny_world, steps=5, keep=2, validation={"every": 1}), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step_4", "step_5"]
    expected = ["best", "checkpoints", "last", "metrics.jsonl", "recipe.yaml", "tensorboard", "versions.json"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == expected


def test_the_run_folder_holds_the_whole_recipe_and_the_versions(tiny_world: Path, tmp_path: Path) -> None:
    trainer = train(recipe(tiny_world, steps=1), tmp_path / "run")
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == trainer.recipe
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert versions["torch"] == torch.__version__ and versions["ranks"] == 1


def test_tensorboard_holds_the_published_tags(tiny_world: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = recipe(tiny_world, steps=4)
    dying = Dying(parse_recipe(values), tmp_path)
    dying.last = 3
    with pytest.raises(Killed):
        dying.train()
    train(values, tmp_path, resume=True)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    tags = board.Tags()["scalars"]
    assert {"loss", "rank_loss", "self_attn_loss", "lr", "grad_norm", "valid/r_mean", "valid/txt_r1"} <= set(tags)
    for tag in tags:
        logged = [row for row in rows if row["name"].removeprefix("train/") == tag]
        shown = board.Scalars(tag)
        assert [event.step for event in shown] == [row["step"] for row in logged]
        assert [event.value for event in shown] == pytest.approx([row["value"] for row in logged], rel=1e-6)


def test_the_loss_goes_down_and_recall_rises_above_chance(tiny_world: Path, tmp_path: Path) -> None:
    stream = pools("text")
    stream = {"data": stream["data"], "losses": [{"use": "softmax_ranking"}]}
    changes = {"batch": 8, "accumulate": 1, "optimizer": {"lr": 3e-3, "warmup": 10}, "streams": [stream]}
    values = recipe(tiny_world, steps=120, validation={"data": "train", "every": 120}, **changes)
    values["model"]["dropout"] = 0.0
    metrics = Trainer(parse_recipe(values), tmp_path).train()
    losses = [row["value"] for row in rows_of(tmp_path) if row["name"] == "train/loss"]
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    assert first == pytest.approx(math.log(6), abs=0.1)  # six scores that say nothing
    assert last < 0.7 * first
    assert metrics["txt_r5"] + metrics["img_r5"] > 2 * (5 / 24 + 5 / 24)  # 24 images, 3 captions each


def test_fixed_galleries_are_each_captions_image_and_the_next_ones(tiny_world: Path, tmp_path: Path) -> None:
    values = recipe(tiny_world, steps=2, validation={"every": 1, "gallery": 5})
    trainer = train(values, tmp_path)
    logged = {row["name"]: row["value"] for row in rows_of(tmp_path) if row["step"] == 2}
    scored = score_corpus(trainer.model, trainer.corpus("val"))
    texts = trainer.corpus("val").parts[0].texts
    column = {image: i for i, image in enumerate(scored.image_ids)}
    ranks = []
    for scores, caption in zip(scored.scores, scored.text_ids, strict=True):
        first = texts.images.index(texts.image_of[caption])
        gallery = [column[texts.images[(first + k) % len(texts.images)]] for k in range(5)]
        ranks.append(int((scores[gallery[1:]] > scores[gallery[0]]).sum()))
    for k in (1, 5, 10):
        assert logged[f"valid/recall_{k}"] == pytest.approx(sum(rank < k for rank in ranks) / len(ranks))
    assert (tmp_path / "best").is_dir() and trainer.best <= 1


def test_a_gallery_larger_than_the_corpus_is_refused(tiny_world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a gallery of 9 needs as many images"):
        train(recipe(tiny_world, steps=1, validation={"every": 1, "gallery": 9}), tmp_path)


@pytest.mark.parametrize(("precision", "close"), [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_trains_float32_weights_to_about_the_same_losses(
    tiny_world: Path, tmp_path: Path, precision: str, close: float
) -> None:
    """On the CPU too; fp16 with a scaler, whose state is saved."""
    losses = {}
    for name in ("fp32", precision):
        values = recipe(tiny_world, steps=3, precision=name, model={"dropout": 0.0}, optimizer={"lr": 1e-5})
        trainer = train(values, tmp_path / name)
        losses[name] = [row["value"] for row in rows_of(tmp_path / name) if row["name"] == "train/rank_loss"]
        assert {weight.dtype for weight in trainer.model.state_dict().values()} == {torch.float32}
    assert losses[precision] == pytest.approx(losses["fp32"], abs=close)
    assert losses[precision] != losses["fp32"]
    state = checkpoints.read_training(tmp_path / precision / "checkpoints" / "step_3")
    assert (state["scaler"].get("scale", 0) > 0) == (precision == "fp16")


def test_nothing_is_validated_where_nothing_is_asked_for(tiny_world: Path, tmp_path: Path) -> None:
    values = recipe(tiny_world, steps=2)
    del values["validation"]
    train(values, tmp_path)
    assert not any(row["name"].startswith("valid/") for row in rows_of(tmp_path))
    assert [step for step, _ in checkpoints.steps(tmp_path)] == [2]
    assert_same(read_state(tmp_path / "best"), read_state(tmp_path / "last"))


def test_a_folder_that_holds_something_is_refused_without_resume(tiny_world: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty; choose another, or add --resume"):
        Trainer(parse_recipe(recipe(tiny_world)), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_the_data_is_one_sentence_wherever_it_is_read(
    tiny_world: Path, tmp_path: Path, workers: int
) -> None:
    stream = pools("text")
    stream["data"] = {**stream["data"], "pool": 25}
    trainer = Trainer(parse_recipe(recipe(tiny_world, workers=workers, streams=[stream])), tmp_path)
    with pytest.raises(DataError) as error:
        trainer.train()
    assert str(error.value).startswith("24 negatives cannot be drawn from 24 candidates")
    assert "Traceback" not in str(error.value)


def test_two_runs_of_one_seed_agree_to_the_bit_and_another_seed_differs(tiny_world: Path, tmp_path: Path) -> None:
    runs = [train(recipe(tiny_world, steps=2, seed=seed), tmp_path / str(i)) for i, seed in enumerate((3, 3, 4))]
    first, same, other = (run.model.state_dict() for run in runs)
    assert_same(dict(first), dict(same))
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("dense.weight"))
