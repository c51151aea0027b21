"""`crossmodal demo`: the main job on the built-in world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path | None, typer.Option(help="Folder; without it, a new one under runs/.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the world and of training.")] = 0,
    quick: Annotated[bool, typer.Option(help="A few steps on a tiny world: does everything run?")] = False,
) -> None:
    """Build the demo world, train a small UNITER from scratch with and without IAIS, and report recall@K.

    Writes demo.json and report.html. About five minutes on two cores.
    """
    from crossmodal.demo import run_demo
    from crossmodal.train.run_folder import new_run_folder

    run_demo(output or new_run_folder("demo"), seed=seed, quick=quick)
