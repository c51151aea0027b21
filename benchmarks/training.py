"""One hard-negative step of UNITER-base from scratch weights, beside the published loop.

A pool is one caption of 15 words with 32 images of 10 to 59 boxes: score all, keep the 7 hardest, train on those
and the positive with dropout, update with the published AdamW. Features are in memory already.
published  both passes padded to the widest image of the pool; attention, GELU and every layer as in the
           published code; AdamW as a Python loop over tensors
crossmodal the engine's own step: packed, mined and updated
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from common import Options, Report, median, options, peak_memory, ratio, take_turns
from padded_uniter import Published
from torch import Tensor, nn

from crossmodal.data.batches import Batch, Items, Regions, Texts, length_mask
from crossmodal.losses.ranking import margin_ranking_terms
from crossmodal.model.uniter import Uniter, UniterConfig
from crossmodal.train.engine import Engine
from crossmodal.train.objectives import build_objectives
from crossmodal.train.optim import PublishedAdamW, parameter_groups
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.setup import plan_model

POOL, KEEP, WORDS, RATE = 32, 7, 15, 5e-5
RECIPE = {
    "steps": 1000,
    "batch": 1,
    "data": {"train": {"texts": "unread", "images": "unread"}},
    "streams": [
        {
            "data": {"use": "train", "draw": "pools", "anchor": "text", "pool": POOL},
            "miner": {"use": "hardest", "keep": KEEP},
            "losses": [{"use": "margin_ranking"}],
        }
    ],
    "optimizer": {"lr": RATE, "clip": 2.0, "weight_decay": 0.01},
}


def pool(config: UniterConfig) -> Batch:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 60, (POOL,), generator=draw)
    lengths[0] = 59
    real = length_mask(lengths, 59)[:, :, None]
    features = torch.randn(POOL, 59, config.img_dim, generator=draw).clamp(min=0).half() * real
    boxes = torch.rand(POOL, 59, 7, generator=draw) * real
    ids = torch.randint(1, config.vocab_size, (1, WORDS), generator=draw)
    pairs = torch.stack([torch.zeros(POOL, dtype=torch.int64), torch.arange(POOL)], dim=1)
    roles: dict[str, tuple[str, Items]] = {
        "text": ("text", Texts(ids, torch.tensor([WORDS]))),
        "image": ("image", Regions(features, boxes, lengths)),
    }
    return Batch(roles, pairs, POOL)


def model_of(config: UniterConfig) -> Uniter:
    torch.manual_seed(0)
    return Uniter(config).train()


@dataclass
class PublishedStep:
    """The published step on its own copy of the model."""

    model: Uniter
    batch: Batch
    state: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    step: int = 0

    def __call__(self) -> None:
        forward = Published(self.model)
        (_, texts), (_, regions) = self.batch.roles["text"], self.batch.roles["image"]
        assert isinstance(texts, Texts) and isinstance(regions, Regions)
        self.model.eval()
        with torch.no_grad():
            scores = forward(texts, regions)
        self.model.train()
        kept = torch.cat([torch.zeros(1, dtype=torch.int64), scores[1:].topk(KEEP).indices + 1])
        hard = Regions(regions.features[kept], regions.boxes[kept], regions.lengths[kept])
        margin_ranking_terms(forward(texts, hard)[None], margin=0.2).mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.update()
        self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update(self) -> None:
        self.step += 1
        size = RATE * math.sqrt(1 - 0.98**self.step) / (1 - 0.9**self.step)
        for name, p in self.model.named_parameters():
            if p.grad is None:
                continue
            m, v = self.state.setdefault(name, (torch.zeros_like(p), torch.zeros_like(p)))
            m.mul_(0.9).add_(p.grad, alpha=0.1)
            v.mul_(0.98).addcmul_(p.grad, p.grad, value=0.02)
            p.addcdiv_(m, v.sqrt().add_(1e-6), value=-size)
            p.add_(p, alpha=-RATE * 0.01)


def engine_of(model: Uniter) -> Engine:
    recipe = parse_recipe(RECIPE)
    objectives, _ = build_objectives(recipe, plan_model(recipe.model))
    groups = parameter_groups(model, weight_decay=0.01)
    return Engine(model, objectives, PublishedAdamW(groups, RATE), recipe.optimizer, steps=recipe.steps)


def main(given: Options) -> None:
    config = UniterConfig()
    if given.quick:
        config = UniterConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    published, engine = PublishedStep(model_of(config), pool(config)), engine_of(model_of(config))
    batch = published.batch

    def ours() -> None:
        engine.update(0, [[batch]])

    cases: dict[str, Callable[[], None]] = {"published": published, "crossmodal": ours}
    memory = {name: peak_memory(run) for name, run in cases.items()}
    seconds = take_turns(cases, 1 if given.quick else 3, warm_up=False)
    report = Report(
        f"UNITER hidden {config.hidden_size}, {config.num_hidden_layers} layers; one step on a pool of {POOL} pairs, "
        f"{KEEP + 1} trained; float32",
        ["s a step", "peak MB"],
    )
    for name in cases:
        report.add(name, f"{median(seconds, name):.2f}", f"{memory[name]:.0f}")
    report.add("published / crossmodal", "", "", ratio=ratio(seconds, "published", "crossmodal"), target=1.5)
    report.print(given)


if __name__ == "__main__":
    main(options(__doc__ or ""))
