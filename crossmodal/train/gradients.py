"""How the gradients of an update become their sums over ranks. Here: in one buffer behind the last backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from crossmodal.model.base import Model

    from .distributed import OneProcess
    from .micro_step import MicroStep


def exchange_flat(tensors: Sequence[Tensor], exchange: Callable[[Tensor], Tensor]) -> None:
    """Replace tensors of one type by what an exchange makes of all of them in one buffer."""
    flat = exchange(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


class Gradients:
    """Holds what a training step calls: `module`, whose forward begins a micro-step, and `optimizer`.

    An update calls `begin`, for each micro-step forward and backward within `micro_step`, then `finish`, which
    leaves the sum over ranks in every `grad`, whatever a library's own convention is. A parameter that no rank
    used keeps None, so that no optimizer moves it; one that some rank used gets the sum on all of them. Every rank
    makes the same number of micro-steps.

    This way is the published one: a single flat buffer. It adds up in the same order in every run.

    half: exchange in float16.
    """

    def __init__(
        self, module: MicroStep, optimizer: torch.optim.Optimizer, ranks: OneProcess, *, half: bool = False
    ) -> None:
        self.module: nn.Module = module
        self._step, self.optimizer, self.ranks, self.half = module, optimizer, ranks, half
        self.parameters = [p for p in module.parameters() if p.requires_grad]

    def begin(self, micro_steps: int, *, deferred: bool) -> None:
        """An update of so many micro-steps begins; `deferred`: a further backward pass follows the last of them."""

    def micro_step(self, last: bool) -> AbstractContextManager[object]:
        """What forward and backward of a micro-step run in."""
        return nullcontext()

    def finish(self) -> None:
        """All backward passes are made: sum up."""
        self.sum_up(self.parameters)

    def sum_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their sums over ranks."""
        if self.ranks.size == 1:
            return
        shared = self.used(parameters)
        for parameter in shared:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if not shared:
            return
        exchange_flat([p.grad for p in shared if p.grad is not None], self._sum)

    def _sum(self, x: Tensor) -> Tensor:
        return self.ranks.all_reduce(x.half()).to(x.dtype) if self.half else self.ranks.all_reduce(x)

    def stepping(self) -> AbstractContextManager[object]:
        """What `optimizer.step` runs in, behind `finish`."""
        return nullcontext()

    def weights(self) -> AbstractContextManager[Model]:
        """The model with all its weights, which ranks may call in different ways."""
        return nullcontext(self._step.model)

    def norm(self) -> Tensor:
        """The norm of all gradients, behind `finish`."""
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def state(self) -> Mapping[str, Any]:
        """The optimizer's state, whole, on every rank (all of them call this)."""
        return self.optimizer.state_dict()

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave. Raises ValueError, RuntimeError or KeyError where it is of other parameters."""
        self.optimizer.load_state_dict(dict(state))

    def used(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Those that some rank has a gradient for."""
        own = torch.tensor([p.grad is not None for p in parameters])
        return [p for p, n in zip(parameters, self.ranks.all_reduce(own).tolist(), strict=True) if n]
