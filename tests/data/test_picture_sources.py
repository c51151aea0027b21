"""Pictures as the image side of a corpus: how they are found, and what is said of those that are not there."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from crossmodal.data.corpus import open_corpus, open_images
from crossmodal.data.picture_sources import PictureFolder, coco_number, is_picture_folder
from crossmodal.data.pictures import open_picture
from crossmodal.data.processors import UniterProcessor
from crossmodal.data.region_db import RegionDB
from crossmodal.errors import DataError

from .picture_files import picture, processor, write_coco, write_pictures

NAMES = ["val/COCO_val2014_000000000042.jpg", "val/a.b.png", "train/000000000007.JPG", "c.jpeg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "readme.txt").write_text("no picture")
    return write_pictures(tmp_path / "pictures", NAMES)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("c.jpeg", "c.jpeg"),
        ("c", "c.jpeg"),
        ("c.npz", "c.jpeg"),  # as UNITER's text databases name images
        ("coco/anywhere/c.jpeg", "c.jpeg"),
        ("val/a.b.png", "val/a.b.png"),
        ("a.b", "val/a.b.png"),
        ("a.b.npz", "val/a.b.png"),
        ("000000000042.jpg", "val/COCO_val2014_000000000042.jpg"),
        ("COCO_train2014_000000000007.jpg", "train/000000000007.JPG"),
        ("000000000007", "train/000000000007.JPG"),
        ("a", None),
        ("d.jpg", None),
        ("000000000008.jpg", None),
    ],
)
def test_an_image_is_found_by_path_by_name_and_by_its_number_in_coco(
    folder: Path, asked: str, found: str | None
) -> None:
    pictures = PictureFolder(folder)
    assert (asked in pictures) == (found is not None)
    if found is None:
        with pytest.raises(DataError, match=f"holds no picture '{asked}'; it holds 4 such as"):
            pictures[asked]
    else:
        assert pictures[asked].picture == folder / found and pictures[asked].id == found


def test_two_pictures_of_one_name_are_told_apart_by_their_folders_alone(tmp_path: Path) -> None:
    pictures = PictureFolder(write_pictures(tmp_path, ["a/1.png", "b/1.png"]))
    assert pictures["b/1.png"].id == "b/1.png"
    with pytest.raises(DataError, match=r"holds 2 pictures that the captions' x/1\.png may be \(a/1\.png, b/1\.png\)"):
        pictures.over(["x/1.png"])


def test_one_picture_of_coco_in_two_of_its_splits_is_the_same(tmp_path: Path) -> None:
    twice = ["2014/COCO_val2014_000000000042.jpg", "2015/COCO_test2015_000000000042.jpg"]
    assert PictureFolder(write_pictures(tmp_path, twice))["000000000042.jpg"].id == twice[0]
    assert coco_number("COCO_val2014_000000000042.jpg") == coco_number("000000000042") == "000000000042"
    assert coco_number("42.jpg") is None


def test_a_link_back_to_the_folder_does_not_repeat_it(folder: Path) -> None:
    (folder / "val" / "back").symlink_to(folder)
    (folder / "other").symlink_to(write_pictures(folder.parent / "elsewhere", ["linked.png"]))
    assert list(PictureFolder(folder).ids) == sorted([*NAMES, "other/linked.png"])


def test_lengths_are_those_of_a_region_database(folder: Path) -> None:
    used = PictureFolder(folder).over(["c", "not there"])
    assert used.lengths == dict.fromkeys([*NAMES, "c"], 1) and len(used) == 4
    again = pickle.loads(pickle.dumps(used))
    assert again["c"] == used["c"] and again.lengths == used.lengths


def test_missing_pictures_are_one_error(folder: Path, tmp_path: Path) -> None:
    texts = write_coco(tmp_path / "captions.json", ["c.jpeg", "x.jpg", "y.jpg", "a.b.png"])
    said = r"2 of 4 images named by the captions in .*captions\.json have no picture in .*pictures \(first: x\.jpg, y"
    with pytest.raises(DataError, match=said):
        open_corpus([str(texts)], [str(folder)])


def test_a_picture_that_does_not_decode_is_named(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "c.jpeg").read_bytes()
    (folder / "c.jpeg").write_bytes(whole[: len(whole) // 2])
    corpus = open_corpus([str(write_coco(tmp_path / "captions.json", ["c.jpeg"]))], [str(folder)])
    with pytest.raises(DataError, match=r"pictures/c\.jpeg cannot be read as a picture .* replace it or leave it out"):
        next(corpus.batches("image", corpus.image_keys, processor()))


def test_a_folder_of_pictures_is_told_from_a_database(folder: Path, tiny_world: Path, tmp_path: Path) -> None:
    assert isinstance(open_images(str(folder)), PictureFolder)
    assert isinstance(open_images(str(tiny_world / "regions" / "test")), RegionDB)
    (tmp_path / "npz").mkdir()
    (tmp_path / "npz" / "1.npz").write_bytes(b"")
    picture(0).save(tmp_path / "npz" / "preview.png")
    assert isinstance(open_images(str(tmp_path / "npz")), RegionDB)
    (tmp_path / "empty").mkdir()
    assert not is_picture_folder(tmp_path / "empty") and not is_picture_folder(tmp_path / "none")
    with pytest.raises(DataError, match="is not a folder with pictures in it"):
        PictureFolder(tmp_path / "empty")


def test_a_model_of_regions_says_what_it_reads(folder: Path, tiny_world: Path, tmp_path: Path) -> None:
    captions = write_coco(tmp_path / "captions.json", ["c.jpeg"])
    corpus = open_corpus([str(captions)], [str(folder)])
    tokenizer = str(tiny_world / "texts" / "train.db")
    with pytest.raises(DataError, match=r"pictures holds pictures, and this model reads regions; detect them first"):
        UniterProcessor.of_corpus(corpus, {}, tokenizer)


def test_a_corpus_of_pictures_gives_pixels(folder: Path, tmp_path: Path) -> None:
    corpus = open_corpus([str(write_coco(tmp_path / "c.json", ["c.jpeg", "a.b.png"]))], [str(folder)])
    assert corpus.image_keys == [(0, "c.jpeg"), (0, "a.b.png")]
    assert corpus.image_of_texts().tolist() == [0, 0, 1, 1]
    assert corpus.lengths() == [5, 6, 5, 6]
    made = processor()
    batch = next(corpus.batches("image", corpus.image_keys, made))
    files = [open_picture(folder / name) for name in ("c.jpeg", "val/a.b.png")]
    assert batch.values.equal(made("image", files).values)  # type: ignore[union-attr]
