"""One small interface for one process or many. Chosen from the launcher's environment; nothing else asks which."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossmodal.errors import ConfigError, RankLost

from .gradients import Gradients

if TYPE_CHECKING:
    from .micro_step import MicroStep
    from .recipe import DistributedSpec

_WIDE = {
    torch.bool: torch.int32,
    torch.uint8: torch.int32,
    torch.int8: torch.int32,
    torch.int16: torch.int32,
    torch.bfloat16: torch.float32,
}
"""What is exchanged in place of the types that horovod cannot add up."""


class OneProcess:
    """A single process: every exchange is the identity.

    rank, size: this process among all; local_rank: among those of its machine.
    device: what it computes on, the GPU of its local rank where there is one.
    restarts: whether the launcher starts a job again after a failure.
    restarted: whether it has done so, and the job has to go on.
    seconds: spent in exchanges so far, waiting for others included.

    As a context it closes the connection at the end.
    """

    rank = 0
    size = 1
    local_rank = 0
    restarts = False
    restarted = False

    def __init__(self) -> None:
        self.device = torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        self.seconds = 0.0

    @property
    def name(self) -> str:
        return "one process"

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_reduce(torch.zeros(1))

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks, on every rank; `x` may be overwritten.

        Integers of less than 32 bits and bool are added up, where there are several ranks, as int32, which is what
        comes back.
        """
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's values, bit for bit, on every rank; `x` has the same shape and type on all of them."""
        return x

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, on every rank: plain containers, numbers, strings and exceptions."""
        return self.gather_objects(value if self.rank == 0 else None)[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order."""
        return [value]

    def all_gather(self, x: Tensor) -> Tensor:
        """The rows of every rank in rank order; ranks may have different numbers of rows, also none."""
        return x

    def all_gather_with_gradients(self, x: Tensor) -> Tensor:
        """`all_gather` whose backward adds up, over ranks, the gradients of this rank's rows."""
        return x

    def gradients(
        self, module: MicroStep, optimizer: torch.optim.Optimizer, options: DistributedSpec | None = None
    ) -> Gradients:
        """How the gradients of `module`, updated by `optimizer`, become sums over ranks.

        Raises ConfigError where this launcher cannot do it as the options want it.
        """
        if options is not None and options.gradients == "sharded" and self.size > 1:
            raise ConfigError(
                f"distributed.gradients: sharded works under torchrun, this is {self.name}; use flat or overlapped"
            )
        return Gradients(module, optimizer, self, half=options is not None and options.half)

    def elastic(self, job: Callable[[], None]) -> None:
        """Do the job; where the launcher can go on with other ranks after a loss, again and again until it is done."""
        job()

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Nothing is connected."""


class ManyRanks(OneProcess, ABC):
    """What the launchers' libraries share; each fills in the exchanges.

    As a context it leaves an error that says no more than that the connection broke as RankLost.
    """

    def all_reduce(self, x: Tensor) -> Tensor:
        wide = x.to(self.device, _WIDE.get(x.dtype, x.dtype))
        with self.exchanging():
            self._add_up(wide)
        return wide.to(x.dtype) if x.dtype.is_floating_point else wide

    def broadcast(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x
        content = x.detach().to(self.device, copy=True).contiguous()
        with self.exchanging():
            self._send(content.view(-1).view(torch.uint8))  # bytes: horovod does not know every type
        return content

    def gather_objects(self, value: Any) -> list[Any]:
        with self.exchanging():
            return self._objects(value)

    def all_gather(self, x: Tensor) -> Tensor:
        return self.gathered(x, self.counts(x))

    def all_gather_with_gradients(self, x: Tensor) -> Tensor:
        return _AllGather.apply(x, self)

    def counts(self, x: Tensor) -> list[int]:
        """The number of rows of every rank."""
        own = torch.zeros(self.size, dtype=torch.int64)
        own[self.rank] = len(x)
        return self.all_reduce(own).tolist()

    def gathered(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """`all_gather`, where the counts are known."""
        wide = x.to(self.device, _WIDE.get(x.dtype, x.dtype)).contiguous()
        with self.exchanging():
            return self._rows(wide, counts).to(x.dtype)

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """What is done inside counts as an exchange."""
        if self.device.type == "cuda":  # what was computed before is not waited for on the exchange's account
            torch.cuda.synchronize()
        start = time.perf_counter()
        try:
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        finally:
            self.seconds += time.perf_counter() - start

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and self.size > 1 and threading.current_thread() is threading.main_thread():
            # Launchers send it as soon as one rank has ended: it must not cut off what this one says.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if error is None or isinstance(error, SystemExit):
            return self.close()
        traceback.clear_frames(error.__traceback__)  # what they hold would hold the connection
        self.abandon()
        if self.is_loss(error):
            first = " ".join(str(error).split())[:200]
            raise RankLost(
                f"rank {self.rank} has lost the others: one of them ended or cannot be reached, and what it said "
                f"stands before this; a training run goes on from its last checkpoint with --resume ({first})"
            ) from error

    @abstractmethod
    def is_loss(self, error: BaseException) -> bool:
        """Whether an error says no more than that other ranks are gone."""

    @abstractmethod
    def close(self) -> None:
        """Leave the others, all of which are at their end, too."""

    def abandon(self) -> None:
        """Leave the others, who may be gone, because of an error."""

    @abstractmethod
    def _add_up(self, x: Tensor) -> None:
        """Replace x by its sum over ranks."""

    @abstractmethod
    def _send(self, x: Tensor) -> None:
        """Replace x by that of rank 0."""

    @abstractmethod
    def _rows(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all ranks, each of which has its count of them."""

    @abstractmethod
    def _objects(self, value: Any) -> list[Any]:
        """The values of all ranks."""


class _AllGather(torch.autograd.Function):
    """Backward sums over ranks whatever a library's own convention is (horovod's allgather averages)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: ManyRanks) -> Tensor:
        counts = ranks.counts(x)
        ctx.ranks, ctx.start, ctx.rows = ranks, sum(counts[: ranks.rank]), len(x)
        return ranks.gathered(x, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = ctx.ranks.all_reduce(gradients[0].contiguous().clone())
        return total[ctx.start : ctx.start + ctx.rows], None


def connect() -> OneProcess:
    """The interface that the launcher's environment calls for.

    Raises ConfigError where its library is not installed or does not work, RankLost where the others do not come.
    """
    if int(os.environ.get("HOROVOD_SIZE", 1)) > 1 or os.environ.get("HOROVOD_ELASTIC") == "1":
        from .horovod_ranks import HorovodRanks

        return HorovodRanks()
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from .torch_ranks import TorchRanks

        return TorchRanks()
    return OneProcess()
