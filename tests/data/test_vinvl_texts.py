"""VinVL's caption files and key files, and a corpus of them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from crossmodal.data.corpus import open_corpus
from crossmodal.data.texts import TextDB, open_texts
from crossmodal.data.vinvl_texts import VinvlTexts
from crossmodal.errors import ConfigError, DataError
from tests.data.vinvl_folders import write_captions, write_vinvl

CAPTIONS = {391895: ["a man on a  wave", "surf", "two dogs"], 7: ["one tree", "a café", "x"], 522418: ["y", "z z", "w"]}


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "test_captions.pt", CAPTIONS)


def keys(tmp_path: Path, *images: object) -> Path:
    path = tmp_path / "test_img_keys.tsv"
    path.write_text("".join(f"{image}\n" for image in images))
    return path


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("as_json", [True, False])
def test_captions_of_every_published_form(tmp_path: Path, legacy: bool, as_json: bool) -> None:
    texts = open_texts(write_captions(tmp_path / "x.pt", CAPTIONS, legacy=legacy, as_json=as_json))
    assert isinstance(texts, VinvlTexts)
    assert texts.ids == [f"{image}#{k}" for image in CAPTIONS for k in range(3)]
    assert texts.images == ["391895.npz", "7.npz", "522418.npz"]
    assert texts.image_of["7#2"] == "7.npz" and texts.texts_of["7.npz"] == ["7#0", "7#1", "7#2"]
    assert texts.lengths["391895#0"] == 5 and texts.tokenizer is None and texts.cls is None
    item = texts["7#1"]
    assert (item.id, item.sentence, item.image, item.input_ids) == ("7#1", "a café", "7.npz", ())
    assert "7#1" in texts and "7#3" not in texts and len(texts) == 9


def test_a_key_file_chooses_images_and_their_order(captions: Path, tmp_path: Path) -> None:
    texts = open_texts(captions, image_keys=keys(tmp_path, 522418, 391895), captions_per_image=2)
    assert texts.images == ["522418.npz", "391895.npz"]
    assert texts.ids == ["522418#0", "522418#1", "391895#0", "391895#1"]
    copy = pickle.loads(pickle.dumps(texts))
    assert copy.ids == texts.ids and copy["522418#1"] == texts["522418#1"]


def test_long_captions_are_left_out_but_can_be_read(captions: Path) -> None:
    texts = open_texts(captions, max_len=1)
    assert texts.ids == ["391895#1", "7#2", "522418#0", "522418#2"]
    assert texts["391895#0"].sentence == "a man on a  wave" and "391895#0" not in texts


def test_a_list_of_unequal_size_is_refused_where_a_size_is_asked_for(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "x.pt", {1: ["a", "b"], 2: ["a"]})
    with pytest.raises(DataError, match=r"captions of image 2 in .*x\.pt are 1, and captions_per_image asks for 2"):
        open_texts(path, captions_per_image=2)
    assert len(open_texts(path)) == 3


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({1: '["a"'}, "the captions of image 1 .* are no JSON"),
        ({1: 5}, "no list of sentences"),
        ({1: []}, "no list of sentences"),
        ({1: ["a", 2]}, "no list of sentences"),
        ({}, "holds no captions"),
        (["a"], "no dictionary of captions by image"),
        ({1.5: ["a"]}, "no dictionary of captions by image"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, stored: Any, said: str) -> None:
    torch.save(stored, tmp_path / "x.pt")
    with pytest.raises(DataError, match=said):
        open_texts(tmp_path / "x.pt")


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({1: Code()}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match=r"x\.pt cannot be read \(it holds posix\.system, which is no data"):
        open_texts(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_key_files_that_do_not_fit_are_refused(captions: Path, tmp_path: Path) -> None:
    for images, said in (
        ((7, 8), r"1 of the 2 images in the key file .* have no captions in .* \(first: 8\)"),
        ((7, 7), "lists image 7 twice"),
        ((), "holds no image id"),
    ):
        with pytest.raises(DataError, match=said):
            open_texts(captions, image_keys=keys(tmp_path, *images))
    with pytest.raises(DataError, match=r"the key file .* cannot be read"):
        open_texts(captions, image_keys=tmp_path / "none.tsv")
    with pytest.raises(ConfigError, match="captions_per_image is 0"):
        open_texts(captions, captions_per_image=0)
    with pytest.raises(DataError, match=r"none\.pt cannot be read"):
        open_texts(tmp_path / "none.pt")


def test_the_options_are_refused_for_a_text_database(tiny_world: Path, tmp_path: Path) -> None:
    path = tiny_world / "texts" / "train.db"
    assert isinstance(open_texts(path), TextDB)
    with pytest.raises(ConfigError, match="image_keys is for VinVL's caption files"):
        open_texts(path, image_keys=keys(tmp_path, 7))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    write_vinvl(tmp_path / "vinvl", {"391895": 4, "7": 2, "522418": 3})
    return str(tmp_path / "vinvl")


def test_a_corpus_of_a_vinvl_folder_or_of_some_of_its_images(captions: Path, folder: str, tmp_path: Path) -> None:
    by_regions = open_corpus([str(captions)], [folder])
    assert [image for _, image in by_regions.image_keys] == ["7.npz", "522418.npz", "391895.npz"]
    listed = str(keys(tmp_path, 522418, 391895))
    corpus = open_corpus([str(captions)], [folder], image_keys=listed, captions_per_image=2)
    assert [image for _, image in corpus.image_keys] == ["522418.npz", "391895.npz"]
    assert corpus.image_of_texts().tolist() == [0, 0, 1, 1]
    assert corpus.lengths() == [1 + 3, 2 + 3, 5 + 4, 1 + 4]


def test_an_image_without_features_or_detections_is_refused(captions: Path, folder: str) -> None:
    predictions = Path(folder, "predictions.tsv")
    lines = predictions.read_text().splitlines(keepends=True)
    predictions.with_suffix(".lineidx").unlink()
    predictions.write_text("".join(line for line in lines if not line.startswith("7\t")))
    with pytest.raises(DataError, match=r"1 of 3 images .* have no features or detections in .* \(first: 7\.npz\)"):
        open_corpus([str(captions)], [folder])
    write_vinvl(Path(folder), {"391895": 4, "522418": 3})
    with pytest.raises(DataError, match=r"1 of 3 images .* have no features or detections in .* \(first: 7\.npz\)"):
        open_corpus([str(captions)], [folder])
