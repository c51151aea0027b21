from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.model import max_sum as module
from crossmodal.model.max_sum import max_sum

counts = st.lists(st.integers(1, 5), min_size=1, max_size=4)
Given = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def sets(queries: list[int], candidates: list[int], seed: int = 0) -> Given:
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(sum(n), 3, generator=draw, dtype=torch.float64) for n in (queries, candidates))
    clamped = torch.rand(len(candidates), generator=draw) < 0.5
    return x, torch.tensor(queries), y, torch.tensor(candidates), clamped


def naive(x: Tensor, query_counts: Tensor, y: Tensor, counts: Tensor, clamped: Tensor) -> Tensor:
    """By plain autograd, a pair at a time."""
    rows = []
    for query in x.split(query_counts.tolist()):
        best = [(query @ candidate.T).max(dim=1).values for candidate in y.split(counts.tolist())]
        rows.append(torch.stack([b.clamp(min=0).sum() if c else b.sum() for b, c in zip(best, clamped, strict=True)]))
    return torch.stack(rows)


@settings(max_examples=30, deadline=None)
@given(counts, counts, st.integers(0, 10**6), st.sampled_from([(1, 1), (3, 12), (2048, 1 << 19)]))
def test_values_and_gradients_equal_the_loop(
    queries: list[int], candidates: list[int], seed: int, blocks: tuple[int, int]
) -> None:
    s = sets(queries, candidates, seed)
    leaves = s[0].requires_grad_(), s[2].requires_grad_()
    weights = torch.randn(len(queries), len(candidates), dtype=torch.float64).round()  # some are 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", blocks[0])
        patch.setattr(module, "ENTRIES", blocks[1])
        ours = max_sum(*s)
        torch.testing.assert_close(max_sum(s[0].detach(), s[1], s[2].detach(), *s[3:]), ours.detach())
    expected = naive(*s)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), leaves), torch.autograd.grad((expected * weights).sum(), leaves)
    )


def test_one_side_alone_may_need_a_gradient() -> None:
    s = sets([2, 3], [1, 4])
    for place in (0, 2):
        given = [x.clone() if i != place else x.clone().requires_grad_() for i, x in enumerate(s)]
        max_sum(*given).sum().backward()
        assert given[place].grad is not None


def test_no_items() -> None:
    x, counts, *others = sets([2], [3])
    none = torch.zeros(0, dtype=torch.int64)
    assert max_sum(x[:0], none, *others).shape == (0, 1)
    assert max_sum(x, counts, others[0][:0], none, others[2][:0]).shape == (1, 0)
