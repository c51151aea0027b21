"""The product of two sets of vectors, block by block."""

from __future__ import annotations

import pytest
import torch

from crossmodal.evaluate.ranks import ranks
from crossmodal.retrieve.product import Product


def vectors(count: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, 48, generator=torch.Generator().manual_seed(count)).to(kind)


@pytest.mark.parametrize("block", [1, 130, 1000, 1 << 20])
def test_every_reading_gives_the_same_bits(block: int) -> None:
    product = Product(vectors(203), vectors(41), block)
    first, second = list(product), list(product)
    assert [len(b) for b in first[:-1]] == [max(1, block // 41)] * (len(first) - 1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(torch.cat(first), vectors(203) @ vectors(41).T)


@pytest.mark.parametrize("block", [130, 1 << 20])
def test_ranks_are_those_of_the_product_held_whole(block: int) -> None:
    product = Product(vectors(205), vectors(41), block)
    image_of = torch.arange(205) // 5
    found, expected = ranks(product, image_of), ranks(torch.cat(list(product)), image_of)
    for name in ("image", "text", "image_ties", "text_ties"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_are_float32_at_least(kind: torch.dtype) -> None:
    (scores,) = Product(vectors(7, kind), vectors(5, kind))
    assert scores.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    torch.testing.assert_close(
        scores.double(), vectors(7, kind).double() @ vectors(5, kind).double().T, atol=1e-4, rtol=0
    )


def test_no_gradients_are_kept() -> None:
    assert not any(block.requires_grad for block in Product(vectors(7).requires_grad_(), vectors(5).requires_grad_()))
