"""Published files of CLIP: what they say of the configuration, and writing them (CE-CLIP, spec section 2)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmodal.data.json_text import parse
from crossmodal.errors import CheckpointError, ConfigError
from crossmodal.files import write_whole

from .clip import Clip
from .clip_config import ClipConfig, flat
from .clip_layouts import LAYOUTS, OPENAI_SCALARS, sizes_of, to_huggingface, to_open_clip
from .pickles import save_torch

log = logging.getLogger("crossmodal")

_DESCRIPTIONS = {"config.json": "vision_config", "open_clip_config.json": "model_cfg"}
"""What Hugging Face and OpenCLIP lay beside a checkpoint's weights -> the key by which it is known."""


def published_config(path: Path) -> dict[str, Any]:
    """What a published checkpoint, a file or a folder, says of ClipConfig: its tensors, and its description.

    Raises CheckpointError where it cannot be read or contradicts itself.
    """
    from .checkpoints import guess_layout, read_state, renamed

    state = read_state(path)
    own = renamed(state, LAYOUTS[guess_layout(state, Clip)])
    config = {**sizes_of(own), **described(path)}
    activation = source_activation(own, path)
    return config if activation is None else {**config, "quick_gelu": activation}


def described(path: Path) -> dict[str, Any]:
    """The configuration beside a checkpoint's weights, in the words of ClipConfig; nothing where there is none.

    Raises CheckpointError where it cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    for name, key in _DESCRIPTIONS.items():
        file = folder / name
        if not file.is_file():
            continue
        try:
            values = parse(file.read_text(encoding="utf-8"))
            if isinstance(values, Mapping) and isinstance(values.get(key), Mapping):
                found = flat(values)
                return {f.name: found[f.name] for f in fields(ClipConfig) if f.name in found}
        except (OSError, ValueError, ConfigError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}); copy the checkpoint's folder again") from None
    return {}


def source_activation(state: Mapping[str, Tensor], path: Path) -> bool | None:
    """Whether weights were trained with QuickGELU: OpenAI's were, of others their description tells; None: unknown.

    Raises CheckpointError where the two contradict each other.
    """
    said = described(path).get("quick_gelu")
    openai = any(name in state for name in OPENAI_SCALARS)
    if openai and said is False:
        raise CheckpointError(
            f"{path} holds OpenAI's weights, which were trained with QuickGELU, beside a configuration with the exact "
            "GELU; remove or correct the configuration"
        )
    return True if openai else said


def check_activation(quick_gelu: bool, state: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """The weights alone; warns where they were trained with another activation than the model's.

    Raises CheckpointError where a checkpoint contradicts itself.
    """
    published = isinstance(where, Path) and not (where / "model.json").is_file()
    trained = source_activation(state, where) if isinstance(where, Path) else None
    if trained is None and published:  # as in files of OpenCLIP's training, CE-CLIP's and NegCLIP's among them
        log.info("%s does not say its activation; the model uses %s", where, _name(quick_gelu))
    if trained is not None and trained != quick_gelu:
        log.warning(
            "%s was trained with %s, but the model is told to use %s (quick_gelu: %s): its scores will differ",
            where, _name(trained), _name(quick_gelu), str(quick_gelu).lower(),
        )  # fmt: skip
    return {name: value for name, value in state.items() if name not in OPENAI_SCALARS}


def _name(quick_gelu: bool) -> str:
    return "QuickGELU" if quick_gelu else "the exact GELU"


def _weights(model: Clip) -> dict[str, Tensor]:
    return to_open_clip({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})


def export_open_clip(model: Clip, path: Path) -> None:
    """A state dict under OpenCLIP's names, as its `--pretrained FILE` reads it."""
    write_whole(path, lambda temporary: save_torch(_weights(model), temporary))


def export_openai(model: Clip, path: Path) -> None:
    """A state dict with the three numbers that OpenAI's code expects beside the weights.

    Raises ConfigError for what that code cannot express.
    """
    config = model.config
    _require_plain(model, "OpenAI")
    if not config.quick_gelu:
        raise ConfigError("OpenAI's code has QuickGELU alone, and the model the exact GELU; export it as open_clip")
    numbers = (config.image_size[0], config.context, config.vocab_size)
    scalars = {name: torch.tensor(value) for name, value in zip(OPENAI_SCALARS, numbers, strict=True)}
    write_whole(path, lambda temporary: save_torch({**scalars, **_weights(model)}, temporary))


def export_huggingface(model: Clip, folder: Path) -> None:
    """A folder that `transformers.CLIPModel.from_pretrained` reads: config.json and model.safetensors.

    Raises ConfigError for what that class cannot express.
    """
    from safetensors.torch import save_file

    _require_plain(model, "Hugging Face")
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in to_huggingface(_weights(model)).items()}
    text = json.dumps(huggingface_config(model), indent=2)
    write_whole(folder / "model.safetensors", lambda temporary: save_file(state, temporary, metadata={"format": "pt"}))
    write_whole(folder / "config.json", lambda temporary: temporary.write_text(text))


def huggingface_config(model: Clip) -> dict[str, Any]:
    """The config.json of `transformers.CLIPModel`."""
    config = model.config
    tokenizer = getattr(model.processor, "tokenizer", None)
    end = config.vocab_size - 1 if tokenizer is None else tokenizer.end  # where CLIPModel pools
    common = {"hidden_act": "quick_gelu" if config.quick_gelu else "gelu", "projection_dim": config.embed_dim,
              "layer_norm_eps": 1e-5, "attention_dropout": 0.0}  # fmt: skip
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": config.logit_scale,
        "text_config": {
            **common,
            "model_type": "clip_text_model",
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.context,
            "hidden_size": config.width,
            "intermediate_size": config.mlp_width,
            "num_attention_heads": config.heads,
            "num_hidden_layers": config.layers,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        "vision_config": {
            **common,
            "model_type": "clip_vision_model",
            "image_size": config.image_size[0],
            "patch_size": config.patch_size,
            "hidden_size": config.vision_width,
            "intermediate_size": config.vision_mlp_width,
            "num_attention_heads": config.vision_heads,
            "num_hidden_layers": config.vision_layers,
        },
    }


def _require_plain(model: Clip, whose: str) -> None:
    """Raises ConfigError for switches that only OpenCLIP has."""
    config = model.config
    switches = {
        "layer_scale": config.layer_scale is not None or config.vision_layer_scale is not None,
        "global_pool": config.global_pool,
        "logit_bias": config.logit_bias is not None,
        f"an image_size of {config.image_size[0]} x {config.image_size[1]}": len(set(config.image_size)) > 1,
    }
    used = [name for name, on in switches.items() if on]
    if used:
        raise ConfigError(f"{whose}'s CLIP has not {' and '.join(used)}, which the model uses; export it as open_clip")
