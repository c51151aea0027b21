"""Captions as files publish them, read without a text database."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from crossmodal.data.caption_tables import SentenceTexts, Wrong, open_captions
from crossmodal.data.captions import Caption
from crossmodal.data.corpus import open_corpus
from crossmodal.data.picture_sources import PictureFolder, coco_number
from crossmodal.data.texts import TextDB, open_texts
from crossmodal.errors import ConfigError, DataError

from .picture_files import ce_record, sentence, write_ce_clip, write_coco, write_csv, write_negclip, write_pictures

SHARED = Path(__file__).parents[3] / "shared" / "data"
IMAGES = ["a.jpg", "b.jpg", "a.jpg"]
ROWS = [(image, sentence(n)) for n, image in enumerate(IMAGES)]


def content(texts: Any) -> list[tuple[str, str, str]]:
    return [(id, texts.image_of[id], texts[id].sentence) for id in texts.ids]


EXPECTED = [(str(n), image, caption) for n, (image, caption) in enumerate(ROWS)]


def test_captions_stand_in_file_order_and_join_both_ways(tmp_path: Path) -> None:
    texts = SentenceTexts(tmp_path, [Caption("x", "2", "a b"), Caption("y", "1", "a"), Caption("z", "2", "a b c")])
    assert texts.ids == ["x", "y", "z"] and texts.images == ["2", "1"]
    assert texts.texts_of == {"2": ["x", "z"], "1": ["y"]} and texts.lengths == {"x": 2, "y": 1, "z": 3}
    assert "x" in texts and "w" not in texts and len(texts) == 3
    assert texts["z"].image == "2" and texts.cls is None and not texts.wrong and not texts.hard
    short = SentenceTexts(tmp_path, [Caption("x", "2", "a b"), Caption("y", "1", "a")], max_len=1)
    assert short.ids == ["y"] and short.images == ["2", "1"] and "x" not in short and short["x"].sentence == "a b"
    assert pickle.loads(pickle.dumps(texts)).texts_of == texts.texts_of
    with pytest.raises(DataError, match="holds no caption 'w'; it holds 3 such as"):
        texts["w"]


def test_empty_captions_are_left_out_and_images_of_these_alone(tmp_path: Path) -> None:
    captions = [Caption("x", "1", " \n"), Caption("y", "2", "a"), Caption("z", "2", "")]
    assert SentenceTexts(tmp_path, captions).texts_of == {"2": ["y"]}
    with pytest.raises(DataError, match="holds no captions"):
        SentenceTexts(tmp_path, captions[:1])
    with pytest.raises(DataError, match="holds two captions with the id 'y'"):
        SentenceTexts(tmp_path, [*captions, Caption("y", "3", "b")])


def test_so_many_captions_an_image(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "c.json", ["a.jpg", "b.jpg"], captions=3)
    assert open_texts(path, captions_per_image=2).ids == ["0", "1", "10", "11"]
    with pytest.raises(DataError, match=r"image a\.jpg has 3 captions in .*c\.json, and captions_per_image asks for 4"):
        open_texts(path, captions_per_image=4)
    with pytest.raises(ConfigError, match="captions_per_image is 0"):
        open_texts(path, captions_per_image=0)


@pytest.mark.parametrize(
    ("name", "header", "separator", "options"),
    [
        ("open_clip.tsv", ("filepath", "title"), "\t", {}),
        ("open_clip.csv", ("filepath", "title"), ",", {}),
        ("flickr8k.csv", ("image", "caption"), ",", {}),
        ("plain.tsv", ("image", "caption"), "\t", {}),
        ("results.csv", ("image_name", "comment"), "|", {"separator": "|"}),
        ("own.txt", ("where", "what"), ";", {"separator": ";", "image_column": "where", "caption_column": "what"}),
    ],
)
def test_tables_of_images_and_captions(
    tmp_path: Path, name: str, header: tuple[str, str], separator: str, options: dict[str, Any]
) -> None:
    path = write_csv(tmp_path / name, [header, *ROWS], separator)
    assert content(open_texts(path, **options)) == EXPECTED


def test_cells_in_quotes_hold_separators_quotes_and_line_ends(tmp_path: Path) -> None:
    rows = [("a.jpg", 'one, "two"'), ("b.jpg", "one\ntwo")]
    path = write_csv(tmp_path / "x.csv", [("image", "caption", "id"), *((*row, f"id {row[0]}") for row in rows)])
    assert content(open_texts(path)) == [(f"id {image}", image, caption) for image, caption in rows]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("image,caption\na.jpg,one, two\n", {}, r"row 1 of .*x\.csv, which ends in line 2, has not the 2 columns"),
        ("image,caption\na.jpg\n", {}, r"row 1 of .* put cells that hold ',' in quotes"),
        ("picture,caption\na.jpg,one\n", {}, "has none of the columns filepath, .*, but picture, caption; name the"),
        ("image,caption\na.jpg,one\n", {"caption_column": "captions"}, "'captions' is no column of .* mean caption"),
        ("image,caption\na.jpg,one\n", {"separator": "||"}, r"separator '\|\|' is not one character"),
        ("image,caption\na.jpg,one\n", {"split": "val"}, "split does not go with .* a table of images and captions"),
        ("", {}, "but nothing; name the right one as image_column"),
        ("image,caption\n", {}, "holds no captions"),
        ('image,caption\na.jpg,"' + "x" * 200_000 + '"\n', {}, r"cannot be read as a table \(field larger than"),
    ],
)
def test_mistaken_tables_are_one_sentence(tmp_path: Path, text: str, options: dict[str, Any], said: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises((DataError, ConfigError), match=said):
        open_texts(tmp_path / "x.csv", **options)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("x.csv", "x.tsv", "x.json", "x.jsonl"):
        with pytest.raises(DataError, match=rf"x\.{name[2:]} cannot be read"):
            open_texts(tmp_path / name)


def test_negclips_table_carries_wrong_captions_and_hard_images(tmp_path: Path) -> None:
    images = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    texts = open_captions(write_negclip(tmp_path / "x.tsv", images))
    assert content(texts) == [(str(n), image, sentence(n)) for n, image in enumerate(images)]
    assert texts.wrong["2"] == Wrong(sentence(2), ("wrong 0 of 2", "wrong 1 of 2", "wrong 2 of 2"), (1, 1, 1))
    assert texts.hard == {"a.jpg": ["b.jpg", "c.jpg"], "b.jpg": ["c.jpg", "d.jpg"], "c.jpg": ["d.jpg", "a.jpg"],
                          "d.jpg": ["a.jpg", "b.jpg"]}  # fmt: skip
    repeated = open_captions(write_negclip(tmp_path / "y.tsv", ["a.jpg", "a.jpg", "b.jpg"]))
    assert repeated.hard == {"a.jpg": ["b.jpg", "b.jpg"], "b.jpg": ["a.jpg", "a.jpg"]}


@pytest.mark.parametrize("name", ["train.jsonl", "train"])
def test_ce_clips_records_carry_wrong_captions(tmp_path: Path, name: str) -> None:
    texts = open_captions(write_ce_clip(tmp_path / name, [42, "own/b.png"]))
    assert texts.ids == ["0", "1"]
    assert texts.images == ["train2014/COCO_train2014_000000000042.jpg", "own/b.png"]
    for n in range(2):
        record = ce_record(n, "", valid=(n % 2, 0, 1, 1))
        assert texts.wrong[str(n)] == Wrong(sentence(n), record.negatives, record.valid)
    moved = tmp_path / name.replace("train", "val")
    (tmp_path / name).rename(moved)
    assert open_captions(moved).images[0] == "val2014/COCO_val2014_000000000042.jpg"
    assert open_captions(moved, split="train2014").images[0] == "train2014/COCO_train2014_000000000042.jpg"
    with pytest.raises(ConfigError, match=r"separator does not go with .* records of CE-CLIP's"):
        open_captions(moved, separator=",")


def test_karpathys_json_by_split(tmp_path: Path) -> None:
    images = [
        {"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": sentence(n), "sentid": n}]}
        for n, split in enumerate(("train", "val", "restval"))
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    assert content(open_texts(path, split="train+restval")) == [
        ("0", "0.jpg", sentence(0)),
        ("2", "2.jpg", sentence(2)),
    ]
    assert len(open_texts(path)) == 3
    with pytest.raises(DataError, match="no captions of the split 'test'"):
        open_texts(path, split="test")
    with pytest.raises(ConfigError, match="image_keys is for VinVL's caption files"):
        open_texts(path, image_keys=path)
    with pytest.raises(ConfigError, match=r"image_column does not go with .* no table with a header"):
        open_texts(path, image_column="image")


def test_options_of_files_are_refused_for_a_database(tiny_world: Path) -> None:
    path = tiny_world / "texts" / "test.db"
    assert isinstance(open_texts(path), TextDB)
    for name, meant in (("split", "Karpathy's JSON"), ("separator", "tables of captions")):
        option: dict[str, Any] = {name: "x"}
        with pytest.raises(ConfigError, match=f"{name} is for {meant}, and .* is a text database; leave it out"):
            open_texts(path, **option)


def test_a_text_database_joins_a_folder_of_pictures(tiny_world: Path, tmp_path: Path) -> None:
    db = TextDB(tiny_world / "texts" / "test.db")
    write_pictures(tmp_path, [image.replace(".npz", ".png") for image in db.images])
    corpus = open_corpus([str(db.path)], [str(tmp_path)])
    assert [image for _, image in corpus.image_keys] == db.images
    assert corpus.parts[0].image(db.images[3]).id == db.images[3].replace(".npz", ".png")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} isn't there")
def test_the_published_table_of_negclip() -> None:
    """Counts of its SOURCE.md."""
    texts = open_captions(SHARED / "negclip" / "valid_neg_clip.tsv")
    assert len(texts) == len(texts.images) == 4839
    counts = Counter(len(wrong.sentences) for wrong in texts.wrong.values())
    assert counts == {1: 2891, 2: 1418, 3: 480, 4: 47, 5: 3}
    assert all(len(others) == 3 and image not in others for image, others in texts.hard.items())
    photos = PictureFolder(SHARED / "coco_photos_open" / "images")
    joined = [image for image in texts.images if image in photos]
    assert len(joined) == 16 and all(coco_number(photos[image].id) == coco_number(image) for image in joined)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} isn't there")
def test_open_photos_of_coco_with_their_captions() -> None:
    folder = SHARED / "coco_photos_open"
    corpus = open_corpus([str(folder / "captions.json")], [str(folder / "images")])
    assert len(corpus) == 830 and len(corpus.image_keys) == 166
