from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import lmdb
import numpy as np
import pytest
from typer.testing import CliRunner

from crossmodal.commands.data import app
from crossmodal.data.check import check
from crossmodal.data.environments import close
from crossmodal.data.items import TextItem
from crossmodal.data.region_records import pack, unpack
from crossmodal.data.region_writer import write_region_db
from crossmodal.data.regions import open_regions
from crossmodal.errors import DataError

from .test_regions import Record, detections, write_lmdb


@dataclass
class Captions:
    """A text database in memory: caption id -> (word pieces, image)."""

    content: dict[str, tuple[int, str]]
    unreadable: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.ids = list(self.content)
        self.lengths = {text: pieces for text, (pieces, _) in self.content.items()}
        self.image_of = {text: image for text, (_, image) in self.content.items()}
        self.texts_of: dict[str, list[str]] = {}
        for text, image in self.image_of.items():
            self.texts_of.setdefault(image, []).append(text)

    def __getitem__(self, text: str) -> TextItem:
        if text in self.unreadable:
            raise DataError(f"caption {text} cannot be read")
        return TextItem(text, input_ids=(5,) * self.content[text][0])


def whole(seed: int = 0) -> Record:
    return detections(seed, boxes=12)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    write_region_db([("a.npz", whole()), ("b.npz", whole(1))], tmp_path, min_bb=12)
    return tmp_path / "feat_th0.2_max100_min12"


def test_nothing_to_report(good: Path) -> None:
    report = check(Captions({"1": (5, "a.npz"), "2": (6, "b.npz")}), open_regions(good))
    assert report.problems == {} == report.notes and report.exit_code == 0
    assert str(report) == "2 images and 2 texts read\nno problems"


def test_images(tmp_path: Path) -> None:
    nan, outside, swapped, wide = whole(), whole(), whole(), detections(boxes=12, width=9)
    nan["features"][3, 2] = np.nan
    outside["norm_bb"][0, 2] = 1.01
    swapped["norm_bb"][0, 4] = -0.3
    edge = whole()
    edge["norm_bb"][0, 2] = 1.001  # float16 rounding
    values = {
        "good.npz": pack(whole()),
        "edge.npz": pack(edge),
        "nan.npz": pack(nan),
        "outside.npz": pack(outside),
        "swapped.npz": pack(swapped),
        "wide.npz": pack(wide),
        "few.npz": pack(detections(boxes=5)),
        "bad.npz": pack(whole())[:-9],
    }
    report = check(None, open_regions(write_lmdb(tmp_path / "feat_numbb12", values)))
    found = {kind: [what.split()[0] for what in ids] for kind, ids in report.problems.items()}
    assert found.pop("unreadable images") == ["The"]
    assert "bad.npz" in report.problems["unreadable images"][0]
    assert found == {
        "images with NaN or infinite features": ["nan.npz"],
        "images with boxes outside [0,1]": ["outside.npz", "swapped.npz"],
        "images with features of another width": ["wide.npz"],
        "images with fewer boxes than the index says": ["few.npz"],
    }
    assert report.images == 8 and report.exit_code == 1
    assert "problem: 2 images with boxes outside [0,1]: outside.npz, swapped.npz" in str(report)


def test_texts_and_joins(good: Path) -> None:
    texts = Captions(
        {"1": (5, "a.npz"), "2": (700, "a.npz"), "3": (0, "a.npz"), "4": (5, "gone.npz"), "5": (5, "a.npz")},
        unreadable={"5"},
    )
    texts.texts_of["a.npz"].remove("1")
    texts.texts_of["a.npz"].append("4")
    report = check(texts, open_regions(good))
    assert report.problems == {
        "texts over 510 word pieces": ["2 (700)"],
        "empty texts": ["3"],
        "unreadable texts": ["caption 5 cannot be read"],
        "texts that their image does not list": ["1 of a.npz"],
        "texts listed by an image that is not theirs": ["4 by a.npz"],
        "missing images": ["gone.npz"],
    }
    assert report.notes == {"images without texts": ["b.npz"]}
    assert check(texts, open_regions(good), longest=4).problems["texts over 4 word pieces"][0] == "1 (5)"


def test_only_the_first_examples_are_printed(good: Path) -> None:
    texts = Captions({str(i): (5, f"gone{i}.npz") for i in range(9)})
    text = str(check(texts, open_regions(good)))
    assert "problem: 9 missing images: gone0.npz, gone1.npz, gone2.npz, ..." in text


def test_command(good: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(good)])
    assert result.exit_code == 0 and "no problems" in result.output
    result = CliRunner().invoke(app, ["check", str(good), "--texts", str(good)])
    assert result.exit_code == 1 and "unusable text database" in result.output


def test_conversion_command(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **whole())  # type: ignore[arg-type]
    arguments = [
        "regions",
        str(tmp_path),
        "--output",
        str(tmp_path / "db"),
        "--conf-th",
        "-1",
        "--num-bb",
        "12",
    ]
    result = CliRunner().invoke(app, [*arguments, "--from", "npz", "--flavour", "npz"])
    assert result.exit_code == 0, result.output
    assert "1 images, 12 to 12 boxes each, 8 numbers a box" in result.output
    assert open_regions(tmp_path / "db", conf_th=-1, num_bb=12).ids == ["a.npz"]
    assert CliRunner().invoke(app, ["check", str(tmp_path / "db"), "--conf-th", "-1", "--num-bb", "12"]).exit_code == 0


def flip_a_bit(folder: Path, image: str, at: int) -> None:
    with lmdb.open(str(folder), map_size=1 << 24) as env, env.begin(write=True) as txn:
        value = bytearray(txn.get(image.encode()))
        value[at] ^= 4
        txn.put(image.encode(), bytes(value))


@pytest.mark.parametrize("array", ["norm_bb", "features", "conf", "soft_labels"])
def test_a_flipped_bit_of_a_raw_database_is_named(tmp_path: Path, array: str) -> None:
    """In every array, also in those that models don't read."""
    records = [(f"{name}.npz", whole(seed)) for seed, name in enumerate("abc")]
    folder = write_region_db(records, tmp_path, flavour="raw", min_bb=12)
    assert CliRunner().invoke(app, ["check", str(folder)]).exit_code == 0
    value = memoryview(pack(whole(1), "raw"))
    close(folder)
    begin = unpack(value, [array])[array].__array_interface__["data"][0]
    flip_a_bit(folder, "b.npz", begin - np.frombuffer(value, np.uint8).__array_interface__["data"][0] + 1)
    result = CliRunner().invoke(app, ["check", str(folder)])
    assert result.exit_code == 1
    assert f"problem: 1 unreadable images: The record of b.npz in {folder} is damaged (its checksum" in result.output


def test_a_flipped_bit_of_labels_in_an_npz_database_is_named(tmp_path: Path) -> None:
    """The zip inside has a checksum an array, which is only seen by reading it."""
    folder = write_region_db([("a.npz", whole()), ("b.npz", whole(1))], tmp_path, flavour="npz", min_bb=12)
    value = pack(whole(1), "npz")
    flip_a_bit(folder, "b.npz", value.index(b"soft_labels.npy") + 60)
    result = CliRunner().invoke(app, ["check", str(folder)])
    assert result.exit_code == 1 and "The record of b.npz" in result.output


def test_which_flavour_is_checked(tmp_path: Path) -> None:
    for flavour in ("raw", "npz"):
        folder = write_region_db([("a.npz", whole())], tmp_path, flavour=flavour, min_bb=12)
    flip_a_bit(folder, "a.npz", 80)
    arguments = ["check", str(tmp_path), "--min-bb", "12"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--flavour", "raw"]).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--flavour", "npz"]).exit_code == 1


def test_a_damaged_first_image_does_not_end_the_check(tmp_path: Path) -> None:
    values = {"a.npz": pack(whole())[:-9], "b.npz": pack(whole()), "c.npz": pack(detections(boxes=12, width=9))}
    report = check(None, open_regions(write_lmdb(tmp_path / "feat_numbb12", values)))
    assert report.images == 3 and list(report.problems) == [
        "unreadable images",
        "images with features of another width",
    ]
    report = check(None, open_regions(write_lmdb(tmp_path / "mine", values)))  # box counts need every image
    assert list(report.problems) == [
        "unusable box counts",
        "unreadable images",
        "images with features of another width",
    ]
