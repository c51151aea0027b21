"""Ranks under torchrun: torch.distributed with nccl on GPUs and gloo elsewhere."""

from __future__ import annotations

import gc
import os
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as td

# Its functions hold on to the group that is there when they are imported, as an optimizer does: then its threads live
# on after `close`, and now and then abort the process at its end.
import torch.distributed.nn
from torch import Tensor

from crossmodal.errors import RankLost

from .distributed import ManyRanks
from .gradients import Gradients

if TYPE_CHECKING:
    from .micro_step import MicroStep
    from .recipe import DistributedSpec

PATIENCE = timedelta(hours=12)
"""How long an exchange waits. A rank that died is noticed at once, by its connection and by the launcher; a rank that
has finished its share of an evaluation early may have to wait for hours."""


class TorchRanks(ManyRanks):
    """torch.distributed, with as many ranks as torchrun has started."""

    def __init__(self) -> None:
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0
        self.restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        super().__init__()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.backend = "nccl" if self.device.type == "cuda" else "gloo"
        try:
            store, rank, size = next(td.rendezvous("env://", timeout=PATIENCE))
            store = _unused(store, rank, size)
            td.init_process_group(self.backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise RankLost(f"the ranks did not meet at {address} ({' '.join(str(error).split())[:200]})") from error
        self.rank, self.size = rank, size
        self.restarted = any(self.gather_objects(self.restarted))  # machines count for themselves

    @property
    def name(self) -> str:
        return f"torch.distributed ({self.backend}), rank {self.rank} of {self.size}"

    def gradients(
        self, module: MicroStep, optimizer: torch.optim.Optimizer, options: DistributedSpec | None = None
    ) -> Gradients:
        if options is not None and self.size > 1 and options.gradients == "sharded":
            from .sharded import ShardedGradients

            return ShardedGradients(module, optimizer, self)
        if options is not None and self.size > 1 and options.gradients == "overlapped":
            from .overlapped import DdpGradients

            return DdpGradients(module, optimizer, self, options)
        return super().gradients(module, optimizer, options)

    def is_loss(self, error: BaseException) -> bool:
        return isinstance(error, td.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))

    def close(self) -> None:
        gc.collect()  # what still holds the group, as DDP does in a cycle, would keep its threads
        td.destroy_process_group()

    def abandon(self) -> None:
        if self.backend == "gloo":  # its threads would abort the process at its end; nccl might wait for the others
            self.close()

    def _add_up(self, x: Tensor) -> None:
        td.all_reduce(x)

    def _send(self, x: Tensor) -> None:
        td.broadcast(x, src=0)

    def _rows(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        td.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def _objects(self, value: Any) -> list[Any]:
        box: list[Any] = [None] * self.size
        td.all_gather_object(box, value)
        return box


def _unused(store: td.Store, rank: int, size: int) -> td.Store:
    """A part of the store that no ranks before these have written to.

    torchrun keeps one store over all restarts, in which the addresses of ranks that are gone still stand. So rank 0
    chooses a name, and tells it to every process that has introduced itself until all of them have heard it.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"rank_{rank}", own)
        name = store.get(own).decode()  # waits
        store.set(f"{name}_{rank}", "")
        return td.PrefixStore(name, store)
    for other in range(1, size):
        while not store.check([f"{own}_{other}"]):
            store.set(store.get(f"rank_{other}").decode(), own)
            time.sleep(0.01)
    return td.PrefixStore(own, store)
