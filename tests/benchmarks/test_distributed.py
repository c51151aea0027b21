"""How the benchmark of ranks starts processes and ends them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def distributed() -> Iterator[ModuleType]:
    """benchmarks/distributed.py, imported as it imports its neighbours."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import distributed as script

        yield script
        for name in {path.stem for path in FOLDER.glob("*.py")} - before:
            sys.modules.pop(name, None)


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
