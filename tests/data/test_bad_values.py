"""Damaged values in databases, through the command line: one sentence with key and database, exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossmodal.data.region_writer import write_region_db
from crossmodal.data.regions import open_regions
from crossmodal.data.texts import decode_record, encode_record
from crossmodal.errors import DataError

from ..commands import command, databases, refused
from .damage import DATABASE, Record, change, change_records, record, train

Said = pytest.CaptureFixture[str]


# -- values


def truncated(_: str, value: bytes) -> bytes:
    return value[: len(value) // 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_images(world: Path, tmp_path: Path, capsys: Said, workers: int) -> None:
    folder = world / "regions" / "train" / DATABASE
    change(folder, truncated, first=1)
    said = refused(capsys, *train(world, tmp_path / "run", workers=workers))
    assert said.startswith("error: The record of train_") and f".npz in {folder} is damaged (truncated" in said
    assert said.count("\n") == 0


def test_truncated_images_in_testing(world: Path, trained: Path, tmp_path: Path, capsys: Said) -> None:
    folder = world / "regions" / "test" / DATABASE
    change(folder, truncated)
    said = refused(capsys, "test", "--checkpoint", trained, *databases(world), "--output", tmp_path / "out")
    assert "The record of test_" in said and f".npz in {folder} is damaged (truncated" in said
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_bit_in_a_compressed_image(world: Path, tmp_path: Path, capsys: Said, workers: int) -> None:
    def flipped(_: str, value: bytes) -> bytes:
        at = value.index(b"features.npy") + 200  # inside the numbers
        return value[:at] + bytes([value[at] ^ 4]) + value[at + 1 :]

    source, output = world / "regions" / "train", world / "compressed"
    assert command("data", "regions", source, "--output", output, "--flavour", "npz") == 0
    capsys.readouterr()
    folder = output / f"{DATABASE}_compressed"
    change(folder, flipped, first=1)
    words = train(world, tmp_path / "run", workers=workers, data={"train": {
        "texts": str(world / "texts" / "train.db"), "images": str(output), "compressed": True,
    }})  # fmt: skip
    said = refused(capsys, *words)
    assert "The record of train_" in said and f".npz in {folder} is damaged (" in said
    assert command("data", "check", folder) == 1
    assert f"in {folder} is damaged" in capsys.readouterr().out


def test_a_flipped_bit_in_a_raw_image(world: Path, tmp_path: Path, capsys: Said) -> None:
    def flipped(_: str, value: bytes) -> bytes:
        return value[:-1] + bytes([value[-1] ^ 1])

    assert command("data", "regions", world / "regions" / "val", "--output", world / "raw", "--flavour", "raw") == 0
    folder = next((world / "raw").glob("*/data.mdb")).parent
    change(folder, flipped)
    capsys.readouterr()
    said = refused(capsys, "data", "regions", folder, "--output", tmp_path / "again")
    assert "val_00.npz" in said and "its checksum does not match its bytes" in said
    assert command("data", "check", folder) == 1
    assert f"val_00.npz in {folder} is damaged" in capsys.readouterr().out


def nan_features(found: Record) -> None:
    found["features"][-1, 3] = np.nan


def infinite_confidences(found: Record) -> None:
    found["conf"][0] = np.inf


def boxes_in_pixels(found: Record) -> None:
    found["norm_bb"] *= 100


def nan_boxes(found: Record) -> None:
    found["norm_bb"][0, 2] = np.nan


def swapped_corners(found: Record) -> None:
    found["norm_bb"][0, 4] = -0.3


def pixels_as_features(found: Record) -> None:
    found["features"] = found["features"].astype(np.uint8)


UNUSABLE = [
    (nan_features, "holds NaN or infinite features"),
    (infinite_confidences, "holds NaN or infinite conf"),
    (nan_boxes, "holds NaN or infinite norm_bb"),
    (boxes_in_pixels, "has a box outside its image"),
    (swapped_corners, "has a box outside its image (a coordinate of -0.3"),
    (pixels_as_features, "has features of uint8 instead of floats"),
]


@pytest.mark.parametrize(("edit", "problem"), UNUSABLE)
def test_numbers_that_cannot_be_used(
    world: Path, trained: Path, tmp_path: Path, capsys: Said, edit: Callable[[Record], object], problem: str
) -> None:
    for split in ("train", "test"):
        change_records(world / "regions" / split / DATABASE, edit, first=1)
    folder = world / "regions" / "train" / DATABASE
    said = refused(capsys, *train(world, tmp_path / "run"))
    assert said.startswith("error: The record of train_") and f".npz in {folder} {problem}" in said
    said = refused(capsys, "test", "--checkpoint", trained, *databases(world), "--output", tmp_path / "out")
    assert f".npz in {world / 'regions' / 'test' / DATABASE} {problem}" in said
    assert not (tmp_path / "out" / "results.json").exists()


def test_numbers_that_cannot_be_used_in_a_worker(world: Path, tmp_path: Path, capsys: Said) -> None:
    change_records(world / "regions" / "train" / DATABASE, nan_features, first=1)
    said = refused(capsys, *train(world, tmp_path / "run", workers=1))
    assert "holds NaN or infinite features" in said and said.count("\n") == 0


@pytest.mark.parametrize(("edit", "problem"), UNUSABLE)
def test_images_that_cannot_be_used_are_left_out_of_a_conversion(
    world: Path, tmp_path: Path, capsys: Said, edit: Callable[[Record], object], problem: str
) -> None:
    change_records(world / "regions" / "val" / DATABASE, edit, first=3)
    output = tmp_path / "again"
    assert command("data", "regions", world / "regions" / "val", "--output", output, "--flavour", "raw") == 0
    said = capsys.readouterr().err
    assert "5 unreadable images were skipped" in said and problem in said
    skipped = json.loads(next(output.glob("skipped_*.json")).read_text())
    assert list(skipped) == [f"val_{i:02}.npz" for i in range(3, 8)] and problem in skipped["val_07.npz"]
    assert open_regions(next(output.glob("*/data.mdb")).parent).ids == [f"val_{i:02}.npz" for i in range(3)]


def test_boxes_that_overshoot_a_little_are_taken(world: Path, tmp_path: Path) -> None:
    def overshoot(found: Record) -> None:
        found["norm_bb"][0, 2] = 1.02  # ten pixels of 500

    change_records(world / "regions" / "train" / DATABASE, overshoot)
    assert command(*train(world, tmp_path / "run", steps=1)) == 0


def test_features_that_half_precision_cannot_hold(tmp_path: Path, capsys: Said) -> None:
    found = record()
    found["features"][2, 2] = 1e5
    np.savez(tmp_path / "a.npz", **found)
    said = refused(capsys, "data", "regions", tmp_path, "--output", tmp_path / "db")
    assert "a.npz: the record holds NaN or infinite features" in said


def test_a_database_that_loses_the_confidences_of_one_image(tmp_path: Path) -> None:
    """msgpack has no checksum: a damaged name would only leave them out."""
    folder = write_region_db([("a.npz", record()), ("b.npz", record())], tmp_path)

    def renamed(key: str, value: bytes) -> bytes:
        return value.replace(b"conf", b"cont") if key == "b.npz" else value

    change(folder, renamed)
    assert open_regions(folder)["a.npz"].confidence is not None
    with pytest.raises(DataError, match=r"b\.npz in .* has no conf, unlike others"):
        _ = open_regions(folder)["b.npz"]


# -- captions of a database


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stored_caption_without_words(world: Path, trained: Path, tmp_path: Path, capsys: Said, workers: int) -> None:
    def emptied(_: str, value: bytes) -> bytes:
        return encode_record({**decode_record(value), "input_ids": [], "sent": " "})

    for split in ("train", "test"):
        change(world / "texts" / f"{split}.db", emptied)
    said = refused(capsys, *train(world, tmp_path / "run", workers=workers))
    assert "error: caption 'train_" in said and f"in {world / 'texts' / 'train.db'} has no words" in said
    said = refused(capsys, "test", "--checkpoint", trained, *databases(world), "--output", tmp_path / "out")
    assert f"in {world / 'texts' / 'test.db'} has no words" in said


def test_a_stored_caption_of_letters_that_the_tokenizer_drops(world: Path, tmp_path: Path, capsys: Said) -> None:
    def emptied(_: str, value: bytes) -> bytes:
        return encode_record({**decode_record(value), "input_ids": [], "sent": "\u200d"})

    change(world / "texts" / "train.db", emptied)
    assert "has no word that the tokenizer knows" in refused(capsys, *train(world, tmp_path / "run"))


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        ({"input_ids": [5, 10**6]}, "holds word pieces from 5 to 1000000, and the vocabulary ends before"),
        ({"input_ids": [-1, 5]}, "holds word pieces from -1 to 5"),
        ({"input_ids": [5.5]}, "are not integers"),
        ({"input_ids": b"abc"}, "are not integers"),
        ({"input_ids": "abc"}, "are not integers"),
        ({"input_ids": 7}, "are not integers"),
        ({"input_ids": None, "sent": None}, "holds neither word pieces nor a sentence"),
    ],
)
def test_stored_captions_of_the_wrong_kind(
    world: Path, tmp_path: Path, capsys: Said, edit: dict[str, Any], problem: str
) -> None:
    change(world / "texts" / "train.db", lambda _, value: encode_record({**decode_record(value), **edit}))
    said = refused(capsys, *train(world, tmp_path / "run"))
    assert "caption 'train_" in said and f"{world / 'texts' / 'train.db'}" in said and problem in said


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_bit_in_a_caption(world: Path, tmp_path: Path, capsys: Said, workers: int) -> None:
    def flipped(_: str, value: bytes) -> bytes:
        at = len(value) // 2
        return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]

    change(world / "texts" / "train.db", flipped)
    said = refused(capsys, *train(world, tmp_path / "run", workers=workers))
    assert "caption 'train_" in said and f"in {world / 'texts' / 'train.db'} cannot be read (" in said


def test_no_caption_is_short_enough(world: Path, tmp_path: Path, capsys: Said) -> None:
    said = refused(capsys, *train(world, tmp_path / "run"), "--set", "data.train.max_text=1")
    assert f"no caption of {world / 'texts' / 'train.db'} can be used (the shortest has" in said
