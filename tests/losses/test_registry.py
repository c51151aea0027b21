from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

from crossmodal import losses
from crossmodal.losses import registry
from crossmodal.losses.registry import Groups, Items, Scalar, Scores


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))


class Scaled(nn.Module):
    def __init__(self, *, start: float = 2.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))

    def forward(self, rank_scores: Groups, logit_scale: Scalar) -> Tensor:
        return self.scale * logit_scale * rank_scores.mean()


def test_registering_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="loss 'iais' is registered twice"):
        losses.register("iais")(lambda x: x)
    assert losses.get("iais") is losses.iais.iais


def test_registering_gives_the_loss_back() -> None:
    assert losses.register("scaled")(Scaled) is Scaled
    assert "scaled" in losses.names() and losses.names() == sorted(losses.names())


def test_a_failed_lookup_names_the_near_ones() -> None:
    with pytest.raises(KeyError, match="'margin_rankin'; near or known names: margin_ranking"):
        losses.get("margin_rankin")
    with pytest.raises(KeyError) as error:
        losses.get("xyz")
    assert all(name in str(error.value) for name in losses.names())


def test_the_signature_is_the_contract() -> None:
    signature = losses.signature("iais")
    assert set(signature.fields.values()) == {"groups"} and len(signature.fields) == 6
    assert list(signature.fields)[:2] == ["text_attention", "image_attention"]
    assert signature.options == {"alignment": "singular", "side": "both"}
    assert losses.signature("itm").options == {}


def test_every_kind_of_field_and_options_without_default() -> None:
    @losses.register("mixed")
    def mixed(image_embeds: Items, alignment_scores: Scores, logit_scale: Scalar, *, tau: float, k: int = 3) -> Tensor:
        return image_embeds

    signature = losses.signature("mixed")
    assert signature.fields == {"image_embeds": "items", "alignment_scores": "scores", "logit_scale": "scalar"}
    assert signature.options == {"tau": inspect.Parameter.empty, "k": 3}


def test_a_field_without_a_kind_is_named() -> None:
    losses.register("bare")(lambda rank_scores: rank_scores)
    with pytest.raises(TypeError, match="the field 'rank_scores' of loss 'bare' must be annotated"):
        losses.signature("bare")


def test_a_loss_with_state_is_a_module() -> None:
    losses.register("scaled")(Scaled)
    signature = losses.signature("scaled")
    assert signature.fields == {"rank_scores": "groups", "logit_scale": "scalar"}
    assert signature.options == {"start": 2.0}
    built = losses.build("scaled", start=3.0)
    assert isinstance(built, nn.Module) and len(list(built.parameters())) == 1
    assert built(torch.ones(2, 2), torch.tensor(1.0)).item() == 3.0


def test_building_binds_the_options() -> None:
    scores = torch.zeros(1, 2)
    assert losses.build("margin_ranking")(scores).item() == pytest.approx(0.2)
    assert losses.build("margin_ranking", margin=0.5)(scores).item() == 0.5


@pytest.mark.parametrize("name", losses.names())
def test_every_loss_has_typed_fields_options_and_a_docstring(name: str) -> None:
    signature = losses.signature(name)
    assert signature.fields and set(signature.fields.values()) <= {"items", "scores", "groups", "scalar"}
    assert inspect.Parameter.empty not in signature.options.values()  # the paper's values are the defaults
    assert len(inspect.getdoc(losses.get(name)) or "") > 40
