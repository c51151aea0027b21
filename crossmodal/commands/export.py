"""`crossmodal export`: a checkpoint in a published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run or checkpoint folder.")],
    output: Annotated[Path, typer.Option(help="The file to write, e.g. model.pt; for huggingface a folder.")],
    layout: Annotated[
        str | None,
        typer.Option(help="uniter, aladin, or of CLIP open_clip, openai or huggingface; by default the model's first."),
    ] = None,
) -> None:
    """Write a checkpoint as the published code of its model reads it."""
    from crossmodal.errors import ConfigError
    from crossmodal.model.checkpoints import EXPORTS, load

    layouts = [name for forms in EXPORTS.values() for name in forms]
    if layout is not None and layout not in layouts:
        raise ConfigError(f"--layout {layout!r} is unknown; use {' or '.join(layouts)}")
    model = load(checkpoint)
    if model.name not in EXPORTS:
        raise ConfigError(f"{checkpoint} holds the model {model.name}, which has no published form")
    forms = EXPORTS[model.name]
    chosen = layout or next(iter(forms))
    if chosen not in forms:
        raise ConfigError(
            f"{checkpoint} holds the model {model.name}, which has no {layout} layout; leave --layout out"
        )
    forms[chosen](model, output)
    count = sum(p.numel() for p in model.parameters())
    print(f"{output}: {count:,} parameters in the layout {chosen}")
