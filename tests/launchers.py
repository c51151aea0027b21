"""Real launchers for tests: torchrun and horovodrun on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def torchrun(ranks: int, *options: object) -> list[str]:
    """The words before those of a script or, with ``-m``, a module."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*words, *map(str, options)]


def horovodrun(ranks: int, *options: object) -> list[str]:
    """The words before those of a script or, with ``-m``, a module."""
    words = [str(BIN / "horovodrun"), "-np", str(ranks), "--network-interface", "lo", *map(str, options)]
    return [*words, sys.executable]


LAUNCHERS = {"torchrun": torchrun, "horovodrun": horovodrun}


def run(command: list[str], *, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run to the end with one thread a rank; nothing is left of it after `timeout` seconds."""
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        end(process)
        out, err = process.communicate()
        raise AssertionError(f"not done after {timeout} s: {out[-3000:]} {err[-3000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def start(command: list[str], **more: Any) -> subprocess.Popen[str]:
    """Start a launcher that leads a session of its own, from the repository's folder."""
    return subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, start_new_session=True, **more)


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a launcher with all that it has started: launchers put their ranks into sessions of their own."""
    for child in reversed(descendants(process.pid)):
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    process.kill()
    process.wait()


def descendants(pid: int) -> list[int]:
    """The processes below one, parents first."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def environment(**more: str) -> Mapping[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}", **more}


def ranks_of(process: subprocess.Popen[Any]) -> dict[int, int]:
    """The process of each rank that runs below a launcher."""
    found: dict[int, int] = {}
    for pid in descendants(process.pid):  # parents first: a rank before the processes that it has started itself
        with suppress(OSError):
            place = Path("/proc", str(pid))
            words = (place / "environ").read_bytes().split(b"\0")
            values = dict(word.partition(b"=")[::2] for word in words)
            rank = values.get(b"RANK", values.get(b"HOROVOD_RANK"))
            if rank is not None and (place / "exe").resolve().name.startswith("python"):
                found.setdefault(int(rank), pid)
    return found
