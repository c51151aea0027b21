"""Gradient caching (arXiv 2101.06983): losses over the global batch, of a batch too large to be encoded at once.

Each part of the batch is encoded without gradients, and only its fields are kept; the losses give the gradients of
those; then each part is encoded once more, with the same dropout, and hands the gradients of its fields on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from crossmodal.data.batches import Batch

from .micro_step import MicroStep
from .objectives import Objective, Value

Replay = Callable[[], None]


def cached(
    step: MicroStep,
    batches: Sequence[Batch],
    objective: Objective,
    autocast: Callable[[], AbstractContextManager[object]],
) -> tuple[list[Value], Replay]:
    """The values of an objective whose losses all see the global batch, and what to call behind their backward pass.

    They are those of the parts as one batch, and so are the gradients, which the model has when `Replay` is done.
    """
    states, parts = [], []
    for batch in batches:
        states.append(_random_state(batch.device))
        with torch.no_grad(), autocast():
            parts.append(step.own_fields(batch, objective))
    behind = _random_state(batches[0].device)
    items = step.items(objective, batches[0].between)
    leaves = {
        name: (torch.cat([part[name] for part in parts]) if name in items else parts[0][name]).detach()
        for name in parts[0]
    }
    for leaf in leaves.values():
        leaf.requires_grad_(leaf.is_floating_point())
    with autocast():
        values = step.values(dict(leaves), objective, batches[0].between)

    def replay() -> None:
        sizes = {name: [len(part[name]) for part in parts] for name in items}
        for number, (batch, state) in enumerate(zip(batches, states, strict=True)):
            if batch.ghost:
                continue
            _set_random_state(state, batch.device)
            with autocast():
                fields = step.own_fields(batch, objective)
            outputs, gradients = [], []
            for name, leaf in leaves.items():
                if leaf.grad is None or not fields[name].requires_grad or (name not in items and number):
                    continue
                outputs.append(fields[name])
                gradients.append(leaf.grad.split(sizes[name])[number] if name in items else leaf.grad)
            if outputs:
                torch.autograd.backward(outputs, gradients)
        _set_random_state(behind, batches[0].device)

    return values, replay


def _random_state(device: torch.device) -> list[Tensor]:
    """Of all generators that dropout on this device may draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)
