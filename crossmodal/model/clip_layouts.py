"""Published names of CLIP's tensors: OpenCLIP's (which are OpenAI's) and Hugging Face's (CE-CLIP, spec section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base import Layout

State = Mapping[str, Tensor]

OPENAI_SCALARS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's files hold beside weights, and no others do."""

_TEXT_PARTS = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
_TOWERS = {"transformer.resblocks.": "text_model.encoder.layers.",
           "visual.transformer.resblocks.": "vision_model.encoder.layers."}  # fmt: skip
_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
_OUTSIDE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # that spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = ("text_projection", "visual.proj")


def of_open_clip(key: str) -> str:
    """An OpenCLIP name as ours: the text tower is nested, as in its CustomTextCLIP."""
    return "text." + key if key.split(".")[0] in _TEXT_PARTS else key


def to_open_clip(state: State) -> dict[str, Tensor]:
    """Our state dict in OpenCLIP's layout."""
    return {key.removeprefix("text."): value for key, value in state.items()}


def to_huggingface(state: State) -> dict[str, Tensor]:
    """A state dict in OpenCLIP's layout -> in that of `transformers.CLIPModel` (section 2.4)."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        tower = next((ours for ours in _TOWERS if key.startswith(ours)), None)
        if tower is None:
            out[_OUTSIDE[key]] = value.T if key in _TRANSPOSED else value
            continue
        number, name = key.removeprefix(tower).split(".", 1)
        block = f"{_TOWERS[tower]}{number}."
        if name.startswith("attn.in_proj_"):
            kind = name.removeprefix("attn.in_proj_")  # weight or bias: equal blocks of rows for q, k and v
            out |= {f"{block}self_attn.{p}_proj.{kind}": part for p, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            part, kind = name.rsplit(".", 1)
            out[f"{block}{_IN_BLOCK[part]}.{kind}"] = value
    return out


def of_huggingface(state: State) -> dict[str, Tensor]:
    """The way back. Old files' `position_ids` are dropped; a key that CLIPModel has not stays as it is."""
    outside = {theirs: ours for ours, theirs in _OUTSIDE.items()}
    in_block = {theirs: ours for ours, theirs in _IN_BLOCK.items()}
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        tower = next((ours for ours, theirs in _TOWERS.items() if key.startswith(theirs)), None)
        if tower is None:
            name = outside.get(key, key)
            if not key.endswith("position_ids"):
                out[name] = value.T if name in _TRANSPOSED else value
            continue
        number, name = key.removeprefix(_TOWERS[tower]).split(".", 1)
        part, kind = name.rsplit(".", 1)
        if part == "self_attn.q_proj":
            rest = [state.get(key.replace("q_proj", f"{p}_proj")) for p in "kv"]
            out[f"{tower}{number}.attn.in_proj_{kind}"] = torch.cat([value, *(r for r in rest if r is not None)])
        elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
            out[f"{tower}{number}.{in_block.get(part, part)}.{kind}"] = value
    if "logit_scale" in out:
        out["logit_scale"] = out["logit_scale"].reshape(())  # some files hold it as (1,)
    return out


LAYOUTS = {
    "openai": Layout(OPENAI_SCALARS, of_open_clip),
    "huggingface": Layout(("text_model.", "vision_model."), of_open_clip, of_huggingface),
    "open_clip": Layout(("visual.class_embedding", "visual.conv1.", "visual.transformer."), of_open_clip),
}


def sizes_of(state: State) -> dict[str, Any]:
    """What the tensors of a published state dict, under our names, show of ClipConfig; heads are not to be seen."""

    def size(name: str, dim: int) -> int | None:
        return state[name].shape[dim] if name in state and state[name].dim() > dim else None

    def layers(tower: str) -> int | None:
        start = tower + ".transformer.resblocks."
        return len({key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)}) or None

    def start(name: str) -> float | None:
        return float(state[name].flatten()[0]) if name in state and state[name].numel() else None

    patch, rows = size("visual.conv1.weight", 2), size("visual.positional_embedding", 0)
    side = round(((rows or 1) - 1) ** 0.5)
    found = {
        "embed_dim": size("text.text_projection", 1),
        "vocab_size": size("text.token_embedding.weight", 0),
        "context": size("text.positional_embedding", 0),
        "width": size("text.token_embedding.weight", 1),
        "layers": layers("text"),
        "mlp_width": size("text.transformer.resblocks.0.mlp.c_fc.weight", 0),
        "layer_scale": start("text.transformer.resblocks.0.ls_1.gamma"),
        "patch_size": patch,
        "image_size": side * patch if patch and rows and side * side == rows - 1 else None,
        "vision_width": size("visual.conv1.weight", 0),
        "vision_layers": layers("visual"),
        "vision_mlp_width": size("visual.transformer.resblocks.0.mlp.c_fc.weight", 0),
        "vision_layer_scale": start("visual.transformer.resblocks.0.ls_1.gamma"),
        "logit_bias": start("logit_bias"),
    }
    return {name: value for name, value in found.items() if value is not None}
