"""`crossmodal export`: a checkpoint in a published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run or checkpoint folder.")],
    output: Annotated[Path, typer.Option(help="The file to write, e.g. model.pt.")],
    layout: Annotated[str | None, typer.Option(help="uniter or aladin; by default that of the model.")] = None,
) -> None:
    """Write a checkpoint as the published code of its model reads it."""
    from crossmodal.errors import ConfigError
    from crossmodal.model.checkpoints import EXPORTS, load

    if layout is not None and layout not in EXPORTS:
        raise ConfigError(f"--layout {layout!r} is unknown; use {' or '.join(EXPORTS)}")
    model = load(checkpoint)
    if model.name not in EXPORTS:
        raise ConfigError(f"{checkpoint} holds the model {model.name}, which has no published form")
    if layout not in (None, model.name):
        raise ConfigError(
            f"{checkpoint} holds the model {model.name}, which has no {layout} layout; leave --layout out"
        )
    EXPORTS[model.name](model, output)
    count = sum(p.numel() for p in model.parameters())
    print(f"{output}: {count:,} parameters in the layout {model.name}")
