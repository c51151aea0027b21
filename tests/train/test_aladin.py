"""Training ALADIN: both heads, epochs and steps of the rate, losses that begin later, learned weights, its tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from crossmodal.errors import ConfigError
from crossmodal.model.checkpoints import load, read_state
from crossmodal.train.objectives import LearnedWeight
from crossmodal.train.recipe import OptimizerSpec, parse_recipe
from crossmodal.train.schedules import rate_at
from crossmodal.train.trainer import Trainer

from ..commands import command
from ..recipes import aladin_recipe, write_recipe
from .runs import assert_same, rows_of, train

ANCHORS = 72
"""Captions of the training corpus."""


def _losses(world: Path, **weights: Any) -> list[dict[str, Any]]:
    (stream,) = aladin_recipe(world)["streams"]
    losses = [
        {**loss, **({"weight": weights[loss["use"]]} if loss["use"] in weights else {})} for loss in stream["losses"]
    ]
    return [{**stream, "losses": losses}]


def test_both_heads_learn_and_are_measured(tiny_world: Path, tmp_path: Path) -> None:
    trainer = train(aladin_recipe(tiny_world, steps=3, batch=8, validation={"every": 3}), tmp_path / "run")
    logged = {row["name"]: row["value"] for row in rows_of(tmp_path / "run") if row["step"] == 3}
    assert {"train/alignment_loss", "train/distillation_loss"} <= logged.keys()
    heads = [logged[f"valid/{head}/r_mean"] for head in ("alignment", "matching")]
    assert logged["valid/r_mean"] == pytest.approx(sum(heads) / 2) == trainer.best
    model = load(tmp_path / "run")
    assert model.name == "aladin" and model.processor.use == "aladin"
    again = Trainer(trainer.recipe, tmp_path / "run", resume=True)
    assert_same(dict(again.model.state_dict()), read_state(tmp_path / "run" / "last"))


def test_a_checkpoint_is_tested_by_each_of_its_scorers(tiny_world: Path, tmp_path: Path, capsys: Any) -> None:
    source = write_recipe(tmp_path / "r.yaml", aladin_recipe(tiny_world, steps=2, test="test"))
    assert command("train", "--config", source, "--output", tmp_path / "run") == 0
    done = tmp_path / "run" / "last" / "test_test"
    assert sorted(p.name for p in done.iterdir()) == ["alignment", "matching"]
    capsys.readouterr()
    assert command("test", "--checkpoint", tmp_path / "run", "--scorer", "matching", "--output", tmp_path / "one") == 0
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["matching"]
    assert "Recall Text to image: " in capsys.readouterr().out
    assert command("test", "--checkpoint", tmp_path / "run", "--scorer", "matchin", "--output", tmp_path / "no") == 2
    assert "no scorer 'matchin'; did you mean matching" in capsys.readouterr().err


def test_an_unknown_scorer_is_refused_before_training(tiny_world: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(aladin_recipe(tiny_world, validation={"scorers": ["itm"]}))
    with pytest.raises(ConfigError, match="the model aladin has no scorer 'itm'"):
        Trainer(recipe, tmp_path / "run")


def test_epochs_count_the_anchors_of_the_first_stream(tiny_world: Path, tmp_path: Path) -> None:
    trainer = train(aladin_recipe(tiny_world, steps=0, epochs=2, batch=32, validation=None), tmp_path / "run")
    assert trainer.steps_per_epoch == -(-ANCHORS // 32) and trainer.step == trainer.steps == 6


def test_a_loss_that_begins_later_is_left_out_until_then(tiny_world: Path, tmp_path: Path) -> None:
    streams = _losses(tiny_world, listnet={"from_epoch": 1})
    values = aladin_recipe(tiny_world, steps=0, epochs=2, batch=36, streams=streams, validation=None)
    trainer = Trainer(parse_recipe(values), tmp_path / "run")
    head = trainer.model.state_dict()["final_projection_net.layers.0.linear1.weight"]
    before = head.clone()
    (loader,) = trainer.loaders()
    first = [trainer.engine.update(step, [loader.next()]) for step in range(2)]
    assert all("distillation_loss" not in logged for logged in first) and torch.equal(head, before)
    logged = trainer.engine.update(2, [loader.next()])
    assert logged["distillation_loss"] > 0 and not torch.equal(head, before)
    late = _losses(tiny_world, listnet={"from_epoch": 1}, triplet={"from_epoch": 2})
    with pytest.raises(ConfigError, match="all of them begin after epoch 0"):
        Trainer(parse_recipe(aladin_recipe(tiny_world, streams=late)), tmp_path / "late")


def test_a_learned_weight_falls_where_its_loss_is_large(tiny_world: Path, tmp_path: Path) -> None:
    streams = _losses(tiny_world, triplet={"learned": True})
    trainer = train(aladin_recipe(tiny_world, steps=3, streams=streams, validation=None), tmp_path / "run")
    (weight,) = [module for module in trainer.engine.modules if isinstance(module, LearnedWeight)]
    assert float(weight.log_variance.detach()) > -2.3
    logged = {row["name"]: row["value"] for row in rows_of(tmp_path / "run") if row["step"] == 1}
    start = torch.tensor(-2.3)
    weighed = 0.5 * (float(torch.exp(-start)) * logged["train/alignment_loss"] - 2.3)
    assert logged["train/loss"] == pytest.approx(weighed + logged["train/distillation_loss"], rel=1e-5)


def test_the_rate_falls_every_so_many_epochs() -> None:
    options = OptimizerSpec(lr=1.0, warmup=4, schedule="step", step_epochs=2, gamma=0.1)
    rates = [rate_at(step + 1, options, 100, step // 3) for step in range(13)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, *[0.1] * 6, 0.01])
    steady = options.model_copy(update={"schedule": "constant"})
    assert [rate_at(step, steady, 100, 50) for step in (1, 4, 100)] == [0.25, 1, 1]


def test_tensorboard_holds_the_published_tags(tiny_world: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(aladin_recipe(tiny_world, steps=2, batch=36, log_every=2), tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {"epoch", "step", "batch_time", "data_time", "lr", "Eit", "alignment_loss", "distillation_loss"} <= tags
    recalls = ("r1", "r5", "r10", "r1i", "r5i", "r10i")
    assert {f"{head}/{name}" for head in ("matching", "alignment") for name in recalls} <= tags
    assert {"matching/rsum", "rsum", "alignment/medr", "alignment/meanr", "alignment/medri"} <= tags
    (step,), (epoch,) = board.Scalars("step"), board.Scalars("epoch")
    assert (step.value, epoch.value) == (1, 0)
    (rsum,) = board.Scalars("matching/rsum")
    found = {row["name"]: row["value"] for row in rows_of(tmp_path / "run")}
    assert rsum.value == pytest.approx(100 * found["valid/matching/rsum"], rel=1e-6)
