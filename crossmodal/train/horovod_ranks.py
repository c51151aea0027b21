"""Ranks under horovodrun."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossmodal.errors import ConfigError

from .distributed import ManyRanks
from .gradients import Gradients

if TYPE_CHECKING:
    from .micro_step import MicroStep
    from .recipe import DistributedSpec

_NAP = 0.0002  # seconds


class HorovodRanks(ManyRanks):
    """Horovod with as many ranks as horovodrun has started: nccl on GPUs where it was built with it, gloo elsewhere."""

    def __init__(self) -> None:
        try:
            import horovod.torch as hvd
        except ImportError as error:
            raise ConfigError(
                f"horovodrun has started this process, but horovod cannot be imported ({error}); build it for this "
                "torch with scripts/build_horovod.sh, or start with torchrun"
            ) from None
        self._hvd = hvd
        self.restarts = os.environ.get("HOROVOD_ELASTIC") == "1"
        hvd.init()
        self._take_place()

    def _take_place(self) -> None:
        self.local_rank = self._hvd.local_rank()
        super().__init__()
        self.rank, self.size = self._hvd.rank(), self._hvd.size()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @property
    def name(self) -> str:
        backend = "nccl" if self.device.type == "cuda" and self._hvd.nccl_built() else "gloo"
        return f"horovod ({backend}), rank {self.rank} of {self.size}"

    def gradients(
        self, module: MicroStep, optimizer: torch.optim.Optimizer, options: DistributedSpec | None = None
    ) -> Gradients:
        if options is not None and self.size > 1 and options.gradients == "overlapped":
            from .overlapped import HorovodGradients

            return HorovodGradients(module, optimizer, self, options)
        return super().gradients(module, optimizer, options)

    def elastic(self, job: Callable[[], None]) -> None:
        """As horovod.elastic.run does it, with the job's own files as its state.

        Ranks that are left after a loss have other numbers and are fewer; `restarted` says so.
        """
        if not self.restarts:
            return job()
        from horovod.common.elastic import State, run_fn

        ranks = self

        class Files(State):
            def save(self) -> None: ...

            def restore(self) -> None: ...

            def reset(self) -> None:
                ranks._take_place()
                ranks.restarted = True

            def sync(self) -> None:
                ranks.restarted = any(ranks.gather_objects(ranks.restarted))  # a new rank does not know

        def again() -> None:
            self._hvd.shutdown()
            self._hvd.init()

        run_fn(lambda _: job(), again)(Files(self._hvd.broadcast_object, self._hvd.rank))

    def is_loss(self, error: BaseException) -> bool:
        from horovod.common.exceptions import HorovodInternalError

        return isinstance(error, HorovodInternalError)

    def close(self) -> None:
        self._hvd.shutdown()

    def _add_up(self, x: Tensor) -> None:
        self._wait(self._hvd.allreduce_async_(x, op=self._hvd.Sum))

    def _send(self, x: Tensor) -> None:
        self._wait(self._hvd.broadcast_async_(x, root_rank=0))

    def _rows(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        return self._wait(self._hvd.allgather_async(x))

    def _wait(self, handle: int) -> Tensor:
        """What an exchange gives. Horovod's own waiting keeps a core busy, which the other ranks may need."""
        while not self._hvd.poll(handle):
            time.sleep(_NAP)
        result: Tensor = self._hvd.synchronize(handle)
        return result

    def _objects(self, value: Any) -> list[Any]:
        return self._hvd.allgather_object(value, name="objects")  # by itself it takes the type, which may differ
