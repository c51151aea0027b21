"""`crossmodal demo`: a system from scratch on the built-in world."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class System(str, Enum):
    """Whose training is shown."""

    uniter = "uniter"
    aladin = "aladin"
    clip = "clip"


def demo(
    output: Annotated[Path | None, typer.Option(help="Folder; without it, a new one under runs/.")] = None,
    system: Annotated[
        System,
        typer.Option(
            help="uniter: a cross-encoder with and without IAIS; aladin: align, distil, search; clip: pixels, then "
            "wrong captions."
        ),
    ] = System.uniter,
    seed: Annotated[int, typer.Option(help="Seed of the world and of training.")] = 0,
    quick: Annotated[bool, typer.Option(help="A few steps on a tiny world: does everything run?")] = False,
    uniter: Annotated[
        Path | None, typer.Option(help="With aladin: a finished demo of uniter with the same seed, to compare with.")
    ] = None,
) -> None:
    """Build the demo world, train a small model from scratch, and report recall@K.

    Writes demo.json and report.html. About five minutes on two cores.
    """
    from crossmodal.errors import ConfigError
    from crossmodal.train.run_folder import new_run_folder

    if system is not System.aladin and uniter is not None:
        raise ConfigError("--uniter names what ALADIN is compared with; add --system aladin")
    folder = output or new_run_folder("demo")
    if system is System.uniter:
        from crossmodal.demo import run_demo

        run_demo(folder, seed=seed, quick=quick)
    elif system is System.clip:
        from crossmodal.demo_clip import run_demo_clip

        run_demo_clip(folder, seed=seed, quick=quick)
    else:
        from crossmodal.demo_aladin import run_demo_aladin

        run_demo_aladin(folder, seed=seed, quick=quick, uniter=uniter)
