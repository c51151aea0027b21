"""The published AdamW against its formula written as loops, its state, and the parameter groups."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crossmodal.errors import ConfigError
from crossmodal.train.engine import Engine
from crossmodal.train.objectives import build_objectives
from crossmodal.train.optim import PublishedAdamW, build_optimizer, parameter_groups
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.trainer import Trainer

from ..model.clip_inputs import BATCH, clip
from ..recipes import tiny_recipe

LR, BETAS, EPS, DECAY = 0.02, (0.9, 0.98), 1e-6, 0.1


def naive_adamw(start: Tensor, gradients: list[Tensor | None], decay: float) -> Tensor:
    """The formula for one parameter, element by element in Python floats."""
    values, m, v, t = start.flatten().tolist(), [0.0] * start.numel(), [0.0] * start.numel(), 0
    for gradient in gradients:
        if gradient is None:
            continue
        t += 1
        for i, g in enumerate(gradient.flatten().tolist()):
            m[i] = BETAS[0] * m[i] + (1 - BETAS[0]) * g
            v[i] = BETAS[1] * v[i] + (1 - BETAS[1]) * g * g
            size = LR * math.sqrt(1 - BETAS[1] ** t) / (1 - BETAS[0] ** t)
            values[i] -= size * m[i] / (math.sqrt(v[i]) + EPS)
            values[i] *= 1 - LR * decay
    return torch.tensor(values, dtype=start.dtype).reshape(start.shape)


def make_run(dtype: torch.dtype) -> tuple[list[nn.Parameter], list[list[Tensor | None]]]:
    """Three parameters and seven gradients for each; the last one has none in the first two updates."""
    generator = torch.Generator().manual_seed(5)
    shapes = [(4, 3), (5,), (2, 2)]
    params = [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in shapes]
    gradients: list[list[Tensor | None]] = [
        [torch.randn(s, generator=generator, dtype=dtype) for _ in range(7)] for s in shapes
    ]
    gradients[2][:2] = [None, None]
    return params, gradients


def make_optimizer(params: list[nn.Parameter]) -> PublishedAdamW:
    groups = [
        {"params": [params[0], params[2]], "weight_decay": DECAY},
        {"params": [params[1]], "weight_decay": 0.0},
    ]
    return PublishedAdamW(groups, lr=LR, betas=BETAS, eps=EPS)


def update(
    optimizer: PublishedAdamW, params: list[nn.Parameter], gradients: list[list[Tensor | None]], step: int
) -> None:
    for p, g in zip(params, gradients, strict=True):
        p.grad = None if (gradient := g[step]) is None else gradient.clone()
    optimizer.step()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_formula(dtype: torch.dtype, tolerance: float) -> None:
    params, gradients = make_run(dtype)
    decays = [DECAY, 0.0, DECAY]
    expected = [naive_adamw(p.detach(), g, d) for p, g, d in zip(params, gradients, decays, strict=True)]
    optimizer = make_optimizer(params)
    for step in range(7):
        update(optimizer, params, gradients, step)
    for ours, theirs in zip(params, expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=tolerance, atol=tolerance)
    assert [optimizer.state[p]["step"] for p in params] == [7, 7, 5]


def test_a_parameter_without_gradient_is_left_alone() -> None:
    params, _ = make_run(torch.float64)
    before = [p.detach().clone() for p in params]
    optimizer = make_optimizer(params)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert not optimizer.state


def test_without_bias_correction_the_first_step_is_smaller() -> None:
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    p.grad = torch.ones_like(p)
    PublishedAdamW([p], lr=LR, betas=BETAS, eps=0.0, weight_decay=0.0, correct_bias=False).step()
    assert p.item() == pytest.approx(1 - LR * 0.1 / math.sqrt(0.02), rel=1e-12)


def test_resumes_bit_for_bit(tmp_path) -> None:  # type: ignore[no-untyped-def]
    whole, gradients = make_run(torch.float32)
    optimizer = make_optimizer(whole)
    for step in range(7):
        update(optimizer, whole, gradients, step)

    params, _ = make_run(torch.float32)
    optimizer = make_optimizer(params)
    for step in range(3):
        update(optimizer, params, gradients, step)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = make_optimizer(params)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for step in range(3, 7):
        update(resumed, params, gradients, step)
    assert all(torch.equal(a, b) for a, b in zip(whole, params, strict=True))


def test_built_again_from_its_groups_alone() -> None:
    """As horovod builds an optimizer of its own from one."""
    params, gradients = make_run(torch.float64)
    again, _ = make_run(torch.float64)
    optimizer = make_optimizer(params)
    rebuilt = PublishedAdamW(make_optimizer(again).param_groups)
    for step in range(3):
        update(optimizer, params, gradients, step)
        update(rebuilt, again, gradients, step)
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))
    assert PublishedAdamW([nn.Parameter(torch.ones(1))]).defaults["lr"] == 5e-5


def test_step_returns_what_the_closure_returns() -> None:
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = PublishedAdamW([p], lr=LR, weight_decay=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert p.item() < 2.0


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"eps": -1e-8}, {"betas": (1.0, 0.9)}, {"weight_decay": -0.1}])
def test_options_outside_their_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PublishedAdamW([nn.Parameter(torch.ones(1))], **{"lr": LR, **options})  # type: ignore[arg-type]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(2, 2)
        self.LayerNorm = nn.LayerNorm(2)
        self.img_layer_norm = nn.LayerNorm(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def group_names(module: nn.Module, **options: object) -> list[set[str]]:
    names = {id(p): n for n, p in module.named_parameters()}
    groups = parameter_groups(module, weight_decay=0.01, **options)  # type: ignore[arg-type]
    assert [g["weight_decay"] for g in groups] == [0.01, 0.0]
    return [{names[id(p)] for p in g["params"]} for g in groups]


def test_groups_follow_the_published_substrings() -> None:
    decayed, spared = group_names(Block())
    assert decayed == {"dense.weight", "img_layer_norm.weight"}
    assert spared == {"dense.bias", "LayerNorm.weight", "LayerNorm.bias", "img_layer_norm.bias"}


def test_groups_spare_what_is_named() -> None:
    decayed, _ = group_names(Block(), no_decay=("bias", "LayerNorm.weight", "layer_norm.weight"))
    assert decayed == {"dense.weight"}


def test_groups_of_each_factor() -> None:
    block = Block()
    factors = {name: 0.5 if name.startswith("dense") else 1.0 for name, _ in block.named_parameters()}
    groups = parameter_groups(block, weight_decay=0.01, factors=factors)
    names = {id(p): n for n, p in block.named_parameters()}
    assert [(g["scale"], g["weight_decay"], {names[id(p)] for p in g["params"]}) for g in groups] == [
        (0.5, 0.01, {"dense.weight"}),
        (0.5, 0.0, {"dense.bias"}),
        (1.0, 0.01, {"img_layer_norm.weight"}),
        (1.0, 0.0, {"LayerNorm.weight", "LayerNorm.bias", "img_layer_norm.bias"}),
    ]


def test_an_update_moves_deeper_layers_less() -> None:
    """By Adam's first step, which is the rate in every coordinate: the decay to the power of the depth, the warm-up
    and the schedule on top of it."""
    recipe = parse_recipe({
        "steps": 4, "model": {"use": "clip"}, "data": {"train": {"texts": "unused", "images": "unused"}},
        "streams": [{"data": {"use": "train", "draw": "matched"}, "losses": [{"use": "clip_info_nce"}]}],
        "optimizer": {"use": "adamw", "lr": 0.01, "weight_decay": 0, "eps": 1e-12, "warmup": 2, "clip": -1,
                      "layer_decay": 0.5},
    })  # fmt: skip
    model = clip().double().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    factors = model.learning_rate_factors(recipe.optimizer.layer_decay)
    groups = parameter_groups(model, weight_decay=0.0, factors=factors)
    optimizer = build_optimizer("adamw", groups, learning_rate=0.01, eps=recipe.optimizer.eps)
    objectives, _ = build_objectives(recipe, model)
    logged = Engine(model, objectives, optimizer, recipe.optimizer, steps=4).update(0, [[BATCH]])
    assert logged["lr"] == pytest.approx(0.005)
    for name in ("visual.proj", "visual.ln_post.weight", "visual.ln_pre.weight", "text.positional_embedding"):
        moved = (dict(model.named_parameters())[name].detach() - before[name]).abs().max()
        assert float(moved) == pytest.approx(0.005 * factors[name], rel=1e-4)


@pytest.mark.parametrize("name", ["published_adamw", "adamw", "adam", "adamax"])
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    optimizer = build_optimizer(name, parameter_groups(module, weight_decay=0.01), learning_rate=0.05)
    x = torch.randn(16, 3)
    losses = []
    for _ in range(40):
        loss = (module(x) - x.sum(1, keepdim=True)).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 4


def test_eps_is_the_optimizers_own_unless_given() -> None:
    groups = parameter_groups(nn.Linear(2, 2), weight_decay=0.0)
    assert build_optimizer("published_adamw", groups, learning_rate=1.0).defaults["eps"] == 1e-6
    assert build_optimizer("adamw", groups, learning_rate=1.0).defaults["eps"] == 1e-8
    assert build_optimizer("adamw", groups, learning_rate=1.0, eps=1e-5).defaults["eps"] == 1e-5


def test_adamw_on_the_cpu_is_torchs() -> None:
    groups = parameter_groups(nn.Linear(2, 2), weight_decay=0.0)
    assert type(build_optimizer("adamw", groups, learning_rate=1.0)) is torch.optim.AdamW


def test_layer_decay_of_a_model_without_it(tiny_world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the model uniter takes no optimizer\.layer_decay; leave it out"):
        Trainer(parse_recipe(tiny_recipe(tiny_world, optimizer={"layer_decay": 0.5})), tmp_path / "run")


def test_options_of_the_recipe_reach_the_optimizer_also_when_resumed(tiny_world: Path, tmp_path: Path) -> None:
    def optimizer(resume: bool, **options: object) -> torch.optim.Optimizer:
        values = tiny_recipe(tiny_world, steps=1, validation=None, optimizer={"use": "adamw", **options})
        trainer = Trainer(parse_recipe(values), tmp_path / "run", resume=resume, progress=False)
        if not resume:
            trainer.train()
        return trainer.engine.optimizer

    for resume, eps, betas in ((False, 1e-6, (0.9, 0.98)), (True, 1e-5, (0.8, 0.9))):
        groups = optimizer(resume, eps=eps, betas=betas).param_groups
        assert {(g["eps"], *g["betas"]) for g in groups} == {(eps, *betas)}


def test_mistakes_are_config_errors() -> None:
    groups = parameter_groups(nn.Linear(2, 2), weight_decay=0.0)
    with pytest.raises(ConfigError, match="did you mean adam"):
        build_optimizer("adamv", groups, learning_rate=1.0)
    for name in ("published_adamw", "adamw"):
        with pytest.raises(ConfigError, match=name):
            build_optimizer(name, groups, learning_rate=-1.0)
    frozen = parameter_groups(nn.Linear(2, 2).requires_grad_(False), weight_decay=0.0)
    with pytest.raises(ConfigError, match="frozen"):
        build_optimizer("adam", frozen, learning_rate=1.0)
