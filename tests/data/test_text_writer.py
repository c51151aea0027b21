from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crossmodal.data.captions import Caption, read_captions
from crossmodal.data.regions import open_regions
from crossmodal.data.text_writer import TextWriter, image_key, write_text_db, write_texts
from crossmodal.data.texts import TextDB
from crossmodal.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from crossmodal.errors import ConfigError, CrossmodalError, DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
COLOURS = ["red", "green", "blue", "yellow", "white"]
SENTENCES = [f"A {colour} cube left of a {other} ball." for colour in COLOURS for other in COLOURS]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES, 120)


def scenes(count: int) -> list[tuple[str, list[str]]]:
    """File names of images, each with two captions."""
    return [(f"COCO_val2014_{n:012d}.jpg", SENTENCES[2 * n : 2 * n + 2]) for n in range(count)]


def as_coco(folder: Path, count: int = 6) -> Path:
    """Annotations mixed, as in the published files."""
    images = [{"id": 100 + n, "file_name": name} for n, (name, _) in enumerate(scenes(count))]
    annotations = [
        {"id": 1000 + 10 * m + n, "image_id": 100 + n, "caption": sentence}
        for n, (_, sentences) in enumerate(scenes(count))
        for m, sentence in enumerate(sentences)
    ]
    random.Random(0).shuffle(annotations)
    return saved(folder / "captions.json", {"info": {}, "images": images, "annotations": annotations})


def as_karpathy(folder: Path) -> Path:
    splits = ["train", "restval", "val", "test", "train", "test"]
    images = [
        {
            "filename": name,
            "split": split,
            "sentids": [2 * n, 2 * n + 1],
            "sentences": [{"raw": s, "sentid": 2 * n + m, "imgid": n} for m, s in enumerate(sentences)],
        }
        for n, ((name, sentences), split) in enumerate(zip(scenes(6), splits, strict=True))
    ]
    return saved(folder / "dataset_coco.json", {"dataset": "coco", "images": images})


def as_list(folder: Path) -> Path:
    return saved(folder / "test.json", [{"image": f"val2014/{name}", "caption": list(s)} for name, s in scenes(6)])


def as_flickr(folder: Path) -> Path:
    lines = [f"{name}#{m}\t{s}" for name, sentences in scenes(6) for m, s in enumerate(sentences)]
    return saved(folder / "results.token", "\n".join(lines))


def as_tsv(folder: Path) -> Path:
    return saved(folder / "a.tsv", "\r\n".join(f"{name}\t{s}" for name, sentences in scenes(6) for s in sentences))


def saved(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("make", "name", "first"),
    [
        (as_coco, "coco", "1000"),
        (as_karpathy, "karpathy", "0"),
        (as_list, "list", "0"),
        (as_flickr, "flickr", "COCO_val2014_000000000000.jpg#0"),
        (as_tsv, "tsv", "0"),
    ],
)
def test_every_format_gives_the_same_database(tmp_path: Path, make: Any, name: str, first: str) -> None:
    report = write_texts(make(tmp_path), tmp_path / "out.db", vocab_size=120)
    db = TextDB(report["output"])
    assert (report["format"], report["captions"], report["images"]) == (name, 12, 6)
    assert db.images == [f"COCO_val2014_{n:012d}.npz" for n in range(6)]
    assert first in db.texts_of[db.images[0]]
    by_image = [{db[i].sentence for i in db.texts_of[image]} for image in db.images]
    assert by_image == [set(sentences) for _, sentences in scenes(6)]
    assert [db.image_of[i] for i in db.ids] == sorted(db.image_of[i] for i in db.ids)
    assert report["missing_images"] == report["empty"] == [] and report["without_image"] == 0


def test_what_the_database_says(tmp_path: Path, tokenizer: Tokenizer) -> None:
    captions = [Caption("b", "1.npz", "A red cube", "val"), Caption("a", "2.npz", "a BLUE ball")]
    db = TextDB(write_text_db(captions, tmp_path / "new" / "out.db", tokenizer, total=2))
    assert db.ids == ["b", "a"] and db.images == ["1.npz", "2.npz"]
    assert list(db["b"].input_ids) == tokenizer.encode("a red cube") and db["b"].extra == {"split": "val"}
    assert db.lengths == {i: len(db[i].input_ids) for i in db.ids}
    assert (db.cls, db.sep, db.mask, db.v_range) == (2, 3, 4, tokenizer.v_range)
    assert db.tokenizer == tokenizer.identity and tokenizer.matches(db["a"].tokenizer)
    assert set(db.record("a")) == {"id", "sent", "input_ids", "img_fname"}
    assert {"bert", "toker", "tokenizer", "fingerprint", "UNK"} <= set(db.meta)
    assert load_tokenizer(db.path).identity == tokenizer.identity
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.db"]


def test_the_map_grows(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossmodal.data.text_writer._FIRST_MAP", 1 << 16)
    draw = random.Random(0)
    captions = [Caption(str(n), f"{n // 5}.npz", " ".join(draw.choices(COLOURS, k=30)) + f" {n}") for n in range(3000)]
    db = TextDB(write_text_db(captions, tmp_path / "out.db", tokenizer))
    assert (db.path / "data.mdb").stat().st_size > 1 << 18
    assert db.ids == [caption.id for caption in captions]
    assert all(db[caption.id].sentence == caption.sentence for caption in captions)


def test_nothing_half_written_stays(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def broken() -> Iterator[Caption]:
        yield Caption("1", "1.npz", "a red cube")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_text_db(broken(), tmp_path / "out.db", tokenizer)
    assert list(tmp_path.iterdir()) == []
    # what a killed run left is in nobody's way
    (tmp_path / "out.db.partial").mkdir()
    (tmp_path / "out.db.partial" / "data.mdb").write_bytes(b"half")
    write_text_db([Caption("1", "1.npz", "a red cube")], tmp_path / "out.db", tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["out.db"]


def test_existing_output(tmp_path: Path, tokenizer: Tokenizer) -> None:
    output = tmp_path / "out.db"
    output.mkdir()
    write_text_db([Caption("1", "1.npz", "a red cube")], output, tokenizer)
    assert TextDB(output)["1"].sentence == "a red cube"
    for write in (
        lambda: write_text_db([Caption("1", "1.npz", "cube")], output, tokenizer),
        lambda: write_texts(as_coco(tmp_path), output),
    ):
        with pytest.raises(ConfigError, match=r"out\.db exists already"):
            write()
    # rebuilt in the process that has read it
    shutil.rmtree(output)
    write_text_db([Caption("1", "1.npz", "a blue cube")], output, tokenizer)
    assert TextDB(output)["1"].sentence == "a blue cube"


def test_what_cannot_be_written(tmp_path: Path, tokenizer: Tokenizer) -> None:
    twice = [Caption("1", "1.npz", "cube")] * 2
    for captions, message in (
        (twice, "two captions have the id '1'"),
        ([Caption("x" * 600, "1.npz", "cube")], "has 600 bytes"),
        ([Caption("", "1.npz", "cube")], "has 0 bytes"),
        ([], "not one caption"),
        ([Caption("1", "1.npz", " \u200d")], "caption '1' .* is left as word pieces"),
    ):
        with pytest.raises(DataError, match=message):
            write_text_db(captions, tmp_path / "out.db", tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_empty_captions_are_left_out_and_reported(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.tsv", "1.jpg\ta red cube\n1.jpg\t\u200d\n2.jpg\t \n")
    report = write_texts(source, tmp_path / "out.db", vocab_size=60)
    assert report["captions"] == report["images"] == 1 and report["empty"] == ["1", "2"]
    assert TextDB(report["output"]).ids == ["0"]


def test_splits(tmp_path: Path) -> None:
    source = as_karpathy(tmp_path)
    report = write_texts(source, tmp_path / "out.db", split="train+restval", vocab_size=120)
    assert report["splits"] == {"train": 4, "restval": 2}
    db = TextDB(report["output"])
    assert db.ids == ["0", "1", "2", "3", "8", "9"] and db["2"].extra == {"split": "restval"}
    with pytest.raises(DataError, match="split 'tset'; did you mean test"):
        read_captions(source, split="tset")
    with pytest.raises(ConfigError, match="leave the split out"):
        read_captions(as_coco(tmp_path), split="train")


def test_tsv_with_a_header(tmp_path: Path) -> None:
    text = "\ufeffid\tsplit\timage\tcaption\n\nc7\tval\tx/1.png\tone\ttwo\nc8\ttest\t2.png\tthree\n"
    captions, _ = read_captions(saved(tmp_path / "a.txt", text))
    assert captions == [
        Caption("c7", "x/1.png", "one\ttwo", "val"),
        Caption("c8", "2.png", "three", "test"),
    ]


def test_a_given_tokenizer_keeps_its_case(tmp_path: Path) -> None:
    cased = train_tokenizer(SENTENCES, 120, lowercase=False)
    cased.save(tmp_path / "cased")
    for n, given in enumerate((cased, tmp_path / "cased", str(tmp_path / "cased" / "tokenizer.json"))):
        report = write_texts(as_coco(tmp_path), tmp_path / f"{n}.db", tokenizer=given)
        db = TextDB(report["output"])
        assert db.tokenizer == cased.identity
        assert all(list(db[i].input_ids) == cased.encode(db[i].sentence or "") for i in db.ids)


def test_captions_without_their_image(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, _ in scenes(4):
        Image.new("RGB", (4, 4)).save(folder / name)
    report = write_texts(as_coco(tmp_path), tmp_path / "out.db", images=folder, vocab_size=120)
    assert (report["captions"], report["images"], report["without_image"]) == (8, 4, 4)
    assert report["missing_images"] == ["COCO_val2014_000000000004.npz", "COCO_val2014_000000000005.npz"]
    assert TextDB(report["output"]).images == [image_key(name, ".npz") for name, _ in scenes(4)]
    other = saved(tmp_path / "a.tsv", "elsewhere.jpg\ta red cube")
    with pytest.raises(DataError, match=r"elsewhere\.npz"):
        write_texts(other, tmp_path / "other.db", images=folder)
    assert not (tmp_path / "other.db").exists()


def test_captions_without_their_regions(tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    for name, _ in scenes(3):
        np.savez(
            dumps / image_key(name, ".npz"),
            features=np.ones((12, 4), np.float16),
            norm_bb=np.full((12, 6), 0.5, np.float16),
            conf=np.ones((12, 1), np.float16),
        )
    report = write_texts(as_coco(tmp_path), tmp_path / "out.db", images=dumps, vocab_size=120)
    assert (report["captions"], report["without_image"], len(report["missing_images"])) == (6, 6, 3)
    assert sorted(TextDB(report["output"]).images) == sorted(open_regions(dumps).ids)


def test_image_keys(tmp_path: Path) -> None:
    assert image_key("val2014/COCO_1.jpg", ".npz") == "COCO_1.npz"
    assert image_key("COCO_1.jpg", "") == "COCO_1" and image_key("x/COCO_1.jpg", None) == "COCO_1.jpg"
    source = saved(tmp_path / "a.tsv", "x/1.jpg\tone\ny/1.jpg\ttwo")
    with pytest.raises(DataError, match=r"'x/1\.jpg' and 'y/1\.jpg' .* key '1\.npz'"):
        write_texts(source, tmp_path / "out.db")
    with pytest.raises(DataError, match="not the name of an image"):
        image_key("", ".npz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", {"x": 1}, "none of those known"),
        ("a.json", {"images": [{"id": 1}], "annotations": []}, r"images\[0\] of .* has no 'file_name'"),
        (
            "a.json",
            {"images": [], "annotations": [{"id": 1, "image_id": 5, "caption": "x"}]},
            r"annotations\[0\] of .* image_id 5",
        ),
        (
            "a.json",
            {"images": [{"id": 5, "file_name": "a"}], "annotations": [{"id": 1, "image_id": 5, "caption": 3}]},
            r"'caption' in annotations\[0\] of .* is 3",
        ),
        ("a.json", {"images": [{"filename": "a"}]}, r"images\[0\] of .* has no 'sentences'"),
        ("a.json", [{"image": "a.jpg", "caption": [1]}], "entry 0 .* not a text"),
        ("a.json", [{"image": "a.jpg", "caption": None}], "entry 0 .* not a text"),
        ("a.json", [], "holds no captions"),
        ("a.txt", "one sentence", "none of those known"),
        ("a.txt", "", "none of those known"),
        ("a.tsv", "a.jpg\tone\nb.jpg two", "line 2 of .* has 1 columns"),
        ("a.token", "a.jpg#0\tone\nb.jpg\ttwo", "line 2 of .* image.jpg#0"),
        ("a.token", "a.jpg#0\tone\na.jpg#0\ttwo", "2 captions with the id 'a.jpg#0'"),
    ],
)
def test_broken_caption_files(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_captions(saved(tmp_path / name, content))


def test_unreadable_caption_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_captions(tmp_path / "nothing.json")
    (tmp_path / "a.tsv").write_bytes(b"a.jpg\t\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_captions(tmp_path / "a.tsv")
    with pytest.raises(ConfigError, match="did you mean coco"):
        read_captions(as_coco(tmp_path), format="cocoo")
    with pytest.raises(DataError, match="format 'flickr'"):
        read_captions(as_coco(tmp_path), format="flickr")


def test_writer_counts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with TextWriter(tmp_path / "out.db", tokenizer, meta={"annotation": "by hand"}) as writer:
        writer.add(Caption("1", "1.npz", "cube"))
        writer.add(Caption("2", "1.npz", ""))
    assert (writer.count, writer.empty) == (1, ["2"])
    assert TextDB(tmp_path / "out.db").meta["annotation"] == "by hand"


@pytest.mark.skipif(not (SHARED / "coco_photos_open").is_dir(), reason="../shared/data/coco_photos_open is missing")
def test_real_photos_and_captions(tmp_path: Path) -> None:
    source = SHARED / "coco_photos_open"
    report = write_texts(source / "captions.json", tmp_path / "out.db", images=source / "images", vocab_size=2000)
    assert (report["captions"], report["images"], report["vocab_size"]) == (830, 166, 2000)
    db = TextDB(report["output"])
    tokenizer = load_tokenizer(db.path)
    assert all(len(db.texts_of[image]) == 5 for image in db.images)
    assert all(tokenizer.unk not in db[i].input_ids for i in db.ids)
    assert not report["missing_images"] and not report["empty"]


@pytest.mark.skipif(  # real files of ../shared/data
    not all((SHARED / name).is_dir() for name in ("coco_karpathy_test", "coco_captions_val2017", "vocab")),
    reason="../shared/data/{coco_karpathy_test,coco_captions_val2017,vocab} are missing",
)
def test_real_caption_files(tmp_path: Path) -> None:
    source = SHARED / "coco_karpathy_test" / "coco_karpathy_test.json"
    bert = SHARED / "vocab" / "bert-base-uncased" / "vocab.txt"
    report = write_texts(source, tmp_path / "test.db", tokenizer=bert)
    assert (report["captions"], report["images"], report["tokenizer"]) == (25010, 5000, "bert-base-uncased")
    db = TextDB(tmp_path / "test.db")
    assert db.images[0] == "COCO_val2014_000000391895.npz"
    assert db["0"].input_ids[:4] == (1037, 2158, 2007, 1037)  # a man with a
    captions, format = read_captions(SHARED / "coco_captions_val2017" / "captions_val2017.json")
    assert (len(captions), format, captions[0].image) == (25014, "coco", "000000397133.jpg")


def test_divided_by_image_always_alike(tmp_path: Path) -> None:
    lines = [f"photo_{i}.jpg\ta cat on mat {i} number {n}" for i in range(20) for n in range(2)]
    (tmp_path / "captions.tsv").write_text("\n".join(lines))
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    parts = []
    for name in ("once", "again"):
        report = write_texts(tmp_path / "captions.tsv", tmp_path / name, vocab_size=100, divide=shares)
        assert report["parts"] == {"train": 32, "val": 4, "test": 4} and report["captions"] == 40
        dbs = {part: TextDB(tmp_path / name / part) for part in shares}
        assert len({db.tokenizer for db in dbs.values()}) == 1
        parts.append({part: set(db.images) for part, db in dbs.items()})
    assert parts[0] == parts[1]
    assert len(set().union(*parts[0].values())) == 20


@pytest.mark.parametrize(
    ("shares", "said"),
    [({"train": 0.5, "test": 0.4}, "add up to 1"), ({"train": 0.99, "test": 0.01}, "leave none for the part 'test'")],
)
def test_shares_that_do_not_divide_the_images(tmp_path: Path, shares: dict[str, float], said: str) -> None:
    (tmp_path / "captions.tsv").write_text("\n".join(f"photo_{i}.jpg\ta cat" for i in range(5)))
    with pytest.raises(CrossmodalError, match=said):
        write_texts(tmp_path / "captions.tsv", tmp_path / "out", vocab_size=50, divide=shares)
    assert not (tmp_path / "out").exists()
