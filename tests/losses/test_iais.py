"""The vectorised regulariser against the published loop, its edges, and that it never waits for the device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crossmodal.losses.iais import EPSILON, aligned_index, iais, iais_terms

SIDES = ("linguistic", "visual", "both")
ALIGNMENTS = ("singular", "distributed")
Blocks = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def blocks(sizes: list[tuple[int, int]], seed: int = 0, extra: int = 0) -> Blocks:
    """Random head-averaged blocks of pairs with these numbers of words and regions, padded; float64."""
    draw = torch.Generator().manual_seed(seed)
    words, regions = max(n for n, _ in sizes) + extra, max(r for _, r in sizes) + extra
    widths = {"L": words, "V": regions}
    out = []
    for rows, columns in ("LL", "VV", "LV", "VL"):
        block = torch.zeros(len(sizes), widths[rows], widths[columns], dtype=torch.float64)
        for g, (n, r) in enumerate(sizes):
            height, width = {"L": n, "V": r}[rows], {"L": n, "V": r}[columns]
            logits = torch.randn(height, width, generator=draw, dtype=torch.float64)
            block[g, :height, :width] = logits.softmax(dim=1) if width else logits
        out.append(block)
    counts = torch.tensor(sizes).T
    return (*out, counts[0], counts[1])


def skl(p: list[list[float]], q: list[list[float]], epsilon: float) -> float:
    total = 0.0
    for row_p, row_q in zip(p, q, strict=True):
        for a, b in zip(row_p, row_q, strict=True):
            total += b * (math.log(b) - math.log(a + epsilon)) + a * (math.log(a) - math.log(b + epsilon))
    return total / len(p)


def naive(own: Tensor, other: Tensor, across: Tensor, back: Tensor, alignment: str) -> float:
    """R of one side of one unpadded pair, as spec section 6.3 writes it."""
    n = len(own)
    if alignment == "distributed":
        return skl((across @ back).tolist(), own.tolist(), EPSILON)
    partner = [max(range(across.shape[1]), key=lambda k: (float(across[i, k]), -k)) for i in range(n)]
    rows = [[float(other[partner[i], partner[j]]) for j in range(n)] for i in range(n)]
    pseudo = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in rows]
    return skl(pseudo, own.tolist(), 0.0)


def loop(b: Blocks, alignment: str, side: str) -> list[float]:
    ll, vv, lv, vl, words, regions = b
    out = []
    for g, (n, r) in enumerate(zip(words.tolist(), regions.tolist(), strict=True)):
        one = ll[g, :n, :n], vv[g, :r, :r], lv[g, :n, :r], vl[g, :r, :n]
        linguistic = naive(one[0], one[1], one[2], one[3], alignment)
        visual = naive(one[1], one[0], one[3], one[2], alignment)
        out.append({"linguistic": linguistic, "visual": visual, "both": linguistic + visual}[side])
    return out


sizes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(0, 10**6), st.sampled_from(ALIGNMENTS), st.sampled_from(SIDES), st.integers(0, 2))
def test_equal_to_the_loop_whatever_the_padding(
    pairs: list[tuple[int, int]], seed: int, alignment: Any, side: Any, extra: int
) -> None:
    b = blocks(pairs, seed, extra)
    expected = torch.tensor(loop(b, alignment, side), dtype=torch.float64)
    torch.testing.assert_close(iais_terms(*b, alignment=alignment, side=side), expected, rtol=1e-9, atol=1e-12)
    assert float(iais(*b, alignment=alignment, side=side)) == pytest.approx(float(expected.mean()), abs=1e-10)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("side", SIDES)
def test_gradients(alignment: Any, side: Any) -> None:
    # Entries of padding are clamped zeros, whose numerical gradient means nothing: check a batch without any.
    b = blocks([(3, 4), (3, 4)], seed=1)
    inputs = tuple(x.requires_grad_() for x in b[:4])
    function = lambda *x: iais(*x, b[4], b[5], alignment=alignment, side=side)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)


def gradients(b: Blocks, **options: Any) -> list[Tensor]:
    """Of the sum over pairs with respect to the four blocks; 0 for a block that is not used."""
    inputs = [x.detach().requires_grad_() for x in b[:4]]
    iais_terms(*inputs, b[4], b[5], **options).sum().backward()
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]


@settings(max_examples=20, deadline=None)
@given(sizes, st.integers(0, 10**6), st.sampled_from(ALIGNMENTS), st.sampled_from(SIDES))
def test_padding_changes_no_gradient_and_has_none(
    pairs: list[tuple[int, int]], seed: int, alignment: Any, side: Any
) -> None:
    tight, wide = blocks(pairs, seed), blocks(pairs, seed, extra=2)
    for a, b in zip(
        gradients(tight, alignment=alignment, side=side), gradients(wide, alignment=alignment, side=side), strict=True
    ):
        torch.testing.assert_close(b[:, : a.shape[1], : a.shape[2]], a)
        assert a.isfinite().all()
    words = torch.arange(wide[0].shape[1]) >= wide[4][:, None]
    regions = torch.arange(wide[1].shape[1]) >= wide[5][:, None]
    outside = {"L": words, "V": regions}
    for name, gradient in zip(("LL", "VV"), gradients(wide, alignment=alignment, side=side)[:2], strict=True):
        assert not gradient[outside[name[0]]].any() and not gradient.transpose(1, 2)[outside[name[1]]].any()


@pytest.mark.parametrize("side", SIDES)
def test_only_the_blocks_of_the_side_are_used(side: str) -> None:
    used = [bool(g.any()) for g in gradients(blocks([(3, 4)]), alignment="singular", side=side)]
    assert used == [True, True, False, False]  # the argmax passes no gradient to the cross-attention
    used = [bool(g.any()) for g in gradients(blocks([(3, 4)]), alignment="distributed", side=side)]
    assert used == [side != "visual", side != "linguistic", True, True]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_zeros_give_finite_values_and_gradients(alignment: Any, dtype: torch.dtype) -> None:
    b = blocks([(3, 3), (2, 3)], seed=2)
    for block in b[:4]:
        block[0, :3, :3] = torch.eye(3)
    single = (*(x.to(dtype) for x in b[:4]), *b[4:])
    assert iais(*single, alignment=alignment).isfinite()
    assert all(g.isfinite().all() for g in gradients(single, alignment=alignment))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("empty", [(0, 3), (3, 0), (0, 0)])
def test_a_pair_without_words_or_regions_counts_as_zero(alignment: Any, empty: tuple[int, int]) -> None:
    both = blocks([empty, (2, 3)], seed=3)
    terms = iais_terms(*both, alignment=alignment, side="both")
    assert float(terms[0]) == 0 and float(terms[1]) > 0
    assert float(iais(*both, alignment=alignment)) == pytest.approx(float(terms[1]) / 2)
    assert all(g.isfinite().all() and not g[0].any() for g in gradients(both, alignment=alignment))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_no_pairs_give_zero(alignment: Any) -> None:
    b = tuple(x[:0] for x in blocks([(2, 3)]))
    first = b[0].requires_grad_()
    loss = iais(*b, alignment=alignment)
    loss.backward()
    assert loss.item() == 0 and first.grad is not None


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1)])
def test_one_word_or_one_region_agree(size: tuple[int, int]) -> None:
    b = blocks([size], seed=7)
    alone: Any = "linguistic" if size[0] == 1 else "visual"
    assert float(iais(*b, alignment="singular", side=alone)) == 0
    # what the epsilon leaves
    assert float(iais(*b, alignment="distributed", side=alone)) == pytest.approx(-2e-6, abs=1e-8)
    assert all(g.isfinite().all() for g in gradients(b, alignment="singular"))


def test_ties_take_the_first_region() -> None:
    b = blocks([(2, 3)], seed=4)
    b[2][:] = 1 / 3
    first = [0, 0]
    picked = b[1][0][first][:, first]
    own = b[0][0].tolist()
    assert float(iais(*b, side="linguistic")) == pytest.approx(skl(picked.softmax(1).tolist(), own, 0.0))
    assert aligned_index(torch.tensor([[0.2, 0.4, 0.4], [0.0, 0.0, 0.0]])).tolist() == [1, 0]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_blocks_are_compared_in_float32(dtype: torch.dtype, alignment: Any) -> None:
    b = blocks([(4, 5), (2, 3)], seed=5)
    half = (*(x.to(dtype) for x in b[:4]), *b[4:])
    value = iais(*half, alignment=alignment)
    assert value.dtype == torch.float32 and value.isfinite()
    single = (*(x.float() for x in half[:4]), *b[4:])
    torch.testing.assert_close(value, iais(*single, alignment=alignment))
    assert all(g.isfinite().all() for g in gradients(half, alignment=alignment))


class NoWaiting(TorchDispatchMode):
    """Fails on any operation that makes the host wait for a value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_the_host_never_waits(alignment: Any, device: str) -> None:
    b = tuple(x.to(device) for x in blocks([(4, 5), (2, 3)], seed=6))
    b[0].requires_grad_()
    with NoWaiting():
        iais(*b, alignment=alignment).backward()  # on the meta device there is nothing that could be read
    assert b[0].grad is not None
