from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crossmodal.model import base
from crossmodal.model.base import Encoded, all_pairs, inference, ragged_index


def encoded(lengths: list[int]) -> Encoded:
    """Rows (owner, number), and a vector that is the item's number."""
    n = sum(lengths)
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    rows = torch.stack([owner, torch.arange(n)], dim=1).float()
    vectors = torch.arange(len(lengths)).float()[:, None]
    return Encoded(torch.tensor(lengths, dtype=torch.int64), {"tokens": rows}, {"vector": vectors})


def check(taken: Encoded, lengths: list[int], index: list[int]) -> None:
    """`taken` holds these items of encoded(lengths), in this order, with all their rows."""
    whole = [[i, sum(lengths[:i]) + k] for i in index for k in range(lengths[i])]
    assert len(taken) == len(index) and taken.lengths.tolist() == [lengths[i] for i in index]
    assert taken.rows["tokens"].tolist() == whole
    assert taken.vectors["vector"][:, 0].tolist() == index


sizes = st.lists(st.integers(0, 4), min_size=1, max_size=6)
bounds = st.none() | st.integers(-7, 7)


@settings(deadline=None)
@given(sizes, st.data())
def test_selecting_items_takes_their_rows(lengths: list[int], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    check(encoded(lengths)[index], lengths, index)
    check(encoded(lengths)[torch.tensor(index, dtype=torch.int64)], lengths, index)


@settings(deadline=None)
@given(sizes, bounds, bounds, st.sampled_from([None, 1, 2, 3, -1, -2]))
def test_a_slice_is_that_of_a_list(lengths: list[int], start: int | None, stop: int | None, step: int | None) -> None:
    part = slice(start, stop, step)
    check(encoded(lengths)[part], lengths, list(range(len(lengths)))[part])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=6))
def test_a_mask_picks_items(items: list[tuple[int, bool]]) -> None:
    lengths, kept = [n for n, _ in items], torch.tensor([keep for _, keep in items])
    check(encoded(lengths)[kept], lengths, kept.nonzero()[:, 0].tolist())


def test_neighbours_are_views_and_copy_nothing() -> None:
    whole = encoded([2, 0, 3, 1])
    assert whole[1:3].rows["tokens"].data_ptr() == whole.rows["tokens"][2:].data_ptr()


@settings(deadline=None)
@given(st.lists(sizes, min_size=1, max_size=4))
def test_cat_undoes_cutting(parts: list[list[int]]) -> None:
    lengths = [n for part in parts for n in part]
    whole, cut, start = encoded(lengths), [], 0
    for part in parts:
        cut.append(whole[start : start + len(part)])
        start += len(part)
    check(Encoded.cat(iter(cut)), lengths, list(range(len(lengths))))


def test_cat_of_nothing_is_no_items() -> None:
    assert len(Encoded.cat([])) == 0


def test_moving_leaves_the_lengths_on_the_host() -> None:
    moved = encoded([2, 1]).to("meta")
    assert moved.rows["tokens"].is_meta and moved.vectors["vector"].is_meta
    assert moved.lengths.tolist() == [2, 1]


def test_saved_and_opened_memory_mapped(tmp_path: Path) -> None:
    lengths = [2, 0, 3]
    encoded(lengths).save(tmp_path / "encoded.pt")
    opened = Encoded.open(tmp_path / "encoded.pt")
    check(opened, lengths, [0, 1, 2])
    check(opened[[2, 0]], lengths, [2, 0])
    check(opened[1:], lengths, [1, 2])
    assert Path("encoded.pt").name in {Path(line).name for line in _mapped()}


def _mapped() -> list[str]:
    """Files that this process has mapped into memory."""
    return [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]


def test_a_saved_slice_holds_its_own_rows_alone(tmp_path: Path) -> None:
    whole = Encoded(torch.full((1000,), 10), {"tokens": torch.randn(10_000, 8, requires_grad=True) * 2})
    whole[3:5].save(tmp_path / "few.pt")
    opened = Encoded.open(tmp_path / "few.pt")
    assert torch.equal(opened.rows["tokens"], whole.rows["tokens"][30:50])
    assert (tmp_path / "few.pt").stat().st_size < 10_000


def test_nothing_stands_under_a_name_that_could_not_be_written(tmp_path: Path) -> None:
    class Unsaved(torch.Tensor):
        def __reduce_ex__(self, protocol: object) -> str:
            raise RuntimeError("the disk is full")

    broken = Encoded(torch.tensor([1]), {"tokens": torch.ones(1, 1).as_subclass(Unsaved)})
    with pytest.raises(RuntimeError, match="the disk is full"):
        broken.save(tmp_path / "encoded.pt")
    assert not list(tmp_path.iterdir())


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4)), max_size=6))
def test_ragged_index_counts_from_every_start(parts: list[tuple[int, int]]) -> None:
    starts, lengths = torch.tensor(parts, dtype=torch.int64).reshape(-1, 2).unbind(1)
    assert ragged_index(starts, lengths).tolist() == [s + k for s, n in parts for k in range(n)]


def test_all_pairs_runs_through_the_second_fastest() -> None:
    assert all_pairs(2, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert all_pairs(0, 3).shape == all_pairs(3, 0).shape == (0, 2)
    assert all_pairs(1, 2).tolist() == [[0, 0], [0, 1]]


def test_inference_gives_every_module_its_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    model.train()
    model[1].eval()
    before = [m.training for m in model.modules()]
    with pytest.raises(ZeroDivisionError), inference(model):
        assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
        model.train()
        raise ZeroDivisionError
    assert [m.training for m in model.modules()] == before == [True, True, False] and torch.is_grad_enabled()


def test_a_model_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_MODELS", {})

    @base.register("small")
    class Small(base.Model):
        sides: ClassVar = {}

    assert base.registered() == {"small": Small} and Small.name == "small"
    with pytest.raises(ValueError, match="model 'small' is registered twice"):
        base.register("small")(Small)
