"""ALADIN as it is published: everything padded, tags before their padding before regions, torch's own layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from crossmodal.data.batches import Items, Regions, Texts, Vectors, length_mask
from crossmodal.model.aladin import Aladin
from crossmodal.model.depth import GatedDepth
from crossmodal.model.in_proj import PostNormStack

from . import padded


def stack(module: PostNormStack, x: Tensor, real: Tensor) -> Tensor:
    """Torch's encoder layers with the weights of ours: x (B,T,E), real (B,T)."""
    for layer in module.layers:
        width = x.shape[2]
        theirs = nn.TransformerEncoderLayer(width, 4, width, 0.0, batch_first=True).to(x.dtype)
        x = functional_call(theirs, dict(layer.named_parameters()), (x,), {"src_key_padding_mask": ~real})
    return x


def gated(module: GatedDepth, states: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Torch's attention over each layer's output (B,T,E), which sees what its mask (B,T) has."""
    width = states[0].shape[2]
    attention = nn.MultiheadAttention(width, 4, batch_first=True).to(states[0].dtype)
    weights: dict[str, Tensor] = dict(module.self_attn.named_parameters())
    out = torch.zeros_like(states[0])
    for x, real in zip(states, masks, strict=True):
        context, _ = functional_call(attention, weights, (x, x, x), {"key_padding_mask": ~real})
        out = out + module.gate_ffn(context).sigmoid() * x
    return out


def aggregate(model: Aladin, module: nn.Module, states: Sequence[Tensor], real: Tensor) -> Tensor:
    if not isinstance(module, GatedDepth):
        return torch.stack(list(states)).mean(dim=0)
    masks = [real] * len(states)
    if model.config.depth_masks == "published":  # item b of layer d has the mask of item (d B + b) // depth
        rows = torch.arange(len(states) * len(real)).view(len(states), -1) // len(states)
        masks = [real[row] for row in rows]
    return gated(module, states, masks)


def embed_words(model: Aladin, items: Texts | Vectors, *, tags: bool) -> Tensor:
    """Every position, padding too: (B,S,H)."""
    e = model.oscar_model.bert.embeddings
    if isinstance(items, Texts):
        words = e.word_embeddings(items.input_ids)
    else:
        mapper = e.clip_global_to_oscar_embeddings if tags else e.clip_local_to_oscar_embeddings
        assert mapper is not None
        words = mapper(items.values)
    position = torch.arange(words.shape[1])
    types = (position > 0).long() * tags
    return e.LayerNorm(words + e.position_embeddings(position) + e.token_type_embeddings(types))


def embed_regions(model: Aladin, features: Tensor) -> Tensor:
    """(B,R,F) -> (B,R,H), row by row."""
    bert = model.oscar_model.bert
    out = []
    for row in features.flatten(0, 1):
        of_detic = bert.detic_to_oscar_img is not None and not row[1030:].any()
        x = (
            bert.detic_to_oscar_img(row)
            if of_detic and bert.detic_to_oscar_img is not None
            else bert.img_embedding(row)
        )
        out.append(x if bert.LayerNorm is None else bert.LayerNorm(x))
    return torch.stack(out).unflatten(0, features.shape[:2])


def parts(model: Aladin, side: str, items: Items) -> dict[str, Tensor]:
    """tokens (N,E) and hidden (B T,) of all positions up to the longest, embeds (B,E)."""
    if isinstance(items, Regions):
        assert isinstance(items.tags, (Texts, Vectors)) and items.tags.lengths is not None
        words, lengths = embed_words(model, items.tags, tags=True), items.lengths
        x = torch.cat([words, embed_regions(model, items.features)], dim=1)
        width = words.shape[1]
        mask = torch.cat([length_mask(items.tags.lengths, width), length_mask(lengths, x.shape[1] - width)], dim=1)
        crop = slice(width, width + int(lengths.max()))
    else:
        assert isinstance(items, (Texts, Vectors)) and items.lengths is not None
        x, lengths = embed_words(model, items, tags=False), items.lengths
        mask = length_mask(lengths, x.shape[1])
        crop = slice(0, int(lengths.max()))
    states = [state[:, crop] for state in padded.encode(model.oscar_model.bert.encoder, x, mask)]
    real = mask[:, crop]

    stream, deeper = states[-1], list(states)
    if model.depth_aggregator_model_alignment is not None:
        assert model.feature_fusion is not None
        below = aggregate(model, model.depth_aggregator_model_alignment, states[:-1], real)
        gates = model.feature_fusion.alphas(torch.cat([below, stream], dim=-1)).sigmoid()
        stream = below * gates[..., :1] + stream * gates[..., 1:]
    matching = stream
    if model.depth_aggregator_model_matching is not None:
        if model.post_oscar_transformer is not None:
            deeper.append(stack(model.post_oscar_transformer, states[-1], real))
        matching = aggregate(model, model.depth_aggregator_model_matching, deeper, real)
    layers = model.transformer_encoder_1
    if side == "image" and model.transformer_encoder_2 is not None:
        layers = model.transformer_encoder_2
    aligned = stream if layers is None else stack(layers, stream, real)
    first = stack(model.final_projection_net, matching, real)[:, 0]
    return {
        "tokens": F.normalize(aligned, dim=-1)[real],
        "embeds": first / first.norm(dim=1, keepdim=True),
        "hidden": torch.stack([x.abs().sum(dim=-1) for x in deeper]).mean(dim=0).flatten(),
        "hidden_real": torch.stack([x.abs().sum(dim=-1) for x in deeper]).mean(dim=0)[real],
    }
