"""Caption files that are damaged or something else, through the command line: one sentence, exit code 2."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossmodal.data.captions import read_captions
from crossmodal.data.region_writer import write_region_db
from crossmodal.data.regions import open_regions
from crossmodal.data.texts import TextDB

from ..commands import command, refused
from .damage import DATABASE, record, train

Said = pytest.CaptureFixture[str]


IMAGES = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 7, "image_id": 1, "caption": "a dog"} | changes


CAPTION_FILES: list[tuple[str, Any, str]] = [
    ("a.json", b"", "is not JSON"),
    ("a.json", b"{'images': []}", "is not JSON"),
    ("a.json", b"[" * 100_000, "is not JSON (its brackets are nested too deeply)"),
    ("a.json", b'{"images": "\xff"}', "is not UTF-8 text"),
    ("a.json", 3, "the format of the caption file"),
    ("a.json", {"captions": []}, "the format of the caption file"),
    ("a.json", {"images": {}, "annotations": []}, "'images' in the file of"),
    ("a.json", {"images": IMAGES, "annotations": 5}, "'annotations' in the file of"),
    ("a.json", {"images": [3], "annotations": []}, "images[0] of"),
    ("a.json", {"images": IMAGES, "annotations": []}, "holds no captions"),
    ("a.json", {"images": [*IMAGES, IMAGES[0]], "annotations": [annotation()]}, "have the id '1'"),
    ("a.json", {"images": IMAGES, "annotations": [annotation(), annotation()]}, "holds 2 captions with the id '7'"),
    ("a.json", {"images": IMAGES, "annotations": [annotation(image_id=[1])]}, "'image_id' in annotations[0] of"),
    ("a.json", {"images": IMAGES, "annotations": [annotation(image_id=3)]}, "image_id 3, which is not among its"),
    ("a.json", {"images": IMAGES, "annotations": [annotation(id=None)]}, "is None, not a name"),
    ("a.json", {"images": IMAGES, "annotations": [annotation(caption=["a"])]}, "is ['a'], not a text"),
    ("a.json", {"images": IMAGES, "annotations": [annotation(caption="a \ud83d dog")]}, "half a character"),
    ("a.json", {"images": [{"filename": "a.jpg", "sentences": 3}]}, "'sentences' in images[0] of"),
    ("a.json", {"images": [{"filename": "a.jpg", "sentences": ["a dog"]}]}, "images[0].sentences[0] of"),
    ("a.json", {"images": [{"filename": None, "sentences": []}]}, "'filename' in images[0] of"),
    ("a.json", {"images": [{"filename": "a.jpg", "split": [1], "sentences": []}]}, "'split' in images[0] of"),
    ("a.json", [{"image": "a.jpg"}], "entry 0 of"),
    ("a.json", ["a.jpg"], "entry 0 of"),
    ("a.json", [], "holds no captions"),
    ("a.tsv", b"", "the format of the caption file"),
    ("a.tsv", b"\n \n", "the format of the caption file"),
    ("a.tsv", b"a.jpg\ta dog\nb.jpg a cat\n", "line 2 of"),
    ("a.tsv", "a.jpg\tein Käse\n".encode("latin-1"), "is not UTF-8 text"),
    ("a.tsv", b"\x89PNG\r\n\x1a\n\x00\x00", "is not UTF-8 text"),
    ("a.tsv", b"\ta dog\n", "is not the name of an image file"),
    ("a.tsv", b"id\timage\tcaption\n1\ta.jpg\ta dog\n1\tb.jpg\ta cat\n", "holds 2 captions with the id '1'"),
    ("a.token", b"a.jpg#0\ta dog\na.jpg#0\ta cat\n", "holds 2 captions with the id 'a.jpg#0'"),
    ("a.token", b"a.jpg#0\ta dog\na.jpg\ta cat\n", "line 2 of"),
    ("a.tsv", "a.jpg\t\u200d\nb.jpg\t \n".encode(), "hold no text to train a tokenizer on"),
]


@pytest.mark.parametrize(("name", "content", "problem"), CAPTION_FILES)
def test_caption_files(tmp_path: Path, capsys: Said, name: str, content: Any, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    said = refused(capsys, "data", "texts", path, "--output", tmp_path / "out.db")
    assert problem in said and said.count("\n") == 0
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_captions_without_words_are_left_out_and_named(tmp_path: Path, capsys: Said) -> None:
    path = tmp_path / "a.json"
    annotations = [annotation(), annotation(id=8, caption=""), annotation(id=9, caption=" \n")]
    path.write_text(json.dumps({"images": IMAGES, "annotations": annotations}))
    assert command("data", "texts", path, "--output", tmp_path / "out.db") == 0
    assert "2 captions left out: no word piece, such as 8, 9" in capsys.readouterr().out
    assert TextDB(tmp_path / "out.db").ids == ["7"]


def test_folders_and_files_in_each_others_place(tmp_path: Path, capsys: Said) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("a.jpg\ta dog\n")
    out = ["--output", tmp_path / "out"]
    assert f"the caption file {folder} cannot be read (Is a directory)" in refused(
        capsys, "data", "texts", folder, *out
    )
    assert "cannot be read (No such file" in refused(capsys, "data", "texts", tmp_path / "nothing", *out)
    assert f"{file} is not a .tsv, .h5 or .hdf5 file" in refused(capsys, "data", "regions", file, *out)
    assert f"{folder} has no database" in refused(capsys, "data", "regions", folder, *out)
    assert f"{folder} is a folder, which tsv data isn't" in refused(
        capsys, "data", "regions", folder, "--from", "tsv", *out
    )
    assert f"{tmp_path / 'nothing'} does not exist" in refused(capsys, "data", "check", tmp_path / "nothing")
    (tmp_path / "x.npz").mkdir()
    assert "Is a directory" in refused(capsys, "data", "regions", tmp_path, "--from", "npz", *out)
    assert not list((tmp_path / "out").glob("feat*[0-9]/data.mdb"))


@pytest.fixture
def ordinary() -> Iterator[None]:
    """Without what root is allowed beyond the modes of files: Linux's capabilities to pass them over."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    now = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, of the lower 32 and of the upper
    assert libc.capget(header, now) == 0
    less = (ctypes.c_uint32 * 6)(*now)
    less[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, less) == 0
    yield
    assert libc.capset(header, now) == 0


@pytest.mark.usefixtures("ordinary")
def test_files_that_may_not_be_read(world: Path, tmp_path: Path, capsys: Said) -> None:
    captions = tmp_path / "a.tsv"
    captions.write_text("a.jpg\ta dog\n")
    captions.chmod(0)
    said = refused(capsys, "data", "texts", captions, "--output", tmp_path / "out.db")
    assert f"the caption file {captions} cannot be read (Permission denied)" in said
    data = world / "regions" / "train" / DATABASE / "data.mdb"
    data.chmod(0)
    assert f"{data} cannot be read (Permission denied)" in refused(capsys, *train(world, tmp_path / "run"))


def test_names_in_other_alphabets(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"image": "犬.jpg", "caption": "un chien \U0001f415 naïf"}]))
    captions, _ = read_captions(path)
    assert captions[0].image == "犬.jpg" and captions[0].sentence == "un chien \U0001f415 naïf"
    folder = write_region_db([("犬.npz", record())], tmp_path / "db")
    assert open_regions(folder)["犬"].id == "犬.npz"
