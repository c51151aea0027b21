"""Losses that read what a trained model of any other kind gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from crossmodal.errors import CheckpointError, ConfigError
from crossmodal.model.base import inference
from crossmodal.model.checkpoints import load, read_state
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.trainer import Trainer

from ..recipes import aladin_recipe
from .runs import rows_of


def _taught(world: Path, teacher: Path, **changes: Any) -> dict[str, Any]:
    loss = {"use": "listnet", "teacher": "joint.itm_scores", "student": "matching_scores", "tag": "distillation_loss"}
    streams = [{"data": {"use": "train", "draw": "matched"}, "losses": [loss]}]
    return aladin_recipe(
        world, streams=streams, validation=None, teachers={"joint": {"checkpoint": str(teacher)}}, **changes
    )


def test_a_cross_encoder_teaches_a_dual_encoder(tiny_world: Path, trained: Path, tmp_path: Path) -> None:
    trainer = Trainer(parse_recipe(_taught(tiny_world, trained)), tmp_path / "run")
    (loader,), (objective,) = trainer.loaders(), trainer.objectives
    (batch,) = loader.next()
    taught = trainer.teachers.fields(batch, objective.taught)
    model, corpus = load(trained), trainer.corpus("train")
    images = {image: (p, image) for p, image in corpus.image_keys}
    with inference(model):
        texts = next(corpus.batches("text", [(0, i) for i in batch.ids["text"]], model.processor))
        regions = next(corpus.batches("image", [images[i] for i in batch.ids["image"]], model.processor))
        expected = model.scorers["itm"](model.encode("text", texts), model.encode("image", regions))
    torch.testing.assert_close(taught["joint.itm_scores"], expected)
    assert taught["joint.itm_scores"].shape == (4, 4) and not taught["joint.itm_scores"].requires_grad
    trainer.train()
    assert any(row["name"] == "train/distillation_loss" for row in rows_of(tmp_path / "run"))
    assert not any(key.startswith("joint") for key in read_state(tmp_path / "run" / "last"))


def test_what_a_teacher_cannot_give_is_refused(tiny_world: Path, trained: Path, tmp_path: Path) -> None:
    values = _taught(tiny_world, trained)
    values["streams"][0]["losses"][0]["teacher"] = "joint.rank_scores"
    with pytest.raises(ConfigError, match=r"needs the field 'joint\.rank_scores'"):
        Trainer(parse_recipe(values), tmp_path / "run")
    with pytest.raises(CheckpointError, match="does not exist"):
        Trainer(parse_recipe(_taught(tiny_world, tmp_path / "none")), tmp_path / "run")
    with pytest.raises(ConfigError, match="a name without dots"):
        parse_recipe({**values, "teachers": {"a.b": {"checkpoint": str(trained)}}})
