"""NVIDIA's apex, where it is installed: its fused layer norm and its fused Adam in place of torch's.

`probe` imports of it `apex.normalization` and `apex.optimizers`, nothing else, and nothing before it is called. What
it finds computes what torch computes, up to rounding, and leaves state dicts as torch writes them: a checkpoint goes
on with apex or without, whichever wrote it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from crossmodal.errors import ConfigError

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Fused:
    """What of apex runs here; None for what does not.

    layer_norm: a class in place of `nn.LayerNorm`, built from a shape and `eps`.
    adam:       a class in place of `torch.optim.AdamW` for parameters on a GPU.
    said:       the same in a phrase, for a log.
    """

    layer_norm: type[nn.Module] | None
    adam: type[Optimizer] | None
    said: str


@cache
def probe() -> Fused:
    """What of apex runs on this process's GPU; looked for once.

    Raises ConfigError where the package called apex is not NVIDIA's.
    """
    return look("cuda" if torch.cuda.is_available() else None)


def look(device: str | None) -> Fused:
    """What `probe` finds, on a device of choice; None for no GPU."""
    if not _installed():
        return Fused(None, None, "apex: none")
    if device is None:
        return Fused(None, None, "apex: not used without a GPU")
    tries: dict[str, Callable[[str], type[Any]]] = {"layer-norm": _layer_norm, "Adam": _adam}
    found: dict[str, type[Any]] = {}
    reasons = []
    for name, attempt in tries.items():
        try:
            found[name] = attempt(device)
        except Exception as error:  # a missing or unfitting extension raises whatever its age made it raise
            reasons.append(" ".join(str(error).split()) or type(error).__name__)
    said = f"apex: fused {' and '.join(found)}" if found else "apex: installed, but nothing of it runs"
    if reasons:
        said += f" ({'; '.join(reasons)})"
    return Fused(found.get("layer-norm"), found.get("Adam"), said)


def with_fused_layer_norm(model: M) -> M:
    """The model, whose layer norms are apex's from now on where it stands on a GPU and apex has them."""
    kind = probe().layer_norm
    if kind is not None and all(p.is_cuda for p in model.parameters()):
        swap_layer_norms(model, kind)
    return model


def swap_layer_norms(model: nn.Module, kind: type[nn.Module]) -> None:
    """Put `kind(shape, eps=...)` in the place of every `nn.LayerNorm` below `model`; parameters stay the same ones."""
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm) is nn.LayerNorm and norm.weight is not None and norm.bias is not None:
                fused = kind(norm.normalized_shape, eps=norm.eps)
                fused.weight, fused.bias = norm.weight, norm.bias
                setattr(parent, name, fused.train(norm.training))


def _installed() -> bool:
    spec = find_spec("apex")
    if spec is None or spec.origin is None:  # without an origin: a mere folder of that name
        return False
    folder = Path(spec.origin).parent
    if not (folder / "normalization").is_dir():
        raise ConfigError(
            f"the package apex in {folder} is not NVIDIA's but another one of that name; remove it with "
            "`pip uninstall apex`, and if fused layer norms are wanted, install NVIDIA's from its sources "
            "(github.com/NVIDIA/apex)"
        )
    return True


def _layer_norm(device: str) -> type[nn.Module]:
    kind = type("FusedLayerNorm", (_AsLayerNorm, import_module("apex.normalization").FusedLayerNorm), {})
    x = torch.ones(2, 8, device=device, requires_grad=True)
    kind(8).to(device)(x).sum().backward()
    x.tolist()  # waits for the GPU: an extension without kernels for it fails here at the latest
    return kind


def _adam(device: str) -> type[Optimizer]:
    kind = type("FusedAdamW", (_AsAdamW, import_module("apex.optimizers").FusedAdam), {})
    p = nn.Parameter(torch.ones(8, device=device))
    p.grad = torch.ones_like(p)
    kind([p]).step()
    p.tolist()
    return kind


class _AsLayerNorm(nn.Module):
    """Before apex's FusedLayerNorm: what `nn.LayerNorm` does otherwise."""

    normalized_shape: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel():  # apex would start a kernel of no blocks
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype.itemsize < 4:  # torch computes in float32 there, apex would not
            x = x.float()
        with torch.autocast(kind, enabled=False):
            out: Tensor = super().forward(x)
        return out


class _AsAdamW(Optimizer):
    """Before apex's FusedAdam: the state dicts of `torch.optim.AdamW`.

    apex counts the updates of a group, torch those of a parameter, which are fewer where a parameter had no gradient
    in some. Written is the group's count for each of its parameters, read the largest of a group's.
    """

    def zero_grad(self, set_to_none: bool = True) -> None:
        Optimizer.zero_grad(self, set_to_none)  # apex's own takes no argument

    def state_dict(self) -> dict[str, Any]:
        own = super().state_dict()
        state = dict(own["state"])
        groups = []
        for group in own["param_groups"]:
            for p in group["params"]:
                if p in state:
                    state[p] = {"step": torch.tensor(float(group["step"])), **state[p]}
            groups.append({k: v for k, v in group.items() if k not in ("step", "bias_correction")})
        return {**own, "state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = state_dict["state"]
        groups = []
        for group in state_dict["param_groups"]:
            steps = [int(state[p]["step"]) for p in group["params"] if p in state]
            groups.append({**group, "bias_correction": True, "step": max(steps, default=0)})
        state = {p: {k: v for k, v in values.items() if k != "step"} for p, values in state.items()}
        super().load_state_dict({**state_dict, "state": state, "param_groups": groups})
