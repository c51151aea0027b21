"""CLIP (arXiv 2103.00020) as CE-CLIP and NegCLIP fine-tune it: one vector a caption, one a picture, their cosine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import log
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossmodal.data.batches import Batch, Items, Pixels, Texts, Vectors
from crossmodal.errors import DataError

from .base import Encoded, Field, Kind, Layout, Model, Scorer, register
from .clip_config import ClipConfig, flat
from .clip_layouts import LAYOUTS
from .clip_text import ClipText
from .clip_vision import ClipVision, resampled
from .scorers import VectorScorer

ROLES = {
    "text": "caption",
    "image": "picture",
    "negative_text": "wrong caption",
    "hard_image": "hard picture",
    "hard_text": "caption of a hard picture",
    "hard_negative_text": "wrong caption of a hard picture",
    "text_b": "second caption",
}
FIELDS = {f"{role}_embeds": f"(B,E) unit vector of each {what}" for role, what in ROLES.items()} | {
    "cosine_scores": "(texts, images) cosines of captions and pictures",
    "logit_scale": "() the factor of the cosines, e to the learnt parameter",
    "logit_bias": "() what is added to scaled cosines, in models that have it (SigLIP's)",
}
KINDS: dict[str, Kind] = {"embeds": "items", "scores": "scores"}  # by the end of a field's name
LARGEST_SCALE = log(100)


@register("clip")
class Clip(Model):
    """Scorer `cosine`; parameters have OpenCLIP's names, the text tower's below `text.`."""

    sides: ClassVar[Mapping[str, type[Any]]] = {"text": Texts, "image": Pixels}
    scorer_names: ClassVar[tuple[str, ...]] = ("cosine",)
    all_fields: ClassVar[Mapping[str, str]] = FIELDS
    processed_by: ClassVar[str] = "clip"
    dropouts: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[Mapping[str, Layout]] = LAYOUTS

    def __init__(self, config: ClipConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config = ClipConfig.of(asdict(config) if isinstance(config, ClipConfig) else config)
        assert config.heads is not None and config.vision_heads is not None  # ClipConfig.of fills them in
        self.text = ClipText(
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            context=config.context,
            embed_dim=config.embed_dim,
            mlp_width=config.mlp_width,
            quick_gelu=config.quick_gelu,
            layer_scale=config.layer_scale,
            recompute=config.recompute,
        )
        self.visual = ClipVision(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.vision_width,
            heads=config.vision_heads,
            layers=config.vision_layers,
            embed_dim=config.embed_dim,
            mlp_width=config.vision_mlp_width,
            quick_gelu=config.quick_gelu,
            layer_scale=config.vision_layer_scale,
            global_pool=config.global_pool,
            patch_dropout=config.patch_dropout,
            recompute=config.recompute,
        )
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale))
        self.logit_bias = None if config.logit_bias is None else nn.Parameter(torch.tensor(config.logit_bias))
        self.fields = self.fields_of(self.config_dict)
        self._lock()

    def _lock(self) -> None:
        unlocked = {"text": self.config.text_unlocked, "visual": self.config.image_unlocked}
        for name, parameter in self.named_parameters():
            groups = unlocked.get(name.split(".")[0])
            parameter.requires_grad_(groups is None or self.depth_of(name) < groups)

    def depth_of(self, name: str) -> int:
        """How many groups of layers lie between a parameter and the end of its tower.

        The groups, from the end: the projection (0); the last block with the LayerNorm behind it (1); one for each
        block below; what embeds tokens or patches. 0 for what is in no tower.
        """
        tower, _, name = name.partition(".")
        if tower not in ("text", "visual") or name in ("proj", "text_projection"):
            return 0
        layers = self.config.layers if tower == "text" else self.config.vision_layers
        if name.startswith("transformer.resblocks."):
            return layers - int(name.split(".")[2])
        return 1 if name.startswith(("ln_final.", "ln_post.")) else layers + 1

    def learning_rate_factors(self, decay: float) -> dict[str, float]:
        """decay^depth for every parameter by name: layer-wise decay of the learning rate, 1 at the end of a tower."""
        return {name: decay ** self.depth_of(name) for name, _ in self.named_parameters()}

    @torch.no_grad()
    def after_update(self) -> None:
        """The logarithm of the scale is kept in [0, ln 100] after every step of the optimizer (section 5.1)."""
        self.logit_scale.clamp_(0, LARGEST_SCALE)

    @classmethod
    def fields_of(cls, config: Mapping[str, Any]) -> Mapping[str, Field]:
        return {
            name: Field(KINDS.get(name.rpartition("_")[2], "scalar"), doc)
            for name, doc in FIELDS.items()
            if name != "logit_bias" or config.get("logit_bias") is not None
        }

    @classmethod
    def own_words(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return flat(config)

    @classmethod
    def published_config(cls, path: Path) -> dict[str, Any]:
        from .clip_files import published_config

        return published_config(path)

    @property
    def config_dict(self) -> dict[str, Any]:
        return asdict(self.config)

    @property
    def scorers(self) -> Mapping[str, Scorer]:
        return {"cosine": VectorScorer("dot")}  # of unit vectors

    def fitted(self, state: Mapping[str, Tensor], where: object) -> Mapping[str, Tensor]:
        """The table of positions resampled for this grid of patches; raises or warns as `check_activation` does."""
        from .clip_files import check_activation

        weights = check_activation(self.config.quick_gelu, state, where)
        table = weights.get("visual.positional_embedding")
        return weights if table is None else {**weights, "visual.positional_embedding": resampled(table, self.grid)}

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a picture, down and across."""
        return self.visual.grid

    def features(self, side: str, items: Items) -> Tensor:
        """(B,E), before they are normalised. Raises DataError for items that the tower cannot read."""
        if isinstance(items, Vectors):
            if items.values.shape[1:] != (self.config.embed_dim,):
                raise DataError(
                    f"vectors of shape {tuple(items.values.shape)} stand for items, the model's have "
                    f"{self.config.embed_dim} numbers; compute them with this model"
                )
            return items.values
        if side == "text":
            assert isinstance(items, Texts)
            self._check_texts(items)
            return self.text(items)[0]
        assert isinstance(items, Pixels)
        if items.values.shape[1:] != (3, *self.config.image_size):
            raise DataError(
                f"pictures are {' x '.join(map(str, items.values.shape[1:]))}, the model reads "
                f"3 x {' x '.join(map(str, self.config.image_size))}; use the model's own processor"
            )
        return self.visual(items.values)

    def _check_texts(self, texts: Texts) -> None:
        longest = int(texts.lengths.max()) if len(texts.lengths) else 0
        if longest > self.config.context:
            raise DataError(
                f"a caption has {longest} tokens, the model takes {self.config.context}; use the model's own processor"
            )

    def embeds(self, side: str, items: Items) -> Tensor:
        """(B,E) unit vectors, normalised in float32 at least."""
        x = self.features(side, items)
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)

    def encode(self, side: str, items: Items) -> Encoded:
        """`text` takes Texts, `image` takes Pixels, both take Vectors of this model; vectors `embeds`."""
        embeds = self.embeds(side, items)
        return Encoded(torch.ones(len(embeds), dtype=torch.int64), vectors={"embeds": embeds})

    def forward(self, batch: Batch, want: Iterable[str]) -> dict[str, Tensor]:
        """The unit vectors of every role of the batch that is wanted, and the scale."""
        given: dict[str, Tensor] = {}
        for name in set(want):
            if name == "logit_scale":
                given[name] = self.logit_scale.exp()
            elif name == "logit_bias":
                assert self.logit_bias is not None
                given[name] = self.logit_bias
            else:
                given[name] = self.embeds(*batch.roles[name.removesuffix("_embeds")])
        return given
