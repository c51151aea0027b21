"""Optimizers: the published AdamW beside those of torch, and the published weight-decay groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from crossmodal.errors import ConfigError, nearest
from crossmodal.model.fused import probe

NO_DECAY = ("bias", "LayerNorm.bias", "LayerNorm.weight")


class PublishedAdamW(Optimizer):
    """AdamW as UNITER and IAIS were trained with it (the first Hugging Face form).

    For a parameter p with gradient g, at its own t-th update::

        m = b1 m + (1 - b1) g
        v = b2 v + (1 - b2) g^2
        p = p - lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)
        p = p (1 - lr weight_decay)

    It differs from `torch.optim.AdamW` twice: eps is added to the square root of the *uncorrected* v, and the
    decay multiplies the *updated* p. Without `correct_bias` the fraction after lr is 1. A parameter without
    gradient is left alone entirely: no decay, and its count t stays.

    Args:
        params: parameters or groups; a group may set its own `lr`, `betas`, `eps` and `weight_decay`.
        lr: learning rate, at least 0; published: 5e-5.
        betas: decay of the two running means, each in [0, 1).
        eps: at least 0; published: 1e-6.
        weight_decay: at least 0; published: 0.01.
        correct_bias: whether the means are corrected for their start at 0.

    Raises:
        ValueError: an option outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-5,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        correct_bias: bool = True,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "correct_bias": correct_bias})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name in ("lr", "eps", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name} is {group[name]}; it must be at least 0")
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas are {group['betas']}; each must be in [0, 1)")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns what `closure` returned, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
        grads = [p.grad for p in params if p.grad is not None]
        means, squares, step_sizes = [], [], []
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
            state["step"] += 1
            means.append(state["exp_avg"])
            squares.append(state["exp_avg_sq"])
            factor = _correction(state["step"], beta1, beta2) if group["correct_bias"] else 1.0
            step_sizes.append(-lr * factor)

        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, grads, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, eps)
        torch._foreach_addcdiv_(params, means, denominators, step_sizes)
        if group["weight_decay"] > 0:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])


def _correction(step: int, beta1: float, beta2: float) -> float:
    return math.sqrt(1 - beta2**step) / (1 - beta1**step)


def parameter_groups(
    module: nn.Module,
    *,
    weight_decay: float,
    no_decay: Sequence[str] = NO_DECAY,
    factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Two groups: the parameters that decay, and those whose name contains one of `no_decay`.

    The default is the published rule. It is a test for substrings, so `img_layer_norm.weight` and
    `pos_layer_norm.weight` of UNITER *are* decayed; name them in `no_decay` to spare them. Frozen parameters
    are in neither group. With `factors`, by name, there are two groups for each of them, its `scale`.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = []
    for factor in dict.fromkeys((factors or {}).values()) or [1.0]:
        decayed: list[nn.Parameter] = []
        spared: list[nn.Parameter] = []
        for name, parameter in named:
            if factors is None or factors[name] == factor:
                (spared if any(part in name for part in no_decay) else decayed).append(parameter)
        scale = {} if factors is None else {"scale": factor}
        groups += [{"params": decayed, "weight_decay": weight_decay, **scale},
                   {"params": spared, "weight_decay": 0.0, **scale}]  # fmt: skip
    return groups


def adamw(groups: list[dict[str, Any]], **options: Any) -> Optimizer:
    """torch's AdamW; for parameters on a GPU apex's kernel of the same formula, where it runs (`model.fused`).

    The two differ for a parameter that has no gradient in some updates: apex corrects its means by the number of all
    updates. torch's own `fused=True` stays off, since a checkpoint would carry it to whatever machine goes on.
    """
    plain = torch.optim.AdamW(groups, **options)  # torch alone refuses options outside their range
    on_gpu = all(p.is_cuda for group in plain.param_groups for p in group["params"])
    fused: Callable[..., Optimizer] | None = probe().adam if on_gpu else None
    return plain if fused is None else fused(plain.param_groups, **options)


_OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "published_adamw": PublishedAdamW,
    "adamw": adamw,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
}


def build_optimizer(
    name: str,
    groups: Iterable[dict[str, Any]],
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float | None = None,
) -> Optimizer:
    """An optimizer over `groups` (see `parameter_groups`, which also holds the weight decay).

    Args:
        name: `published_adamw`, or torch's `adamw`, `adam` or `adamax`. With the last two the weight decay is
            an L2 penalty on the gradient, as published.
        groups: parameter groups, each with its `weight_decay`.
        learning_rate: before the schedule.
        betas: decay of the running means.
        eps: None takes the optimizer's own: 1e-6 for `published_adamw`, 1e-8 for torch's.

    Raises:
        ConfigError: an unknown name, an option outside its range, or nothing to optimise.
    """
    if name not in _OPTIMIZERS:
        raise ConfigError(f"optimizer {name!r} is not known; {nearest(name, _OPTIMIZERS)}")
    options: dict[str, Any] = {"lr": learning_rate, "betas": betas}
    if eps is not None:
        options["eps"] = eps
    groups = list(groups)
    if not any(group["params"] for group in groups):
        raise ConfigError("there is no parameter to optimise: all are frozen; unfreeze a part of the model")
    try:
        return _OPTIMIZERS[name](groups, **options)
    except ValueError as error:
        raise ConfigError(f"optimizer {name!r} refuses its options: {error}") from error
