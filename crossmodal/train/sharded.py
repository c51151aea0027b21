"""FSDP2: each rank keeps a part of every gradient and of the optimizer's state, for encoders that are large."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from crossmodal.errors import ConfigError
from crossmodal.model.base import Model

from .gradients import Gradients
from .micro_step import MicroStep

if TYPE_CHECKING:
    from .distributed import OneProcess


class ShardedGradients(Gradients):
    """Gradients and optimizer states stay in shards, parts along the first dimension of each weight; the weights are
    gathered for a step. Scalars and losses are not sharded.

    The optimizer sees this rank's parts as plain parameters, so that it may be any. Beside the parts stands a whole
    copy of the weights, which mining, validation and checkpoints use, where ranks go different ways: it is brought
    up to date when it is asked for.
    """

    def __init__(self, module: MicroStep, optimizer: torch.optim.Optimizer, ranks: OneProcess) -> None:
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise ConfigError(
                f"distributed.gradients: sharded needs a newer torch than {torch.__version__}; use flat or overlapped"
            )
        model = module.model
        names = {parameter: name for name, parameter in model.named_parameters()}
        whole = {parameter for parameter in model.parameters() if parameter.dim() == 0}
        self._copy, self._old = copy.deepcopy(model), True
        # One unit: fields are computed with parts of layers too, which FSDP would not have gathered.
        fully_shard(model, ignored_params=whole)
        cast(FSDPModule, model).set_gradient_divide_factor(1.0)  # the sum, not the mean
        cast(FSDPModule, model).set_force_sum_reduction_for_comms(True)  # else in float32 a product, which gloo lacks
        super().__init__(module, optimizer, ranks)
        sharded = dict(model.named_parameters())
        self._parts: dict[nn.Parameter, nn.Parameter] = {
            p: nn.Parameter(cast(DTensor, p).to_local(), requires_grad=p.requires_grad)
            for p in sharded.values()
            if isinstance(p, DTensor)
        }
        for group in optimizer.param_groups:
            now = [sharded[names[p]] if p in names else p for p in group["params"]]
            group["params"] = [self._parts.get(p, p) for p in now]
        self.parameters = [self._parts.get(p, p) for p in self.parameters]
        self._plain = [p for p in module.parameters() if p not in self._parts and p.requires_grad]

    def finish(self) -> None:
        for parameter, part in self._parts.items():
            part.grad = None if parameter.grad is None else cast(DTensor, parameter.grad).to_local()
            parameter.grad = None
        self.sum_up(self._plain)

    def norm(self) -> Tensor:
        return (self.ranks.all_reduce(_squares(self._parts.values())) + _squares(self._plain)).sqrt()

    @contextmanager
    def stepping(self) -> Iterator[None]:
        yield
        self._old = True

    @contextmanager
    def weights(self) -> Iterator[Model]:
        if self._old:
            with torch.no_grad():
                now = {**dict(self._step.model.named_parameters()), **dict(self._step.model.named_buffers())}
                for name, own in (*self._copy.named_parameters(), *self._copy.named_buffers()):
                    own.copy_(self.ranks.all_gather(part) if (part := self._part(now[name])) is not None else now[name])
            self._old = False
        yield self._copy.train(self._step.model.training)

    def _part(self, x: Tensor) -> Tensor | None:
        return self._parts[x].detach() if isinstance(x, nn.Parameter) and x in self._parts else None

    def state(self) -> Mapping[str, Any]:
        state = self.optimizer.state_dict()
        return {**state, "state": self._mapped(state["state"], lambda x: self.ranks.all_gather(x))}

    def load(self, state: Mapping[str, Any]) -> None:
        def own(x: Tensor) -> Tensor:
            rows = x.chunk(self.ranks.size)
            return rows[self.ranks.rank] if self.ranks.rank < len(rows) else x[:0]

        super().load({**state, "state": self._mapped(state["state"], own)})

    def _mapped(self, states: Mapping[int, Mapping[str, Any]], function: Any) -> dict[int, dict[str, Any]]:
        """The states with the tensors of sharded parameters changed, but for counts of updates, which have no rows."""
        listed = [p for group in self.optimizer.param_groups for p in group["params"]]
        sharded = set(self._parts.values())
        return {
            i: {
                k: function(v) if listed[i] in sharded and isinstance(v, Tensor) and v.dim() else v
                for k, v in s.items()
            }
            for i, s in states.items()
        }


def _squares(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The sum of the squares of their gradients."""
    squares = [p.grad.double().square().sum() for p in parameters if p.grad is not None]
    return torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)
