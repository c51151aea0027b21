"""UNITER as it is published, one padded sequence a pair: what the packed encoder must equal. No dropout."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crossmodal.data.batches import Regions, Texts
from crossmodal.model.transformer import Encoder, Layer
from crossmodal.model.uniter import Uniter


def pad(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences (n,D) -> (B,T,D) with zeros at the right, and which positions are real (B,T)."""
    x = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    return x, torch.arange(x.shape[1]) < torch.tensor([len(s) for s in sequences])[:, None]


def layer(module: Layer, x: Tensor, mask: Tensor) -> Tensor:
    """Post-LayerNorm attention as BERT writes it: x (B,T,D), mask (B,T)."""
    attention, (b, t, d) = module.attention.inner, x.shape
    heads, width = attention.heads, d // attention.heads
    q, k, v = (f(x).view(b, t, heads, width).transpose(1, 2) for f in (attention.query, attention.key, attention.value))
    scores = q @ k.transpose(2, 3) / width**0.5 + (~mask)[:, None, None, :] * -10000.0
    context = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d)
    y = module.attention.output.LayerNorm(module.attention.output.dense(context) + x)
    inner = F.gelu(module.intermediate.dense(y))
    return module.output.LayerNorm(module.output.dense(inner) + y)


def encode(encoder: Encoder, x: Tensor, mask: Tensor) -> list[Tensor]:
    """The input of every layer and the output of the last, each (B,T,D)."""
    states = [x]
    for module in encoder.layer:
        assert isinstance(module, Layer)
        states.append(layer(module, states[-1], mask))
    return states


def embed_text(model: Uniter, texts: Texts, i: int) -> Tensor:
    """Caption i, (n,D): LN(word + position + type)."""
    e, n = model.uniter.embeddings, int(texts.lengths[i])
    types = torch.zeros(n, dtype=torch.int64) if texts.type_ids is None else texts.type_ids[i, :n]
    tables = e.word_embeddings.weight, e.position_embeddings.weight, e.token_type_embeddings.weight
    ids = texts.input_ids[i, :n]
    return torch.stack([e.LayerNorm(tables[0][ids[t]] + tables[1][t] + tables[2][types[t]]) for t in range(n)])


def embed_regions(model: Uniter, regions: Regions, i: int) -> Tensor:
    """Image i, (r,D): LN(LN(W_f f) + LN(W_g g) + type 1), a masked feature shifted by row 1 of the mask table."""
    e, kind = model.uniter.img_embeddings, model.uniter.embeddings.token_type_embeddings.weight[1]
    out = []
    for r in range(int(regions.lengths[i])):
        feature = regions.features[i, r]
        if regions.masked is not None and regions.masked[i, r]:
            feature = feature + e.mask_embedding.weight[1]
        sides = e.img_layer_norm(e.img_linear(feature)) + e.pos_layer_norm(e.pos_linear(regions.boxes[i, r]))
        out.append(e.LayerNorm(sides + kind))
    return torch.stack(out)


def joint_states(model: Uniter, texts: Texts, regions: Regions, pairs: Tensor) -> tuple[list[Tensor], Tensor]:
    """What every layer reads and the last one gives for each pair, (P,T+R,D), and the mask (P,T+R)."""
    sequences = [torch.cat([embed_text(model, texts, i), embed_regions(model, regions, j)]) for i, j in pairs.tolist()]
    x, mask = pad(sequences)
    return encode(model.uniter.encoder, x, mask), mask


def pooled(model: Uniter, last: Tensor) -> Tensor:
    return torch.tanh(model.uniter.pooler.dense(last[:, 0]))


def rank_scores(model: Uniter, texts: Texts, regions: Regions, pairs: Tensor) -> Tensor:
    """(P,)"""
    states, _ = joint_states(model, texts, regions, pairs)
    return model.rank_output(pooled(model, states[-1]))[:, 0]
