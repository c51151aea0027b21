"""Commands where there is no room: under a limit on the size of files, and on a small disk of their own."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from crossmodal.cli import main; main()"]


@contextmanager
def limited(largest: int) -> Iterator[None]:
    """Inside, this process may write files of at most `largest` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def on_small_disk(disk: Path, size: int, free: int, keep: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """``crossmodal words...`` twice, with a disk of `size` bytes at `disk`: `free` bytes free of it, then all.

    What is on the disk is copied to ``keep/full`` and ``keep/after``; the exit codes stand on stdout. The disk is
    there for these processes alone, in a mount namespace of their own.
    """
    keep.mkdir()
    command = shlex.join([*COMMAND, *map(str, words)])
    again = shlex.join([*COMMAND, *map(str, words), *(["--resume"] if words[0] == "train" else [])])
    script = f"""
        mount -t tmpfs -o size={size} tmpfs {disk} || exit 99
        head -c {size - free} /dev/zero > {disk}/filler
        {command}; echo $?
        cp -r {disk} {keep}/full; rm {keep}/full/filler {disk}/filler
        {again}; echo $?
        cp -r {disk} {keep}/after
    """
    words_of_shell = ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
    return subprocess.run(words_of_shell, cwd=ROOT, capture_output=True, text=True)


needs_small_disk = pytest.mark.host("a small disk")
"""Marks a test that calls `on_small_disk`."""


def one_sentence(said: str) -> str:
    """The error that a command ended with; fails where there is more than that."""
    assert "Traceback" not in said, said
    lines = said[said.index("error: ") :].strip().splitlines()
    assert len(lines) == 1, said
    return lines[0]


def size_of(folder: Path) -> int:
    """Bytes of a folder on a disk of whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())
