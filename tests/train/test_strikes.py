"""Losses and gradients that are not finite: nothing is updated, what was seen is written down, the run may end."""

from __future__ import annotations

import json
import logging
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crossmodal.data.region_records import pack, unpack
from crossmodal.errors import TrainingError
from crossmodal.model.base import Model
from crossmodal.model.checkpoints import read_state
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.trainer import Trainer

from ..commands import refused
from ..recipes import write_recipe
from .runs import PATIENCE, ROOT, Dying, Killed, assert_same, assert_same_run, pools, recipe, rows_of, train

BAD = "train_05.npz"


@pytest.fixture(scope="module")
def bad_world(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus with one training image whose features are finite, but too large to compute with."""
    folder = tmp_path_factory.mktemp("bad_world") / "world"
    shutil.copytree(tiny_world, folder)
    (database,) = (path.parent for path in (folder / "regions" / "train").glob("*/data.mdb"))
    with lmdb.open(str(database)) as env, env.begin(write=True) as txn:
        record = dict(unpack(bytes(txn.get(BAD.encode()))))
        record["features"] = np.full(record["features"].shape, 3e38, np.float32)
        txn.put(BAD.encode(), pack(record))
    return folder


def masked(world: Path, **changes: Any) -> dict[str, Any]:
    """Matched pairs alone, so that the bad image makes only its own captions' batches bad: 3 of 72 anchors."""
    stream = {"data": {"use": "train", "draw": "masked_words"}, "losses": [{"use": "masked_words", "tag": "mlm"}]}
    return recipe(world, **{"streams": [stream], "steps": 18, "accumulate": 1, **changes})


def written(run: Path) -> list[dict[str, Any]]:
    """The rows of not_finite.jsonl, which are strict JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run / "not_finite.jsonl").read_text().splitlines()]


def state_of(trainer: Trainer) -> dict[str, Any]:
    engine = trainer.engine
    parts = {"model": trainer.model, "modules": engine.modules, "optimizer": engine.optimizer}
    return {name: _copied(part.state_dict()) for name, part in parts.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


def test_steps_with_a_bad_image_are_skipped_counted_and_written_down(
    bad_world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(parse_recipe(masked(bad_world)), tmp_path / "run")
    update, skipped = trainer.engine.update, []

    def watched(step: int, batches: Any) -> dict[str, float]:
        before = state_of(trainer)
        logged = update(step, batches)
        holds_bad = any(BAD in batch.ids["image"] for stream in batches for batch in stream)
        assert (trainer.engine.skipped is not None) == holds_bad
        if holds_bad:
            assert_same(state_of(trainer), before)
            assert all(p.grad is None for p in trainer.model.parameters())
            skipped.append(step + 1)
        elif logged["lr"] > 1e-6:
            name = "uniter.embeddings.LayerNorm.weight"
            assert not torch.equal(before["model"][name], trainer.model.state_dict()[name])
        return logged

    trainer.engine.update = watched  # type: ignore[method-assign]
    trainer.train()
    assert 1 <= len(skipped) <= 3 and trainer.strikes.count == len(skipped)
    rows = written(tmp_path / "run")
    assert [row["step"] for row in rows] == skipped
    for row in rows:
        assert row["losses"]["mlm"] == "nan" and row["losses"]["loss"] == "nan"
        (batch,) = row["batches"]
        assert batch["stream"] == "0_masked_words" and batch["losses"] == {"mlm": "nan"}
        pairs = [pair for group in batch["groups"] for pair in group]
        assert len(pairs) == 4 and BAD in [image for _, image in pairs]
        assert all(text.startswith(image.removesuffix(".npz")) for text, image in pairs)
    assert [row["value"] for row in rows_of(tmp_path / "run") if row["name"] == "train/skipped"] == [
        *range(1, len(skipped) + 1)
    ]
    assert all(math.isfinite(row["value"]) for row in rows_of(tmp_path / "run"))
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.split(";")[0] for line in said] == [
        f"step {step} is skipped (loss nan, mlm nan), the {i}. of at most 10" for i, step in enumerate(skipped, start=1)
    ]


def test_of_a_mined_batch_the_kept_pairs_are_written_down(bad_world: Path, tmp_path: Path) -> None:
    values = recipe(bad_world, streams=[pools("text")], steps=4, max_skipped=100)
    train(values, tmp_path / "run")
    rows = written(tmp_path / "run")
    assert rows
    for row in rows:
        assert len(row["batches"]) == 2  # micro-steps
        bad = [batch for batch in row["batches"] if batch["losses"]["rank_loss"] == "nan"]
        assert bad
        for batch in row["batches"]:
            assert [len(group) for group in batch["groups"]] == [4, 4]  # the positive and the three kept
            for group in batch["groups"]:
                assert len({text for text, _ in group}) == 1 and len({image for _, image in group}) == 4
                assert group[0][0].startswith(group[0][1].removesuffix(".npz"))
            assert (batch in bad) == any(image == BAD for group in batch["groups"] for _, image in group)


def test_a_run_ends_when_too_many_steps_were_skipped(
    bad_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over the whole run: steps in between that went well do not matter; nor does a resume."""
    values = recipe(bad_world, streams=[pools("text")], steps=40, save_every=1, max_skipped=3)
    source, run = write_recipe(tmp_path / "r.yaml", values), tmp_path / "run"
    expected = (
        f"error: the losses or gradients of 4 steps were not finite, max_skipped allows 3; {run / 'not_finite.jsonl'} "
        "lists their pairs: repair those or lower optimizer.lr, and go on with --resume"
    )
    assert refused(capsys, "train", "--config", source, "--output", run).endswith(expected)
    first = written(run)
    assert len(first) == 4
    assert refused(capsys, "train", "--config", source, "--output", run, "--resume").endswith(expected)
    assert written(run) == first  # the fourth again, once


def test_none_may_be_skipped_where_the_recipe_says_so(bad_world: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="of 1 steps were not finite, max_skipped allows 0"):
        train(masked(bad_world, max_skipped=0), tmp_path / "run")


def test_a_resumed_run_skips_the_same_steps(bad_world: Path, tmp_path: Path) -> None:
    values = masked(bad_world, save_every=1)
    trainer = Trainer(parse_recipe(values), tmp_path / "whole")
    trainer.train()
    last = written(trainer.output)[-1]["step"]
    for end in (last - 1, last):  # before the last skip, and after it
        dying = Dying(parse_recipe(values), tmp_path / f"broken_{end}")
        dying.last = end
        with pytest.raises(Killed):
            dying.train()
        with (dying.output / "not_finite.jsonl").open("a") as file:
            file.write('{"step": 17, "losses": {}, "batches": []}\n{"step": 1')
        again = Trainer(parse_recipe(values), dying.output, resume=True)
        assert again.strikes.count == sum(row["step"] <= end for row in written(trainer.output))
        again.train()
        assert written(dying.output) == written(trainer.output)
        assert again.strikes.count == trainer.strikes.count
        assert_same_run(dying.output, trainer.output)


@pytest.mark.dist
def test_ranks_skip_the_same_steps_and_write_down_the_batches_of_all(bad_world: Path, tmp_path: Path) -> None:
    """Two anchors each a step: the bad image is in the batch of one rank alone."""
    source = write_recipe(tmp_path / "r.yaml", masked(bad_world, batch=2))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train_itm.py"]
    words = ["--config", str(source), "--output", str(tmp_path / "run")]
    subprocess.run([sys.executable, *launcher, *words], cwd=ROOT, check=True, timeout=PATIENCE)
    rows = written(tmp_path / "run")
    assert rows and max(row["step"] for row in rows_of(tmp_path / "run")) == 18
    for row in rows:
        images = [[image for group in batch["groups"] for _, image in group] for batch in row["batches"]]
        assert len(images) == 2 and [BAD in own for own in images].count(True) >= 1
        assert any("nan" not in batch["losses"].values() for batch in row["batches"])
    assert all(weight.isfinite().all() for weight in read_state(tmp_path / "run" / "last").values())


# --- the engine ----------------------------------------------------------------------------------------------------


class Spiky(nn.Module):
    """A loss with state: counts its calls, and from the second on its value, or its gradient, is not finite."""

    def __init__(self, spike: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.spike = spike
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, rank_scores: Tensor) -> Tensor:
        self.calls = self.calls + 1  # not in place: another tensor than before
        return self.spike(rank_scores) if self.calls > 1 else rank_scores.mean()


SPIKES: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda scores: scores.mean() * float("nan"),
    "inf": lambda scores: scores.mean() + float("inf"),
    "minus_inf": lambda scores: scores.mean() - float("inf"),
    "gradient": lambda scores: (scores - scores.detach()).abs().sqrt().mean(),  # 0, of infinite slope
}


def spiky(world: Path, output: Path, spike: str, precision: str = "fp32") -> Trainer:
    values = recipe(world, steps=3, streams=[pools("text")], precision=precision)
    trainer = Trainer(parse_recipe(values), output)
    loss = Spiky(SPIKES[spike])
    (objective,) = trainer.engine.objectives
    objective = replace(objective, terms=(replace(objective.terms[0], call=loss),))
    trainer.engine.objectives = [objective]
    trainer.engine.terms = list(objective.terms)
    trainer.engine.modules.append(loss)
    return trainer


@pytest.mark.parametrize("spike", SPIKES)
def test_nothing_changes_in_a_skipped_update_not_even_the_state_of_a_loss(
    spike: str, tiny_world: Path, tmp_path: Path
) -> None:
    trainer = spiky(tiny_world, tmp_path, spike)
    (loader,) = trainer.loaders()
    batches = loader.next()[:1]
    trainer.engine.update(0, [batches])
    assert trainer.engine.skipped is None
    before = state_of(trainer)
    assert before["modules"]["0.calls"] == 1 and before["optimizer"]["state"]
    logged = trainer.engine.update(1, [batches])
    assert trainer.engine.skipped is not None
    assert math.isfinite(logged["loss"]) == (spike == "gradient")
    assert ("grad_norm" in logged) == (spike == "gradient")
    assert_same(state_of(trainer), before)


def test_a_scaler_handles_gradients_itself_and_losses_are_skipped_all_the_same(
    tiny_world: Path, tmp_path: Path
) -> None:
    for spike, counted in (("gradient", False), ("nan", True)):
        trainer = spiky(tiny_world, tmp_path / spike, spike, precision="fp16")
        (loader,) = trainer.loaders()
        batches = loader.next()[:1]
        trainer.engine.update(0, [batches])
        before, scale = state_of(trainer), trainer.engine.scaler.get_scale()
        trainer.engine.update(1, [batches])
        assert (trainer.engine.skipped is not None) == counted
        after = state_of(trainer)
        assert_same((after["model"], after["optimizer"]["state"]), (before["model"], before["optimizer"]["state"]))
        assert trainer.engine.scaler.get_scale() == scale / 2


def test_running_means_of_a_model_are_put_back(tiny_world: Path, tmp_path: Path) -> None:
    trainer = spiky(tiny_world, tmp_path, "nan")
    model: Model = trainer.model
    model.register_buffer("running", torch.zeros(2))

    def count(module: Any, _: Any) -> None:
        module.running.add_(1)

    model.register_forward_pre_hook(count)
    (loader,) = trainer.loaders()
    batches = loader.next()[:1]
    trainer.engine.update(0, [batches])
    assert model.running.tolist() == [1, 1]
    trainer.engine.update(1, [batches])
    assert model.running.tolist() == [1, 1]
