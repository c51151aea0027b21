"""What a recipe names, opened and built: corpora, model, processor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossmodal.data.corpus import Corpus, open_corpus
from crossmodal.data.processors import UniterProcessor
from crossmodal.errors import ConfigError, nearest
from crossmodal.model.base import Field, Model, registered
from crossmodal.model.checkpoints import find_checkpoint, load_weights, read_description

from .recipe import DataSpec, ModelSpec, read_config

log = logging.getLogger("crossmodal")


def open_data(spec: DataSpec) -> Corpus:
    options = spec.model_dump()
    return open_corpus(options.pop("texts"), options.pop("images"), **options)


@dataclass(frozen=True)
class Planned:
    """A model before it is built: its name and the fields that it will give."""

    name: str
    fields: Mapping[str, Field]


def plan_model(spec: ModelSpec) -> Planned:
    """What is known of a recipe's model without its data. Raises ConfigError for an unknown name."""
    if spec.use not in registered():
        raise ConfigError(f"model.use: no model is called {spec.use!r}; {nearest(spec.use, registered())}")
    return Planned(spec.use, registered()[spec.use].fields_of(_config(spec, _own_checkpoint(spec))))


def build_model(spec: ModelSpec, corpus: Callable[[], Corpus]) -> Model:
    """The model of a recipe (its `model` part) with its weights and its processor.

    Sizes come from the checkpoint where it is ours, else from `model.config`; what neither says (vocabulary,
    feature width, special tokens) from the databases of `corpus`, which is opened only for that.
    """
    folder = _own_checkpoint(spec)
    config = _config(spec, folder)
    processor = UniterProcessor.load(folder) if folder and spec.tokenizer is None else None
    if processor is None:
        processor = processor_of(corpus(), config, spec.tokenizer)
    vocabulary = processor.tokenizer.vocab_size if processor.tokenizer else processor.v_range[1]
    config = {"vocab_size": vocabulary, "img_dim": processor.img_dim, **config}
    if spec.dropout is not None:
        config |= {"hidden_dropout_prob": spec.dropout, "attention_probs_dropout_prob": spec.dropout}
    model = registered()[spec.use](config)
    if vocabulary > int(config["vocab_size"]):
        raise ConfigError(
            f"the databases' tokenizer has {vocabulary} pieces, model.config.vocab_size is {config['vocab_size']}; "
            "use the model's own tokenizer or leave vocab_size out"
        )
    model.processor = processor
    if spec.checkpoint is not None:
        report = load_weights(model, spec.checkpoint.path, spec.checkpoint.layout)
        log.info("checkpoint %s: %s", spec.checkpoint.path, report)
    return model


def processor_of(corpus: Corpus, config: dict[str, Any], tokenizer: str | None) -> UniterProcessor:
    """A processor for the databases of a corpus: their special tokens, tokenizer and feature width."""
    from crossmodal.data.tokenizers import load_tokenizer

    part = corpus.parts[0]
    chosen = None
    if tokenizer is not None:
        chosen = load_tokenizer(tokenizer)
    elif (part.texts.path / "tokenizer.json").is_file():
        chosen = load_tokenizer(part.texts.path)
    texts = part.texts
    return UniterProcessor(
        cls=chosen.cls if chosen else texts.cls,
        sep=chosen.sep if chosen else texts.sep,
        mask=chosen.mask if chosen else texts.mask,
        v_range=chosen.v_range if chosen else texts.v_range,
        img_dim=int(config.get("img_dim", part.regions.feature_dim)),
        identity=chosen.identity if chosen else texts.tokenizer,
        max_text=int(config.get("max_position_embeddings", 512)) - 2,
        tokenizer=chosen,
    )


def _own_checkpoint(spec: ModelSpec) -> Path | None:
    if spec.checkpoint is None or spec.checkpoint.layout not in (None, "crossmodal"):
        return None
    path = Path(spec.checkpoint.path)
    return find_checkpoint(path) if path.is_dir() and _is_ours(path) else None


def _is_ours(path: Path) -> bool:
    return any((path / sub / "model.json").is_file() for sub in ("", "best", "last"))


def _config(spec: ModelSpec, folder: Path | None) -> dict[str, Any]:
    given = read_config(spec.config) if isinstance(spec.config, str) else dict(spec.config)
    if folder is None:
        return given
    return {**read_description(folder)[1], **given}
