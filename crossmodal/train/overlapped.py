"""Gradients that are summed while the last backward pass still runs: DDP under torchrun, horovod's optimizer."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as td
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from crossmodal.errors import ConfigError

from .gradients import Gradients

if TYPE_CHECKING:
    from .distributed import ManyRanks, OneProcess
    from .micro_step import MicroStep
    from .recipe import DistributedSpec


class DdpGradients(Gradients):
    """DistributedDataParallel with the sum in place of its mean.

    A further backward pass behind the last micro-step, which losses that count their own units make, is nothing
    that it can wait for: such an update is summed at its end, in one buffer.
    """

    def __init__(
        self, module: MicroStep, optimizer: torch.optim.Optimizer, ranks: OneProcess, options: DistributedSpec
    ) -> None:
        super().__init__(module, optimizer, ranks, half=options.half)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a new name for broadcast_buffers, which torch 2.6 lacks
            self._parallel = DistributedDataParallel(
                module,
                find_unused_parameters=options.unused_parameters,
                static_graph=options.static_graph,
                bucket_cap_mb=options.bucket_mb,
                broadcast_buffers=False,
                init_sync=False,
            )
        # A lambda: DDP compares annotations, which are strings here.
        self._parallel.register_comm_hook(options.half, lambda half, bucket: _sum(half, bucket))
        self.module = self._parallel
        self._overlap = self._summed = False
        self._static = options.static_graph

    def begin(self, micro_steps: int, *, deferred: bool) -> None:
        if self._static and (micro_steps > 1 or deferred):  # DDP cannot leave a backward pass of those out
            raise ConfigError(
                f"distributed.static_graph: an update must make one backward pass, and this recipe's make "
                f"{micro_steps + deferred}; leave it out, or use one stream, accumulate 1 and no masked words"
            )
        self._overlap, self._summed = not deferred, False

    def micro_step(self, last: bool) -> AbstractContextManager[object]:
        self._summed = last and self._overlap
        return nullcontext() if self._summed else self._parallel.no_sync()

    def finish(self) -> None:
        if not self._summed:
            super().finish()


def _sum(half: bool, bucket: td.GradBucket) -> torch.futures.Future[Tensor]:
    whole = bucket.buffer()
    sent = whole.half() if half else whole
    future = td.all_reduce(sent, async_op=True).get_future()
    return future.then(lambda done: done.value()[0].to(whole.dtype))


class HorovodGradients(Gradients):
    """horovod.DistributedOptimizer with the sum in place of its mean.

    It sends a gradient at the last of the expected backward passes, and at `synchronize` those that were seen less
    often. It knows no parameters without gradient and makes them zeros: they become None again, lest weight decay
    move them.
    """

    def __init__(
        self, module: MicroStep, optimizer: torch.optim.Optimizer, ranks: ManyRanks, options: DistributedSpec
    ) -> None:
        import horovod.torch as hvd

        super().__init__(module, optimizer, ranks, half=options.half)
        self._many = ranks
        self.optimizer = self._parallel = hvd.DistributedOptimizer(
            optimizer,
            named_parameters=[(name, p) for name, p in module.named_parameters() if p.requires_grad],
            compression=hvd.Compression.fp16 if options.half else hvd.Compression.none,
            op=hvd.Sum,
        )

    def begin(self, micro_steps: int, *, deferred: bool) -> None:
        self._parallel.set_backward_passes_per_step(micro_steps + deferred)

    def finish(self) -> None:
        shared = set(self.used(self.parameters))
        with self._many.exchanging():
            self._parallel.synchronize()
        for parameter in self.parameters:
            if parameter not in shared:
                parameter.grad = None

    def stepping(self) -> AbstractContextManager[Any]:
        return self._parallel.skip_synchronize()
