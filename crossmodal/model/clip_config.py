"""CLIP's configuration, and those of OpenCLIP and Hugging Face in its words (CE-CLIP, spec section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log
from typing import Any

from crossmodal.errors import ConfigError

from .config import typed

HEAD_WIDTH = 64
_HEADS = {1280: 16, 1408: 16, 1664: 16, 1792: 16}  # ViT-H, g, bigG and e: wider heads than the others have


@dataclass(frozen=True)
class ClipConfig:
    """The two towers; the defaults are ViT-B/32 as OpenAI trained it.

    embed_dim: of the common space. quick_gelu: x sigmoid(1.702 x) (OpenAI's weights and all that descends from
    them) or the exact GELU.
    vocab_size, context (tokens at most), width, heads, layers, mlp_width, layer_scale: of the text tower.
    image_size (height and width, or one number for both), patch_size, vision_width, vision_heads, vision_layers,
    vision_mlp_width, vision_layer_scale: of the image tower. global_pool: the mean of all its tokens in place of the
    class token. patch_dropout: the share of patches that training leaves out.
    heads: None for one every 64 of the width. mlp_width: None for four times the width. layer_scale: what the factor of
    every residual branch starts as, None for no factor.
    recompute: gradient checkpointing, less memory for about a third more time.
    text_unlocked, image_unlocked: how many of a tower's last groups of layers are trained (`Clip.depth_of` counts
    them), 0 for a locked tower, None for all.
    logit_scale: where its logarithm starts. logit_bias: where it starts, None for a model without (all but SigLIP's).
    """

    embed_dim: int = 512
    quick_gelu: bool = True
    vocab_size: int = 49408
    context: int = 77
    width: int = 512
    heads: int | None = None
    layers: int = 12
    mlp_width: int | None = None
    layer_scale: float | None = None
    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 32
    vision_width: int = 768
    vision_heads: int | None = None
    vision_layers: int = 12
    vision_mlp_width: int | None = None
    vision_layer_scale: float | None = None
    global_pool: bool = False
    patch_dropout: float = 0.0
    recompute: bool = False
    text_unlocked: int | None = None
    image_unlocked: int | None = None
    logit_scale: float = -log(0.07)
    logit_bias: float | None = None

    @staticmethod
    def of(values: Mapping[str, Any]) -> ClipConfig:
        """From a configuration of ours, of OpenCLIP (`vision_cfg`) or of Hugging Face (`vision_config`).

        Raises ConfigError where a value is of the wrong type or out of range, or a key is nearly one that is not given.
        """
        values = flat(values)
        if isinstance(values.get("image_size"), int):
            values["image_size"] = (values["image_size"],) * 2
        config = typed(ClipConfig, values)
        config = replace(
            config,
            heads=config.heads or max(1, config.width // HEAD_WIDTH),
            vision_heads=config.vision_heads or _vision_heads(config.vision_width),
            mlp_width=config.mlp_width or 4 * config.width,
            vision_mlp_width=config.vision_mlp_width or 4 * config.vision_width,
        )
        _check(config)
        return config


def _vision_heads(width: int) -> int:
    return _HEADS.get(width, max(1, width // HEAD_WIDTH))


def _check(config: ClipConfig) -> None:
    at_least_one = (
        "embed_dim", "vocab_size", "context", "width", "layers", "patch_size", "vision_width", "vision_layers",
        "heads", "vision_heads", "mlp_width", "vision_mlp_width",
    )  # fmt: skip
    for name in at_least_one:
        if getattr(config, name) < 1:
            raise ConfigError(f"the model's {name} is {getattr(config, name)}; it must be at least 1")
    for whole, part in (("width", "heads"), ("vision_width", "vision_heads")):
        if getattr(config, whole) % getattr(config, part):
            raise ConfigError(
                f"the model's {whole} {getattr(config, whole)} is not a multiple of {part} {getattr(config, part)}; "
                "change one of them"
            )
    if any(side < config.patch_size or side % config.patch_size for side in config.image_size):
        height, width = config.image_size
        raise ConfigError(
            f"the model's image_size {height} x {width} is no multiple of patch_size {config.patch_size}; "
            "change one of them"
        )
    if not 0 <= config.patch_dropout < 1:
        raise ConfigError(f"the model's patch_dropout is {config.patch_dropout}; it must be at least 0 and below 1")
    for name, layers in (("text_unlocked", config.layers), ("image_unlocked", config.vision_layers)):
        unlocked = getattr(config, name)
        if unlocked is not None and not 0 <= unlocked <= layers + 2:
            raise ConfigError(f"the model's {name} is {unlocked}; the tower has {layers + 2} groups of layers")


_TEXT = {
    "context_length": "context", "vocab_size": "vocab_size", "width": "width", "heads": "heads", "layers": "layers",
    "ls_init_value": "layer_scale",
}  # fmt: skip
_VISION = {
    "image_size": "image_size", "patch_size": "patch_size", "width": "vision_width", "layers": "vision_layers",
    "ls_init_value": "vision_layer_scale", "global_average_pool": "global_pool", "patch_dropout": "patch_dropout",
}  # fmt: skip
_HF_TEXT = {
    "max_position_embeddings": "context", "vocab_size": "vocab_size", "hidden_size": "width", "intermediate_size":
    "mlp_width", "num_attention_heads": "heads", "num_hidden_layers": "layers",
}  # fmt: skip
_HF_VISION = {
    "image_size": "image_size", "patch_size": "patch_size", "hidden_size": "vision_width", "intermediate_size":
    "vision_mlp_width", "num_attention_heads": "vision_heads", "num_hidden_layers": "vision_layers",
}  # fmt: skip
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in the words of ClipConfig: what OpenCLIP and Hugging Face nest stands beside the rest.

    Raises ConfigError for an activation or a tower that CLIP's ViT models have not.
    """
    values = dict(values)
    if isinstance(values.get("model_cfg"), Mapping):  # an open_clip_config.json
        values = dict(values["model_cfg"])
    vision, text = values.pop("vision_cfg", None), values.pop("text_cfg", None)
    if vision is not None or text is not None:
        return values | _open_clip(vision or {}, text or {}, values)
    vision, text = values.pop("vision_config", None), values.pop("text_config", None)
    if vision is not None or text is not None:
        return values | _huggingface(vision or {}, text or {}, values)
    return values


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: values[theirs] for theirs, ours in names.items() if values.get(theirs) is not None}


def _open_clip(vision: Mapping[str, Any], text: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    for where, part, key in (("vision_cfg", vision, "timm_model_name"), ("text_cfg", text, "hf_model_name")):
        if part.get(key):
            raise ConfigError(f"{where}.{key} is {part[key]!r}, but CLIP's towers here are its own transformers")
    if isinstance(vision.get("layers"), (list, tuple)):
        raise ConfigError(f"vision_cfg.layers is {vision['layers']}, a ResNet; use a ViT model of CLIP")
    out = _named(text, _TEXT) | _named(vision, _VISION)
    width, text_width = vision.get("width", 768), text.get("width", 512)
    out["vision_heads"] = int(width) // int(vision.get("head_width", HEAD_WIDTH))
    out["vision_mlp_width"] = int(width * vision.get("mlp_ratio", 4.0))
    out["mlp_width"] = int(text_width * text.get("mlp_ratio", 4.0))
    out["quick_gelu"] = bool(whole.get("quick_gelu", False))  # OpenCLIP's own default
    return out | {"logit_bias": whole["init_logit_bias"]} if whole.get("init_logit_bias") is not None else out


def _huggingface(vision: Mapping[str, Any], text: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    out = _named(text, _HF_TEXT) | _named(vision, _HF_VISION)
    if whole.get("projection_dim") is not None:
        out["embed_dim"] = whole["projection_dim"]
    activations = {part.get("hidden_act", "quick_gelu") for part in (vision, text)}
    if len(activations) > 1 or not activations <= _ACTIVATIONS.keys():
        raise ConfigError(
            f"hidden_act is {' and '.join(map(repr, sorted(activations)))} in the configuration of Hugging Face; "
            f"both towers must have one of {' and '.join(_ACTIVATIONS)}"
        )
    out["quick_gelu"] = _ACTIVATIONS[activations.pop()]
    return out
