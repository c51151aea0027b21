"""Detic's shelves, and their merge with Faster R-CNN's detections."""

from __future__ import annotations

import dbm
import dbm.dumb
import os
import pickle
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossmodal.data.corpus import open_corpus
from crossmodal.data.detections import Merged, MergedRegions, class_nms, detic_words, merge_all
from crossmodal.data.detic import DeticRegions, shelve_of
from crossmodal.data.regions import open_regions
from crossmodal.data.vinvl_predictions import Detections
from crossmodal.data.vinvl_regions import VinvlRegions
from crossmodal.errors import DataError
from tests.commands import command
from tests.data.vinvl_folders import HEIGHT, WIDTH, detic_records, write_captions, write_shelve, write_vinvl

COUNTS = {"391895": 3, "7": 4, "522418": 2}
DETIC = {"391895": 2, "7": 5, "522418": 1}
FLAVOURS = ["dbm.dumb", *(["dbm.ndbm"] if find_spec("_dbm") else []), *(["dbm.gnu"] if find_spec("_gdbm") else [])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_vinvl(tmp_path / "vinvl", COUNTS)
    write_shelve(tmp_path / "vinvl" / "detic", detic_records(DETIC))
    return tmp_path / "vinvl"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_shelve_of_any_flavour_is_read(tmp_path: Path, flavour: str) -> None:
    records = detic_records(DETIC)
    write_shelve(tmp_path / "detic", records, import_module(flavour))
    for path in (tmp_path, tmp_path / "detic"):
        db = open_regions(path, kind="det")
        assert isinstance(db, DeticRegions) and sorted(db.ids) == sorted(f"{image}.npz" for image in DETIC)
        for image, record in records.items():
            item = db[image]
            rects = np.array([o["rect"] for o in record["objects"]], np.float32)
            corners = (rects / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)).clip(0, 1)
            assert np.array_equal(item.boxes[:, :4], corners)
            assert np.array_equal(item.boxes[:, 4:], corners[:, 2:] - corners[:, :2])
            assert np.array_equal(item.features, np.array([o["features"] for o in record["objects"]], np.float32))
            assert item.tags == tuple(o["class"] for o in record["objects"])
            assert item.detic is not None and item.detic.all()
    copy = pickle.loads(pickle.dumps(db))
    assert np.array_equal(copy["7"].features, db["7"].features)


def test_boxes_are_clipped_to_the_image(tmp_path: Path) -> None:
    records = detic_records({"1": 1})
    records["1"]["objects"][0]["rect"] = [-5.0, 10.0, WIDTH + 9.0, 20.0]
    write_shelve(tmp_path / "detic", records)
    box = open_regions(tmp_path, kind="det")["1"].boxes[0]
    assert box[0] == 0 and box[2] == 1 and box[4] == 1


def test_a_shelve_alone_means_vinvls_own_boxes(folder: Path) -> None:
    for kind in (None, "fast"):
        assert isinstance(open_regions(folder / "detic", kind=kind), VinvlRegions)


def test_code_in_a_shelve_is_refused_by_image_and_not_run(folder: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {folder / 'ran'}",)

    write_shelve(folder / "detic", {**detic_records(DETIC), "8": {"objects": Code()}})
    for kind in ("det", "det+fast"):
        with pytest.raises(DataError, match=r"image 8 in .*detic cannot be read \(it holds posix\.system"):
            write_vinvl(folder, {**COUNTS, "8": 2})
            open_regions(folder, kind=kind).ids  # noqa: B018
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o: o.pop("rect"), "without a rect"),
        (lambda o: o.update(features=[1.0]), "no numbers, or of several widths"),
        (lambda o: o.update(features="x"), "no numbers, or of several widths"),
        (lambda o: o.pop("features"), "no numbers, or of several widths"),
        (lambda o: o.pop("class"), "no list of objects with their class"),
    ],
)
def test_damaged_records_are_refused_by_image(folder: Path, change: Any, said: str) -> None:
    records = detic_records(DETIC)
    change(records["7"]["objects"][1])
    write_shelve(folder / "detic", records)
    with pytest.raises(DataError, match=f"The record of image 7 in .*{said}"):
        open_regions(folder, kind="det")["7"]


def test_folders_without_one_shelve_are_refused(folder: Path) -> None:
    write_shelve(folder / "other", {"1": 1})
    with pytest.raises(DataError, match=r"must hold one shelve .* there is: detic, other"):
        open_regions(folder, kind="det")
    assert shelve_of(folder / "other.dat") == folder / "other"
    for name in ("detic", "other"):
        for file in folder.glob(f"{name}.*"):
            file.unlink()
    with pytest.raises(DataError, match="there is: none"):
        open_regions(folder, kind="det+fast")
    with pytest.raises(DataError, match="is no shelve"):
        open_regions(folder / "features.tsv", kind="det")


def naive_nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(classes[i] != classes[j] or overlap(boxes[i], boxes[j]) <= 0.5 for j in kept):
            kept.append(i)
    return kept


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@given(st.integers(0, 2**31), st.integers(0, 14))
def test_suppression_equals_the_naive_form(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    low = generator.integers(0, 6, (count, 2))
    boxes = np.concatenate([low, low + generator.integers(1, 6, (count, 2))], axis=1).astype(np.float32)
    scores = generator.permutation(count).astype(np.float32)
    classes = generator.integers(0, 3, count)
    assert class_nms(boxes, scores, classes).tolist() == naive_nms(boxes, scores, classes)


def found(names: list[str], conf: Sequence[float], rects: Sequence[Sequence[float]]) -> Detections:
    return Detections(
        tuple(names), np.array(conf, np.float32), np.array(rects, np.float32).reshape(-1, 4), (WIDTH, HEIGHT)
    )


FAR = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]]


def test_what_is_kept_stands_by_z_score() -> None:
    faster = found(["man", "dog"], [0.9, 0.3], FAR[:2])
    detic = found(["ball_(sports)", "man"], [0.8, 0.7], [FAR[2], [1, 0, 11, 10]])
    merged = merge_all({"1": (faster, detic)})["1"]
    z_faster, z_detic = [1.0, -1.0], [1.0, -1.0]
    assert merged.order.tolist() == [0, 2, 1] and z_faster[0] == z_detic[0] > z_faster[1]
    assert merged.tags == ("man", "ball_(sports)", "dog")  # Detic's man overlaps the man
    assert np.array_equal(merged.regions, merged.order)


def test_the_published_order_pairs_boxes_with_z_scores_of_others() -> None:
    faster, detic = found(["a", "b"], [0.2, 0.9], FAR[:2]), found(["c"], [0.5], FAR[2:3])
    right = merge_all({"1": (faster, detic)})["1"]
    published = merge_all({"1": (faster, detic)}, published=True)["1"]
    kept = [1, 0, 2]  # by priority 1.4, 0.7 and 0.5; z-scores 1, -1 and 0
    z = {0: -1.0, 1: 1.0, 2: 0.0}
    assert right.order.tolist() == sorted(kept, key=lambda i: -z[i]) == [1, 2, 0]
    paired = dict(zip(kept, (z[i] for i in sorted(kept)), strict=True))
    assert published.order.tolist() == sorted(kept, key=lambda i: -paired[i]) == [0, 2, 1]
    # Row i of Detic's one region followed by Faster R-CNN's two.
    assert published.regions.tolist() == [{0: 2, 1: 0, 2: 1}[i] for i in published.order.tolist()]


def test_names_of_detics_are_classes_of_names_that_hold_their_words() -> None:
    assert detic_words("tennis_racket") == ["tennis", "racket"]
    assert detic_words("ball_(sports)") == ["(sports", "ball"]
    assert detic_words("x_(musical_instrument)") == ["instrument", "x"]
    over = [[0, 0, 10, 10], [1, 0, 11, 10]]
    same = merge_all({"1": (found(["tennis racket"], [0.5], over[:1]), found(["racket"], [0.9], over[1:]))})["1"]
    assert same.tags == ("tennis racket",)
    other = merge_all({"1": (found(["dog"], [0.5], over[:1]), found(["racket"], [0.9], over[1:]))})["1"]
    assert sorted(other.tags) == ["dog", "racket"]


def test_images_without_detics_boxes_and_at_most_a_hundred_boxes() -> None:
    many = found(["a"] * 120, list(np.linspace(1, 0.1, 120)), [[20 * i, 0, 20 * i + 10, 10] for i in range(120)])
    merged = merge_all({"1": (many, found([], [], [])), "2": (found([], [], []), found([], [], []))})
    assert merged["1"].order.tolist() == list(range(100)) and merged["2"].tags == ()


@pytest.mark.parametrize("published", [False, True])
def test_merged_regions_have_the_features_of_their_boxes(folder: Path, published: bool) -> None:
    db = open_regions(folder, kind="det+fast", published=published)
    assert isinstance(db, MergedRegions) and db.ids == [f"{image}.npz" for image in [*COUNTS][::-1]]
    faster, detic = open_regions(folder), open_regions(folder, kind="det")
    for image in COUNTS:
        item, merged = db[image], db.merged[image]
        assert item.tags == merged.tags and item.detic is not None and len(item) == len(merged.order)
        for row, index in enumerate(merged.regions.tolist()):
            source = faster[image] if index < COUNTS[image] else detic[image]
            number = index if index < COUNTS[image] else index - COUNTS[image]
            assert item.detic[row] == (index >= COUNTS[image])
            width = source.features.shape[1]
            assert np.array_equal(item.features[row, :width], source.features[number])
            assert not item.features[row, width:].any() and np.array_equal(item.boxes[row], source.boxes[number])
    labels = open_regions(folder, kind="det+fast_labels", published=published)
    for image in COUNTS:
        assert labels[image].tags == db[image].tags and labels[image].detic is None
        assert np.array_equal(labels[image].features, faster[image].features)


def test_a_merge_is_over_the_images_of_the_captions(folder: Path, tmp_path: Path) -> None:
    captions = str(write_captions(tmp_path / "x.pt", {7: ["a"], 391895: ["b"]}))
    corpus = open_corpus([captions], [str(folder)], detections="det+fast")
    db = corpus.parts[0].regions
    assert isinstance(db, MergedRegions) and list(db.merged) == ["7", "391895"]
    whole = open_regions(folder, kind="det+fast")
    assert isinstance(whole, MergedRegions) and len(whole.merged) == 3
    assert isinstance(whole.merged["7"], Merged)


@pytest.mark.parametrize("flavour", ["raw", "msgpack", "npz"])
@pytest.mark.parametrize("kind", ["det", "det+fast", "det+fast_labels"])
def test_shelves_convert_to_image_databases(folder: Path, tmp_path: Path, kind: str, flavour: str) -> None:
    source = open_regions(folder, kind=kind)
    assert command("data", "regions", "--from", kind, folder, "-o", tmp_path / "db", "--flavour", flavour) == 0
    db = open_regions(tmp_path / "db")
    assert db.ids == source.ids
    for image in source.ids:
        expected, item = source[image], db[image]
        assert item.tags == expected.tags and (item.detic is None) == (expected.detic is None)
        assert np.array_equal(item.features, expected.features) and np.array_equal(item.boxes, expected.boxes)
        if expected.detic is not None:
            assert np.array_equal(item.detic, expected.detic)  # type: ignore[arg-type]


def test_merging_needs_confidences_and_predictions(folder: Path) -> None:
    write_shelve(folder / "detic", {image: {"objects": [{"class": "a", "features": [1.0]}]} for image in COUNTS})
    with pytest.raises(DataError, match="has not 1 objects with conf and rect, which merging needs"):
        open_regions(folder, kind="det+fast").ids  # noqa: B018
    (folder / "predictions.tsv").unlink()
    with pytest.raises(DataError, match=r"predictions\.tsv isn't there, and merging needs it"):
        open_regions(folder, kind="det+fast").ids  # noqa: B018


def test_a_shelve_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    write_shelve(tmp_path / "detic", detic_records(DETIC))
    (tmp_path / "detic.dir").write_text("'a', (0, ")
    with pytest.raises(DataError, match=r"the shelve .*detic cannot be opened"):
        open_regions(tmp_path / "detic", kind="det").ids  # noqa: B018
    assert dbm.whichdb(str(tmp_path / "detic")) == "dbm.dumb"
