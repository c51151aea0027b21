"""ALADIN's configuration: what is accepted, what is refused, and the published one in its words."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from crossmodal.errors import ConfigError
from crossmodal.model.aladin_config import AladinConfig, of_published, to_published

# What stands in the config.json of VinVL's retrieval checkpoint.
VINVL: dict[str, Any] = {
    "adjust_config": None, "architectures": None, "attention_probs_dropout_prob": 0.1, "classifier": "linear",
    "cls_hidden_scale": 3, "finetuning_task": "ir", "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "hidden_size": 768, "img_feature_dim": 2054, "img_feature_type": "frcnn", "img_layer_norm_eps": 1e-12,
    "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12, "loss_type": "sfmx",
    "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12,
    "num_labels": 2, "output_attentions": False, "output_hidden_states": False, "pruned_heads": {},
    "torchscript": False, "type_vocab_size": 2, "use_img_layernorm": 1, "vocab_size": 30522,
}  # fmt: skip
PUBLISHED: dict[str, Any] = {
    "model": {
        "name": "teran", "embed-size": 768, "text-aggregation": "first", "image-aggregation": "first",
        "freeze-teran": False, "teran-layers": 0, "tern-layers": 2, "post-layers": 0, "exclude-stopwords": False,
        "shared-transformer": True, "depth-aggregation-alignment": False, "depth-aggregation-matching": False,
        "dropout": 0.1,
    },
    "training": {"alignment-mode": "MrSw", "measure": "dot", "margin": 0.2, "loss-type": "alignment-distillation"},
}  # fmt: skip


def published(**changes: Any) -> AladinConfig:
    return AladinConfig.of(of_published({**PUBLISHED, "model": {**PUBLISHED["model"], **changes}}))


def test_the_published_backbone_and_options_are_the_defaults() -> None:
    assert AladinConfig.of(VINVL) == AladinConfig.of({}) == published() == AladinConfig()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tern-layers": 4}, {"matching_layers": 4}),
        ({"teran-layers": 2, "shared-transformer": False}, {"alignment_layers": 2, "shared_layers": False}),
        ({"post-layers": 1, "dropout": 0.2}, {"post_layers": 1, "head_dropout": 0.2}),
        ({"depth-aggregation-alignment": "gated"}, {"depth_alignment": "gated"}),
        ({"depth-aggregation-matching": "mean"}, {"depth_matching": "mean"}),
        ({"depth-aggregation-matching": False, "depth-aggregation": "gated"}, {}),
        ({"freeze-teran": True}, {"freeze": "backbone"}),
    ],
)
def test_published_options(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert published(**changes) == AladinConfig(**expected)


def test_the_old_spelling_of_depth_aggregation() -> None:
    model = {k: v for k, v in PUBLISHED["model"].items() if k != "depth-aggregation-matching"}
    model["depth-aggregation"] = "gated"
    assert AladinConfig.of(of_published({"model": model})) == AladinConfig(depth_matching="gated")


def test_the_second_version() -> None:
    values = {**PUBLISHED, "detection_type": "det", "enable_clip_labels": True, "enable_clip_captions": True}
    expected = AladinConfig(detection="det", clip_tags=True, clip_captions=True, img_feature_dim=1030)
    assert AladinConfig.of(of_published(values)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"matching_layers": 1, "alignment_layers": 2, "shared_layers": False, "post_layers": 1, "head_dropout": 0.0},
        {"depth_alignment": "gated", "depth_matching": "mean", "freeze": "backbone"},
        {"aggregation": "symm", "measure": "order", "hidden_size": 32, "num_attention_heads": 4},
        {"detection": "det+fast", "clip_tags": True, "clip": {"layers": 2}},
    ],
)
def test_what_is_written_as_published_is_read_back(changes: dict[str, Any]) -> None:
    config = AladinConfig.of(changes)
    assert AladinConfig.of(of_published(to_published(config))) == config
    assert AladinConfig.of(asdict(config)) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"maching_layers": 2}, "unknown key 'maching_layers'; did you mean matching_layers?"),
        ({"hidden_size": "wide"}, "cannot be used: hidden_size is 'wide' (input should be a valid integer"),
        ({"measure": "dotted"}, "measure is 'dotted' (input should be 'dot', 'cosine' or 'order')"),
        ({"freeze": True}, "freeze is True (input should be 'none', 'backbone' or 'published')"),
        ({"aggregation": "MrSv"}, "aggregation is 'MrSv'"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size 30 is not a multiple of num_attention_heads 4"),
        ({"hidden_size": 30, "num_attention_heads": 3}, "hidden_size 30 is not a multiple of 4"),
        ({"num_attention_heads": 0}, "is not a multiple of num_attention_heads 0"),
        ({"hidden_act": "gleu"}, "hidden_act 'gleu' is unknown"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05, the backbone is built with 1e-12"),
        ({"clip": {"wdith": 8}}, "clip.wdith is no size of CLIP's text tower; did you mean width"),
    ],
)
def test_what_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        AladinConfig.of(values)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth-aggregation-matching": "transformer"}, "'transformer', which never worked"),
        ({"exclude-stopwords": True}, "exclude-stopwords is set, which never ran"),
    ],
)
def test_published_options_that_never_ran(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        published(**changes)
