"""SIGKILL during `test_itm.py`: what was scored is kept, and only the rest is scored again."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from crossmodal.retrieve.journal import MAGIC

from ..commands import command, databases, scores_of

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[2]
PAIRS = 24 * 8
TOKENS = 24
"""A pair or two a tile."""


def words(trained: Path, world: Path, output: Path) -> list[str]:
    data = databases(world)
    return [str(w) for w in ("--checkpoint", trained, *data, "--output", output, "--token_budget", TOKENS)]


def start(arguments: list[str], errors: Path) -> subprocess.Popen[bytes]:
    with errors.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, ROOT / "test_itm.py", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def size(output: Path) -> int:
    total = 0
    for path in output.glob("journal/*"):
        with suppress(FileNotFoundError):  # the results have just taken its place
            total += path.stat().st_size
    return total


def whole_records(output: Path) -> dict[int, bytes]:
    """Tile -> scores of every whole record, read as the format is stated."""
    found: dict[int, bytes] = {}
    for path in output.glob("journal/*"):
        content, at = path.read_bytes(), len(MAGIC) + 32
        while at + 16 <= len(content):
            number, length, crc = struct.unpack_from("<QII", content, at)
            scores = content[at + 16 : at + 16 + length]
            if len(scores) < length or zlib.crc32(scores, zlib.crc32(content[at : at + 12])) != crc:
                break
            found[number] = scores
            at += 16 + length
    return found


def said(errors: Path) -> tuple[int | None, int | None]:
    """How many pairs a run said that it kept and that it had to score; None: it had not come so far."""
    text = errors.read_text()
    kept = re.search(rf"(\d+) of {PAIRS} pairs were scored before and are kept", text)
    rest = re.search(rf"{PAIRS} pairs(?:, (\d+) to go)?: ", text)
    return int(kept[1]) if kept else None, int(rest[1] or PAIRS) if rest else None


def test_killed_evaluations_go_on(
    trained: Path,
    tiny_world: Path,
    tmp_path: Path,
    kills: Callable[[int], int],
    record_property: Callable[[str, object], None],
) -> None:
    draw = random.Random(0)
    errors, output = tmp_path / "errors", tmp_path / "out"
    assert command("test", *words(trained, tiny_world, tmp_path / "unbroken")) == 0
    expected = scores_of(tmp_path / "unbroken")[0].tobytes()
    killed = partly = finished = pairs = 0
    before: dict[int, bytes] = {}
    while killed < kills(20) or output.exists():
        process = start(words(trained, tiny_world, output), errors)
        enough = size(output) + draw.randrange(1_500) if killed < kills(20) else 1 << 30
        while process.poll() is None and size(output) <= enough:
            time.sleep(draw.random() * 0.003)
        process.kill()
        ended = process.wait()
        kept, rest = said(errors)
        assert kept in (None, pairs) and rest in (None, PAIRS - pairs)
        if ended == 0:
            assert kept == (pairs or None) and rest == ((PAIRS - pairs) or None)
            assert scores_of(output)[0].tobytes() == expected
            finished += 1
            shutil.rmtree(output)
            before, pairs = {}, 0
            continue
        killed += 1
        after = whole_records(output)
        saved = (output / "scores.npz").exists()  # in place of the journal
        assert saved or before.items() <= after.items()
        pairs = PAIRS if saved else sum(map(len, after.values())) // 4
        partly += 0 < pairs < PAIRS
        before = after
    assert finished and partly >= killed // 2
    record_property("kills while scoring", killed)
    record_property("of which with a part of the scores done", partly)
    record_property("evaluations finished after kills, equal to an unbroken one", finished)
