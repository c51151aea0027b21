"""How all pairs are cut into tiles."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from crossmodal.retrieve.tiles import cut, plan_tiles

lengths = st.lists(st.integers(0, 30), max_size=20)


@given(lengths, lengths, st.integers(1, 300))
def test_every_pair_is_in_one_tile_within_the_budget(a: list[int], b: list[int], tokens: int) -> None:
    plan = plan_tiles(torch.tensor(a, dtype=torch.int64), torch.tensor(b, dtype=torch.int64), tokens)
    times = torch.zeros(len(a), len(b), dtype=torch.int64)
    for number in range(len(plan)):
        rows, columns = plan.tile(number)
        left, right = plan.rows[rows], plan.columns[columns]
        times[left[:, None], right] += 1
        pairs = [max(1, a[i] + b[j]) for i in left.tolist() for j in right.tolist()]
        # Items without length are counted by the column, so a tile may cost less than its pairs one by one.
        assert int(plan.costs[number]) <= sum(pairs)
        assert int(plan.pairs()[number]) == len(pairs)
        assert int(plan.costs[number]) <= tokens or len(right) == 1
    assert times.eq(1).all()


@given(lengths, lengths, st.integers(1, 300))
def test_shorter_items_come_first(a: list[int], b: list[int], tokens: int) -> None:
    plan = plan_tiles(torch.tensor(a, dtype=torch.int64), torch.tensor(b, dtype=torch.int64), tokens)
    assert [a[i] for i in plan.rows.tolist()] == sorted(a)
    assert [b[i] for i in plan.columns.tolist()] == sorted(b)
    tops = plan.bounds[:, 0].tolist()
    assert tops == sorted(tops)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 100))
def test_runs_are_as_long_as_the_budget_allows(costs: list[int], budget: int) -> None:
    runs = cut(torch.tensor(costs, dtype=torch.int64), budget)
    assert [i for start, stop in runs for i in range(start, stop)] == list(range(len(costs)))
    for start, stop in runs:
        assert sum(costs[start:stop]) <= budget or stop == start + 1
        assert stop == len(costs) or sum(costs[start : stop + 1]) > budget
