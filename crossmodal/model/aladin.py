"""ALADIN (arXiv 2207.14757) and ALADIN-2.0: captions and images encoded apart by one backbone, matched by two heads.

The alignment head compares words with regions (fine, slow), the matching head gives one vector an item (coarse,
fast) and learns from the first. Captions are words; an image is its detector's tags, then its regions, of which
only the regions' states are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from crossmodal.data.batches import Batch, Items, Regions, Texts, Vectors
from crossmodal.errors import DataError

from .aladin_config import AladinConfig
from .base import Encoded, Field, Layout, Model, Scorer, ragged_index, register
from .clip_text import ClipText
from .depth import HEADS, FeatureFusion, build_depth, published_masks
from .in_proj import PostNormStack
from .scorers import AlignmentScorer, VectorScorer
from .transformer import Packing
from .vinvl import Rows, Vinvl

PARTS = ("tokens", "lengths", "embeds", "hidden")
FIELDS = {
    "text_tokens": "(N,E) unit vectors of the captions' tokens, [CLS] and [SEP] included",
    "image_tokens": "(N,E) unit vectors of the images' regions",
    "text_lengths": "(B,) tokens of each caption",
    "image_lengths": "(B,) regions of each image",
    "text_embeds": "(B,E) unit vector of each caption",
    "image_embeds": "(B,E) unit vector of each image",
    "negative_text_embeds": "(B*K,E) unit vector of each wrong caption",
    "text_hidden": "(N,) L1 norm of each token's states, mean over layers",
    "image_hidden": "(N,) L1 norm of each region's states, mean over layers",
    "alignment_scores": "(texts, images) of the alignment head, word by region",
    "matching_scores": "(texts, images) of the matching head's vectors",
}
RAGGED = ("tokens", "hidden")


def _of_vinvl(key: str) -> str:
    """A name of VinVL's or BERT's as ALADIN's."""
    if key.startswith(("bert.", "classifier.")):
        return "oscar_model." + key
    return "oscar_model.bert." + key if key.startswith(("embeddings.", "encoder.", "pooler.")) else key


@register("aladin")
class Aladin(Model):
    """Scorers `alignment` and `matching`; parameters have the published names without their prefix `img_txt_enc.`."""

    sides: ClassVar[Mapping[str, type[Any]]] = {"text": Texts, "image": Regions}
    scorer_names: ClassVar[tuple[str, ...]] = ("alignment", "matching")
    all_fields: ClassVar[Mapping[str, str]] = FIELDS
    processed_by: ClassVar[str] = "aladin"
    dropouts: ClassVar[tuple[str, ...]] = (*Model.dropouts, "head_dropout")
    layouts: ClassVar[Mapping[str, Layout]] = {
        "aladin": Layout(("img_txt_enc.",), lambda key: key.removeprefix("img_txt_enc.")),
        "vinvl": Layout(("bert.img_embedding.",), _of_vinvl),
        "bert": Layout(("bert.", "embeddings.", "encoder.layer."), _of_vinvl),
        "clip": Layout(("token_embedding.", "transformer.resblocks."), lambda key: "clip_model." + key),
    }

    def __init__(self, config: AladinConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config = config if isinstance(config, AladinConfig) else AladinConfig.of(config)
        width, dropout = config.hidden_size, config.head_dropout

        def stack(layers: int) -> PostNormStack | None:
            return PostNormStack(layers, width, HEADS, width, dropout) if layers else None

        self.oscar_model = Vinvl(
            config,
            detic=config.detic,
            clip_tags=config.clip_width("embed_dim") if config.clip_tags else 0,
            clip_captions=config.clip_width("width") if config.clip_captions else 0,
        )
        if config.detection == "det":  # a fresh projection, which starts as torch's do
            self.oscar_model.bert.img_embedding.reset_parameters()
        self.transformer_encoder_1 = stack(config.alignment_layers)
        self.transformer_encoder_2 = None if config.shared_layers else stack(config.alignment_layers)
        self.post_oscar_transformer = stack(config.post_layers)
        self.final_projection_net = PostNormStack(config.matching_layers, width, HEADS, width, dropout)
        self.depth_aggregator_model_alignment: nn.Module | None = None
        self.depth_aggregator_model_matching: nn.Module | None = None
        self.feature_fusion: FeatureFusion | None = None
        if config.depth_alignment:
            self.depth_aggregator_model_alignment = build_depth(config.depth_alignment, width, dropout)
            self.feature_fusion = FeatureFusion(width, dropout)
        if config.depth_matching:
            self.depth_aggregator_model_matching = build_depth(config.depth_matching, width, dropout)
        clip = config.clip is not None and (config.clip_tags or config.clip_captions)
        self.clip_model = ClipText(**dict[str, Any](config.clip or {})) if clip else None
        self.fields = self.fields_of(self.config_dict)
        self._freeze()

    def _freeze(self) -> None:
        """Parts without gradients; those of them that stay in evaluation mode are kept in `_quiet`."""
        backbone = [
            self.oscar_model,
            self.depth_aggregator_model_alignment,
            self.feature_fusion,
            self.transformer_encoder_1,
            self.transformer_encoder_2,
        ]
        unused: list[nn.Module] = [self.oscar_model.bert.pooler, self.oscar_model.classifier]
        frozen = [m for m in backbone if m is not None] if self.config.freeze != "none" else []
        self._quiet = frozen if self.config.freeze == "backbone" else []
        if self.clip_model is not None:
            self._quiet = [*self._quiet, self.clip_model]
        for module in (*frozen, *self._quiet, *unused):
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Aladin:
        super().train(mode)
        for module in self._quiet:
            module.eval()
        return self

    @classmethod
    def fields_of(cls, config: Mapping[str, Any]) -> Mapping[str, Field]:
        return {
            name: Field("scores" if name.endswith("_scores") else "items", doc, name.endswith(RAGGED))
            for name, doc in cls.all_fields.items()
        }

    @classmethod
    def published_config(cls, path: Path) -> dict[str, Any]:
        from .aladin_files import published_config

        return published_config(path)

    @property
    def config_dict(self) -> dict[str, Any]:
        return asdict(self.config)

    @property
    def scorers(self) -> Mapping[str, Scorer]:
        """A gallery has no batch: outside training, `clamp: batch` is `always`, as in the published evaluation."""
        clamp = "always" if self.config.clamp == "batch" and not self.training else self.config.clamp
        return {
            "alignment": AlignmentScorer(self.config.aggregation, clamp),
            "matching": VectorScorer(self.config.measure),
        }

    def encode(self, side: str, items: Items) -> Encoded:
        """`text` takes Texts or CLIP's Vectors, `image` takes Regions with tags; rows `tokens`, vectors `embeds`."""
        given = self.parts(side, items, {"tokens", "embeds", "lengths"})
        return Encoded(given["lengths"], {"tokens": given["tokens"]}, {"embeds": given["embeds"]})

    def forward(self, batch: Batch, want: Iterable[str]) -> dict[str, Tensor]:
        """Every role of the batch by itself, and of it only what is wanted; scores are computed from it elsewhere."""
        wanted = set(want)
        given: dict[str, Tensor] = {}
        for role, (side, items) in batch.roles.items():
            parts = {part for part in PARTS if f"{role}_{part}" in wanted}
            if parts:
                given |= {f"{role}_{part}": value for part, value in self.parts(side, items, parts).items()}
        return {name: given[name] for name in wanted}

    def parts(self, side: str, items: Items, wanted: Set[str]) -> dict[str, Tensor]:
        """What is wanted of `tokens`, `embeds`, `hidden` and `lengths`, for the items of one side."""
        rows = self.words(items, tags=False) if side == "text" else self.regions(items)
        last = rows[-1]
        given = {"lengths": last.real}
        if wanted <= given.keys():
            return given
        depth = self.config.depth_alignment or self.config.depth_matching or "hidden" in wanted
        states = self.oscar_model.bert(*rows, every=bool(depth))
        width, device = last.x.shape[1], last.x.device
        real = last.keys.nonzero().flatten().to(device) if self.config.encodes_padding else None
        own = Packing.of(last.real, width, device)

        def crop(x: Tensor) -> Tensor:
            return x if real is None else x.index_select(0, real)

        def aggregate(module: nn.Module, states: Sequence[Tensor]) -> Tensor:
            if not self.config.mixed_masks:
                return module([crop(x) for x in states], [own] * len(states))
            masks = published_masks(last.real, last.lengths, len(states))
            return crop(module(states, [Packing.of(last.lengths, width, device, keys) for keys in masks]))

        deeper = states
        if self.depth_aggregator_model_matching is not None and self.post_oscar_transformer is not None:
            everywhere = own if real is None else Packing.of(last.lengths, width, device, last.keys)
            deeper = [*states, self.post_oscar_transformer(states[-1], everywhere)]
        if "hidden" in wanted:
            given["hidden"] = torch.stack([x.abs().sum(dim=1) for x in deeper]).mean(dim=0)
        if not wanted & {"tokens", "embeds"}:
            return given

        stream = crop(states[-1])
        if self.depth_aggregator_model_alignment is not None and self.feature_fusion is not None:
            stream = self.feature_fusion(aggregate(self.depth_aggregator_model_alignment, states[:-1]), stream)
        if "embeds" in wanted:
            matching = self.depth_aggregator_model_matching
            x = stream if matching is None else aggregate(matching, deeper)
            given["embeds"] = F.normalize(self.final_projection_net(x, own, first_only=True), dim=1)
        if "tokens" in wanted:
            layers = self.transformer_encoder_1
            if side == "image" and self.transformer_encoder_2 is not None:
                layers = self.transformer_encoder_2
            given["tokens"] = F.normalize(stream if layers is None else layers(stream, own), dim=1)
        return given

    def words(self, items: Items | None, *, tags: bool) -> list[Rows]:
        """A caption's tokens, or an image's tags, embedded."""
        clip = self.config.clip_tags if tags else self.config.clip_captions
        if clip and isinstance(items, Texts):
            items = self._clip(items, tags)
        if not isinstance(items, Vectors if clip else Texts):
            what, reads = "tags" if tags else "captions", "CLIP vectors" if clip else "token ids"
            found = "none are given" if items is None else f"they are {type(items).__name__}"
            raise DataError(f"the model reads {what} as {reads}, but {found}; use the model's own processor")
        assert isinstance(items, (Texts, Vectors)) and items.lengths is not None
        lengths = items.lengths if tags else self._widths(items.lengths)  # padded tags are read by nobody
        item, position = (index.to(self.device) for index in self._places(lengths))
        embeddings = self.oscar_model.bert.embeddings
        types = (position > 0).long() * tags
        if isinstance(items, Texts):
            words = items.input_ids[item, position]
            types = types if items.type_ids is None else items.type_ids[item, position]
        else:
            mapper = embeddings.clip_global_to_oscar_embeddings if tags else embeddings.clip_local_to_oscar_embeddings
            assert mapper is not None
            words = mapper(items.values[item, position].to(embeddings.LayerNorm.weight.dtype))
        return [Rows(embeddings(words, position, types), lengths, items.lengths)]

    def regions(self, items: Items) -> list[Rows]:
        """An image's tags, then its regions, embedded."""
        assert isinstance(items, Regions)
        empty = (items.lengths == 0).nonzero().flatten().tolist()
        if empty:
            raise DataError(f"image {empty[0]} of a batch has no regions, and ALADIN reads nothing else; leave it out")
        lengths = self._widths(items.lengths)
        item, position = (index.to(self.device) for index in self._places(lengths))
        bert = self.oscar_model.bert
        x = bert.embed_regions(items.features[item, position].to(bert.img_embedding.weight.dtype))
        return [*self.words(items.tags, tags=True), Rows(x, lengths, items.lengths)]

    def _widths(self, real: Tensor) -> Tensor:
        """How many rows of each item are encoded: its own, or as many as the longest has."""
        return real.max().expand_as(real) if self.config.encodes_padding else real

    @staticmethod
    def _places(lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(N,), (N,) the item of each row, and where in it the row stands."""
        return torch.arange(len(lengths)).repeat_interleave(lengths), ragged_index(torch.zeros_like(lengths), lengths)

    def _clip(self, texts: Texts, tags: bool) -> Vectors:
        """CLIP's vector of every sentence of tags, or the states of every token of captions; without gradients."""
        if self.clip_model is None:
            raise DataError("the model was built without CLIP's text tower (clip: null); give CLIP's vectors")
        if tags and texts.counts is None:
            raise DataError("the model reads a sentence for every tag, but tags are given as one; use its processor")
        real = texts.counts if tags else texts.lengths
        assert real is not None
        widths = real if tags else self._widths(real)
        with torch.no_grad():
            pooled, states = self.clip_model(texts if tags else replace(texts, lengths=widths))
        rows = pooled if tags else states
        return Vectors(pad_sequence(rows.split(widths.tolist()), batch_first=True), real)
