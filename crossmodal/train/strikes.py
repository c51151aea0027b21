"""Updates that were not made because a loss or the gradient was not finite: counted, written down, limited."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from crossmodal.data.batches import Batch
from crossmodal.errors import TrainingError

from .distributed import OneProcess
from .metrics import Rows

FILE = "not_finite.jsonl"

log = logging.getLogger("crossmodal")


@dataclass(frozen=True)
class Seen:
    """What is kept of a micro-batch while its update is made: the losses of its own, and which pairs it held."""

    stream: str
    losses: Mapping[str, float]
    ids: Mapping[str, Sequence[str]]
    pairs: Tensor | None
    group: int
    between: tuple[str, str]

    @staticmethod
    def of(batch: Batch, stream: str, losses: Mapping[str, float]) -> Seen:
        """Of a batch as it was trained on, that is after mining."""
        return Seen(stream, losses, batch.ids, batch.pairs, batch.group, batch.between)

    def row(self) -> dict[str, Any]:
        """`groups` holds lists of [text id, image id], the positive first; where ids are unknown, the numbers."""
        one, other = (self.ids.get(role) for role in self.between)
        pairs = [(i, i) for i in range(len(one or ()))] if self.pairs is None else self.pairs.tolist()
        named = [[i if one is None else one[i], j if other is None else other[j]] for i, j in pairs]
        groups = [named[start : start + self.group] for start in range(0, len(named), self.group)]
        return {"stream": self.stream, "losses": _written(self.losses), "groups": groups}


@dataclass(frozen=True)
class Skip:
    """An update that was not made: the losses over the global batch, `grad_norm` where it came to that, and
    this rank's micro-batches."""

    losses: Mapping[str, float]
    seen: Sequence[Seen]


class Strikes:
    """Counts skipped updates over the whole run and writes each into not_finite.jsonl.

    Rows {"step", "losses", "batches": [{"stream", "losses", "groups"}, ...]}, one an update, of all ranks.
    """

    def __init__(self, folder: Path, limit: int, ranks: OneProcess, *, step: int = 0, count: int = 0) -> None:
        self.file, self.limit, self.ranks, self.count = folder / FILE, limit, ranks, count
        self._rows = Rows(self.file, step=step) if ranks.rank == 0 else None

    def add(self, step: int, skip: Skip) -> None:
        """Note that update `step` = 1, 2, ... was skipped. Raises TrainingError where these are too many."""
        self.count += 1
        batches = self.ranks.gather_objects([seen.row() for seen in skip.seen])
        if self._rows is not None:
            flat = [batch for rank in batches for batch in rank]
            self._rows.append([{"step": step, "losses": _written(skip.losses), "batches": flat}])
            what = ", ".join(f"{name} {value}" for name, value in skip.losses.items() if not math.isfinite(value))
            log.warning(
                "step %d is skipped (%s), the %d. of at most %d; its pairs: %s",
                step, what, self.count, self.limit, self.file,
            )  # fmt: skip
        if self.count > self.limit:
            raise TrainingError(
                f"the losses or gradients of {self.count} steps were not finite, max_skipped allows {self.limit}; "
                f"{self.file} lists their pairs: repair those or lower optimizer.lr, and go on with --resume"
            )


def _written(losses: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no word for numbers that are not finite: they are written as nan, inf and -inf."""
    return {name: value if math.isfinite(value) else str(value) for name, value in losses.items()}
