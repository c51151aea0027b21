"""Losses over the global batch of a batch that is encoded in parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crossmodal.errors import ConfigError
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.trainer import Trainer

from ..recipes import aladin_recipe
from . import dual_encoder  # noqa: F401  registers the model and losses that cannot be cached

LOSSES = [
    {"use": "triplet_distinct_images", "scores": "matching_scores", "weight": {"learned": True}},
    {"use": "info_nce", "scores": "alignment_scores", "weight": 0.1},
    {"use": "listnet", "teacher": "alignment_scores", "student": "matching_scores"},
]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def run(world: Path, output: Path, accumulate: int, **changes: Any) -> Trainer:
    streams = [{"data": {"use": "train", "draw": "matched"}, "losses": LOSSES}]
    values = aladin_recipe(world, steps=3, batch=10, accumulate=accumulate, streams=streams, validation=None)
    values["model"] = {**values["model"], "dropout": 0.0, **changes}
    trainer = Trainer(parse_recipe(values), output)
    trainer.train()
    return trainer


def test_the_parts_give_what_the_whole_batch_gives(tiny_world: Path, tmp_path: Path) -> None:
    whole, parts = (run(tiny_world, tmp_path / str(n), n) for n in (1, 4))
    expected = {**whole.model.state_dict(), **whole.engine.modules.state_dict()}
    found = {**parts.model.state_dict(), **parts.engine.modules.state_dict()}
    assert max(float((found[name] - weight).abs().max()) for name, weight in expected.items()) < 1e-11


def test_a_part_is_encoded_twice_with_the_same_dropout(tiny_world: Path, tmp_path: Path) -> None:
    streams = [{"data": {"use": "train", "draw": "matched"}, "losses": LOSSES}]
    values = aladin_recipe(tiny_world, batch=6, accumulate=3, streams=streams, validation=None)
    trainer = Trainer(parse_recipe({**values, "model": {**values["model"], "dropout": 0.4}}), tmp_path / "run")
    given: list[Tensor] = []
    trainer.model.register_forward_hook(lambda module, _, fields: given.append(fields["text_embeds"].detach()))
    (loader,) = trainer.loaders()
    trainer.engine.update(0, [loader.next()])
    assert len(given) == 6 and all(a.equal(b) for a, b in zip(given[:3], given[3:], strict=True))
    assert not given[0].equal(given[1])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"distributed": {"gradients": "overlapped"}}, "gradients overlapped; use flat, or accumulate 1"),
        ({"losses": [{"use": "test_contrastive"}, {"use": "test_of_groups"}]}, "give them streams of their own"),
        ({"teachers": True}, "and a teacher's fields; set accumulate to 1"),
    ],
)
def test_what_cannot_be_cached_is_refused(
    changes: dict[str, Any], reason: str, tiny_world: Path, trained: Path, tmp_path: Path
) -> None:
    values = aladin_recipe(tiny_world, accumulate=2)
    (stream,) = values["streams"]
    if "losses" in changes:
        values["model"]["use"], values["validation"] = "test_dual", None
        stream |= {"losses": changes["losses"], "data": {"use": "train", "draw": "pools", "pool": 4}}
    elif "teachers" in changes:
        values["teachers"] = {"joint": {"checkpoint": str(trained)}}
        stream["losses"][1]["teacher"] = "joint.itm_scores"
    else:
        values |= changes
    with pytest.raises(ConfigError, match=rf"accumulate: 2 does not fit the loss .*{reason}"):
        Trainer(parse_recipe(values), tmp_path / "run")
