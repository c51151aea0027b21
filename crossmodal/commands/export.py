"""`crossmodal export`: a checkpoint in a published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run or checkpoint folder.")],
    output: Annotated[Path, typer.Option(help="The file to write, e.g. model.pt.")],
    layout: Annotated[str, typer.Option(help="uniter")] = "uniter",
) -> None:
    """Write a checkpoint as the published code reads it: a plain state dict with UNITER's keys."""
    from crossmodal.errors import ConfigError
    from crossmodal.model.checkpoints import export_uniter, load
    from crossmodal.model.uniter import Uniter

    if layout != "uniter":
        raise ConfigError(f"--layout {layout!r} is unknown; use uniter")
    model = load(checkpoint)
    if not isinstance(model, Uniter):
        raise ConfigError(f"{checkpoint} is a {model.name} model, which has no uniter layout")
    export_uniter(model, output)
    print(f"{output}: {sum(p.numel() for p in model.parameters()):,} parameters in the layout {layout}")
