"""Parity of optimizer, schedules and weight-decay groups."""

from __future__ import annotations

import numpy as np
import torch

from crossmodal.train.optim import PublishedAdamW, parameter_groups
from crossmodal.train.schedules import anneal, learning_rate, warmup_linear

from .harness import Case, kind


@kind("uniter_iais", "adamw")
def adamw(case: Case) -> None:
    hyper = case.hyper
    dtype = getattr(torch, hyper["dtype"].removeprefix("torch."))
    count = sum(name.startswith("in/p") for name in case.arrays)
    params = [torch.nn.Parameter(case.tensor(f"in/p{k}").clone()) for k in range(count)]
    assert all(p.dtype == dtype for p in params)
    optimizer = PublishedAdamW(
        [{"params": [p], "weight_decay": 0.0 if k == 1 else hyper["weight_decay"]} for k, p in enumerate(params)],
        lr=0.0,
        betas=tuple(hyper["betas"]),
        eps=hyper["eps"],
        correct_bias=hyper["correct_bias"],
    )
    for step, rate in enumerate(hyper["lr_per_step"]):
        for k, p in enumerate(params):
            gradient = f"in/grad{k}/step{step}"
            p.grad = case.tensor(gradient).clone() if gradient in case.arrays else None
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        for k, p in enumerate(params):
            case.array(f"out/p{k}/step{step}", p)
    for k, p in enumerate(params):
        for moment in ("exp_avg", "exp_avg_sq"):
            if f"out/{moment}{k}" in case.arrays:
                case.array(f"out/{moment}{k}", optimizer.state[p][moment])
    assert case.checked == {name for name in case.arrays if name.startswith("out/")}


@kind("uniter_iais", "schedules")
def schedules(case: Case) -> None:
    total, warmup, base = (case.hyper[k] for k in ("num_train_steps", "warmup_steps", "learning_rate"))
    steps = case.arrays["in/steps"].tolist()
    for name in case.arrays:
        if name == "in/steps":
            continue
        if name == "out/lr":
            ours = [learning_rate(s, base, warmup, total) for s in steps]
        elif name == "out/warmup_linear":
            ours = [warmup_linear(s, warmup, total) for s in steps]
        else:
            schedule = name.removeprefix("out/tsa/").removesuffix("_schedule")
            ours = [anneal(schedule, s, total) for s in steps]
        case.array(name, np.array(ours))


@kind("uniter_iais", "param_groups")
def param_groups(case: Case) -> None:
    from crossmodal.model.uniter import Uniter

    model = Uniter(case.config)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared = parameter_groups(model, weight_decay=case.hyper["weight_decay"])
    assert decayed["weight_decay"] == case.hyper["weight_decay"]
    assert spared["weight_decay"] == 0
    for recorded, group in (("decayed", decayed), ("not_decayed", spared)):
        assert sorted(names[id(p)] for p in group["params"]) == sorted(case.json[recorded])
        case.checked.add(recorded)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == case.json["state_dict"]
    case.checked.add("state_dict")
