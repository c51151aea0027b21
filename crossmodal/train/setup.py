"""What a recipe names, opened and built: corpora, model, processor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossmodal.data.corpus import Corpus, open_corpus
from crossmodal.data.processors import PROCESSORS, load_processor
from crossmodal.errors import ConfigError, nearest
from crossmodal.model.base import Field, Model, registered
from crossmodal.model.checkpoints import find_checkpoint, is_ours, load_weights, read_description

from .recipe import DataSpec, ModelSpec, read_config

log = logging.getLogger("crossmodal")


def open_data(spec: DataSpec) -> Corpus:
    options = spec.model_dump()
    return open_corpus(options.pop("texts"), options.pop("images"), **options)


@dataclass(frozen=True)
class Planned:
    """A model before it is built: its name, the fields that it will give and its scorers."""

    name: str
    fields: Mapping[str, Field]
    scorers: tuple[str, ...]


def planned(name: str, config: Mapping[str, Any]) -> Planned:
    cls = registered()[name]
    return Planned(name, cls.fields_of(config), cls.scorer_names)


def plan_model(spec: ModelSpec) -> Planned:
    """What is known of a recipe's model without its data. Raises ConfigError for an unknown name."""
    if spec.use not in registered():
        raise ConfigError(f"model.use: no model is called {spec.use!r}; {nearest(spec.use, registered())}")
    return planned(spec.use, _config(spec, _own_checkpoint(spec)))


def build_model(spec: ModelSpec, corpus: Callable[[], Corpus]) -> Model:
    """The model of a recipe (its `model` part) with its weights and its processor.

    Sizes come from the checkpoint where it is ours, else from `model.config`; what neither says (vocabulary,
    feature width, special tokens) from the databases of `corpus`, which is opened only for that.
    """
    folder = _own_checkpoint(spec)
    config = _config(spec, folder)
    cls = registered()[spec.use]
    processor = load_processor(folder) if folder and not (spec.tokenizer or spec.processor) else None
    if processor is None:
        make = PROCESSORS[cls.processed_by]
        processor = make.of_corpus(corpus(), config, spec.tokenizer, **spec.processor)
    sizes = processor.sizes()
    config = {**sizes, **config}
    if spec.dropout is not None:
        config |= dict.fromkeys(cls.dropouts, spec.dropout)
    if "vocab_size" in sizes and sizes["vocab_size"] > int(config["vocab_size"]):
        raise ConfigError(
            f"the databases' tokenizer has {sizes['vocab_size']} pieces, model.config.vocab_size is "
            f"{config['vocab_size']}; use the model's own tokenizer or leave vocab_size out"
        )
    model = cls(config)
    model.processor = processor
    for checkpoint in ([spec.checkpoint] if spec.checkpoint else []) + spec.also:
        report = load_weights(model, checkpoint.path, checkpoint.layout)
        log.info("checkpoint %s: %s", checkpoint.path, report)
    return model


def _own_checkpoint(spec: ModelSpec) -> Path | None:
    """The folder of a checkpoint of ours. Raises ConfigError where it is another model's."""
    if spec.checkpoint is None or spec.checkpoint.layout not in (None, "crossmodal"):
        return None
    path = Path(spec.checkpoint.path)
    if not path.is_dir() or not is_ours(path):
        return None
    folder = find_checkpoint(path)
    name, _ = read_description(folder)
    if name != spec.use:
        raise ConfigError(
            f"model.checkpoint {path} is of the model {name}, model.use says {spec.use}; change one of them"
        )
    return folder


def _config(spec: ModelSpec, folder: Path | None) -> dict[str, Any]:
    """What `model.config` says, over what the checkpoint says."""
    given = read_config(spec.config) if isinstance(spec.config, str) else spec.config
    given = registered()[spec.use].own_words(given)
    if folder is not None:
        return {**read_description(folder)[1], **given}
    published = registered()[spec.use].published_config(Path(spec.checkpoint.path)) if spec.checkpoint else {}
    return {**published, **given}
