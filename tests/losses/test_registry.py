from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from crossmodal import losses
from crossmodal.losses import registry
from crossmodal.losses.registry import Groups, Scalar


def test_registering_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("iais")(lambda x: x)


def test_a_failed_lookup_names_the_near_ones() -> None:
    with pytest.raises(KeyError, match="margin_ranking"):
        losses.get("margin_rankin")


def test_the_signature_is_the_contract() -> None:
    signature = losses.signature("iais")
    assert set(signature.fields.values()) == {"groups"} and len(signature.fields) == 6
    assert signature.options == {"alignment": "singular", "side": "both"}
    assert losses.signature("itm").options == {}


def test_a_loss_with_state_is_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))

    @registry.register("scaled")
    class Scaled(nn.Module):
        def __init__(self, *, start: float = 2.0) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(start))

        def forward(self, rank_scores: Groups, logit_scale: Scalar) -> torch.Tensor:
            return self.scale * logit_scale * rank_scores.mean()

    signature = losses.signature("scaled")
    assert signature.fields == {"rank_scores": "groups", "logit_scale": "scalar"}
    assert signature.options == {"start": 2.0}
    built = losses.build("scaled", start=3.0)
    assert isinstance(built, nn.Module) and float(built(torch.ones(2, 2), torch.tensor(1.0))) == 3.0


@pytest.mark.parametrize("name", losses.names())
def test_every_loss_has_typed_fields_options_and_a_docstring(name: str) -> None:
    assert losses.signature(name).fields
    assert len(inspect.getdoc(losses.get(name)) or "") > 40
