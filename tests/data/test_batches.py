from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.data.batches import Batch, Pixels, Regions, Texts, Vectors, length_mask


def texts(lengths: list[int], types: bool = False) -> Texts:
    real = length_mask(torch.tensor(lengths), max(lengths))
    ids = torch.arange(1, 1 + real.numel()).view(real.shape) * real
    return Texts(ids, torch.tensor(lengths), torch.ones_like(ids) if types else None)


def regions(lengths: list[int], tags: Texts | Vectors | None = None) -> Regions:
    real = length_mask(torch.tensor(lengths), max(lengths))
    number = torch.arange(1.0, 1 + real.numel()).view(real.shape) * real
    features, boxes = (number[..., None].repeat(1, 1, width) for width in (3, 7))
    return Regions(features, boxes, torch.tensor(lengths), tags, real)


def a_batch() -> Batch:
    """Two pools of three pairs; the second caption and the last image stand in both."""
    return Batch(
        roles={"text": ("text", texts([3, 5])), "image": ("image", regions([4, 2, 6, 1]))},
        pairs=torch.tensor([[0, 0], [0, 1], [0, 3], [1, 2], [1, 3], [1, 0]]),
        group=3,
        ids={"text": ["a", "b"], "image": ["p", "q", "r", "s"]},
        extras={"matched": torch.tensor([[1, 0, 0], [1, 0, 0]])},
    )


def test_a_mask_is_true_on_the_real_positions() -> None:
    assert length_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]


def test_moving_a_batch_moves_its_items_and_extras_and_leaves_what_shapes_the_computation_on_the_host() -> None:
    tagged = regions([4, 2], tags=texts([2, 3], types=True))
    vectors = Vectors(torch.zeros(2, 3, 4), torch.tensor([3, 1]))
    batch = Batch(
        roles={
            "text": ("text", texts([3, 5])),
            "image": ("image", tagged),
            "picture": ("image", Pixels(torch.zeros(2, 3, 4, 4))),
            "vector": ("image", vectors),
        },
        pairs=torch.tensor([[0, 0], [1, 1]]),
        extras={"matched": torch.ones(2, 1)},
    )
    moved = batch.to("meta")
    on_device, on_host = torch.device("meta"), torch.device("cpu")
    assert moved.device == on_device and batch.device == on_host
    assert moved.extras["matched"].device == on_device
    assert moved.pairs is batch.pairs
    for role, fields in {
        "text": ("input_ids",),
        "image": ("features", "boxes", "masked"),
        "picture": ("values",),
        "vector": ("values",),
    }.items():
        side, items = moved.roles[role]
        assert side == batch.roles[role][0]
        assert {getattr(items, name).device for name in fields} == {on_device}
        lengths = getattr(items, "lengths", None)
        assert lengths is None or lengths.device == on_host
    tags = moved.roles["image"][1].tags  # type: ignore[union-attr]
    assert isinstance(tags, Texts) and tags.type_ids is not None
    assert tags.input_ids.device == tags.type_ids.device == on_device
    assert tags.lengths.device == on_host


def test_pinning_reaches_what_is_copied_to_the_device_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    # Memory can be pinned only beside an accelerator, so what would be pinned is written down instead.
    pinned: list[Tensor] = []

    def pin(self: Tensor) -> Tensor:
        pinned.append(self)
        return self

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = a_batch()
    assert batch.pin_memory() == batch
    text, image = batch.roles["text"][1], batch.roles["image"][1]
    assert isinstance(text, Texts) and isinstance(image, Regions)
    expected = [text.input_ids, image.features, image.boxes, image.masked, batch.extras["matched"]]
    assert sorted(map(id, pinned)) == sorted(map(id, expected))


def test_selecting_items_cuts_the_padding_that_none_of_them_needs() -> None:
    chosen = texts([3, 5, 2], types=True).select(torch.tensor([2, 0]))
    assert chosen.input_ids.tolist() == [[11, 12, 0], [1, 2, 3]]
    assert chosen.lengths.tolist() == [2, 3]
    assert chosen.type_ids is not None and chosen.type_ids.shape == (2, 3)
    kept = texts([3, 5, 2]).select(torch.tensor([2, 0]), trim=False)
    assert kept.input_ids.tolist() == [[11, 12, 0, 0, 0], [1, 2, 3, 0, 0]]


def test_selecting_regions_takes_their_tags_and_masks_along() -> None:
    chosen = regions([4, 2, 6], tags=texts([1, 2, 3])).select(torch.tensor([1]))
    assert chosen.features.shape == (1, 2, 3) and chosen.boxes.shape == (1, 2, 7)
    assert chosen.masked is not None and chosen.masked.tolist() == [[True, True]]
    assert isinstance(chosen.tags, Texts)
    assert chosen.tags.input_ids.tolist() == [[4, 5]] and chosen.tags.lengths.tolist() == [2]
    vectors = Vectors(torch.arange(6).view(3, 2)).select(torch.tensor([2, 2]))
    assert vectors.values.tolist() == [[4, 5], [4, 5]]


def test_a_batch_counts_groups_and_knows_the_lengths_of_its_pairs() -> None:
    batch = a_batch()
    assert batch.groups == 2
    text, image = batch.pair_lengths()
    assert text.tolist() == [3, 3, 3, 5, 5, 5] and image.tolist() == [4, 2, 1, 6, 1, 4]
    unpaired = Batch({"text": ("text", texts([1, 2, 3]))})
    assert unpaired.groups == 3


def test_keeping_pairs_renumbers_them_and_drops_items_in_none() -> None:
    kept = a_batch().keep(torch.tensor([[0, 2], [3, 4]]))
    assert kept.group == 2 and kept.groups == 2
    assert kept.ids == {"text": ["a", "b"], "image": ["p", "r", "s"]}
    assert kept.pairs is not None and kept.pairs.tolist() == [[0, 0], [0, 2], [1, 1], [1, 2]]
    assert kept.extras["matched"].tolist() == [[1, 0], [1, 0]]
    first = a_batch().keep(torch.tensor([[0, 1]]))
    text, image = first.roles["text"][1], first.roles["image"][1]
    assert isinstance(text, Texts) and isinstance(image, Regions)
    assert text.input_ids.shape == (1, 3) and image.features.shape == (2, 4, 3)
    assert first.ids == {"text": ["a"], "image": ["p", "q"]}


def test_an_explicit_index_is_kept_with_its_rows_and_keeps_the_padding_it_counts() -> None:
    batch = a_batch()
    index = torch.arange(6)[:, None].repeat(1, 11)
    batch = Batch(batch.roles, batch.pairs, batch.group, batch.ids, {"joint_index": index})
    kept = batch.keep(torch.tensor([[0, 2]]))
    assert kept.extras["joint_index"][:, 0].tolist() == [0, 2]
    text, image = kept.roles["text"][1], kept.roles["image"][1]
    assert isinstance(text, Texts) and isinstance(image, Regions)
    assert text.input_ids.shape == (1, 5) and image.features.shape == (2, 6, 3)


@st.composite
def batches_with_rows(draw: Callable[..., Any]) -> tuple[Batch, Tensor]:
    lengths = st.lists(st.integers(1, 6), min_size=1, max_size=5)
    a, b = draw(lengths), draw(lengths)
    group = draw(st.integers(1, 4))
    pair = st.tuples(st.integers(0, len(a) - 1), st.integers(0, len(b) - 1))
    pairs = draw(st.lists(st.lists(pair, min_size=group, max_size=group), min_size=1, max_size=3))
    flat = [p for g in pairs for p in g]
    keep = draw(st.integers(1, group))
    rows = [[i * group + j for j in draw(st.permutations(range(group)))[:keep]] for i in range(len(pairs))]
    batch = Batch(
        {"text": ("text", texts(a)), "image": ("image", regions(b))},
        torch.tensor(flat),
        group,
        {"text": [f"t{i}" for i in range(len(a))], "image": [f"v{i}" for i in range(len(b))]},
    )
    return batch, torch.tensor(rows)


def pair_contents(batch: Batch) -> list[tuple[str, str, list[int], list[list[float]]]]:
    """What each pair holds, its items cut to their lengths."""
    text, image = batch.roles["text"][1], batch.roles["image"][1]
    assert isinstance(text, Texts) and isinstance(image, Regions) and batch.pairs is not None
    return [
        (
            batch.ids["text"][i],
            batch.ids["image"][j],
            text.input_ids[i, : text.lengths[i]].tolist(),
            image.features[j, : image.lengths[j]].tolist(),
        )
        for i, j in batch.pairs.tolist()
    ]


@settings(deadline=None)
@given(batches_with_rows())
def test_kept_pairs_hold_what_they_held(case: tuple[Batch, Tensor]) -> None:
    batch, rows = case
    kept = batch.keep(rows)
    before = pair_contents(batch)
    assert pair_contents(kept) == [before[i] for i in rows.flatten().tolist()]
    text, image = kept.roles["text"][1], kept.roles["image"][1]
    assert isinstance(text, Texts) and isinstance(image, Regions) and kept.pairs is not None
    assert text.input_ids.shape[1] == text.lengths.max() and image.features.shape[1] == image.lengths.max()
    for column, count in enumerate((len(text), len(image))):
        assert kept.pairs[:, column].unique().tolist() == list(range(count))


def test_items_of_several_sentences() -> None:
    texts = Texts(torch.tensor([[1, 2, 3], [4, 0, 0], [5, 6, 0], [7, 8, 0]]), torch.tensor([3, 1, 2, 2]),
                  counts=torch.tensor([2, 0, 2]))  # fmt: skip
    assert len(texts) == 3
    chosen = texts.select(torch.tensor([2, 1]))
    assert chosen.counts is not None and chosen.counts.tolist() == [2, 0]
    assert chosen.input_ids.tolist() == [[5, 6], [7, 8]] and chosen.lengths.tolist() == [2, 2]
