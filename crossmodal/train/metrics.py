"""What training and validation report: metrics.jsonl and TensorBoard scalars in the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossmodal.files import write_whole

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends rows {"step", "name", "value"} and the same scalars to TensorBoard; on rank 0 only.

    Rows after `step` (of a run that was cut off behind its last checkpoint) are dropped, and a half-written one.
    """

    def __init__(self, folder: Path, *, step: int = 0, enabled: bool = True) -> None:
        self.path, self.enabled = folder / FILE, enabled
        self._board: Any = None
        self._first = step + 1  # older TensorBoard files may hold this step and later ones: they are hidden
        if enabled and self.path.exists():
            whole, _, _ = self.path.read_text().rpartition("\n")
            kept = [line for line in whole.splitlines() if json.loads(line)["step"] <= step]
            write_whole(self.path, lambda path: path.write_text("".join(line + "\n" for line in kept)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Training values stand in TensorBoard under their published tags, without the `train/` before them."""
        if not self.enabled:
            return
        with self.path.open("a") as file:
            for name, value in values.items():
                file.write(json.dumps({"step": step, "name": name, "value": value}) + "\n")
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self._first)
        for name, value in values.items():
            self._board.add_scalar(name.removeprefix("train/"), value, step)
        self._board.flush()
