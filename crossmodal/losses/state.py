"""Losses with a state of their own, and when it changes."""

from __future__ import annotations

from torch import nn


class StatefulLoss(nn.Module):
    """A loss whose buffers change once an optimizer step, not with every forward pass (DESIGN.md section 5).

    Its forward pass only notes what they become. Whoever trains calls the two methods, on all ranks alike.
    """

    @property
    def shown(self) -> dict[str, float]:
        """What is logged beside its value, by name."""
        return {}

    def begin_epoch(self) -> None:
        """Before the first update of an epoch."""

    def after_update(self, *, made: bool = True) -> None:
        """Behind the last backward pass of an update: take over what was noted, or drop it where none was made."""
