"""A number in place of a scalar field, for models that do not give it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from crossmodal.errors import ConfigError
from crossmodal.losses.contrastive import clip_info_nce, sigmoid
from crossmodal.losses.registry import Items, Scalar
from crossmodal.model.clip import Clip
from crossmodal.train.objectives import Term, build_objectives
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.setup import Planned

VECTORS = Planned("test_dual", {k: v for k, v in Clip.fields_of({}).items() if v.kind == "items"}, ())


def term(**loss: Any) -> Term:
    recipe = parse_recipe({
        "steps": 1, "data": {"train": {"texts": "unused", "images": "unused"}},
        "streams": [{"data": {"use": "train", "draw": "matched"}, "losses": [loss]}],
    })  # fmt: skip
    (objective,), _ = build_objectives(recipe, VECTORS)
    return objective.terms[0]


def test_it_is_what_the_loss_gets() -> None:
    images, texts = (F.normalize(torch.randn(4, 3, dtype=torch.float64), dim=1) for _ in range(2))
    fields = {"image_embeds": images, "text_embeds": texts}
    scale, bias = Scalar(torch.tensor(7.0)), Scalar(torch.tensor(-2.0))
    found = term(use="clip_info_nce", logit_scale=7)(fields).value
    assert found.equal(clip_info_nce(Items(images), Items(texts), scale)) and found.dtype == torch.float64
    found = term(use="sigmoid", logit_scale=7.0, logit_bias=-2.0)(fields).value
    assert found.equal(sigmoid(Items(images), Items(texts), scale, bias))


def test_only_scalars_are_numbers() -> None:
    with pytest.raises(ConfigError, match="needs the field 'logit_scale', which neither test_dual"):
        term(use="clip_info_nce")
    with pytest.raises(ConfigError, match="needs the field 3, which neither test_dual"):
        term(use="clip_info_nce", logit_scale=1.0, text_embeds=3)
