"""Matched pairs with wrong captions and hard images: what an anchor gets, and that nothing but its key decides."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossmodal.data.batches import Batch, Pixels, Texts
from crossmodal.data.corpus import Corpus, open_corpus
from crossmodal.data.datasets import DATASETS, HardImages, Matched, MatchedNegatives
from crossmodal.data.negatives.records import CeRecord, write_records
from crossmodal.data.picture_sources import PictureFolder
from crossmodal.errors import ConfigError, DataError

from .picture_files import ce_record, processor, sentence, write_ce_clip, write_coco, write_negclip, write_pictures

COUNT = 9
NAMES = [f"{n}.png" for n in range(COUNT)]
DRAWN = ["matched", "matched_negatives", "hard_images"]

checked = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
anchor_lists = st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=4, unique=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pictures(folder / "images", NAMES)
    write_ce_clip(folder / "records.jsonl", NAMES)
    write_negclip(folder / "table.tsv", NAMES)
    write_coco(folder / "captions.json", NAMES)
    return folder


def corpus(folder: Path, texts: str) -> Corpus:
    return open_corpus([str(folder / texts)], [str(folder / "images")])


@pytest.fixture(scope="module")
def records(folder: Path) -> Corpus:
    return corpus(folder, "records.jsonl")


@pytest.fixture(scope="module")
def table(folder: Path) -> Corpus:
    return corpus(folder, "table.tsv")


def sentences(batch: Batch, role: str) -> list[str]:
    """The captions of a role, read back from their ids: every word is spelled out in bytes or merges."""
    side, items = batch.roles[role]
    assert side == "text" and isinstance(items, Texts)
    return [repr(ids[:n]) for ids, n in zip(items.input_ids.tolist(), items.lengths.tolist(), strict=True)]


def as_rows(texts: list[str]) -> list[str]:
    items = processor()("text", texts)
    assert isinstance(items, Texts)
    return [repr(ids[:n]) for ids, n in zip(items.input_ids.tolist(), items.lengths.tolist(), strict=True)]


def values(batch: Batch, role: str) -> torch.Tensor:
    side, items = batch.roles[role]
    assert side == "image" and isinstance(items, Pixels)
    return items.values


@checked
@given(anchor_lists)
def test_each_type_in_its_place_and_a_mask_for_those_that_are_missing(records: Corpus, anchors: list[int]) -> None:
    batch = MatchedNegatives(records, processor()).batch(anchors, 0)
    found = [ce_record(n, "", valid=(n % 2, 0, 1, 1)) for n in anchors]
    assert sentences(batch, "negative_text") == as_rows([text for record in found for text in record.negatives])
    assert batch.extras["negative_mask"].tolist() == [list(record.valid) for record in found]
    assert sentences(batch, "text") == as_rows([sentence(n) for n in anchors])
    assert batch.ids["negative_text"] == [f"{n}#{k}" for n in anchors for k in range(4)]
    assert batch.ids["image"] == [NAMES[n] for n in anchors] and batch.groups == len(anchors)
    assert set(batch.extras) == MatchedNegatives.adds and batch.roles.keys() == MatchedNegatives.roles


@checked
@given(anchor_lists, st.integers(0, 5), st.integers(1, 4))
def test_a_count_draws_of_those_that_there_are(table: Corpus, anchors: list[int], epoch: int, count: int) -> None:
    batch = MatchedNegatives(table, processor(), count=count, seed=3).batch(anchors, epoch)
    rows = sentences(batch, "negative_text")
    for i, n in enumerate(anchors):
        there = as_rows([f"wrong {k} of {n}" for k in range(1 + n % 3)])
        drawn = rows[i * count : (i + 1) * count]
        full = min(count, len(there))
        assert batch.extras["negative_mask"][i].tolist() == [1] * full + [0] * (count - full)
        assert len(set(drawn[:full])) == full and set(drawn[:full]) <= set(there)
        assert drawn[full:] == as_rows(["###"] * (count - full)) if full < count else True


def test_all_of_a_table_are_as_many_as_its_longest_row(table: Corpus) -> None:
    batch = MatchedNegatives(table, processor()).batch([0, 1, 2], 0)
    assert batch.extras["negative_mask"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert batch.ids["negative_text"] == ["0#0", "0#-", "0#-", "1#0", "1#1", "1#-", "2#0", "2#1", "2#2"]


@checked
@given(anchor_lists, st.integers(0, 5))
def test_a_hard_image_comes_with_a_caption_and_its_wrong_ones(table: Corpus, anchors: list[int], epoch: int) -> None:
    batch = HardImages(table, processor(), augment=False).batch(anchors, epoch)
    assert batch.roles.keys() == HardImages.roles and set(batch.extras) == HardImages.adds
    hard = [int(id) for id in batch.ids["hard_text"]]
    for n, other in zip(anchors, hard, strict=True):
        assert other in ((n + 1) % COUNT, (n + 2) % COUNT)
    assert batch.ids["hard_image"] == [NAMES[n] for n in hard]
    assert sentences(batch, "hard_text") == as_rows([sentence(n) for n in hard])
    pictures = PictureFolder(table.parts[0].regions.path)
    assert values(batch, "hard_image").equal(processor()("image", [pictures[NAMES[n]] for n in hard]).values)  # type: ignore[union-attr]
    for role, numbers in (("negative_text", anchors), ("hard_negative_text", hard)):
        for row, n in zip(sentences(batch, role), numbers, strict=True):
            assert row in as_rows([f"wrong {k} of {n}" for k in range(1 + n % 3)])
    assert batch.extras["negative_mask"].tolist() == batch.extras["hard_negative_mask"].tolist() == [[1]] * len(hard)


def test_over_the_epochs_every_wrong_caption_and_every_hard_image_comes(table: Corpus) -> None:
    dataset = HardImages(table, processor())
    batches = [dataset.batch([2], epoch) for epoch in range(40)]
    assert {batch.ids["negative_text"][0] for batch in batches} == {"2#0", "2#1", "2#2"}
    assert {batch.ids["hard_image"][0] for batch in batches} == {"3.png", "4.png"}
    assert {batch.ids["hard_negative_text"][0] for batch in batches} == {"3#0", "4#0", "4#1"}


def described(batch: Batch) -> list[Any]:
    """Of each anchor all that it got."""
    count = len(batch.ids["text"])
    rows: list[list[Any]] = [[] for _ in range(count)]
    for role, (side, _) in sorted(batch.roles.items()):
        given = sentences(batch, role) if side == "text" else [v.tolist() for v in values(batch, role)]
        width = len(given) // count
        for i, row in enumerate(rows):
            row += [given[i * width : (i + 1) * width], list(batch.ids[role][i * width : (i + 1) * width])]
    for _, extra in sorted(batch.extras.items()):
        for row, value in zip(rows, extra.tolist(), strict=True):
            row.append(value)
    return rows


@checked
@given(anchor_lists, st.integers(0, 3), st.sampled_from(DRAWN), st.randoms(use_true_random=False))
def test_what_an_anchor_gets_depends_on_nothing_but_its_key(
    table: Corpus, anchors: list[int], epoch: int, draw: str, order: random.Random
) -> None:
    together = dict(
        zip(anchors, described(DATASETS[draw](table, processor(), seed=1).batch(anchors, epoch)), strict=True)
    )
    other = anchors.copy()
    order.shuffle(other)
    again = DATASETS[draw](table, processor(), seed=1)
    again.batch([0], epoch + 1)  # a history of its own
    torch.manual_seed(epoch)
    assert dict(zip(other, described(again.batch(other, epoch)), strict=True)) == together


def test_crops_differ_by_seed_stream_epoch_and_anchor_and_are_left_out_where_asked(folder: Path) -> None:
    captions = corpus(folder, "captions.json")  # two captions an image
    cropping = processor(crop_scale=(0.3, 1.0))

    def made(seed: int = 0, stream: str = "s", epoch: int = 0, anchor: int = 0, **options: Any) -> torch.Tensor:
        return values(Matched(captions, cropping, seed=seed, stream=stream, **options).batch([anchor], epoch), "image")

    first = made()
    assert made().equal(first)
    for other in (made(seed=1), made(stream="t"), made(epoch=1), made(anchor=1)):
        assert not other.equal(first)
    plain = processor()("image", [captions.parts[0].image("0.png")]).values  # type: ignore[union-attr]
    assert made(augment=False).equal(plain) and made(augment=False, anchor=1, epoch=4).equal(plain)
    teachers = {"other": processor()}
    batch = Matched(captions, processor(), teachers=teachers).batch([0, 3], 0)
    assert batch.teachers["other"]["image"][1].values.equal(values(batch, "image"))  # type: ignore[union-attr]


def test_wrong_captions_from_a_file_of_their_own(folder: Path, tmp_path: Path, caplog: Any) -> None:
    captions = corpus(folder, "captions.json")  # ids 0, 1, 10, 11, ...
    wrong = ("a", "###", "b", "c")
    made = [CeRecord(n, 10 * n, sentence(n).upper() + "!", wrong, (1, 0, 1, 1)) for n in range(COUNT)]
    file = write_records(made, tmp_path / "x.jsonl")
    with caplog.at_level(logging.WARNING):
        dataset = MatchedNegatives(captions, processor(), negatives=str(file))
    assert f"{COUNT} of {2 * COUNT} captions of" in caplog.text and "have no wrong captions" in caplog.text
    batch = dataset.batch([0, 1], 0)
    assert batch.extras["negative_mask"].tolist() == [[1, 0, 1, 1], [0, 0, 0, 0]]
    assert sentences(batch, "negative_text") == as_rows(["a", "###", "b", "c", *["###"] * 4])


def test_a_file_with_other_ids_or_of_other_captions_is_refused(folder: Path, tmp_path: Path) -> None:
    captions = corpus(folder, "captions.json")
    others = write_records([ce_record(1000, 1)], tmp_path / "others.jsonl")
    with pytest.raises(
        DataError, match=r"none of the 18 captions of .*captions\.json has its id in .*others\.jsonl \("
    ):
        MatchedNegatives(captions, processor(), negatives=str(others))
    same_ids = MatchedNegatives(captions, processor(), negatives=str(folder / "records.jsonl"))
    with pytest.raises(
        DataError, match=r"the wrong captions of caption '1' were made of 'a green thing 1', and .* holds"
    ):
        same_ids.batch([1], 0)


def test_captions_without_wrong_ones_are_refused(folder: Path) -> None:
    captions, table = corpus(folder, "captions.json"), str(folder / "table.tsv")
    with pytest.raises(ConfigError, match=r"no wrong captions stand beside the captions of .*captions\.json; make a"):
        MatchedNegatives(captions, processor())
    with pytest.raises(ConfigError, match="is a table that holds its captions itself; name it as the data's texts"):
        MatchedNegatives(captions, processor(), negatives=table)
    with pytest.raises(ConfigError, match="count is 0"):
        MatchedNegatives(captions, processor(), count=0)


def test_hard_images_need_a_table_that_names_them(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"records\.jsonl does not say which images are hard"):
        HardImages(corpus(folder, "records.jsonl"), processor())
    lines = (folder / "table.tsv").read_text().splitlines()
    path = tmp_path / "some.tsv"
    path.write_text("\n".join([*lines[:-1], lines[-1].rsplit("\t", 1)[0] + "\t[]"]) + "\n")
    with pytest.raises(DataError, match=r"1 of 9 images in .*some\.tsv have no hard image \(first: 8\.png\)"):
        HardImages(open_corpus([str(path)], [str(folder / "images")]), processor())
