"""CLIP's configuration: what follows from what, and the words of OpenCLIP and Hugging Face."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from crossmodal.errors import ConfigError
from crossmodal.model.clip_config import ClipConfig

B_32 = {"embed_dim": 512, "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}}  # fmt: skip


def test_defaults_are_vit_b_32_of_openai() -> None:
    config = ClipConfig.of({})
    assert (config.heads, config.vision_heads, config.mlp_width, config.vision_mlp_width) == (8, 12, 2048, 3072)
    assert config == ClipConfig.of({**B_32, "quick_gelu": True})


def test_heads_and_inner_widths_follow_the_width() -> None:
    config = ClipConfig.of({"width": 1280, "vision_width": 1664, "patch_size": 14, "vision_mlp_width": 8192})
    assert (config.heads, config.vision_heads) == (20, 16)  # bigG's images have heads of 104
    assert (config.mlp_width, config.vision_mlp_width) == (5120, 8192)
    assert ClipConfig.of({"width": 32, "vision_width": 48}).vision_heads == 1


def test_plain_data_builds_it_again() -> None:
    config = ClipConfig.of({"image_size": [32, 64], "vision_heads": 6, "text_unlocked": 0})
    assert ClipConfig.of(json.loads(json.dumps(asdict(config)))) == config


def test_open_clips_words() -> None:
    given: dict[str, Any] = {
        "embed_dim": 20, "init_logit_bias": -10,
        "vision_cfg": {"image_size": [16, 32], "layers": 2, "width": 48, "patch_size": 8, "head_width": 16,
                       "mlp_ratio": 4.9231, "ls_init_value": 0.1, "global_average_pool": True, "patch_dropout": 0.25},
        "text_cfg": {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 4, "layers": 3,
                     "ls_init_value": 0.2},
    }  # fmt: skip
    expected = ClipConfig.of({
        "embed_dim": 20, "quick_gelu": False, "logit_bias": -10.0, "image_size": (16, 32), "vision_layers": 2,
        "vision_width": 48, "patch_size": 8, "vision_heads": 3, "vision_mlp_width": 236, "vision_layer_scale": 0.1,
        "global_pool": True, "patch_dropout": 0.25, "context": 12, "vocab_size": 99, "width": 32, "heads": 4,
        "layers": 3, "layer_scale": 0.2,
    })  # fmt: skip
    assert ClipConfig.of(given) == ClipConfig.of({"model_cfg": given}) == expected


def test_hugging_faces_words() -> None:
    given = {
        "projection_dim": 24, "transformers_version": "5.0",
        "text_config": {"hidden_size": 32, "num_attention_heads": 4, "hidden_act": "gelu", "vocab_size": 99},
        "vision_config": {"image_size": 32, "patch_size": 8, "intermediate_size": 50, "hidden_act": "gelu"},
    }  # fmt: skip
    expected = ClipConfig.of({
        "embed_dim": 24, "width": 32, "heads": 4, "vocab_size": 99, "image_size": 32, "patch_size": 8,
        "vision_mlp_width": 50, "quick_gelu": False,
    })  # fmt: skip
    assert ClipConfig.of(given) == expected


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"width": 20, "heads": 3}, "width 20 is not a multiple of heads 3"),
        ({"vision_width": 20, "vision_heads": 3}, "vision_width 20 is not a multiple of vision_heads 3"),
        ({"image_size": 100}, "image_size 100 x 100 is no multiple of patch_size 32"),
        ({"image_size": [64, 0]}, "image_size 64 x 0 is no multiple"),
        ({"patch_dropout": 1.0}, "patch_dropout is 1.0; it must be at least 0 and below 1"),
        ({"layers": 0}, "layers is 0; it must be at least 1"),
        ({"image_unlocked": 15}, "image_unlocked is 15; the tower has 14 groups of layers"),
        ({"quick_gelu": "perhaps"}, "quick_gelu is 'perhaps'"),
        ({"quick_gellu": True}, "unknown key 'quick_gellu'; did you mean quick_gelu"),
        ({**B_32, "text_cfg": {"hf_model_name": "roberta"}}, "text_cfg.hf_model_name is 'roberta'"),
        ({**B_32, "vision_cfg": {"layers": [3, 4, 6, 3]}}, "a ResNet; use a ViT"),
        ({"vision_config": {}, "text_config": {"hidden_act": "relu"}}, "hidden_act is 'quick_gelu' and 'relu'"),
        ({"vision_config": {"hidden_act": "gelu"}}, "hidden_act is 'gelu' and 'quick_gelu'"),
    ],
)
def test_what_is_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        ClipConfig.of(values)
