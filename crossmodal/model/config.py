"""Typed configurations of models, read from published or own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from crossmodal.errors import ConfigError

from .transformer import ACTIVATIONS

C = TypeVar("C")


@dataclass(frozen=True)
class BertSizes:
    """What the published JSON of BERT and its descendants says of the transformer."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02


def typed(cls: type[C], values: Mapping[str, Any]) -> C:
    """A dataclass of these values; keys of other programs are ignored.

    Raises ConfigError where a value is of the wrong type, or a key is nearly one that is not given.
    """
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    for key in sorted(map(str, values.keys() - known)):
        meant = get_close_matches(key, known - values.keys(), n=1, cutoff=0.85)
        if meant:
            raise ConfigError(f"the model configuration has the unknown key {key!r}; did you mean {meant[0]}?")
    try:
        return TypeAdapter(cls).validate_python({k: v for k, v in values.items() if k in known})
    except ValidationError as error:
        wrong = [f"{e['loc'][0]} is {e['input']!r} ({e['msg'][0].lower()}{e['msg'][1:]})" for e in error.errors()]
        raise ConfigError(f"values in the model configuration cannot be used: {'; '.join(wrong)}") from None


def check_transformer(hidden_size: int, heads: int, activation: str) -> None:
    """Raises ConfigError where attention heads do not divide the width, or the activation is unknown."""
    if heads < 1 or hidden_size % heads:
        raise ConfigError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}; change one of them"
        )
    if activation not in ACTIVATIONS:
        raise ConfigError(f"hidden_act {activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
