"""What training and validation report: metrics.jsonl and TensorBoard scalars in the run folder."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crossmodal.files import disk_errors, sync, write_whole

FILE = "metrics.jsonl"
VALID = "valid/"

Row = Mapping[str, Any]


class Rows:
    """A file of JSON rows, each with its `step`, that grows with a run. Raises DiskError where there is no room.

    On opening, rows after `step` (of a run that was cut off behind its last checkpoint) are dropped, with what
    was half-written. Rows that are appended together are there together, or not at all.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self.path = path
        if not path.exists():
            return
        *lines, cut_off = path.read_text(errors="replace").split("\n")
        rows = [row for line in lines if (row := _row(line)) is not None]
        if cut_off and rows and _of_validation(rows[-1]):
            last = rows[-1]["step"]
            rows = [row for row in rows if not (_of_validation(row) and row["step"] == last)]
        kept = [row for row in rows if row["step"] <= step]
        if cut_off or len(kept) < len(lines):
            write_whole(path, lambda new: new.write_text(_text(kept)))

    def append(self, rows: Iterable[Row]) -> None:
        with disk_errors(self.path):
            before = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("a") as file:
                    file.write(_text(rows))
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, before)
                raise

    def read(self) -> list[Row]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


class MetricsLog:
    """Appends rows {"step", "name", "value"} and the same scalars to TensorBoard; on rank 0 only."""

    def __init__(self, folder: Path, *, step: int = 0, enabled: bool = True) -> None:
        self.enabled = enabled
        # Older TensorBoard files may hold the next step and later ones: they are hidden.
        self._board = _Board(folder / "tensorboard", first=step + 1)
        self._rows = Rows(folder / FILE, step=step) if enabled else None

    def write(self, step: int, values: Mapping[str, float], board: Mapping[str, float] | None = None) -> None:
        """Values that are not finite are left out: JSON has no word for them.

        Training values stand in TensorBoard under their published tags, without the `train/` before them; `board`
        stands there alone.
        """
        if self._rows is None:
            return
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._rows.append({"step": step, "name": name, "value": value} for name, value in finite.items())
        self._board.write(step, {name.removeprefix("train/"): v for name, v in finite.items()} | dict(board or {}))

    def validation(self, step: int) -> dict[str, float]:
        """What was written of the validation at a step; nothing where there was none."""
        rows = self._rows.read() if self._rows else []
        return {r["name"][len(VALID) :]: r["value"] for r in rows if r["step"] == step and _of_validation(r)}

    def sync(self) -> None:
        """On the disk before this returns: a checkpoint must not be there without the rows before it."""
        if self._rows and self._rows.path.exists():
            sync(self._rows.path)


class _Board:
    """Scalars in a TensorBoard file that is begun with the first of them.

    Written here and now: the thread of torch's writer would find a full disk, too, and end with a traceback.
    """

    def __init__(self, folder: Path, *, first: int) -> None:
        self.folder, self.first = folder, first
        self._file: Path | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now, events = time.time(), []
        if self._file is None:
            self._file = self.folder / f"events.out.tfevents.{now:010.0f}.{socket.gethostname()}.{os.getpid()}"
            session = SessionLog(status=SessionLog.START)
            events = [Event(wall_time=now, file_version="brain.Event:2"),
                      Event(wall_time=now, step=self.first, session_log=session)]  # fmt: skip
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        events.append(Event(wall_time=now, step=step, summary=Summary(value=scalars)))
        with disk_errors(self._file):
            self.folder.mkdir(exist_ok=True)
            with self._file.open("ab") as file:
                writer = RecordWriter(file)
                for event in events:
                    writer.write(event.SerializeToString())


def _row(line: str) -> Row | None:
    """The row on a line; None where it holds none, or half of one."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _of_validation(row: Row) -> bool:
    return str(row.get("name", "")).startswith(VALID)


def _text(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
