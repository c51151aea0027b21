"""What a test is about: a model and a corpus, from a run of ours or from published files and flags."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossmodal.errors import CheckpointError, ConfigError, nearest

from .flags import say_inert

if TYPE_CHECKING:
    from crossmodal.data.corpus import Corpus
    from crossmodal.model.base import Model
    from crossmodal.train.recipe import DataSpec

log = logging.getLogger("crossmodal")

# UNITER's published inference flags (spec section 14); those without a meaning here are accepted and said to be so.
BOXES = {"conf_th": float, "max_bb": int, "min_bb": int, "num_bb": int}
DATA = {*BOXES, "compressed_db"}
FLAGS = {*DATA, "model_config", "train_config"}
WITHOUT_MEANING = {"batch_size", "fp16", "n_workers", "pin_mem", "IAIS"}


@dataclass(frozen=True)
class Asked:
    """What flags say of the data and of the model, whoever published them.

    data: options of the corpus. corpora: a corpus for each split, where flags name files. keys: a key file beside the
    captions. model: the keys of a recipe's model, for a published file. processor: options in place of a run's.
    """

    data: dict[str, Any]
    corpora: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)


def open_subject(
    checkpoint: Path,
    split: str,
    txt_db: Path | None,
    img_db: Path | None,
    flags: Mapping[str, Any],
    changes: Sequence[str] = (),
) -> tuple[Model, Corpus, dict[str, Any]]:
    """The model, the corpus, and what results.json says about them.

    changes: keys of the recipe's model or of its data, `model.config.clamp=never` or `data.max_bb=36`.
    """
    if (txt_db is None) != (img_db is None):
        raise ConfigError("--txt_db and --img_db go together; give both or neither")
    if not checkpoint.exists():
        raise CheckpointError(f"checkpoint {checkpoint} does not exist; check the path")
    name, config = described(checkpoint)
    asked = _asked_of_aladin(checkpoint, flags, config) if name == "aladin" else _asked_of_uniter(checkpoint, flags)
    from crossmodal.train.recipe import changed_part
    from crossmodal.train.setup import open_data

    model_changes, data_changes = _parted(changes)
    spec = changed_part(_data(checkpoint, split, txt_db, img_db, asked), data_changes)
    corpus = open_data(spec)
    model = _model(checkpoint, name, corpus, asked, model_changes)
    settings = {"checkpoint": str(checkpoint), "split": split, "data": spec.model_dump()}
    return model, corpus, settings | ({"set": list(changes)} if changes else {})


def described(checkpoint: Path) -> tuple[str, dict[str, Any]]:
    """The name of a checkpoint's model and, of a folder of ours, its configuration."""
    from crossmodal.model.base import registered
    from crossmodal.model.checkpoints import find_checkpoint, is_ours, read_description, read_state

    if is_ours(checkpoint):
        return read_description(find_checkpoint(checkpoint))
    keys = [key.removeprefix("module.") for key in read_state(checkpoint)]
    for name, model in registered().items():
        own = [model.layouts[name]] if name in model.layouts else list(model.layouts.values())
        if any(key.startswith(layout.marks) for layout in own for key in keys):
            return name, {}
    return "uniter", {}


def _asked_of_uniter(checkpoint: Path, flags: Mapping[str, Any]) -> Asked:
    from crossmodal.train.published import model_config
    from crossmodal.train.recipe import read_config

    unknown = [name for name in flags if name not in FLAGS | WITHOUT_MEANING]
    if unknown:
        raise ConfigError(f"unknown option --{unknown[0]}; {nearest(unknown[0], FLAGS | WITHOUT_MEANING)}")
    say_inert([f"--{name}" for name in flags if name in WITHOUT_MEANING])
    trained: dict[str, Any] = {}
    if "train_config" in flags:
        trained = {name: v for name, v in read_config(str(flags["train_config"])).items() if name in DATA}
    if "model_config" not in flags and not checkpoint.is_dir():
        log.info("no --model_config: taking the sizes of uniter-base")
    return Asked(_boxes({**trained, **flags}), model={"config": model_config(flags.get("model_config", "uniter-base"))})


def _asked_of_aladin(checkpoint: Path, flags: Mapping[str, Any], config: dict[str, Any]) -> Asked:
    from crossmodal.model.aladin_config import of_published
    from crossmodal.model.aladin_files import stored_config
    from crossmodal.train.published_aladin import translate_test

    published = None if checkpoint.is_dir() else stored_config(checkpoint)
    config = config if published is None else of_published(published)
    said = translate_test({name: v for name, v in flags.items() if name not in DATA}, config, published)
    say_inert(said.inert)
    data = _boxes(flags)
    if said.captions is not None:
        data["captions_per_image"] = said.captions
    detections = config.get("detection", "fast")
    if detections != "fast":
        data["detections"] = detections
    model = {"tokenizer": said.tokenizer, "processor": said.processor}
    processor = {name: value for name, value in said.processor.items() if name != "clip_vocab"}
    return Asked(data, said.data, said.keys, model, processor)


def _boxes(flags: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, kind in BOXES.items():
        if name in flags:
            try:
                options[name] = kind(flags[name])
            except (TypeError, ValueError):
                raise ConfigError(f"--{name} takes a number, found {flags[name]!r}") from None
    if "compressed_db" in flags:
        options["compressed"] = bool(flags["compressed_db"])
    return options


def _data(checkpoint: Path, split: str, txt_db: Path | None, img_db: Path | None, asked: Asked) -> DataSpec:
    from crossmodal.train.recipe import DataSpec, load_recipe

    options = dict(asked.data)
    if txt_db is not None and asked.corpora:
        raise ConfigError(
            "--data_dir and --img_feat_file name the data, and so do --txt_db and --img_db; keep one pair"
        )
    if txt_db is not None:
        spec = DataSpec(texts=[str(txt_db)], images=[str(img_db)])
    elif asked.corpora:
        if split not in asked.corpora:
            raise ConfigError(f"--split {split!r} is no split of --data_dir; {nearest(split, asked.corpora)}")
        spec = DataSpec(**asked.corpora[split])
    else:
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
        spec = recipe.data[split]
        options["max_text"] = -1
    if asked.keys:
        options["image_keys"] = str(Path(spec.texts[0]).parent / asked.keys)
    return spec.model_copy(update=options)


def _parted(changes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Changes of the model and of the data, without these first words."""
    parts: dict[str, list[str]] = {"model": [], "data": []}
    for change in changes:
        part, _, rest = change.partition(".")
        if part not in parts or not rest:
            raise ConfigError(
                f"--set {change!r} is neither of the model nor of the data; "
                "write model.config.key=value or data.key=value"
            )
        parts[part].append(rest)
    return parts["model"], parts["data"]


def _model(checkpoint: Path, name: str, corpus: Corpus, asked: Asked, changes: Sequence[str]) -> Model:
    from crossmodal.model.checkpoints import load
    from crossmodal.train.recipe import CheckpointSpec, ModelSpec, changed_part
    from crossmodal.train.setup import build_model

    if not checkpoint.is_dir():
        _require_tokenizer(checkpoint, name, corpus, asked)
        layout = name if name == "aladin" else None
        spec = ModelSpec(
            use=name, checkpoint=CheckpointSpec(path=str(checkpoint), layout=layout), dropout=0.0, **asked.model
        )
        return build_model(changed_part(spec, changes), lambda: corpus).eval()
    if changes:
        spec = ModelSpec(use=name, checkpoint=CheckpointSpec(path=str(checkpoint)))
        model = build_model(changed_part(spec, changes), lambda: corpus).eval()
    else:
        model = load(checkpoint)
    if asked.processor:
        model.processor = replace(model.processor, **asked.processor)
    return model


def _require_tokenizer(checkpoint: Path, name: str, corpus: Corpus, asked: Asked) -> None:
    """A published file of ALADIN has no vocabulary in it."""
    from crossmodal.data.processor_parts import corpus_tokenizer

    if name != "aladin" or all(asked.processor.get(f"clip_{side}") for side in ("tags", "captions")):
        return
    if not asked.model["tokenizer"] and corpus_tokenizer(corpus, None) is None:
        raise ConfigError(
            f"{checkpoint} holds no vocabulary; give the folder of VinVL's checkpoint, which has one, "
            "as --eval_model_dir"
        )
