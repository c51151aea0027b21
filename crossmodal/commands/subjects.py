"""What a test is about: a model and a corpus, from a run of ours or from published files and flags."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossmodal.errors import CheckpointError, ConfigError, nearest

if TYPE_CHECKING:
    from crossmodal.data.corpus import Corpus
    from crossmodal.model.base import Model

log = logging.getLogger("crossmodal")

# Published inference flags (spec section 14); those without a meaning here are accepted and said to be so.
BOXES = {"conf_th": float, "max_bb": int, "min_bb": int, "num_bb": int}
FLAGS = {*BOXES, "compressed_db", "model_config", "train_config"}
WITHOUT_MEANING = {"batch_size", "fp16", "n_workers", "pin_mem", "IAIS"}


def open_subject(
    checkpoint: Path, split: str, txt_db: Path | None, img_db: Path | None, flags: Mapping[str, Any]
) -> tuple[Model, Corpus, dict[str, Any]]:
    """The model, the corpus, and what results.json says about them."""
    unknown = [name for name in flags if name not in FLAGS | WITHOUT_MEANING]
    if unknown:
        raise ConfigError(f"unknown option --{unknown[0]}; {nearest(unknown[0], FLAGS | WITHOUT_MEANING)}")
    if (txt_db is None) != (img_db is None):
        raise ConfigError("--txt_db and --img_db go together; give both or neither")
    if not checkpoint.exists():
        raise CheckpointError(f"checkpoint {checkpoint} does not exist; check the path")
    ignored = [f"--{name}" for name in flags if name in WITHOUT_MEANING]
    if ignored:
        log.info("%s: accepted as published, without a meaning here", ", ".join(ignored))
    spec = _data(checkpoint, split, txt_db, img_db, flags)
    from crossmodal.train.setup import open_data

    corpus = open_data(spec)
    model = _model(checkpoint, corpus, flags)
    return model, corpus, {"checkpoint": str(checkpoint), "split": split, "data": spec.model_dump()}


def _data(checkpoint: Path, split: str, txt_db: Path | None, img_db: Path | None, flags: Mapping[str, Any]) -> Any:
    from crossmodal.train.recipe import DataSpec, load_recipe, read_config

    options: dict[str, Any] = {}
    if "train_config" in flags:
        trained = read_config(str(flags["train_config"]))
        options = {name: trained[name] for name in BOXES if name in trained}
        if "compressed_db" in trained:
            options["compressed"] = bool(trained["compressed_db"])
    for name, kind in BOXES.items():
        if name in flags:
            try:
                options[name] = kind(flags[name])
            except (TypeError, ValueError):
                raise ConfigError(f"--{name} takes a number, found {flags[name]!r}") from None
    if "compressed_db" in flags:
        options["compressed"] = bool(flags["compressed_db"])
    if txt_db is not None:
        return DataSpec(texts=[str(txt_db)], images=[str(img_db)], **options)
    recipe_file = next(
        (p / "recipe.yaml" for p in (checkpoint, *checkpoint.parents) if (p / "recipe.yaml").is_file()), None
    )
    if recipe_file is None:
        raise ConfigError(
            f"{checkpoint} belongs to no run folder (recipe.yaml); name the data with --txt_db and --img_db"
        )
    recipe = load_recipe(recipe_file)
    if split not in recipe.data:
        raise ConfigError(f"--split {split!r} is not in {recipe_file}; {nearest(split, recipe.data)}")
    return recipe.data[split].model_copy(update={**options, "max_text": -1})


def _model(checkpoint: Path, corpus: Corpus, flags: Mapping[str, Any]) -> Model:
    from crossmodal.model.checkpoints import load
    from crossmodal.train.published import model_config
    from crossmodal.train.recipe import CheckpointSpec, ModelSpec
    from crossmodal.train.setup import build_model

    if checkpoint.is_dir():
        return load(checkpoint)
    config = model_config(str(flags.get("model_config", "uniter-base")))
    if "model_config" not in flags:
        log.info("no --model_config: taking the sizes of uniter-base")
    spec = ModelSpec(config=config, checkpoint=CheckpointSpec(path=str(checkpoint)), dropout=0.0)
    return build_model(spec, lambda: corpus).eval()
