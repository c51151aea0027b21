"""`crossmodal train`: fine-tune a recipe (also `train_itm.py`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from crossmodal.train.distributed import OneProcess
    from crossmodal.train.recipe import Recipe


def train(
    context: typer.Context,
    config: Annotated[str, typer.Option(help="A recipe (YAML), a published configuration (JSON), or a shipped name.")],
    output: Annotated[Path | None, typer.Option(help="Run folder; without it, a new one under runs/.")] = None,
    iais: Annotated[str | None, typer.Option("--IAIS", help="singular or distributed: adds the regulariser.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key: a.b.0.c=value.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --output.")] = False,
) -> None:
    """Fine-tune a recipe. Published flags (--learning_rate 5e-5 ...) are taken with a published configuration."""
    from crossmodal.errors import ConfigError
    from crossmodal.train.distributed import connect
    from crossmodal.train.interrupts import Interrupted
    from crossmodal.train.published import load_any
    from crossmodal.train.published_aladin import inert_flags
    from crossmodal.train.run_folder import RunFolder, new_run_folder

    from .flags import published_flags, say_inert

    flags = published_flags(context.args)
    recipe, published_output = load_any(config, flags=flags, iais=iais, overrides=set_ or [])
    if output is None and published_output:
        output = Path(published_output)
    if output is None and resume:
        raise ConfigError("--resume needs --output, the run folder to go on with")
    log = logging.getLogger("crossmodal")
    with connect() as ranks:
        if output is None and ranks.restarts:
            raise ConfigError("a launcher that restarts ranks needs --output, the run folder to go on with; name one")
        folder = output or Path(ranks.broadcast_object(str(new_run_folder()) if ranks.rank == 0 else ""))

        def job() -> None:
            log.setLevel(logging.INFO if ranks.rank == 0 else logging.WARNING)
            say_inert(inert_flags(flags) if recipe.model.use == "aladin" else [])
            _train(recipe, folder, ranks, resume or (ranks.restarted and RunFolder(folder, ranks).begun()))

        try:
            ranks.elastic(job)
        except Interrupted as end:
            if ranks.rank == 0:
                log.warning("%s", end)
            raise


def _train(recipe: Recipe, folder: Path, ranks: OneProcess, resume: bool) -> None:
    from crossmodal.evaluate.run import describe_heads, evaluate_heads
    from crossmodal.model.fused import probe
    from crossmodal.train.trainer import Trainer

    log = logging.getLogger("crossmodal")
    log.info("%s: %s on %s; %s", recipe.name, ranks.name, folder, probe().said)
    trainer = Trainer(recipe, folder, ranks, resume=resume)
    log.info("device %s, precision %s, %d steps", trainer.device, recipe.precision, trainer.steps)
    metrics = trainer.train()
    for name in ("txt_r1", "img_r1", "r_mean"):
        if name in metrics:
            log.info("valid/%s %.4f", name, metrics[name])
    if recipe.test:
        settings = {"checkpoint": "last", "split": recipe.test}
        test = folder / "last" / f"test_{recipe.test}"
        with trainer.interrupts as signals, signals.at_once(), trainer.engine.gradients.weights() as model:
            found = evaluate_heads(test, model, trainer.corpus(recipe.test), settings, process=ranks)
        if found:
            print(describe_heads(found, trainer.model.name))
