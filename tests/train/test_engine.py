from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from crossmodal import losses
from crossmodal.data.batches import Batch
from crossmodal.data.datasets import DATASETS
from crossmodal.model.base import Model
from crossmodal.train.engine import Engine
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.trainer import Trainer

from ..recipes import tiny_recipe
from . import dual_encoder  # noqa: F401  registers a loss over the global batch

SCALE = 8.0
IAIS = {"use": "iais", "alignment": "singular", "side": "both", "weight": {"schedule": "exp", "scale": SCALE}}
MASKED = {
    "data": {"use": "train", "draw": "masked_words", "probability": 0.4},
    "losses": [{"use": "masked_words", "weight": 0.5, "tag": "mlm"}, {"use": "itm", "weight": 2.0, "tag": "itm"}],
}
OPTIMIZER: dict[str, Any] = {"lr": 0.02, "warmup": 2, "weight_decay": 0.1, "clip": 0.1, "betas": [0.9, 0.98]}


def pools(anchor: str, *more: dict[str, Any], keep: int | None = 2) -> dict[str, Any]:
    return {
        "data": {"use": "train", "draw": "pools", "anchor": anchor, "pool": 5},
        **({} if keep is None else {"miner": {"use": "hardest", "keep": keep}}),
        "losses": [{"use": "margin_ranking", "tag": "rank_loss"}, *more],
    }


def make(world: Path, output: Path, *streams: dict[str, Any], **changes: Any) -> Trainer:
    """A trainer in float64 without dropout, of which the tests use model, corpus and engine."""
    recipe = tiny_recipe(world, **{"streams": list(streams), "optimizer": OPTIMIZER, **changes})
    config = {**recipe["model"]["config"], "initializer_range": 0.2, "pretraining": True}
    trainer = Trainer(parse_recipe({**recipe, "model": {"config": config, "dropout": 0.0}}), output)
    trainer.model.double()
    return trainer


def batches(trainer: Trainer, *parts: Sequence[Sequence[int]]) -> list[list[Batch]]:
    """For each stream, a micro-batch of the anchors in each part."""
    out = []
    for stream, micro in zip(trainer.recipe.streams, parts, strict=True):
        made = DATASETS[stream.data.draw](
            trainer.corpus("train"), trainer.model.processor, seed=1, stream="s", **stream.data.options
        )
        out.append([made.batch(anchors, 0) for anchors in micro])
    return out


def weights(model: Model) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize(
    "parts",
    [
        [[0, 1, 2], [3, 4, 5]],
        [[0, 1, 2, 3], [4, 5]],
        [[0], [1, 2, 3, 4], [5]],
        [[anchor] for anchor in range(6)],
    ],
    ids=["halves", "uneven", "three", "singles"],
)
def test_accumulated_micro_steps_give_the_update_of_the_whole_batch(
    tiny_world: Path, tmp_path: Path, parts: list[list[int]]
) -> None:
    streams = [pools("text", IAIS), pools("image"), MASKED]
    whole = make(tiny_world, tmp_path / "whole", *streams)
    split = make(tiny_world, tmp_path / "split", *streams)
    assert largest_difference(weights(whole.model), weights(split.model)) == 0
    before = weights(whole.model)
    for step in range(2):
        expected = whole.engine.update(step, batches(whole, [range(6)], [range(6)], [range(6)]))
        found = split.engine.update(step, batches(split, parts, parts, parts))
        assert found == pytest.approx(expected, rel=0, abs=1e-10)
    assert largest_difference(weights(whole.model), weights(split.model)) < 1e-10
    assert largest_difference(weights(whole.model), before) > 1e-3


def test_streams_may_have_different_numbers_of_micro_steps_or_none(tiny_world: Path, tmp_path: Path) -> None:
    """Each stream is averaged over its own units; one that has none is left out of loss and log."""
    trainer = make(tiny_world, tmp_path, pools("text"), MASKED)
    both = trainer.engine.update(0, batches(trainer, [[0, 1]], [[2], [3, 4], [5]]))
    assert both.keys() == {"loss", "rank_loss", "mlm", "itm", "lr", "grad_norm"}
    assert both["loss"] == pytest.approx(both["rank_loss"] + 0.5 * both["mlm"] + 2 * both["itm"], rel=1e-12)
    alone = trainer.engine.update(1, batches(trainer, [[0, 1]], []))
    assert alone.keys() == {"loss", "rank_loss", "lr", "grad_norm"}
    assert alone["loss"] == alone["rank_loss"]


def test_a_loss_with_its_own_count_is_averaged_over_its_units_beside_one_over_groups(
    tiny_world: Path, tmp_path: Path
) -> None:
    """Masked words: the mean over all words of uneven micro-batches, not the mean of their means."""
    trainer = make(tiny_world, tmp_path, MASKED, optimizer={**OPTIMIZER, "clip": -1})
    micro = batches(trainer, [[0, 1, 2, 3, 4], [5]])[0]
    counts = [int(batch.extras["masked_words"].sum()) for batch in micro]
    assert counts[0] != 5 * counts[1]  # else the two means would agree
    twin = copy.deepcopy(trainer.model)
    word_terms, matching_terms = [], []
    for batch in micro:
        given = twin(batch, {"word_logits", "itm_logits"})
        word_terms += [
            -logits.log_softmax(dim=0)[target]
            for logits, target in zip(given["word_logits"], batch.extras["word_targets"], strict=True)
        ]
        matching_terms += [-logits.log_softmax(dim=0)[1] for logits in given["itm_logits"].flatten(0, 1)]
    assert len(word_terms) == sum(counts) and len(matching_terms) == 6
    words, matching = (torch.stack(terms).mean() for terms in (word_terms, matching_terms))
    (0.5 * words + 2.0 * matching).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters() if p.grad is not None))
    logged = trainer.engine.update(0, [micro])
    assert logged["mlm"] == pytest.approx(words.item(), rel=1e-10)
    assert logged["itm"] == pytest.approx(matching.item(), rel=1e-10)
    assert logged["grad_norm"] == pytest.approx(norm, rel=1e-10)


def test_an_update_is_the_one_that_plain_loops_compute(tiny_world: Path, tmp_path: Path) -> None:
    """Two updates over two streams in two micro-steps each: mining, margin, IAIS, annealing, clipping, AdamW."""
    trainer = make(tiny_world, tmp_path, pools("text", IAIS), pools("image"), steps=9)
    twin = copy.deepcopy(trainer.model)
    moments: dict[str, tuple[Tensor, Tensor]] = {}
    anchors = [[0, 30, 7], [11]]
    for step in range(2):
        logged = trainer.engine.update(step, batches(trainer, anchors, anchors))
        singles = batches(trainer, *([[anchor] for part in anchors for anchor in part] for _ in range(2)))
        loss, norm = plain_update(twin, singles, moments, step=step, steps=9)
        assert logged["loss"] == pytest.approx(loss, rel=1e-10)
        assert logged["grad_norm"] == pytest.approx(norm, rel=1e-8)
        assert logged["grad_norm"] > OPTIMIZER["clip"]
        assert logged["lr"] == pytest.approx([0.01, 0.02][step], rel=1e-12)
        assert largest_difference(weights(trainer.model), weights(twin)) < 1e-10
    assert "itm_output.weight" not in moments


def plain_update(
    model: Model, streams: list[list[Batch]], moments: dict[str, tuple[Tensor, Tensor]], *, step: int, steps: int
) -> tuple[float, float]:
    """One update from single pools, pair by pair and parameter by parameter; the loss and the gradient's norm."""
    hinges: list[list[Tensor]] = [[], []]
    alignment: list[Tensor] = []
    for stream, singles in enumerate(streams):
        for pool in singles:
            scores = [score(model, pool, row) for row in range(pool.group)]
            hardest = sorted(range(1, pool.group), key=lambda row: -scores[row].item())[:2]
            matched = torch.sigmoid(scores[0])
            hinges[stream] += [F.relu(0.2 + torch.sigmoid(scores[row]) - matched) for row in hardest]
            if stream == 0:
                signature = losses.signature("iais")
                given = model(pool.keep(torch.tensor([[0]])), signature.fields)
                alignment.append(losses.get("iais")(*(given[name] for name in signature.fields), side="both"))
    weight = SCALE * float(torch.exp(5 * (torch.tensor(step / steps) - 1)))  # in float32, as published
    loss = torch.stack(hinges[0]).mean() + torch.stack(hinges[1]).mean() + weight * torch.stack(alignment).mean()
    used = list(model.named_parameters())
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in used], allow_unused=True)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))
    rate = OPTIMIZER["lr"] * (step + 1) / OPTIMIZER["warmup"] if step + 1 < OPTIMIZER["warmup"] else OPTIMIZER["lr"]
    with torch.no_grad():
        for (name, parameter), gradient in zip(used, gradients, strict=True):
            if gradient is None:
                continue
            gradient = gradient * min(1.0, OPTIMIZER["clip"] / (norm + 1e-6))
            m, v = moments.get(name, (torch.zeros_like(parameter), torch.zeros_like(parameter)))
            m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
            moments[name] = m, v
            t = step + 1
            parameter -= rate * math.sqrt(1 - 0.98**t) / (1 - 0.9**t) * m / (v.sqrt() + 1e-6)
            if not any(part in name for part in ("bias", "LayerNorm.bias", "LayerNorm.weight")):
                parameter *= 1 - rate * OPTIMIZER["weight_decay"]
    return loss.item(), norm


def score(model: Model, pool: Batch, row: int) -> Tensor:
    """The rank score of one pair of a pool, with gradients."""
    return model(pool.keep(torch.tensor([[row]])), {"rank_scores"})["rank_scores"].squeeze()


def test_parameters_without_a_gradient_are_not_decayed(tiny_world: Path, tmp_path: Path) -> None:
    trainer = make(tiny_world, tmp_path, pools("text", keep=None))
    before = weights(trainer.model)
    trainer.engine.update(0, batches(trainer, [[0, 1]]))
    after = weights(trainer.model)
    for name in ("itm_output.weight", "cls.predictions.bias", "uniter.img_embeddings.mask_embedding.weight"):
        assert torch.equal(after[name], before[name])
    assert not torch.equal(after["rank_output.weight"], before["rank_output.weight"])


def test_half_precision_skips_an_update_that_overflows_and_lowers_the_scale(tiny_world: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_world, streams=[pools("text", keep=None)], precision="fp16", optimizer=OPTIMIZER)
    trainer = Trainer(parse_recipe(recipe), tmp_path)
    engine: Engine = trainer.engine
    before, scale = weights(trainer.model), engine.scaler.get_scale()
    with torch.no_grad():
        trainer.model.get_parameter("rank_output.weight").fill_(float("inf"))
    engine.update(0, batches(trainer, [[0, 1]]))
    with torch.no_grad():
        trainer.model.get_parameter("rank_output.weight").copy_(before["rank_output.weight"])
    assert largest_difference(weights(trainer.model), before) == 0
    assert engine.scaler.get_scale() == scale / 2
    engine.update(1, batches(trainer, [[0, 1]]))
    assert largest_difference(weights(trainer.model), before) > 0
