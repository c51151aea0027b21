"""One small interface for one process or many. Chosen from the launcher's environment; nothing else asks which."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor, nn


class OneProcess:
    """A single process: every exchange is the identity."""

    name = "one process"
    rank = 0
    size = 1
    local_rank = 0

    def barrier(self) -> None: ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks, on every rank."""
        return x

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, on every rank: plain containers, numbers and strings."""
        return value

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order."""
        return [value]

    def all_gather_rows(self, x: Tensor) -> Tensor:
        """The rows of every rank in rank order; ranks may have different numbers of rows."""
        return x

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up gradients over ranks. A parameter that no rank used keeps None; one that some rank used gets
        the sum, so every rank updates the same parameters."""

    def close(self) -> None: ...


class TorchDistributed(OneProcess):
    """torch.distributed under torchrun: nccl on GPUs, gloo elsewhere."""

    def __init__(self) -> None:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if backend == "nccl":
            torch.cuda.set_device(self.local_rank)
        td.init_process_group(backend)
        self.rank, self.size = td.get_rank(), td.get_world_size()
        self.name = f"torch.distributed ({backend}), rank {self.rank} of {self.size}"
        self.device = torch.device("cuda", self.local_rank) if backend == "nccl" else torch.device("cpu")

    def barrier(self) -> None:
        td.barrier()

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.to(self.device)
        td.all_reduce(x)
        return x

    def broadcast_object(self, value: Any) -> Any:
        box = [value]
        td.broadcast_object_list(box, src=0)
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        box: list[Any] = [None] * self.size
        td.all_gather_object(box, value)
        return box

    def all_gather_rows(self, x: Tensor) -> Tensor:
        x = x.to(self.device)
        rows = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        rows[self.rank] = len(x)
        counts = self.all_reduce(rows).tolist()
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        td.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        parameters = list(parameters)
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        shared = [p for p, n in zip(parameters, self.all_reduce(used).tolist(), strict=True) if n]
        for parameter in shared:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if not shared:
            return
        flat = torch.cat([p.grad.flatten() for p in shared if p.grad is not None])
        td.all_reduce(flat)
        offset = 0
        for p in shared:
            assert p.grad is not None
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()

    def close(self) -> None:
        td.destroy_process_group()


def connect() -> OneProcess:
    """The interface that the launcher's environment calls for."""
    return TorchDistributed() if int(os.environ.get("WORLD_SIZE", 1)) > 1 else OneProcess()
