"""`kill -9` while a database is written: what is repeated ends as an unbroken build, and nothing else is left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crossmodal.data.environments import close, environment

from . import build_process

pytestmark = pytest.mark.soak

ROOT = Path(__file__).resolve().parents[2]
Record = Callable[[str, object], None]
Content = dict[str, bytes | list[tuple[bytes, bytes]]]


def content(folder: Path) -> Content:
    """Every file and folder: the bytes of files, less the path of their own folder, the entries of databases."""
    found: Content = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "data.mdb":
            with environment(path.parent).begin() as txn:
                found[name] = list(txn.cursor())
            close(path.parent)
        elif path.name != "lock.mdb":
            found[name] = path.read_bytes().replace(bytes(folder), b"") if path.is_file() else b""
    return found


def build(kind: str, how: str, folder: Path, *kills: int) -> list[str]:
    """What `build_process` says of its kills."""
    folder.mkdir()
    words = [sys.executable, "-m", "tests.soak.build_process", kind, how, str(folder), *map(str, kills)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def assert_whole(kind: str, folder: Path, tmp_path: Path) -> None:
    build_process.run(kind, tmp_path / "unbroken")
    whole = content(tmp_path / "unbroken")
    assert any(isinstance(entries, list) and len(entries) >= 30 for entries in whole.values())
    assert not any("partial" in name or "settings" in name for name in whole)
    repeated = sorted(folder.iterdir())
    assert repeated
    for output in repeated:
        assert content(output) == whole, output


@pytest.mark.parametrize("kind", ["raw", "msgpack", "texts"])
def test_killed_at_random_moments(
    kind: str, tmp_path: Path, kills: Callable[[int], int], record_property: Record
) -> None:
    said = build(kind, "moments", tmp_path / "broken", kills(20))
    assert len(said) == kills(20)
    unfinished = sum(line.endswith("unfinished") for line in said)
    assert unfinished  # the others fell before or behind all writing
    record_property(f"kills while a {kind} database was built", len(said))
    record_property("of them with an unfinished one left", unfinished)
    assert_whole(kind, tmp_path / "broken", tmp_path)


@pytest.mark.parametrize("kind", list(build_process.BUILDS))
def test_killed_before_every_change_on_the_disk(kind: str, tmp_path: Path, record_property: Record) -> None:
    """Also between the renames that end a build."""
    said = build(kind, "changes", tmp_path / "broken")
    assert {"nameless nothing", "nameless unfinished"} <= set(said)
    if kind in ("raw", "msgpack"):
        assert "named nothing" in said  # its settings were still to be removed
    record_property(f"kills at changes on the disk while {kind} was built", len(said))
    assert_whole(kind, tmp_path / "broken", tmp_path)
