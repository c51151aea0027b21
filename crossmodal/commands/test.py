"""`crossmodal test`: recall@K of a checkpoint (also `test_itm.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def test(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Option(help="A run or checkpoint folder, or a published .pt file.")],
    split: Annotated[str, typer.Option(help="Name of a corpus of the run's recipe.")] = "test",
    txt_db: Annotated[Path | None, typer.Option("--txt_db", "--txt-db", help="A text database instead.")] = None,
    img_db: Annotated[Path | None, typer.Option("--img_db", "--img-db", help="Its region database.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "--output_dir", help="Folder for scores, ranks, results.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of consecutive images; 5 for COCO 1K from 5K.")] = 1,
    ties: Annotated[str, typer.Option(help="optimistic, average or pessimistic.")] = "average",
    reference_count: Annotated[bool, typer.Option(help="Count image recall as the published code does.")] = False,
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, or int8 on the CPU.")] = "fp32",
    report: Annotated[bool, typer.Option(help="Also write report.html.")] = False,
    pictures: Annotated[Path | None, typer.Option(help="Folder of pictures to show in the report.")] = None,
    token_budget: Annotated[
        int, typer.Option("--token_budget", "--token-budget", help="Tokens scored at once.")
    ] = 16384,
) -> None:
    """Score every caption against every image of a split and print recall@K both ways.

    Finished scores are kept in the output folder: the same command goes on where it was stopped or killed.
    Published flags (--model_config --train_config --conf_th --max_bb --min_bb --num_bb --compressed_db) are taken
    with a published checkpoint.
    """
    import logging

    import torch

    from crossmodal.errors import ConfigError
    from crossmodal.evaluate.run import Counting, describe_evaluation, evaluate_into
    from crossmodal.model.checkpoints import find_checkpoint
    from crossmodal.model.fused import probe, with_fused_layer_norm
    from crossmodal.model.precision import in_precision
    from crossmodal.train.distributed import connect
    from crossmodal.train.interrupts import Interrupted, Interrupts

    from .flags import published_flags
    from .subjects import open_subject

    if ties not in ("optimistic", "average", "pessimistic"):
        raise ConfigError(f"--ties {ties!r} is unknown; use optimistic, average or pessimistic")
    if token_budget < 1:
        raise ConfigError(f"--token_budget {token_budget} leaves no room for a pair; give at least 1")
    if output and output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; name a folder")
    flags: dict[str, Any] = published_flags(context.args)
    counting = Counting(folds, ties, reference_count)  # type: ignore[arg-type]
    with connect() as process:
        log = logging.getLogger("crossmodal")
        log.setLevel(logging.INFO if process.rank == 0 else logging.WARNING)
        torch.manual_seed(0)  # weights that a published checkpoint lacks are the same when this is run again
        model, corpus, settings = open_subject(checkpoint, split, txt_db, img_db, flags)
        model = in_precision(with_fused_layer_norm(model.to(process.device)), precision)
        settings |= {"precision": precision}
        beside = find_checkpoint(checkpoint) if checkpoint.is_dir() else checkpoint.with_suffix("")
        folder = output or beside / f"test_{split}"
        advice = f"finished scores are kept in {folder}, and the same command goes on with the rest"
        log.info("%s; %s", process.name, probe().said)
        try:
            with Interrupts(advice) as signals, signals.at_once():
                found = evaluate_into(
                    folder, model, corpus, settings, counting=counting, tokens=token_budget, process=process
                )
        except Interrupted as end:
            log.info("%s", end)
            raise
        if found is None:
            return
        print(describe_evaluation(found))
        log.info("scores, ranks and results: %s", folder)
        if report:
            from crossmodal.evaluate.examples import pictures_in
            from crossmodal.evaluate.report_retrieval import report_retrieval

            shown = pictures_in(pictures) if pictures else None
            log.info("report: %s", report_retrieval(folder, found, model, corpus, shown))
