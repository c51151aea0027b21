"""Databases that lack files or do not belong together, through the command line: one sentence, exit code 2."""

from __future__ import annotations

import struct
from pathlib import Path

import lmdb
import pytest

from crossmodal.data.environments import close

from ..commands import command, databases, refused
from .damage import COUNTS, DATABASE, train

Said = pytest.CaptureFixture[str]


# -- index files


def test_an_image_database_without_its_box_counts(world: Path, tmp_path: Path, capsys: Said) -> None:
    (world / "regions" / "train" / COUNTS).unlink()
    said = refused(capsys, *train(world, tmp_path / "run"))
    assert f"{world / 'regions' / 'train'} has no database for these options" in said
    assert f"{DATABASE} (conf_th=0.2, max_bb=100, min_bb=10" in said and f"{COUNTS} is missing beside it" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no JSON object of box counts"),
        ('{"train_00.npz": 5}', "gives no box count for 'train_01.npz'"),
        ('{"train_00.npz": -5}', "gives no box count for 'train_00.npz'"),
    ],
)
def test_box_counts_that_are_none(world: Path, tmp_path: Path, capsys: Said, content: str, problem: str) -> None:
    (world / "regions" / "train" / COUNTS).write_text(content)
    said = refused(capsys, *train(world, tmp_path / "run"))
    assert COUNTS in said or "index" in said
    assert problem in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({b"__keys__": b"{}"}, "is not a list of names, each once"),
        ({b"__keys__": b"["}, "is not JSON"),
        ({b"__keys__": b"[]"}, "holds no image"),
        ({b"__keys__": b"[3]"}, "is not a list of names, each once"),
        ({b"__keys__": b'["train_00.npz", "train_00.npz"]'}, "is not a list of names, each once"),
        ({b"__keys__": b'["train_00.npz", "nobody.npz"]'}, "gives no box count for 'nobody.npz'"),
        ({b"__keys__": None, b"\xff.npz": b""}, "is damaged ('utf-8' codec"),
    ],
)
def test_lists_of_images_that_are_none(
    world: Path, tmp_path: Path, capsys: Said, entries: dict[bytes, bytes | None], problem: str
) -> None:
    folder = world / "regions" / "train" / DATABASE
    with lmdb.open(str(folder)) as env, env.begin(write=True) as txn:
        for key, value in entries.items():
            txn.put(key, value) if value is not None else txn.delete(key)
    said = refused(capsys, *train(world, tmp_path / "run"))
    assert problem in said and str(folder) in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["meta.json", "id2len.json", "txt2img.json", "img2txts.json", "data.mdb"])
def test_a_text_database_without_one_of_its_files(
    world: Path, trained: Path, tmp_path: Path, capsys: Said, name: str
) -> None:
    (world / "texts" / "test.db" / name).unlink()
    words = ["test", "--checkpoint", trained, *databases(world), "--output", tmp_path / "out"]
    said = refused(capsys, *words)
    assert f"{world / 'texts' / 'test.db'} is not a whole text database: {name} missing" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("id2len.json", "{", "cannot be read as JSON"),
        ("id2len.json", "", "cannot be read as JSON"),
        ("id2len.json", "[" * 100_000, "nested too deeply"),
        ("id2len.json", '{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        ("id2len.json", '{"a": "three"}', "gives 'a' 'three' instead of a length"),
        ("id2len.json", '{"a": NaN}', "gives 'a' nan instead of a length"),
        ("txt2img.json", '["a"]', "holds no JSON object"),
        ("txt2img.json", '{"a": ["b.npz"]}', "gives 'a' ['b.npz'] instead of the name of an image"),
        ("img2txts.json", '{"b.npz": "a"}', "gives 'b.npz' 'a' instead of a list of captions, each once"),
        ("img2txts.json", '{"b.npz": ["a", "a"]}', "instead of a list of captions, each once"),
        ("img2txts.json", "{}", "are not listed under their image"),
        ("meta.json", "{}", "lacks one of CLS, SEP, MASK and v_range"),
        ("meta.json", '{"CLS": 2, "SEP": 3, "MASK": 4, "v_range": [5, 4]}', "or they are not ids below the end of"),
        ("meta.json", '{"CLS": Infinity, "SEP": 3, "MASK": 4, "v_range": [5, 9]}', "lacks one of CLS, SEP, MASK"),
        ("meta.json", '{"CLS": 2, "SEP": 3, "MASK": 4, "v_range": "59"}', "lacks one of CLS, SEP, MASK"),
    ],
)
def test_indexes_of_captions_that_are_none(
    world: Path, tmp_path: Path, capsys: Said, name: str, content: str, problem: str
) -> None:
    path = world / "texts" / "train.db" / name
    path.write_text(content)
    said = refused(capsys, *train(world, tmp_path / "run"))
    assert problem in said
    assert str(path) in said or "img2txts.json" in said
    assert not (tmp_path / "run").exists()


# -- files of an LMDB


def test_a_cut_file(world: Path, trained: Path, tmp_path: Path, capsys: Said) -> None:
    for kind, path in (("images", world / "regions" / "train" / DATABASE), ("texts", world / "texts" / "train.db")):
        data = path / "data.mdb"
        whole = data.read_bytes()
        for length in (len(whole) - 1, len(whole) // 2, 4096, 100, 0):
            data.write_bytes(whole[:length])
            said = refused(capsys, *train(world, tmp_path / "run"))
            assert str(path) in said, (kind, length)
        data.write_bytes(whole)
        close(path)


def test_a_file_that_is_none(world: Path, tmp_path: Path, capsys: Said) -> None:
    data = world / "regions" / "train" / DATABASE / "data.mdb"
    data.write_bytes(b"<html>404 Not Found</html>" * 1000)
    assert f"{data} cannot be opened as LMDB" in refused(capsys, *train(world, tmp_path / "run"))
    data.unlink()
    data.mkdir()
    assert str(data.parent) in refused(capsys, *train(world, tmp_path / "run"))


def test_pages_that_would_crash_lmdb(world: Path, tmp_path: Path, capsys: Said) -> None:
    """Looked at before LMDB is: the second ends a process that reads it (SIGBUS)."""
    path = world / "texts" / "train.db"
    data = path / "data.mdb"
    whole = data.read_bytes()
    size = 4096
    leaves = [at for at in range(2 * size, len(whole), size) if whole[at + 10 : at + 12] == b"\x02\x00"]
    node = struct.unpack_from("=H", whole, leaves[0] + 16)[0]
    damages = {
        "a page of its tree is not what it should be": (leaves[0] + 10, b"\x01\x00"),
        "an entry begins outside its page": (leaves[0] + 16, b"\xfe\xff"),
        "an entry goes beyond its page": (leaves[0] + node, b"\xff\xff\xff\x7f"),
    }
    for problem, (at, patch) in damages.items():
        content = bytearray(whole)
        content[at : at + len(patch)] = patch
        data.write_bytes(content)
        assert f"{data} is damaged ({problem})" in refused(capsys, *train(world, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# -- images and captions that do not join


def test_captions_of_images_that_are_not_there(world: Path, trained: Path, tmp_path: Path, capsys: Said) -> None:
    texts, images = world / "texts" / "test.db", world / "regions" / "val"
    missing = "8 of 8 images named by the captions"
    words = ["test", "--checkpoint", trained, "--txt_db", texts, "--img_db", images, "--output", tmp_path / "out"]
    said = refused(capsys, *words)
    assert f"{missing} in {texts} have no regions in {images / DATABASE} (first: test_00.npz, test_01.npz" in said
    said = refused(capsys, *train(world, tmp_path / "run"), "--set", f"data.train.images={images}")
    assert "24 of 24 images named by the captions" in said
    assert command("data", "check", images, "--texts", texts) == 1
    out = capsys.readouterr().out
    assert "problem: 8 missing images: test_00.npz, test_01.npz, test_02.npz" in out
    assert "note: 8 images without texts: val_00.npz" in out
    assert not (tmp_path / "out").exists() and not (tmp_path / "run").exists()


def test_images_without_captions_are_no_mistake_but_said(world: Path, tmp_path: Path, capsys: Said) -> None:
    source = tmp_path / "captions.tsv"
    source.write_text("val_00.jpg\ta red dog\nval_01.jpg\ta cat\nelsewhere.jpg\ta tree\nval_01.jpg\t\u200d\n")
    images = world / "regions" / "val"
    assert command("data", "texts", source, "--output", tmp_path / "val.db", "--images", images) == 0
    out = capsys.readouterr().out
    assert "2 captions of 2 images" in out
    assert f"1 captions left out: 1 images are not in {images}, such as elsewhere.npz" in out
    assert f"6 images of {images} have no caption, such as val_02.npz, val_03.npz, val_04.npz" in out
    assert "1 captions left out: no word piece, such as 3" in out
    assert command("data", "check", images, "--texts", tmp_path / "val.db") == 0
    assert "note: 6 images without texts: val_02.npz" in capsys.readouterr().out


def test_no_caption_has_its_image(world: Path, tmp_path: Path, capsys: Said) -> None:
    source = tmp_path / "captions.tsv"
    source.write_text("elsewhere.jpg\ta tree\n")
    words = ["data", "texts", source, "--output", tmp_path / "out.db", "--images", world / "regions" / "val"]
    assert f"no image of {source} (such as 'elsewhere.npz') is in" in refused(capsys, *words)
    assert not (tmp_path / "out.db").exists()
