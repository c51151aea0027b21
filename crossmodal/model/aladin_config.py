"""ALADIN's configuration, and the published one in its words (spec sections 2.2, 10 and 11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from crossmodal.errors import ConfigError, nearest

from .alignment import Aggregation, Clamp
from .config import check_transformer, typed
from .depth import HEADS, Depth
from .transformer import LAYER_NORM_EPS
from .vinvl import DETIC_WIDTH, VinvlSizes

CLIP_SIZES = ("vocab_size", "width", "heads", "layers", "context", "embed_dim")


@dataclass(frozen=True)
class AladinConfig(VinvlSizes):
    """The backbone's sizes, as its published config.json has them, and what ALADIN puts on it.

    matching_layers: of the matching head. alignment_layers: extra ones before the alignment head, one stack for
    captions and images or (`shared_layers: false`) two. post_layers: they add one more depth to `depth_matching`.
    depth_alignment, depth_matching: aggregation over all layers' outputs in front of that head.
    depth_masks: `published` gives gated aggregation the padding masks of other items, as published (section 13, row 8).
    head_dropout: of everything on the backbone.
    aggregation, clamp: of the alignment scores; measure: of the matching scores.
    freeze: `backbone` trains the matching head alone, on a backbone without dropout; `published` leaves dropout on.
    padded: padding is encoded too, as published; only hidden norms and `depth_masks: published` see a difference.
    clip_tags, clip_captions: CLIP's text vectors instead of word embeddings; clip: sizes of its text tower, those of
    ViT-B/32 where none are given, None where the vectors come ready-made and no tower is built.
    detection: the detectors whose regions it reads, by their published name.
    """

    matching_layers: int = 2
    alignment_layers: int = 0
    shared_layers: bool = True
    post_layers: int = 0
    depth_alignment: Depth | None = None
    depth_matching: Depth | None = None
    depth_masks: Literal["own", "published"] = "own"
    head_dropout: float = 0.1
    aggregation: Aggregation = "MrSw"
    clamp: Clamp = "batch"
    measure: Literal["dot", "cosine", "order"] = "dot"
    freeze: Literal["none", "backbone", "published"] = "none"
    padded: bool = False
    clip_tags: bool = False
    clip_captions: bool = False
    clip: dict[str, int] | None = field(default_factory=dict)
    detection: Literal["fast", "det", "det_padded", "det+fast", "det+fast_labels"] = "fast"

    @staticmethod
    def of(values: Mapping[str, Any]) -> AladinConfig:
        """From a configuration of ours or the backbone's published one; keys of other programs are ignored.

        Raises ConfigError where a value is of the wrong type or unknown, the sizes do not go together, or a key is
        nearly one that is not given.
        """
        config = typed(AladinConfig, values)
        check_transformer(config.hidden_size, config.num_attention_heads, config.hidden_act)
        if config.hidden_size % HEADS:
            raise ConfigError(
                f"hidden_size {config.hidden_size} is not a multiple of {HEADS}, the attention heads of ALADIN's own "
                "layers; change it"
            )
        if config.layer_norm_eps != LAYER_NORM_EPS:
            raise ConfigError(
                f"layer_norm_eps is {config.layer_norm_eps}, the backbone is built with {LAYER_NORM_EPS}; leave it out"
            )
        for key in (config.clip or {}).keys() - set(CLIP_SIZES):
            raise ConfigError(f"clip.{key} is no size of CLIP's text tower; {nearest(key, CLIP_SIZES)}")
        return replace(config, img_feature_dim=DETIC_WIDTH) if config.detection == "det" else config

    @property
    def detic(self) -> bool:
        """Whether regions of Detic may stand among others, padded to their width."""
        return self.detection in ("det_padded", "det+fast") and self.img_feature_dim != DETIC_WIDTH

    @property
    def mixed_masks(self) -> bool:
        """Whether gated aggregation sees the padding masks of other items."""
        return self.depth_masks == "published" and "gated" in (self.depth_alignment, self.depth_matching)

    @property
    def encodes_padding(self) -> bool:
        return self.padded or self.mixed_masks

    def clip_width(self, what: Literal["embed_dim", "width"]) -> int:
        return (self.clip or {}).get(what, 512)


_MODEL = {
    "tern-layers": "matching_layers",
    "teran-layers": "alignment_layers",
    "shared-transformer": "shared_layers",
    "post-layers": "post_layers",
    "dropout": "head_dropout",
}
_TRAINING = {"alignment-mode": "aggregation", "measure": "measure"}
_VERSION_2 = {
    "detection_type": "detection",
    "enable_clip_labels": "clip_tags",
    "enable_clip_captions": "clip_captions",
}


def of_published(config: Mapping[str, Any]) -> dict[str, Any]:
    """A published ALADIN configuration (a YAML file's content, or `config` of a checkpoint) as keys of AladinConfig.

    Raises ConfigError for what the published code itself cannot run.
    """
    model, training = config.get("model") or {}, config.get("training") or {}
    out = dict(config.get("backbone") or {})  # written by `crossmodal export`; published files lack the sizes
    for source, names in ((model, _MODEL), (training, _TRAINING), (config, _VERSION_2)):
        out |= {ours: source[theirs] for theirs, ours in names.items() if source.get(theirs) is not None}
    matching = model.get("depth-aggregation-matching", model.get("depth-aggregation"))  # the second in old files
    for name, kind in (("depth_alignment", model.get("depth-aggregation-alignment")), ("depth_matching", matching)):
        if kind == "transformer":
            raise ConfigError(
                "model.depth-aggregation is 'transformer', which never worked in the published code; "
                "use mean, gated or False"
            )
        out[name] = kind or None
    if model.get("exclude-stopwords"):
        raise ConfigError("model.exclude-stopwords is set, which never ran in the published code; set it to False")
    if model.get("freeze-teran") is not None:
        out["freeze"] = "backbone" if model["freeze-teran"] else "none"
    return out


def to_published(config: AladinConfig) -> dict[str, Any]:
    """The `config` of a published checkpoint, and under `backbone` the sizes that published ones lack."""

    def named(names: Mapping[str, str]) -> dict[str, Any]:
        return {theirs: getattr(config, ours) for theirs, ours in names.items()}

    return {
        "model": {
            "name": "teran",
            "embed-size": config.hidden_size,
            "text-aggregation": "first",
            "image-aggregation": "first",
            "exclude-stopwords": False,
            "freeze-teran": config.freeze != "none",
            "depth-aggregation-alignment": config.depth_alignment or False,
            "depth-aggregation-matching": config.depth_matching or False,
            **named(_MODEL),
        },
        "training": named(_TRAINING),
        **named(_VERSION_2),
        "backbone": {**{f.name: getattr(config, f.name) for f in fields(VinvlSizes)}, "clip": config.clip},
    }
