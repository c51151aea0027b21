"""`crossmodal evaluate`: a published benchmark, for a checkpoint or for a baseline that is blind to the images."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crossmodal.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from crossmodal.model.base import Model


def evaluate(
    suite: Annotated[str, typer.Option(help="Name of the benchmark; an unknown one lists them.")],
    data: Annotated[Path, typer.Option(help="Its published file, or the folder that holds its files.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="A run or checkpoint folder, or published weights of CLIP.")
    ] = None,
    blind: Annotated[
        str | None,
        typer.Option(help="In place of a checkpoint: brevity, frequency, or the folder of a language model."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of its images; images/ beside the data if absent.")
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(help="A database of the images' regions, for models that read them.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for results.json, the scores and the figure.")] = None,
    scorer: Annotated[str | None, typer.Option(help="A scorer of the model; its first one if absent.")] = None,
    skip_missing: Annotated[
        bool, typer.Option(help="Leave out, list and count what asks about images that are not there.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="Retrieval: only this split of the caption file.")] = None,
    positives: Annotated[Path | None, typer.Option(help="Retrieval: folder of ECCV Caption's tables.")] = None,
    classes: Annotated[str | None, typer.Option(help="zero_shot: the part of prompts.md, such as CIFAR10.")] = None,
    tagger: Annotated[
        str | None, typer.Option(help="aro_*_order: spacy, rules, or auto: spaCy where its model is installed.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="aro_*_order: of the shuffles; the published 1 if absent.")] = None,
    threshold: Annotated[float | None, typer.Option(help="valse_official: a caption fits above this score.")] = None,
    max_num: Annotated[int | None, typer.Option(help="vl_checklist: texts of a data set; 0 for all.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="CLIP's merges, for published weights; those beside them if absent.")
    ] = None,
    txt_db: Annotated[
        Path | None,
        typer.Option("--txt_db", "--txt-db", help="Published weights of region models: a text database of theirs."),
    ] = None,
    img_db: Annotated[Path | None, typer.Option("--img_db", "--img-db", help="And its region database.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Published weights: override model.config.quick_gelu=false.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, or int8 on the CPU.")] = "fp32",
    token_budget: Annotated[
        int, typer.Option("--token_budget", "--token-budget", help="Tokens scored at once.")
    ] = 16384,
) -> None:
    """Run a benchmark and print its table, with the published figures beside it and the count of exact ties.

    Every distinct caption and image is encoded once. Models that read regions get them from --regions, or from the
    images through the extractor that the checkpoint names. A blind baseline needs no images; with --images and
    --skip-missing it is asked what a model is asked that has these alone.
    """
    import logging

    import torch

    from crossmodal.evaluate.suites.blind import open_blind
    from crossmodal.evaluate.suites.items import Judge
    from crossmodal.evaluate.suites.judges import ModelJudge
    from crossmodal.evaluate.suites.pictures import PictureFolder, PictureSource
    from crossmodal.evaluate.suites.report import describe, save
    from crossmodal.evaluate.suites.runner import open_test, picture_source, run_suite
    from crossmodal.model.precision import in_precision

    if (checkpoint is None) == (blind is None):
        raise ConfigError("give either --checkpoint or --blind: what is to be evaluated")
    if token_budget < 1:
        raise ConfigError(f"--token_budget {token_budget} leaves no room for a pair; give at least 1")
    if output and output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; name a folder")
    if tagger not in (None, "auto", "spacy", "rules"):
        raise ConfigError(f"--tagger {tagger!r} is unknown; use auto, spacy or rules")
    of_model = {
        "scorer": scorer, "regions": regions, "tokenizer": tokenizer, "txt_db": txt_db, "img_db": img_db, "set": set_,
    }  # fmt: skip
    named = {name: value for name, value in of_model.items() if value}
    if blind is not None and named:
        raise ConfigError(
            f"--{next(iter(named))} is of a model, and --blind reads captions alone; leave one of them out"
        )
    given = {
        "split": split, "positives": positives, "classes": classes, "threshold": threshold, "max_num": max_num,
        "tagger": tagger, "seed": seed,
    }  # fmt: skip
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    beside = (data if data.is_dir() else data.parent) / "images"
    images = images or (beside if beside.is_dir() else None)
    test = open_test(suite, data, images, options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings: dict[str, Any] = {
        "data": str(data),
        "images": images and str(images),
        **{k: str(v) for k, v in options.items()},
    }
    judge: Judge
    source: PictureSource | None = None
    if blind is not None:
        judge, label = open_blind(blind, device), f"blind: {Path(blind).name}"
        source = PictureFolder(images) if skip_missing and images is not None else None
        settings["blind"] = blind
    else:
        assert checkpoint is not None
        torch.manual_seed(0)  # weights that a published checkpoint lacks are the same when this is run again
        model = in_precision(_model(checkpoint, tokenizer, (txt_db, img_db), set_ or ()).to(device).eval(), precision)
        source = picture_source(model, images, regions)
        judge, label = ModelJudge(model, source, scorer, tokens=token_budget), model.name
        settings |= {name: value if isinstance(value, list) else str(value) for name, value in named.items()} | {
            "checkpoint": str(checkpoint), "model": model.name, "scorer": judge.scorer, "config": model.config_dict,
            "precision": precision,
        }  # fmt: skip
    if output is not None:
        _require_writable(output)
    outcome = run_suite(suite, test, judge, source, skip_missing=skip_missing)
    print(describe(outcome, label))
    if output is not None:
        save(output, outcome, label, settings)
        logging.getLogger("crossmodal").info("results and figure: %s", output)


def _require_writable(folder: Path) -> None:
    """Better before the scoring than after. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be written ({error.strerror}); name another folder") from None


def _model(
    checkpoint: Path, tokenizer: str | None, databases: tuple[Path | None, Path | None], changes: Sequence[str]
) -> Model:
    """A checkpoint of ours as it is; published weights with the tokenizer that is named, or is beside them, or is that
    of the databases.
    """
    from crossmodal.data.batches import Regions
    from crossmodal.data.clip_tokenizer import merges_in
    from crossmodal.data.corpus import Corpus
    from crossmodal.model.base import registered
    from crossmodal.model.checkpoints import find_checkpoint, is_ours, load
    from crossmodal.train.recipe import CheckpointSpec, ModelSpec, changed_part
    from crossmodal.train.setup import build_model

    from .subjects import described, open_subject

    if not checkpoint.exists():
        raise CheckpointError(f"checkpoint {checkpoint} does not exist; check the path")
    if is_ours(checkpoint):
        ours = find_checkpoint(checkpoint)
        if tokenizer or changes or any(databases):
            raise ConfigError(
                f"{checkpoint} has its own tokenizer and configuration; leave --tokenizer, --set and databases out"
            )
        return load(ours)
    name, _ = described(checkpoint)
    if registered()[name].sides["image"] is Regions:
        if not all(databases):
            raise ConfigError(
                f"{checkpoint} holds published weights of {name}, which say nothing of its words and regions; name "
                "databases that it can read as --txt_db and --img_db"
            )
        named = [f"model.tokenizer={tokenizer}"] if tokenizer else []
        return open_subject(checkpoint, "test", *databases, {}, [*named, *changes])[0]
    strange = next((change for change in changes if not change.startswith("model.")), None)
    if strange is not None:
        raise ConfigError(f"--set {strange!r} is not of the model; write model.config.key=value")
    own = [change.removeprefix("model.") for change in changes]
    if tokenizer is None:
        beside = merges_in(checkpoint if checkpoint.is_dir() else checkpoint.parent)
        tokenizer = None if beside is None else str(beside)
    spec = ModelSpec(use=name, checkpoint=CheckpointSpec(path=str(checkpoint)), tokenizer=tokenizer)
    return build_model(changed_part(spec, own), lambda: Corpus([]))
