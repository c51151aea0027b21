"""Tars of webdataset: samples by their names, read where they lie."""

from __future__ import annotations

import gzip
import io
import logging
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest

from crossmodal.data import tars
from crossmodal.data.batches import Pixels
from crossmodal.data.corpus import open_corpus
from crossmodal.data.pictures import open_picture
from crossmodal.data.tars import TarPictures, TarTexts, is_tars, read_samples
from crossmodal.errors import ConfigError, DataError

from .picture_files import picture, processor, sample_files, sentence, write_tar


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two tars of three samples, the names in the second being those of the first."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        write_tar(folder / f"{shard:05d}.tar", sample_files(range(3)))
    return folder


def test_captions_and_pictures_join_by_tar_and_name(shards: Path) -> None:
    texts, pictures = TarTexts(shards), TarPictures(shards)
    ids = [f"{shard:05d}/{number:04d}" for shard in range(2) for number in range(3)]
    assert texts.ids == texts.images == list(pictures.ids) == ids
    order = random.Random(0).sample(ids, len(ids))
    for id in order:
        number = int(id[-4:])
        assert texts[id].sentence == sentence(number)
        assert np.array_equal(np.array(open_picture(pictures[id])), np.array(picture(number)))
    again = pickle.loads(pickle.dumps(pictures))
    assert np.array_equal(np.array(open_picture(again[ids[4]])), np.array(picture(1)))


def test_a_corpus_of_tars_is_as_any_other(shards: Path) -> None:
    corpus = open_corpus([str(shards)], [str(shards)])
    assert len(corpus) == 6 and corpus.image_of_texts().tolist() == list(range(6))
    made = processor()
    items = next(corpus.batches("image", corpus.image_keys[:2], made))
    assert isinstance(items, Pixels) and items.values.equal(made.pixels([picture(0), picture(1)]).values)


def test_tars_are_named_by_a_folder_a_file_or_a_row_of_numbers(shards: Path) -> None:
    assert len(read_samples(shards / "{00000..00001}.tar")) == 6
    assert len(read_samples(shards / "00001.tar")) == 3
    assert is_tars(shards) and is_tars(shards / "{0..9}.tar") and not is_tars(shards.parent)
    with pytest.raises(DataError, match=r"2 of the 4 tars .* are missing \(first: .*00002\.tar\)"):
        read_samples(shards / "{00000..00003}.tar")
    with pytest.raises(DataError, match="0 of the 0 tars"):
        read_samples(shards / "{3..1}.tar")


def test_a_sample_without_one_half_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = sample_files(range(3))
    del files["0001.txt"], files["0002.png"]
    files |= {"0000.json": b"{}", "deep/0009.seg.png": b""}
    write_tar(tmp_path / "x.tar", files)
    with caplog.at_level(logging.WARNING):
        assert list(read_samples(tmp_path / "x.tar")) == ["x/0000"]
    assert "2 pictures without caption or captions without picture are left out" in caplog.text


def test_the_index_is_built_once_for_both_sides_and_anew_for_a_changed_tar(shards: Path) -> None:
    first = read_samples(shards)
    assert read_samples(shards) is first
    write_tar(shards / "00002.tar", sample_files([7]))
    assert len(read_samples(shards)) == 7


def test_damaged_tars_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "x.tar", sample_files(range(2)))
    whole = path.read_bytes()
    pictures = TarPictures(path)
    path.write_bytes(whole[:700])
    with pytest.raises(DataError, match=r"x\.tar ends within 0000\.png; copy it again"):
        pictures["x/0000"]
    with pytest.raises(DataError, match=r"x\.tar (ends within 0000\.png|cannot be read as an uncompressed tar)"):
        read_samples(path)
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match=r"x\.tar cannot be read as an uncompressed tar"):
        read_samples(path)
    write_tar(path, {"a.txt": b"\xff", "a.png": b""})
    with pytest.raises(DataError, match=r"a\.txt in .*x\.tar is no UTF-8 text"):
        read_samples(path)
    write_tar(path, {"a.txt": b"words", "a.png": b"no picture"})
    with pytest.raises(DataError, match=r"a\.png in .*x\.tar cannot be read as a picture"):
        TarPictures(path)["x/a"]
    write_tar(path, {"a.txt": b"words", "b.png": b""})
    with pytest.raises(DataError, match=r"x\.tar holds no picture with a \.txt of the same name beside it"):
        read_samples(path)
    monkeypatch.setattr(tars, "LARGEST_CAPTION", 4)
    write_tar(path, {"a.txt": b"words"})
    with pytest.raises(DataError, match=r"a\.txt in .* has 5 bytes, which is no caption"):
        read_samples(path)
    monkeypatch.setattr(tars, "LARGEST_PICTURE", 3)
    with pytest.raises(DataError, match=r"a\.txt in .* has 0 MiB; take it out"):
        read_samples(path)


def test_a_picture_that_breaks_off_is_named(tmp_path: Path) -> None:
    encoded = io.BytesIO()
    picture(0, (64, 64)).save(encoded, "JPEG")
    path = write_tar(tmp_path / "x.tar", {"a.jpg": encoded.getvalue()[:-200], "a.txt": b"words"})
    with pytest.raises(DataError, match=r"x\.tar:a\.jpg cannot be read as a picture"):
        open_picture(TarPictures(path)["x/a"])


def test_links_in_a_tar_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, sample_files([0]))
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("0001.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("0001.txt"))
    assert list(read_samples(path)) == ["x/0000"]


def test_options_of_other_files_are_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"split is for Karpathy's JSON, and .* is tars; leave it out"):
        open_corpus([str(shards)], [str(shards)], split="val")
