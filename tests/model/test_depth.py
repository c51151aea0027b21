"""Aggregation over depth against loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossmodal.model.depth import FeatureFusion, GatedDepth, MeanDepth, build_depth, published_masks
from crossmodal.model.transformer import Packing

LENGTHS = torch.tensor([3, 1, 4])
WIDTH = 8


def states(depth: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(int(LENGTHS.sum()), WIDTH, dtype=torch.float64) for _ in range(depth)]


def packings(depth: int = 3) -> list[Packing]:
    return [Packing.of(LENGTHS, WIDTH, torch.device("cpu"))] * depth


def test_the_mean_is_over_layers() -> None:
    given = states()
    torch.testing.assert_close(MeanDepth()(given, packings()), (given[0] + given[1] + given[2]) / 3)


def test_a_gate_is_of_one_position_and_sees_its_own_item_alone() -> None:
    module, given = GatedDepth(WIDTH, dropout=0.0).double(), states()
    out = module(given, packings())
    ends = LENGTHS.cumsum(0).tolist()
    for item, (first, stop) in enumerate(zip([0, *ends], ends, strict=False)):
        alone = [Packing.of(LENGTHS[item : item + 1], WIDTH, torch.device("cpu"))]
        expected = torch.zeros(stop - first, WIDTH, dtype=torch.float64)
        for layer in given:
            x = layer[first:stop]
            context = module.self_attn(x, alone[0])
            for t in range(len(x)):
                gate = 1 / (1 + torch.exp(-(module.gate_ffn.weight[0] @ context[t] + module.gate_ffn.bias[0])))
                expected[t] += gate * x[t]
        torch.testing.assert_close(out[first:stop], expected)


def test_fusion_weighs_its_inputs_apart() -> None:
    module = FeatureFusion(WIDTH, dropout=0.0).double()
    a, b, _ = states()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.get_parameter("alphas.3.bias").copy_(torch.tensor([0.0, 100.0]))
    torch.testing.assert_close(module(a, b), a / 2 + b)


@pytest.mark.parametrize(("kind", "weights"), [("mean", 0), ("gated", 6)])
def test_kinds(kind: str, weights: int) -> None:
    assert len(build_depth(kind, WIDTH, 0.1).state_dict()) == weights  # type: ignore[arg-type]


def test_published_masks_are_those_of_item_row_by_depth() -> None:
    """Three layers of two items: sequences 0, 1, 2 get the mask of item 0, and 3, 4, 5 that of item 1."""
    masks = published_masks(torch.tensor([1, 3]), torch.tensor([3, 3]), depth=3)
    short, long = [True, False, False], [True, True, True]
    assert [mask.tolist() for mask in masks] == [short + short, short + long, long + long]


def test_published_masks_of_one_item_or_of_items_of_one_length_are_their_own() -> None:
    for real in (torch.tensor([2]), torch.tensor([2, 2, 2])):
        for mask in published_masks(real, torch.full_like(real, 3), depth=4):
            assert mask.tolist() == [True, True, False] * len(real)
