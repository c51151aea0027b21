"""Every exchange of the distributed interface once: what a rank puts in, and what must come out of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crossmodal.train.distributed import OneProcess
from crossmodal.train.recipe import DistributedSpec

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
         torch.int8, torch.uint8, torch.bool)  # fmt: skip


def rows(rank: int, size: int, dtype: torch.dtype) -> Tensor:
    """Another number of rows on every rank, the last with none: (size - 1 - rank, 2)."""
    return (torch.arange(2 * (size - 1 - rank)).view(-1, 2) + 10 * rank).to(dtype)


def exchanged(ranks: OneProcess) -> dict[str, Any]:
    rank, size = ranks.rank, ranks.size
    weights = torch.arange(1.0, size * (size - 1) + 1).view(-1, 2)
    x = rows(rank, size, torch.float64).requires_grad_()
    gathered = ranks.all_gather_with_gradients(x)
    (gathered * weights * (rank + 1)).sum().backward()
    alone = torch.ones(2, requires_grad=True)
    ranks.all_gather_with_gradients(alone[None] if rank == 0 else alone[None][:0]).square().sum().backward()
    return {
        "rank": rank,
        "sums": [ranks.all_reduce(torch.tensor([1, rank]).to(dtype)) for dtype in TYPES],
        "rows": [ranks.all_gather(rows(rank, size, dtype)) for dtype in TYPES],
        "no_rows": ranks.all_gather(torch.zeros(0, 3)),
        "sent": [ranks.broadcast(torch.tensor([[rank, 1]]).to(dtype)) for dtype in TYPES],
        "sent_scalar": ranks.broadcast(torch.tensor(-0.0 if rank == 0 else 1.0)),
        "object": ranks.broadcast_object({"from": rank}),
        "objects": ranks.gather_objects([rank] * rank),
        "gathered": gathered.detach(),
        "gradient": x.grad,
        "gradient_alone": alone.grad,
        "halved": [halved(ranks, way) for way in ("flat", "overlapped")],
        "seconds": ranks.seconds,
    }


def halved(ranks: OneProcess, way: str) -> Tensor:
    """The sum of gradients 0.1, 0.2, ... of one weight, sent in half precision."""
    module = nn.Linear(1, 1, bias=False)
    options = DistributedSpec.model_validate({"gradients": way, "half": True})
    gradients = ranks.gradients(module, torch.optim.SGD(module.parameters()), options)  # type: ignore[arg-type]
    gradients.begin(1, deferred=False)
    with gradients.micro_step(last=True):
        gradients.module(torch.full((1, 1), 0.1 * (ranks.rank + 1))).sum().backward()
    gradients.finish()
    assert module.weight.grad is not None
    return module.weight.grad
