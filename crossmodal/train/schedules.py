"""Schedules, pure functions of the step: the learning rate of an update, the annealed weight of a loss."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossmodal.errors import ConfigError, nearest

if TYPE_CHECKING:
    from .recipe import OptimizerSpec

LOWEST_RATE = 1e-8


def warmup_linear(step: int, warmup: int, total: int) -> float:
    """The factor of the learning rate at update `step` = 1, 2, ...

    It rises from 0 to 1 over `warmup` updates, then falls linearly to 0 at `total`, and stays 0 after it.
    """
    if step < warmup:
        return step / warmup
    if step >= total:
        return 0.0
    return (total - step) / (total - warmup)


def learning_rate(step: int, base: float, warmup: int, total: int) -> float:
    """The learning rate of update `step` = 1, 2, ..., set before that update.

    As published, a rate that would be 0 is 1e-8, so the last update still moves the weights a little.
    """
    rate = base * warmup_linear(step, warmup, total)
    return rate if rate > 0 else LOWEST_RATE


def rate_at(step: int, options: OptimizerSpec, total: int, epoch: int) -> float:
    """The learning rate of update `step` = 1, 2, ... of `total`, which is made in `epoch` = 0, 1, ...

    After `warmup` updates of a linear rise, `step` multiplies it by `gamma` every `step_epochs` epochs (ALADIN, spec
    section 6); `cosine` and `constant` with a `cooldown` are OpenCLIP's (CE-CLIP, spec section 5.1).
    """
    if options.schedule == "linear":
        return learning_rate(step, options.lr, options.warmup, total)
    rising = min(1.0, step / max(1, options.warmup))
    if options.schedule == "step":
        return options.lr * options.gamma ** (epoch // options.step_epochs) * rising
    done = step - 1  # updates before this one
    if done < options.warmup:
        return options.lr * rising
    if options.schedule == "cosine":
        return options.lr * (1 + cos(pi * (done - options.warmup) / (total - options.warmup))) / 2
    left = total - done
    if left > options.cooldown:
        return options.lr
    return (options.lr - options.end_lr) * (left / options.cooldown) ** options.cooldown_power + options.end_lr


# Progress (completed updates / all updates) -> weight. Not clamped: progress above 1 goes on growing.
_ANNEALING: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda progress: torch.exp((progress - 1) * 5),
    "linear": lambda progress: progress,
    "log": lambda progress: 1 - torch.exp(-progress * 5),
    "constant": torch.ones_like,
}


def anneal(name: str, step: int, total: int) -> float:
    """The annealed weight of a loss after `step` completed updates (0 at the first) of `total`.

    With x = step / total: `exp` is exp(5 (x - 1)), `linear` x, `log` 1 - exp(-5 x), `constant` 1. Computed in
    float32, as the IAIS trainer does.

    Raises:
        ConfigError: an unknown name, or a `total` below 1.
    """
    if name not in _ANNEALING:
        raise ConfigError(f"schedule {name!r} is not known; {nearest(name, _ANNEALING)}")
    if total < 1:
        raise ConfigError(f"schedule {name!r} runs over {total} updates; give at least 1")
    return float(_ANNEALING[name](torch.tensor(step / total, dtype=torch.float32)))
