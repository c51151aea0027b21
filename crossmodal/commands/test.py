"""`crossmodal test`: recall@K of a checkpoint (also `test_itm.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def test(
    context: typer.Context,
    checkpoint: Annotated[
        Path,
        typer.Option(
            "--checkpoint",
            "--load_checkpoint",
            "--load-checkpoint",
            help="A run or checkpoint folder, or a published .pt or .pth.tar file.",
        ),
    ],
    split: Annotated[str, typer.Option(help="Name of a corpus of the run's recipe.")] = "test",
    txt_db: Annotated[Path | None, typer.Option("--txt_db", "--txt-db", help="A text database instead.")] = None,
    img_db: Annotated[Path | None, typer.Option("--img_db", "--img-db", help="Its region database.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "--output_dir", help="Folder for scores, ranks, results.")
    ] = None,
    scorer: Annotated[
        list[str] | None, typer.Option(help="A scorer of the model; may be given again. All of them if absent.")
    ] = None,
    cascade: Annotated[
        str | None, typer.Option(help="SCORER:KEEP,SCORER: rank by the first, re-rank the best KEEP of each query.")
    ] = None,
    relevance: Annotated[
        list[str] | None, typer.Option(help="rougeL, or a published .npy file: adds NDCG@25. May be given again.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the model or data: model.config.clamp=never.")
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
    Published flags are taken, those of UNITER (--model_config --train_config --conf_th --max_bb --min_bb --num_bb
    --compressed_db) and those of ALADIN (--data_dir --img_feat_file --eval_model_dir --eval_img_keys_file
    --max_seq_length --max_img_seq_length ...), each with a checkpoint of that model.
    """
    import logging

    import torch

    from crossmodal.errors import ConfigError
    from crossmodal.evaluate.cascaded import describe_cascade, evaluate_cascade, parse_cascade, save_cascade
    from crossmodal.evaluate.relevances import open_relevances
    from crossmodal.evaluate.run import Counting, describe_heads, evaluate_heads
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
    only = [name for name, given in (("scorer", scorer), ("relevance", relevance), ("report", report),
                                     ("reference-count", reference_count), ("folds", folds != 1)) if given]  # fmt: skip
    if cascade and only:
        raise ConfigError(f"--cascade ranks the whole gallery stage by stage, and has no --{only[0]}; leave it out")
    flags: dict[str, Any] = published_flags(context.args)
    counting = Counting(folds, ties, reference_count)  # type: ignore[arg-type]
    with connect() as process:
        log = logging.getLogger("crossmodal")
        log.setLevel(logging.INFO if process.rank == 0 else logging.WARNING)
        if cascade and process.size > 1:
            raise ConfigError(f"--cascade runs in one process, and here are {process.size}; leave the launcher out")
        torch.manual_seed(0)  # weights that a published checkpoint lacks are the same when this is run again
        model, corpus, settings = open_subject(checkpoint, split, txt_db, img_db, flags, set_ or ())
        model = in_precision(with_fused_layer_norm(model.to(process.device)), precision)
        settings |= {"precision": precision}
        beside = find_checkpoint(checkpoint) if checkpoint.is_dir() else checkpoint.with_suffix("")
        folder = output or beside / f"test_{split}"
        log.info("%s; %s", process.name, probe().said)
        if cascade:
            steps = parse_cascade(cascade, model.name, model.scorer_names)
            stages = evaluate_cascade(model, corpus, steps, ties=counting.ties, tokens=token_budget)
            print(describe_cascade(stages, steps))
            log.info("%s", save_cascade(folder, stages, steps, {**settings, "cascade": cascade, "ties": ties}))
            return
        advice = f"finished scores are kept in {folder}, and the same command goes on with the rest"
        try:
            with Interrupts(advice) as signals, signals.at_once():
                # Counted on the first rank alone.
                relevances = open_relevances(relevance or (), corpus, folder) if process.rank == 0 else {}
                found = evaluate_heads(
                    folder, model, corpus, settings | ({"relevance": relevance} if relevance else {}),
                    scorers=scorer or (), counting=counting, relevances=relevances, tokens=token_budget,
                    process=process,
                )  # fmt: skip
        except Interrupted as end:
            log.info("%s", end)
            raise
        if not found:
            return
        print(describe_heads(found, model.name))
        log.info("scores, ranks and results: %s", folder)
        if report:
            from crossmodal.evaluate.examples import pictures_in
            from crossmodal.evaluate.report_retrieval import report_retrieval

            shown = pictures_in(pictures) if pictures else None
            log.info("report: %s", report_retrieval(folder, found, model, corpus, shown))
