"""Two padded forms of UNITER on a crossmodal model's weights, for `scoring.py` to compare with.

`Published` computes as the published evaluation does: attention as matrix products and a softmax over the
padded sequence, GELU by the error function in separate steps, every position in every layer.
`padded_bert` is the encoder of transformers' BERT with PyTorch's fused attention.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from crossmodal.data.batches import Regions, Texts
from crossmodal.model.transformer import LAYER_NORM_EPS
from crossmodal.model.uniter import Uniter


def mask_of(lengths: Tensor) -> Tensor:
    """(B,1,1,T): 0 at real positions, -10000 at padding."""
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    return (1.0 - real.float())[:, None, None] * -10000.0


def joined(text: Tensor, images: Tensor, image_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """One caption (T,D) before each of B padded images (B,R,D): (B,T+R,D) and the additive mask."""
    x = torch.cat([text.expand(len(images), -1, -1), images], dim=1)
    return x, mask_of(len(text) + image_lengths)


class Published:
    """UNITER's published forward pass on a model's own parameters; with dropout while the model trains."""

    def __init__(self, model: Uniter) -> None:
        self.model, self.config = model, model.config
        self.weights = dict(model.named_parameters())

    def _dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.hidden_dropout_prob, self.model.training)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, LAYER_NORM_EPS)

    def _split(self, x: Tensor) -> Tensor:
        heads = self.config.num_attention_heads
        return x.view(*x.shape[:2], heads, -1).permute(0, 2, 1, 3)

    def _layer(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
        inner = f"{name}.attention.self"
        q, k, v = (self._split(self._linear(f"{inner}.{part}", x)) for part in ("query", "key", "value"))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask
        context = (self._dropout(scores.softmax(dim=-1)) @ v).permute(0, 2, 1, 3).flatten(2)
        projected = self._dropout(self._linear(f"{name}.attention.output.dense", context))
        y = self._norm(f"{name}.attention.output.LayerNorm", projected + x)
        h = self._linear(f"{name}.intermediate.dense", y)
        h = h * 0.5 * (1.0 + torch.erf(h / math.sqrt(2.0)))
        return self._norm(f"{name}.output.LayerNorm", self._dropout(self._linear(f"{name}.output.dense", h)) + y)

    def __call__(self, texts: Texts, regions: Regions) -> Tensor:
        """One caption against a mini-batch of images (B): raw rank scores (B,)."""
        text = self.model.encode("text", texts).rows["tokens"]
        whole = torch.full_like(regions.lengths, regions.features.shape[1])  # padding is embedded too
        padded = Regions(regions.features.float(), regions.boxes, whole)
        images = self.model.encode("image", padded).rows["tokens"].unflatten(0, (len(whole), -1))
        x, mask = joined(text, images, regions.lengths)
        for layer in range(self.config.num_hidden_layers):
            x = self._layer(f"uniter.encoder.layer.{layer}", x, mask)
        pooled = torch.tanh(self._linear("uniter.pooler.dense", x[:, 0]))
        return self._linear("rank_output", pooled).squeeze(1)


def padded_bert(model: Uniter) -> Any:
    """transformers' BertModel with fused attention and the model's encoder and pooler: call `bert_scores`."""
    from transformers import BertConfig, BertModel

    config = model.config
    bert = BertModel(
        BertConfig(
            vocab_size=8,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            layer_norm_eps=LAYER_NORM_EPS,
        ),
    ).eval()
    bert.set_attn_implementation("sdpa")
    own = {name.removeprefix("uniter."): tensor for name, tensor in model.state_dict().items()}
    wanted = {name: own[name] for name in bert.state_dict() if name.startswith(("encoder.", "pooler."))}
    bert.load_state_dict(wanted, strict=False)
    return bert


def bert_scores(bert: Any, model: Uniter, text: Tensor, images: Tensor, image_lengths: Tensor) -> Tensor:
    """One encoded caption (T,D) against encoded, padded images (B,R,D): raw rank scores (B,)."""
    x, mask = joined(text, images, image_lengths)
    hidden = bert.encoder(x, attention_mask=mask)[0]
    return model.rank_output(bert.pooler(hidden)).squeeze(1)
