"""CLIP's and CE-CLIP's training loop and schedules against recorded runs: whole updates through the engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from crossmodal.data.batches import Batch, Items, Pixels
from crossmodal.losses.ce_clip import CeClip
from crossmodal.model.clip_layouts import to_open_clip
from crossmodal.train.engine import Engine
from crossmodal.train.objectives import build_objectives
from crossmodal.train.optim import build_optimizer, parameter_groups
from crossmodal.train.recipe import OptimizerSpec, Recipe, parse_recipe
from crossmodal.train.schedules import rate_at

from .ce_clip_ranks import loss_of
from .harness import Case, kind
from .kinds_ce_clip_model import model, texts

NO_DECAY = ["bias", "ln_", "ls_", "class_embedding", "logit_scale"]
LOGGED = {"CMR_Loss": "cmr", "IMC_Loss": "imc"}


@kind("ce_clip", "train_schedules")
def train_schedules(case: Case) -> None:
    config = case.config
    for name in case.arrays:
        options: dict[str, Any] = {"lr": config["base_lr"], "warmup": config["warmup"], "schedule": name}
        if name.startswith("const"):
            options["schedule"] = "constant"
        if name.startswith("const_cooldown"):
            more = config.get(name, {})
            options |= {"cooldown": config["cooldown_steps"], "cooldown_power": more.get("power", 1.0),
                        "end_lr": more.get("end_lr", 0.0)}  # fmt: skip
        spec, total = OptimizerSpec(**options), config["total_steps"]
        case.array(name, np.array([rate_at(step, spec, total, 0) for step in range(1, total + 1)]))


@kind("ce_clip", "train_da", "train_plain_clip")
def train(case: Case) -> None:
    config, recipe = case.config, recipe_of(case)
    built = model(case, "init", "open_clip").train()
    objectives, modules = build_objectives(recipe, built)
    groups = parameter_groups(built, weight_decay=config["wd"], no_decay=recipe.optimizer.no_decay)
    names = {id(p): name for name, p in to_open_clip(dict(built.named_parameters())).items()}
    for recorded, group in zip(("decay_parameters", "no_decay_parameters"), groups, strict=True):
        assert {names[id(p)] for p in group["params"]} == set(config[recorded])
        case.checked.add(recorded)
    options = recipe.optimizer
    optimizer = build_optimizer("adamw", groups, learning_rate=options.lr, betas=options.betas, eps=options.eps)
    engine = Engine(
        built, objectives, optimizer, options, steps=recipe.steps, modules=modules,
        steps_per_epoch=config["batches_per_epoch"],
    )  # fmt: skip
    for epoch in range(config["epochs"]):
        for number in range(config["batches_per_epoch"]):
            step = epoch * config["batches_per_epoch"] + number
            scale = built.logit_scale.detach().exp()
            logged = engine.update(step, [[batch_of(case, f"epoch{epoch}/batch{number}/")]])
            found = {"step": step, "scale": scale, "loss": logged["loss"], "lr": logged["lr"]}
            for loss in modules:
                assert isinstance(loss, CeClip)
                found |= {name: loss.terms[term] for name, term in LOGGED.items() if term in loss.terms}
                found |= {f"threshold_{k}": value for k, value in enumerate(loss.thresholds, start=1)}
                found["threshold"] = loss.thresholds[0]  # where they are one number
            for name, recorded in case.json["scalar_outputs"]["steps"][step].items():
                if recorded is not None:
                    case.equal(f"steps/{step}/{name}", found[name], recorded)
        state = to_open_clip(built.state_dict())
        for name in [name for name in case.arrays if name.startswith(f"after_epoch{epoch}/")]:
            case.array(name, state[name.partition("/")[2]])


def recipe_of(case: Case) -> Recipe:
    config = case.config
    loss = loss_of(config)
    if loss["use"] == "ce_clip":
        loss["reset_each_epoch"] = any("quirk 4)" in quirk for quirk in case.json["quirks"])
    clip = config["grad_clip_norm"]
    return parse_recipe({
        "steps": config["epochs"] * config["batches_per_epoch"], "batch": config["batch"],
        "model": {"use": "clip"}, "data": {"train": {"texts": "unused", "images": "unused"}},
        "streams": [{"data": {"use": "train", "draw": "matched_negatives"}, "losses": [loss]}],
        "optimizer": {"use": "adamw", "lr": config["lr"], "betas": config["betas"], "eps": config["eps"],
                      "weight_decay": config["wd"], "no_decay": NO_DECAY, "clip": -1 if clip is None else clip,
                      "warmup": config["warmup"], **schedule_of(config["schedule"])},
    })  # fmt: skip


def schedule_of(name: str) -> dict[str, Any]:
    return {"schedule": "constant" if name == "const" else name}


def batch_of(case: Case, at: str) -> Batch:
    images, rows = Pixels(case.tensor(at + "images")), case.tensor(at + "texts")
    count = len(images)
    roles: dict[str, tuple[str, Items]] = {
        "text": ("text", texts(rows[:count], cropped=True)),
        "image": ("image", images),
    }
    if len(rows) == count:
        return Batch(roles)
    roles["negative_text"] = ("text", texts(rows[count:], cropped=True))
    return Batch(roles, extras={"negative_mask": case.tensor(at + "valid_mask5")[:, 1:]})
