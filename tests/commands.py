"""The command line, run in this process, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossmodal.cli import run


def command(*words: object) -> int:
    """The exit code of ``crossmodal words...``."""
    return run([str(word) for word in words])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a mistaken command says: exit code 2, one message on stderr, no traceback."""
    assert command(*words) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err[err.index("error: ") :].strip()


def databases(world: Path, split: str = "test") -> list[object]:
    """The published flags that name a split of `tiny_world`."""
    return ["--txt_db", world / "texts" / f"{split}.db", "--img_db", world / "regions" / split]


def scores_of(folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The stored scores and results.json of an evaluation."""
    with np.load(folder / "scores.npz", allow_pickle=False) as stored:
        scores = stored["scores"]
    return scores, json.loads((folder / "results.json").read_text())
