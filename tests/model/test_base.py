from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crossmodal.model.base import Encoded, all_pairs, inference, ragged_index


def encoded(lengths: list[int]) -> Encoded:
    n = sum(lengths)
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    rows = torch.stack([owner, torch.arange(n)], dim=1).float()
    return Encoded(torch.tensor(lengths), {"tokens": rows}, {"vector": torch.arange(len(lengths)).float()[:, None]})


sizes = st.lists(st.integers(0, 4), min_size=1, max_size=6)


@given(sizes, st.data())
def test_selecting_items_takes_their_rows(lengths: list[int], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=6))
    taken = encoded(lengths)[index]
    assert taken.lengths.tolist() == [lengths[i] for i in index]
    assert taken.rows["tokens"][:, 0].tolist() == [i for i in index for _ in range(lengths[i])]
    assert taken.vectors["vector"][:, 0].tolist() == index


@given(sizes, st.integers(0, 6), st.integers(0, 6))
def test_a_slice_is_the_same_as_its_items(lengths: list[int], start: int, stop: int) -> None:
    whole = encoded(lengths)
    part, items = whole[start:stop], list(range(len(lengths)))[start:stop]
    assert len(part) == len(items)
    if items:
        assert torch.equal(part.rows["tokens"], whole[items].rows["tokens"])


@given(sizes, sizes)
def test_cat_puts_items_one_after_the_other(a: list[int], b: list[int]) -> None:
    both = Encoded.cat([encoded(a), encoded(b)])
    assert both.lengths.tolist() == a + b and len(both.rows["tokens"]) == sum(a) + sum(b)


def test_saved_and_opened_memory_mapped(tmp_path: Path) -> None:
    whole = encoded([2, 0, 3])
    whole.save(tmp_path / "encoded.pt")
    opened = Encoded.open(tmp_path / "encoded.pt")
    assert torch.equal(opened[[2, 0]].rows["tokens"], whole[[2, 0]].rows["tokens"])


def test_ragged_index_and_all_pairs() -> None:
    assert ragged_index(torch.tensor([5, 0]), torch.tensor([2, 3])).tolist() == [5, 6, 0, 1, 2]
    assert all_pairs(2, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_inference_gives_every_module_its_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    model.train()
    model[1].eval()
    with inference(model):
        assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
    assert [m.training for m in model.modules()] == [True, True, False] and torch.is_grad_enabled()
