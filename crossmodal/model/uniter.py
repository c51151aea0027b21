"""UNITER (arXiv 1909.11740) for retrieval, with the attention blocks that IAIS (arXiv 2105.13868) aligns.

One transformer reads a caption's word pieces and an image's regions together and gives one score a pair.
Each side is embedded once (`encode`); a pair is the concatenation of two embedded sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crossmodal.data.batches import Batch, Items, Regions, Texts, length_mask

from .base import Encoded, Field, Layout, Model, Scorer, all_pairs, ragged_index, register
from .config import BertSizes, check_transformer, typed
from .embeddings import Pooler, TextEmbeddings
from .transformer import LAYER_NORM_EPS, Encoder, Packing
from .uniter_heads import PRETRAINING_FIELDS, ClassHead, FeatureHead, WordHead

ATTENTION_FIELDS = {
    "text_attention": "(G,T,T) words over words of the positive, last layer, mean over heads",
    "image_attention": "(G,R,R) regions over regions",
    "text_image_attention": "(G,T,R) words over regions",
    "image_text_attention": "(G,R,T) regions over words",
    "word_counts": "(G,) words of the positive's caption",
    "region_counts": "(G,) regions of the positive's image",
}
FIELDS = {
    "rank_scores": "(G,1+K) raw rank logits, the positive first",
    "itm_logits": "(G,1+K,2) image-text matching logits, class 1 = matched",
    **ATTENTION_FIELDS,
}


@dataclass(frozen=True)
class UniterConfig(BertSizes):
    """Sizes as in the published JSON; `img_dim` and `img_label_dim` stand outside it (spec section 2.1)."""

    vocab_size: int = 28996
    img_dim: int = 2048
    img_label_dim: int = 1601
    pretraining: bool = False

    @staticmethod
    def of(values: Mapping[str, Any]) -> UniterConfig:
        """From a published or own configuration; keys of other programs are ignored.

        Raises ConfigError where a value is of the wrong type, the sizes do not go together, or a key is nearly one
        that is not given.
        """
        config = typed(UniterConfig, values)
        check_transformer(config.hidden_size, config.num_attention_heads, config.hidden_act)
        return config


class RegionEmbeddings(nn.Module):
    """LN(LN(W_f f) + LN(W_g g) + type 1) of packed regions, then dropout."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.img_linear = nn.Linear(config.img_dim, width)
        self.img_layer_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.pos_layer_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.pos_linear = nn.Linear(7, width)
        self.mask_embedding = nn.Embedding(2, config.img_dim, padding_idx=0)
        self.LayerNorm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features: Tensor, boxes: Tensor, kind: Tensor, masked: Tensor | None) -> Tensor:
        """features (N,F), boxes (N,7), kind (H,) the type embedding, masked (N,) bool -> (N,H)"""
        if masked is not None:  # row 0 of the table is zero at every masked call
            features = features + masked[:, None] * self.mask_embedding.weight[1]
        x = self.img_layer_norm(self.img_linear(features)) + self.pos_layer_norm(self.pos_linear(boxes)) + kind
        return self.dropout(self.LayerNorm(x))


class Backbone(nn.Module):
    """The encoder that published checkpoints call `uniter`."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(
            config.vocab_size,
            config.hidden_size,
            config.max_position_embeddings,
            config.type_vocab_size,
            config.hidden_dropout_prob,
        )
        self.img_embeddings = RegionEmbeddings(config)
        self.encoder = Encoder(
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            config.hidden_act,
            config.hidden_dropout_prob,
            config.attention_probs_dropout_prob,
        )
        self.pooler = Pooler(config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.pooler.dense.weight.dtype

    def embed_texts(self, texts: Texts) -> Encoded:
        device = texts.input_ids.device
        real = length_mask(texts.lengths, texts.input_ids.shape[1])
        b, t = (index.to(device) for index in real.nonzero(as_tuple=True))
        types = torch.zeros_like(b) if texts.type_ids is None else texts.type_ids[b, t]
        return Encoded(texts.lengths, {"tokens": self.embeddings(texts.input_ids[b, t], t, types)})

    def embed_regions(self, regions: Regions) -> Encoded:
        device = regions.features.device
        real = length_mask(regions.lengths, regions.features.shape[1])
        b, r = (index.to(device) for index in real.nonzero(as_tuple=True))
        tokens = self.img_embeddings(
            regions.features[b, r].to(self.dtype),
            regions.boxes[b, r].to(self.dtype),
            self.embeddings.token_type_embeddings.weight[1],
            None if regions.masked is None else regions.masked[b, r],
        )
        return Encoded(regions.lengths, {"tokens": tokens})


@dataclass(frozen=True)
class Joint:
    """P pairs as packed sequences, text then regions, sorted by length so that attention wastes nothing.

    place (P,): where pair p stands in the packing; text_lengths, image_lengths (P,) in the pairs' own order.
    All index tensors are on the host.
    """

    x: Tensor
    packing: Packing
    place: Tensor
    text_lengths: Tensor
    image_lengths: Tensor

    @property
    def starts(self) -> Tensor:
        """(P,) the packed row of each pair's first token."""
        return (self.packing.lengths.cumsum(0) - self.packing.lengths)[self.place]


def join(a: Encoded, b: Encoded, pairs: Tensor, index: Tensor | None = None) -> Joint:
    """Concatenate the tokens of each pair (P,2).

    `index` (P,L), -1 for none: the rows of concat(padded text, padded regions) to take instead, where both
    sides were encoded at their full padded width. Only switches for published defects use it.
    """
    left, right = pairs.unbind(1)
    text_lengths, image_lengths = a.lengths[left], b.lengths[right]
    first_a = (a.lengths.cumsum(0) - a.lengths)[left]
    first_b = (b.lengths.cumsum(0) - b.lengths)[right] + int(a.lengths.sum())
    lengths = text_lengths + image_lengths if index is None else (index >= 0).sum(dim=1)
    order = lengths.argsort(stable=True)
    if index is None:
        starts = torch.stack([first_a[order], first_b[order]], dim=1).flatten()
        parts = torch.stack([text_lengths[order], image_lengths[order]], dim=1).flatten()
        rows = ragged_index(starts, parts)
    else:
        offset = torch.where(index < text_lengths[:, None], first_a[:, None], (first_b - text_lengths)[:, None])
        rows = (index + offset)[order][(index >= 0)[order]]
    tokens = torch.cat([a.rows["tokens"], b.rows["tokens"]])
    packing = Packing.of(lengths[order], tokens.shape[1], tokens.device)
    return Joint(tokens.index_select(0, rows.to(tokens.device)), packing, order.argsort(), text_lengths, image_lengths)


def _of_bert(key: str) -> str:
    """BERT's name of a tensor as UNITER's (spec section 2.5)."""
    key = key.removeprefix("bert.")
    return "uniter." + key if key.startswith(("embeddings.", "encoder.", "pooler.")) else key


@register("uniter")
class Uniter(Model):
    """UNITER with a rank head; scorer `itm`. With `pretraining: true` also the published pre-training heads."""

    sides: ClassVar[Mapping[str, type[Any]]] = {"text": Texts, "image": Regions}
    scorer_names: ClassVar[tuple[str, ...]] = ("itm",)
    all_fields: ClassVar[Mapping[str, str]] = {**FIELDS, **PRETRAINING_FIELDS}
    layouts: ClassVar[Mapping[str, Layout]] = {
        "uniter": Layout(("uniter.",), str),
        "bert": Layout(("bert.", "embeddings.", "encoder.layer."), _of_bert),
    }
    # Stored twice in published files, once here: the word table and the image projection.
    tied: ClassVar[Mapping[str, str]] = {
        "cls.predictions.decoder.weight": "uniter.embeddings.word_embeddings.weight",
        "feat_regress.weight": "uniter.img_embeddings.img_linear.weight",
    }

    def __init__(self, config: UniterConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config if isinstance(config, UniterConfig) else UniterConfig.of(config)
        self.uniter = Backbone(self.config)
        self.itm_output = nn.Linear(self.config.hidden_size, 2)
        self.rank_output = nn.Linear(self.config.hidden_size, 1)
        if self.config.pretraining:
            width = self.config.hidden_size
            self.cls = WordHead(width, self.config.vocab_size)
            self.feat_regress = FeatureHead(width, self.config.img_dim)
            self.region_classifier = ClassHead(width, self.config.img_label_dim)
        self.fields = self.fields_of(self.config_dict)
        self.apply(self._initialise)
        self.start_rank_head()

    @classmethod
    def fields_of(cls, config: Mapping[str, Any]) -> Mapping[str, Field]:
        docs = cls.all_fields if config.get("pretraining") else FIELDS
        return {name: Field("groups", doc) for name, doc in docs.items()}

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def start_rank_head(self) -> None:
        """The rank head starts as a copy of the ITM head's row 1, "matched" (spec section 2.5)."""
        with torch.no_grad():
            self.rank_output.weight.copy_(self.itm_output.weight[1:2])
            self.rank_output.bias.copy_(self.itm_output.bias[1:2])

    def start_new(self, new: Sequence[str]) -> None:
        if any(name.startswith("rank_output.") for name in new):
            self.start_rank_head()

    @property
    def config_dict(self) -> dict[str, Any]:
        return asdict(self.config)

    @property
    def scorers(self) -> Mapping[str, Scorer]:
        return {"itm": ItmScorer(self)}

    def encode(self, side: str, items: Items) -> Encoded:
        """side `text` takes Texts, `image` takes Regions; rows `tokens` (N,H)."""
        if side == "text":
            assert isinstance(items, Texts)
            return self.uniter.embed_texts(items)
        assert isinstance(items, Regions)
        return self.uniter.embed_regions(items)

    def forward(self, batch: Batch, want: Iterable[str]) -> dict[str, Tensor]:
        wanted = set(want)
        (text_side, texts), (image_side, regions) = (batch.roles[role] for role in batch.between)
        index = batch.extras.get("joint_index")
        if index is not None:
            assert isinstance(texts, Texts) and isinstance(regions, Regions)
            texts, regions = _full_width(texts, regions)
        a, b = self.encode(text_side, texts), self.encode(image_side, regions)
        pairs = torch.arange(len(a))[:, None].expand(-1, 2) if batch.pairs is None else batch.pairs
        joint = join(a, b, pairs, None if index is None else index.cpu())

        below = self.uniter.encoder.below_last(joint.x, joint.packing)
        given: dict[str, Tensor] = {}
        if wanted & ATTENTION_FIELDS.keys():
            given |= self.attention_blocks(below, joint, batch.group)
        if wanted <= ATTENTION_FIELDS.keys():  # these are taken before the last layer
            return {name: given[name] for name in wanted}
        whole_sequence = wanted & PRETRAINING_FIELDS.keys()
        last = self.uniter.encoder.last(below, joint.packing, first_only=not whole_sequence)
        first = last[joint.packing.first] if whole_sequence else last
        pooled = self.uniter.pooler(first).index_select(0, joint.place.to(first.device))  # (P,H)
        if "rank_scores" in wanted:
            given["rank_scores"] = self.rank_output(pooled).view(-1, batch.group)
        if "itm_logits" in wanted:
            given["itm_logits"] = self.itm_output(pooled).view(-1, batch.group, 2)
        if whole_sequence:
            given |= self.pretraining_fields(last, joint, batch, whole_sequence)
        return {name: given[name] for name in wanted}

    def attention_blocks(self, below: Tensor, joint: Joint, group: int) -> dict[str, Tensor]:
        """The four blocks of each positive, from the input of the last layer (IAIS, spec section 6.2)."""
        n_text, n_image = joint.text_lengths[::group], joint.image_lengths[::group]
        n = n_text + n_image
        positives = below.index_select(0, ragged_index(joint.starts[::group], n).to(below.device))
        attention = self.uniter.encoder.last.attention.inner
        queries, keys = attention.query(positives), attention.key(positives)  # once, on real tokens alone
        starts = n.cumsum(0) - n
        words = starts + 1, (n_text - 2).clamp(min=0)  # [CLS] and [SEP] left out
        regions = starts + n_text, n_image
        q = {"text": _take(queries, *words)[0], "image": _take(queries, *regions)[0]}
        (text_keys, word_real), (image_keys, region_real) = _take(keys, *words), _take(keys, *regions)
        k = {"text": text_keys, "image": image_keys}
        real = {"text": word_real, "image": region_real}

        def block(rows: str, columns: str) -> Tensor:
            return attention.probabilities(q[rows], k[columns], real[columns]).mean(dim=1) * real[rows][:, :, None]

        return {
            "text_attention": block("text", "text"),
            "image_attention": block("image", "image"),
            "text_image_attention": block("text", "image"),
            "image_text_attention": block("image", "text"),
            "word_counts": word_real.sum(dim=1),
            "region_counts": region_real.sum(dim=1),
        }

    def pretraining_fields(self, hidden: Tensor, joint: Joint, batch: Batch, wanted: set[str]) -> dict[str, Tensor]:
        starts = joint.starts.to(hidden.device)
        given: dict[str, Tensor] = {}
        if "word_logits" in wanted:
            p, t = _of_pairs(batch.extras["masked_words"], batch.pairs, 0).nonzero(as_tuple=True)
            table = self.uniter.embeddings.word_embeddings.weight
            given["word_logits"] = self.cls(hidden[starts[p] + t], table)
        if wanted & {"region_predictions", "region_logits"}:
            regions = batch.roles[batch.between[1]][1]
            assert isinstance(regions, Regions) and regions.masked is not None
            p, r = _of_pairs(regions.masked, batch.pairs, 1).nonzero(as_tuple=True)
            masked = hidden[starts[p] + joint.text_lengths.to(p.device)[p] + r]
            if "region_predictions" in wanted:
                given["region_predictions"] = self.feat_regress(masked, self.uniter.img_embeddings.img_linear.weight)
            if "region_logits" in wanted:
                given["region_logits"] = self.region_classifier(masked)
        if wanted & {"word_states", "region_states", "word_pad", "region_pad"}:
            given["word_states"], word_real = _take(hidden, joint.starts, joint.text_lengths)
            given["region_states"], region_real = _take(hidden, joint.starts + joint.text_lengths, joint.image_lengths)
            given["word_pad"], given["region_pad"] = ~word_real, ~region_real
        return given


def _of_pairs(items: Tensor, pairs: Tensor | None, column: int) -> Tensor:
    """Rows of one role's items (B,...) as rows of the pairs (P,...)."""
    return items if pairs is None else items[pairs[:, column].to(items.device)]


def _take(x: Tensor, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Rows starts[g] .. starts[g]+lengths[g] of x (N,D), padded: (G,W,D) and which are real (G,W)."""
    width = max(int(lengths.max()), 1)
    real = length_mask(lengths, width)
    rows = starts[:, None] + torch.arange(width)
    rows = torch.where(real, rows, 0).to(x.device)
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape), real.to(x.device)


def _full_width(texts: Texts, regions: Regions) -> tuple[Texts, Regions]:
    """Padding counted as tokens and regions: what a published index may point at."""
    t = torch.full_like(texts.lengths, texts.input_ids.shape[1])
    r = torch.full_like(regions.lengths, regions.features.shape[1])
    return Texts(texts.input_ids, t, texts.type_ids), Regions(regions.features, regions.boxes, r)


class ItmScorer:
    """The raw rank logit of a pair: the whole joint transformer, [CLS] row only in the last layer."""

    reads: tuple[str, ...] = ("tokens",)
    cost = 1.0

    def __init__(self, model: Uniter) -> None:
        self.model = model

    def __call__(self, a: Encoded, b: Encoded, pairs: Tensor | None = None) -> Tensor:
        """(P,) scores of `pairs`, or (A,B) of all."""
        joint = join(a, b, all_pairs(len(a), len(b)) if pairs is None else pairs)
        first = self.model.uniter.encoder(joint.x, joint.packing, first_only=True)
        scores = self.model.rank_output(self.model.uniter.pooler(first)).squeeze(1)[joint.place.to(first.device)]
        return scores.view(len(a), len(b)) if pairs is None else scores
