"""One optimizer update from the micro-batches of its streams, the same for accumulation and for ranks.

Losses are written for one process and return means. Here every mean is weighed by its number of units, so
that an update sees the mean over all units of all micro-steps and ranks: N ranks with batch B give the
gradients of one rank with batch N B, uneven batches included (DESIGN.md section 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossmodal.data.batches import Batch
from crossmodal.losses.state import StatefulLoss
from crossmodal.model.base import Model

from .caching import cached
from .distributed import OneProcess
from .micro_step import MicroStep
from .objectives import Objective, Value
from .recipe import DistributedSpec, OptimizerSpec
from .schedules import rate_at
from .strikes import Seen, Skip
from .teachers import Teachers

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class _Held:
    """A stream's losses of one micro-batch whose unit counts are known only after the forward pass."""

    terms: list[tuple[int, Tensor, float]]  # term number, sum over its units, weight


class Engine:
    """Holds model, objectives and optimizer; `update` does one step.

    skipped: why the last update was not made; None where it was.
    """

    def __init__(
        self,
        model: Model,
        objectives: Sequence[Objective],
        optimizer: torch.optim.Optimizer,
        options: OptimizerSpec,
        *,
        steps: int,
        precision: str = "fp32",
        ranks: OneProcess | None = None,
        modules: nn.ModuleList | None = None,
        distributed: DistributedSpec | None = None,
        teachers: Teachers | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        self.model, self.objectives, self.options = model, list(objectives), options
        self.steps, self.ranks, self.teachers = steps, ranks or OneProcess(), teachers
        self.steps_per_epoch = steps_per_epoch or steps
        self.modules = modules or nn.ModuleList()
        self.dtype = PRECISIONS[precision]
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=precision == "fp16")
        self.terms = [term for objective in self.objectives for term in objective.terms]
        self.micro = MicroStep(model, self.modules, self.ranks)
        self.gradients = self.ranks.gradients(self.micro, optimizer, distributed)
        self.skipped: Skip | None = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.gradients.optimizer

    def update(self, step: int, batches: Sequence[Sequence[Batch]]) -> dict[str, float]:
        """Update `step` = 0, 1, ...: `batches[i]` are this rank's micro-batches of stream i, as many on every rank.

        Returns what is logged: the mean of every loss over the global batch under its tag, what a loss with a state
        shows beside it, `loss` their weighted sum, `lr` and `grad_norm` (before clipping).

        Where a loss is not finite, or without a scaler the gradient, nothing is updated: weights, optimizer and
        buffers stay as they were, on all ranks, and `skipped` says why.
        """
        stateful = [loss for loss in self.modules if isinstance(loss, StatefulLoss)]
        if step % self.steps_per_epoch == 0:
            for loss in stateful:
                loss.begin_epoch()
        buffers = self._buffers()
        seen: list[Seen] = []
        totals = self._known_units(batches)
        tally = torch.zeros(3, len(self.terms), dtype=torch.float64)  # of each loss: as minimised, as shown, its units
        held: list[_Held] = []
        objectives = [objective.at(step // self.steps_per_epoch) for objective in self.objectives]
        order = [
            (number, stream[micro])
            for micro in range(max((len(b) for b in batches), default=0))
            for number, stream in enumerate(batches)
            if micro < len(stream) and not _in_parts(objectives[number], stream)
        ]
        deferred = any(term.counts for number, _ in order for term in objectives[number].terms)
        self.gradients.begin(len(order), deferred=deferred)
        for i, (number, batch) in enumerate(order):
            batch = self._mined(number, batch.to(self.model.device))
            with self.gradients.micro_step(last=i == len(order) - 1):
                own = self._micro_step(step, objectives[number], batch, totals[number], tally, held)
            if not batch.ghost:
                seen.append(Seen.of(batch, objectives[number].name, own))
        for number, (objective, stream) in enumerate(zip(objectives, batches, strict=True)):
            if _in_parts(objective, stream):
                seen += self._cached_step(step, number, objective, stream, tally)
        tally = self.ranks.all_reduce(tally).cpu()
        counts = tally[2]
        logged = self._log(step, tally)
        finite = bool(tally.isfinite().all())  # of all ranks: they decide alike
        if finite:
            for stream_losses in held:
                parts = [w * s / counts[i].item() for i, s, w in stream_losses.terms if counts[i] > 0]
                if parts:
                    self.scaler.scale(torch.stack(parts).sum()).backward()
        self.gradients.finish()
        if finite:
            logged["grad_norm"] = self._apply(step)
            # A scaler expects gradients that are not finite now and then: it skips them itself and adapts.
            finite = math.isfinite(logged["grad_norm"]) or self.scaler.is_enabled()
        elif self.scaler.is_enabled():
            self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
        self.optimizer.zero_grad()
        self.skipped = None if finite else Skip(dict(logged), seen)
        if not finite:
            for buffer, before in zip(self._live_buffers(), buffers, strict=True):
                buffer.copy_(before)
        for loss in stateful:
            loss.after_update(made=finite)
        for term in self.terms:
            if isinstance(term.call, StatefulLoss):
                logged |= {f"{term.tag}/{name}": value for name, value in term.call.shown.items()}
        logged["lr"] = max(float(group["lr"]) for group in self.optimizer.param_groups)
        return logged

    def _known_units(self, batches: Sequence[Sequence[Batch]]) -> list[float]:
        """Groups of every stream over all micro-steps and ranks."""
        units = torch.tensor([float(sum(b.groups for b in stream)) for stream in batches], dtype=torch.float64)
        return self.ranks.all_reduce(units).tolist()

    def _mined(self, number: int, batch: Batch) -> Batch:
        miner = self.objectives[number].miner
        if miner is None:
            return batch
        with self._autocast(), self.gradients.weights() as model:
            return miner(model, batch)

    def _cached_step(
        self, step: int, number: int, objective: Objective, batches: Sequence[Batch], tally: Tensor
    ) -> list[Seen]:
        """Forward and backward of the micro-batches of a stream whose losses see all of them at once."""
        parts = [self._mined(number, batch.to(self.model.device)) for batch in batches]
        values, replay = cached(self.micro, parts, objective, self._autocast)
        own = self._backward(step, objective, values, parts[0], 1.0, tally, [])
        replay()
        return [Seen.of(batch, objective.name, own) for batch in parts if not batch.ghost]

    def _micro_step(
        self, step: int, objective: Objective, batch: Batch, units: float, tally: Tensor, held: list[_Held]
    ) -> dict[str, float]:
        """Forward, and backward where the units are known. Returns the losses of this micro-batch by tag."""
        with self._autocast():
            taught = self.teachers.fields(batch, objective.taught) if self.teachers else {}
            values = self.gradients.module(batch, objective, taught)
        return self._backward(step, objective, values, batch, units, tally, held)

    def _backward(
        self,
        step: int,
        objective: Objective,
        values: Sequence[Value],
        batch: Batch,
        units: float,
        tally: Tensor,
        held: list[_Held],
    ) -> dict[str, float]:
        """Tally the losses, and backward, or hold them where their own units are not known yet.

        units: the groups of the objective's stream over all micro-steps and ranks.
        """
        parts: list[tuple[int, Tensor, float]] = []
        own: dict[str, float] = {}
        for term, (value, shown, own_units) in zip(objective.terms, values, strict=True):
            i = next(i for i, known in enumerate(self.terms) if known is term)
            own[term.tag] = shown
            if term.whole:  # the same on all ranks: one logs it, and each takes its share of the gradient
                count, total = int(self.ranks.rank == 0), value / self.ranks.size
            else:
                count = own_units if own_units is not None and not batch.ghost else batch.groups
                total = value * count
            parts.append((i, total, term.weight_at(step, self.steps)))
            if count:
                tally[:, i] += torch.tensor([float(value.detach()) * count, shown * count, count], dtype=tally.dtype)
        if any(term.counts for term in objective.terms):
            held.append(_Held(parts))
        else:
            each = [1.0 if term.whole else units for term in objective.terms]
            loss = torch.stack([weight * total / n for (_, total, weight), n in zip(parts, each, strict=True)]).sum()
            self.scaler.scale(loss).backward()
        return own

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self.dtype is None else torch.autocast(self.model.device.type, self.dtype)

    def _apply(self, step: int) -> float:
        """Clip, set the rate of this update, step. Returns the gradient's norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        given = [p for p in self.gradients.parameters if p.grad is not None]
        norm = self.gradients.norm()
        if not self.scaler.is_enabled() and not norm.isfinite():
            return float(norm)
        if self.options.clip >= 0:
            nn.utils.clip_grads_with_norm_(given, self.options.clip, norm)
        rate = rate_at(step + 1, self.options, self.steps, step // self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        with self.gradients.stepping():
            self.scaler.step(self.optimizer)
        self.model.after_update()
        self.scaler.update()
        return float(norm)

    def _live_buffers(self) -> list[Tensor]:
        return [*self.model.buffers(), *self.modules.buffers()]

    def _buffers(self) -> list[Tensor]:
        """Copies of what the forward pass may change: running means, thresholds."""
        return [buffer.clone() for buffer in self._live_buffers()]

    def _log(self, step: int, tally: Tensor) -> dict[str, float]:
        """Means by tag; terms under one tag are averaged, the total is weighted as the gradients were."""
        by_tag: dict[str, list[float]] = {}
        total = 0.0
        for term, (value, shown, count) in zip(self.terms, tally.T.tolist(), strict=True):
            if count:
                by_tag.setdefault(term.tag, []).append(shown / count)
                total += term.weight_at(step, self.steps) * value / count
        return {"loss": total, **{tag: sum(v) / len(v) for tag, v in by_tag.items()}}


def _in_parts(objective: Objective, stream: Sequence[Batch]) -> bool:
    """Whether the losses see all micro-batches of a stream at once."""
    return len(stream) > 1 and any(term.whole for term in objective.terms)
