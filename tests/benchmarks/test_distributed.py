"""How the benchmark of ranks starts processes and ends them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from .imported import imported


@pytest.fixture(scope="module")
def distributed() -> Iterator[ModuleType]:
    with imported("distributed") as script:
        yield script


def python(words: str) -> list[str]:
    return [sys.executable, "-c", words]


def test_all_run_at_the_same_time(distributed: ModuleType, tmp_path: Path) -> None:
    """Each waits for the other's file."""
    wait = "import pathlib, time\npathlib.Path('{}').touch()\nwhile not pathlib.Path('{}').exists(): time.sleep(0.01)"
    here, there = tmp_path / "a", tmp_path / "b"
    distributed.launch([python(wait.format(here, there)), python(wait.format(there, here))], tmp_path, 1)
    assert here.exists() and there.exists()


def test_one_that_fails_ends_those_that_would_wait_for_it(distributed: ModuleType, tmp_path: Path) -> None:
    waiting, failing = python("import time; time.sleep(600)"), python("raise SystemExit('no such luck')")
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="no such luck"):
        distributed.launch([waiting, failing], tmp_path, 1)
    assert time.monotonic() - start < 300
