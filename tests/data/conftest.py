from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def world(tiny_world: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_world` to be damaged."""
    return shutil.copytree(tiny_world, tmp_path / "world")
