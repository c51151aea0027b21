"""Published files of ALADIN and of its backbone VinVL: the configuration that they imply, and the form of a checkpoint
(ALADIN, spec sections 2.1 and 10)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmodal.data.json_text import parse
from crossmodal.errors import CheckpointError
from crossmodal.files import write_whole

from .aladin import Aladin
from .aladin_config import of_published, to_published
from .pickles import load_torch, save_torch, why_unreadable

PREFIX = "img_txt_enc."
HEAD_WIDTH = 64  # of BERT: no file of ALADIN says how many attention heads its backbone has


def published_config(path: Path) -> dict[str, Any]:
    """What a published checkpoint at `path` says of AladinConfig: a VinVL folder or an ALADIN file, else nothing.

    Raises CheckpointError where one of the two cannot be read.
    """
    if path.is_dir():
        return read_vinvl_config(path) if (path / "config.json").is_file() else {}
    return read_aladin_config(path) if path.is_file() and path.suffix != ".safetensors" else {}


def read_vinvl_config(folder: Path) -> dict[str, Any]:
    """The sizes of a VinVL folder, from its config.json. Raises CheckpointError where that cannot be read."""
    file = folder / "config.json"
    try:
        values = parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); copy the folder of VinVL's checkpoint again") from None
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{file} holds no configuration; copy the folder of VinVL's checkpoint again")
    return dict(values)


def read_aladin_config(path: Path) -> dict[str, Any]:
    """What an ALADIN checkpoint file says of AladinConfig: its options, and the sizes of its tensors.

    Raises CheckpointError where the file cannot be read as plain data.
    """
    content = _read(path)
    state = content.get("model")
    return {**_sizes(state if isinstance(state, Mapping) else content), **of_published(_config(content))}


def stored_config(path: Path) -> dict[str, Any]:
    """The configuration in an ALADIN checkpoint file, as published; nothing where it holds none.

    Raises CheckpointError where the file cannot be read as plain data.
    """
    return _config(_read(path))


def _read(path: Path) -> Mapping[Any, Any]:
    try:
        content = load_torch(path)
    except Exception as error:  # torch raises many kinds; each means: not readable as plain data
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({why_unreadable(path, error)}); copy it again"
        ) from None
    return content if isinstance(content, Mapping) else {}


def _config(content: Mapping[Any, Any]) -> dict[str, Any]:
    config = content.get("config")
    return dict(config) if isinstance(config, Mapping) else {}


def _sizes(state: Mapping[Any, Any]) -> dict[str, Any]:
    """The sizes of the backbone in a published state dict, as far as its tensors show them."""
    bert = PREFIX + "oscar_model.bert."
    shapes = {k.removeprefix(bert): v.shape for k, v in state.items() if isinstance(v, Tensor) and k.startswith(bert)}

    def size(name: str, dim: int) -> int | None:
        return shapes[name][dim] if name in shapes else None

    width = size("embeddings.word_embeddings.weight", 1)
    found = {
        "vocab_size": size("embeddings.word_embeddings.weight", 0),
        "hidden_size": width,
        "num_hidden_layers": len({k.split(".")[2] for k in shapes if k.startswith("encoder.layer.")}) or None,
        "num_attention_heads": width // HEAD_WIDTH if width and width % HEAD_WIDTH == 0 else None,
        "intermediate_size": size("encoder.layer.0.intermediate.dense.weight", 0),
        "max_position_embeddings": size("embeddings.position_embeddings.weight", 0),
        "type_vocab_size": size("embeddings.token_type_embeddings.weight", 0),
        "img_feature_dim": size("img_embedding.weight", 1),
        "use_img_layernorm": "LayerNorm.weight" in shapes if shapes else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def export_aladin(model: Aladin, path: Path) -> None:
    """Write the published form: `torch.save` of a dict with the weights, the configuration and no optimizer.

    Two projections that no published code uses are in every published file; they are written as zeros.
    """
    state = {PREFIX + k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    width = model.config.hidden_size
    for name in ("img_proj", "cap_proj"):
        state |= {f"{PREFIX}{name}.weight": torch.zeros(width, 768), f"{PREFIX}{name}.bias": torch.zeros(width)}
    content = {
        "epoch": 0,
        "model": state,
        "optimizer": None,
        "scheduler": None,
        "opt": argparse.Namespace(),
        "config": to_published(model.config),
        "Eiters": 0,
    }
    write_whole(path, lambda temporary: save_torch(content, temporary))
