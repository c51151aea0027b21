"""Every benchmark runs alone and prints what it promises; how fast things are is not looked at here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .imported import FOLDER

SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if "options(__doc__" in path.read_text())
CLOCKS = {"distributed.py": "1 thread a process; wall seconds"}
"""What the heading says of the threads and the clock, where it is not the process's own CPU time."""


def run(script: str, folder: Path) -> list[str]:
    """The lines that a quick run prints; it leaves nothing in `folder`."""
    command = [sys.executable, FOLDER / script, "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout.splitlines()


def test_all_are_found() -> None:
    assert {"alignment.py", "distributed.py", "gpu.py", "iais.py", "recall.py", "regions.py", "scoring.py"} <= set(
        SCRIPTS
    )


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "gpu.py"])
def test_it_prints_a_table_and_its_targets(script: str, tmp_path: Path) -> None:
    heading, _, *table, last = run(script, tmp_path)
    assert f"{CLOCKS.get(script, '1 thread, CPU seconds')}, quick: ratios mean nothing" in heading
    assert "float32" in heading
    assert table[0].split()[0] == "case" and table[0].split()[-2:] == ["ratio", "target"]
    rows = json.loads(last)
    assert rows and all(row.keys() == {"case", "ratio", "target"} for row in rows)
    assert all(row["ratio"] > 0 and any(line.startswith(row["case"]) for line in table) for row in rows)
