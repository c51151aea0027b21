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

from crossmodal.losses.iais import EPSILON, iais, iais_terms

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
    return (*out, counts[0], counts[1])  # type: ignore[return-value]


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
    b = blocks([(3, 4)], seed=1)
    inputs = tuple(x.requires_grad_() for x in b[:4])
    function = lambda *x: iais(*x, b[4], b[5], alignment=alignment, side=side)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_exact_zeros_give_finite_values_and_gradients(alignment: Any) -> None:
    b = blocks([(3, 3)], seed=2)
    for block in b[:4]:
        block[0, 1] = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        block.requires_grad_()
    loss = iais(*b, alignment=alignment)
    loss.backward()
    assert loss.isfinite() and all(block.grad is None or block.grad.isfinite().all() for block in b[:4])


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_pair_without_words_counts_as_zero(alignment: Any) -> None:
    both = blocks([(0, 3), (2, 3)], seed=3)
    terms = iais_terms(*both, alignment=alignment, side="both")
    assert float(terms[0]) == 0 and float(terms[1]) > 0


def test_one_word_and_one_region_agree() -> None:
    b = blocks([(1, 1)])
    assert float(iais(*b, alignment="singular")) == 0
    assert float(iais(*b, alignment="distributed")) == pytest.approx(-4e-6, abs=1e-7)  # what the epsilon leaves


def test_ties_take_the_first_region() -> None:
    b = blocks([(2, 3)], seed=4)
    b[2][:] = 1 / 3
    first = [0, 0]
    picked = b[1][0][first][:, first]
    own = b[0][0].tolist()
    assert float(iais(*b, side="linguistic")) == pytest.approx(skl(picked.softmax(1).tolist(), own, 0.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_blocks_are_compared_in_float32(dtype: torch.dtype) -> None:
    b = blocks([(4, 5), (2, 3)], seed=5)
    half = tuple(x.to(dtype) for x in b[:4])
    value = iais(*half, b[4], b[5])
    assert value.dtype == torch.float32 and value.isfinite()
    torch.testing.assert_close(value, iais(*(x.float() for x in half), b[4], b[5]))


class NoWaiting(TorchDispatchMode):
    """Fails on any read of a tensor's value by the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_the_host_never_waits(alignment: Any) -> None:
    b = blocks([(4, 5), (2, 3)], seed=6)
    with NoWaiting():
        iais(*b, alignment=alignment)
