"""VinVL folders: what they hold, what doesn't fit together in them, and their conversion to image databases."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmodal.data.processors import UniterProcessor
from crossmodal.data.region_db import pack_tags, unpack_tags
from crossmodal.data.region_writer import convert_region_db, write_region_db
from crossmodal.data.regions import open_regions
from crossmodal.data.vinvl_regions import VinvlRegions
from crossmodal.data.vinvl_writer import write_vinvl as write_vinvl_folder
from crossmodal.errors import ConfigError, DataError
from tests.commands import command
from tests.data.vinvl_folders import write_tsv, write_vinvl

COUNTS = {"391895": 3, "7": 12, "522418": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_vinvl(tmp_path / "vinvl", COUNTS)
    return tmp_path / "vinvl"


def objects(folder: Path, image: str) -> list[dict]:
    lines = [line.split("\t") for line in (folder / "predictions.tsv").read_text().splitlines()]
    found = json.loads(next(text for name, text in lines if name == image))
    return found["objects"] if isinstance(found, dict) else found


def test_a_folder_or_its_features_are_recognised_and_read(tmp_path: Path) -> None:
    rows = write_vinvl(tmp_path, COUNTS)
    for path in (tmp_path, tmp_path / "features.tsv"):
        db = open_regions(path)
        assert isinstance(db, VinvlRegions)
        assert db.ids == [f"{image}.npz" for image in COUNTS]
        assert db.lengths == {f"{image}.npz": count for image, count in COUNTS.items()}
        for image, whole in rows.items():
            item = db[image]
            assert np.array_equal(np.concatenate([item.features, item.boxes], axis=1), whole)
            assert item.tags == tuple(o["class"] for o in objects(tmp_path, image))
            assert item.confidence is not None
            assert np.allclose(item.confidence, [o["conf"] for o in objects(tmp_path, image)])


def test_the_rule_bounds_the_boxes_and_neither_confidence_nor_the_tags(folder: Path) -> None:
    db = open_regions(folder, conf_th=0.99, max_bb=5, min_bb=1)
    assert db.lengths["7.npz"] == 5 and len(db["7"]) == 5 and len(db["7"].tags) == 12
    assert len(open_regions(folder, conf_th=-1, num_bb=4)["7"]) == 4


def test_it_reads_in_other_processes(folder: Path) -> None:
    db = open_regions(folder)
    copy = pickle.loads(pickle.dumps(db))
    load = pickle.loads(pickle.dumps(db.loader("7.npz")))
    assert np.array_equal(copy["7"].features, db["7"].features) and np.array_equal(load()["features"], db["7"].features)


def test_a_list_of_objects_alone_and_other_counts_of_objects(folder: Path) -> None:
    rows = [["391895", json.dumps(objects(folder, "391895"))], ["7", json.dumps(objects(folder, "7")[:2])]]
    write_tsv(folder / "predictions.tsv", rows)
    db = open_regions(folder)
    assert db["391895"].confidence is not None
    item = db["7"]
    assert len(item.tags) == 2 and len(item) == 12 and item.confidence is None
    assert "522418" not in db and db.ids == ["391895.npz", "7.npz"]


def test_without_predictions_there_are_no_tags(folder: Path) -> None:
    (folder / "predictions.tsv").unlink()
    assert open_regions(folder)["7"].tags == () and open_regions(folder)["7"].confidence is None


def test_without_an_index_the_lines_are_found(folder: Path) -> None:
    before = open_regions(folder)["522418"]
    for name in ("features.lineidx", "predictions.lineidx", "imageid2idx.json"):
        (folder / name).unlink()
    after = open_regions(folder, kind="vinvl")["522418"]
    assert np.array_equal(before.features, after.features) and before.tags == after.tags


@pytest.mark.parametrize("name", ["features", "predictions"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda starts: starts[:-1],
        lambda starts: [*starts, starts[-1] + 5],
        lambda starts: [starts[0], starts[1] + 1, *starts[2:]],
        lambda starts: [s + 1 for s in starts],
        lambda starts: starts[::-1],
        lambda starts: [],
        lambda starts: [*starts[:-1], 10**9],
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    folder: Path, name: str, damage: Callable[[list[int]], list[int]]
) -> None:
    index = folder / f"{name}.lineidx"
    starts = damage([int(line) for line in index.read_text().split()])
    index.write_text("\n".join(map(str, starts)))
    with pytest.raises(DataError, match=rf"{name}\.lineidx is not the index of .*{name}\.tsv"):
        open_regions(folder).lengths  # noqa: B018


def test_an_index_that_is_no_numbers_is_refused(folder: Path) -> None:
    (folder / "features.lineidx").write_text("0\nten\n")
    with pytest.raises(DataError, match=r"features\.lineidx does not hold one number a line"):
        open_regions(folder).ids  # noqa: B018


@pytest.mark.parametrize("numbers", ['{"391895": 1}', '{"391895": 7}', '{"1": 0}', "[0]", "{", '{"7": "1"}'])
def test_line_numbers_that_do_not_fit_are_refused(folder: Path, numbers: str) -> None:
    (folder / "imageid2idx.json").write_text(numbers)
    with pytest.raises(DataError, match=r"imageid2idx\.json"):
        open_regions(folder).ids  # noqa: B018


@pytest.mark.parametrize(
    "cut", [lambda c: c[:-4], lambda c: c[:-1], lambda c: "*" + c[1:], lambda c: "", lambda c: c + c[:8]]
)
def test_features_of_the_wrong_length_are_refused_by_image(folder: Path, cut: Callable[[str], str]) -> None:
    lines = [line.split("\t") for line in (folder / "features.tsv").read_text().splitlines()]
    lines[1][2] = cut(lines[1][2])
    write_tsv(folder / "features.tsv", lines)
    db = open_regions(folder)
    with pytest.raises(DataError, match=r"image 7 in .*features\.tsv has"):
        db["7"]
    assert len(db["391895"]) == 3


def test_features_of_another_width_are_refused(folder: Path) -> None:
    rows = [line.split("\t") for line in (folder / "features.tsv").read_text().splitlines()]
    write_vinvl(folder, COUNTS, features=11)
    other = [line.split("\t") for line in (folder / "features.tsv").read_text().splitlines()]
    write_tsv(folder / "features.tsv", [rows[0], other[1], rows[2]])
    with pytest.raises(DataError, match=r"Image 7 .* has features 17 wide, and the other images have 16"):
        open_regions(folder)["7"]


def test_an_image_that_stands_twice_and_lines_without_numbers_are_refused(folder: Path) -> None:
    lines = [line.split("\t") for line in (folder / "features.tsv").read_text().splitlines()]
    write_tsv(folder / "features.tsv", [*lines, lines[0]])
    with pytest.raises(DataError, match="line 4, holds image 391895 again"):
        open_regions(folder).ids  # noqa: B018
    write_tsv(folder / "features.tsv", [lines[0], ["7", "many", "AAAA"]])
    with pytest.raises(DataError, match="line 2, does not begin with an image id and a number of boxes"):
        open_regions(folder).ids  # noqa: B018


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"objects": [', "holds no JSON"),
        ('{"objects": 5}', "no list of objects"),
        ('[{"conf": 1}]', "no list of objects"),
        ("[1]", "no list of objects"),
        ('{"image_w": 0, "objects": []}', "a size of"),
        ('[{"class": "dog", "conf": "high"}]', "a conf that is not a number"),
        ('[{"class": "dog", "conf": NaN}]', "a conf that is not finite"),
        ('[{"class": "dog", "rect": [1, 2]}]', "a rect that is not 4 numbers"),
    ],
)
def test_damaged_predictions_are_refused_by_image(folder: Path, text: str, said: str) -> None:
    rest = [[image, json.dumps(objects(folder, image))] for image in ("391895", "522418")]
    write_tsv(folder / "predictions.tsv", [*rest, ["7", text]])
    db = open_regions(folder)
    with pytest.raises(DataError, match=f"The line of image 7 in .*predictions.tsv.*{said}"):
        db["7"]
    assert db["391895"].tags


def test_an_unknown_kind_is_refused_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'vinv' is no kind of region databases; did you mean vinvl"):
        open_regions(folder, kind="vinv")
    with pytest.raises(DataError, match=r"holds no features\.tsv"):
        open_regions(folder.parent, kind="vinvl")


names = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))


@given(names)
@settings(max_examples=50)
def test_tags_come_back_as_they_were_packed(tags: list[str]) -> None:
    packed = pack_tags(tags)
    assert packed.dtype == np.uint8 and packed.shape[0] == len(tags)
    assert unpack_tags(packed) == tuple(tags)


@pytest.mark.parametrize("flavour", ["raw", "msgpack", "npz"])
def test_a_folder_converts_to_every_flavour_and_on_without_loss(folder: Path, tmp_path: Path, flavour: str) -> None:
    assert command("data", "regions", "--from", "vinvl", folder, "-o", tmp_path / "db", "--flavour", flavour) == 0
    first = open_regions(tmp_path / "db")
    again = {"raw": "npz", "msgpack": "raw", "npz": "msgpack"}[flavour]
    second = open_regions(convert_region_db(first, tmp_path / "again", again))  # type: ignore[arg-type]
    source = open_regions(folder)
    for db in (first, second):
        assert db.ids == source.ids and db.lengths == source.lengths
        for image in source.ids:
            expected, found = source[image], db[image]
            assert found.tags == expected.tags and found.detic is None
            for name in ("features", "boxes", "confidence"):
                assert np.array_equal(getattr(found, name), getattr(expected, name))
                assert getattr(found, name).dtype == np.float32


def test_conversion_keeps_boxes_of_low_confidence_unless_it_is_asked_for_confident_ones(
    folder: Path, tmp_path: Path
) -> None:
    found = objects(folder, "7")
    for o in found:
        o["conf"] = 0.1
    write_tsv(folder / "predictions.tsv", [["7", json.dumps(found)]])
    assert command("data", "regions", folder, "-o", tmp_path / "all") == 0
    assert len(open_regions(tmp_path / "all")["7"]) == 12
    assert command("data", "regions", folder, "-o", tmp_path / "some", "--conf-th", 0.2) == 0
    kept = open_regions(tmp_path / "some")["7"]
    assert len(kept) == 10 and len(kept.tags) == 12


def test_tags_are_whole_where_fewer_boxes_are_kept(folder: Path, tmp_path: Path) -> None:
    db = open_regions(folder)
    written = write_region_db(db.sources(), tmp_path / "db", max_bb=2, chosen=True, flavour="raw")
    item = open_regions(written)["7"]
    assert len(item) == 2 and item.tags == db["7"].tags


def test_damaged_tags_are_refused(folder: Path, tmp_path: Path) -> None:
    record = open_regions(folder).record("7") | {"tags": np.zeros((3, 2), np.float32)}
    written = write_region_db([("7.npz", record)], tmp_path / "db", chosen=True)
    with pytest.raises(DataError, match=r"The tags of 7\.npz are damaged"):
        open_regions(written)["7"]


def test_a_database_becomes_a_vinvl_folder_again(folder: Path, tmp_path: Path) -> None:
    assert command("data", "regions", folder, "-o", tmp_path / "db", "--flavour", "raw") == 0
    assert command("data", "regions", tmp_path / "db", "-o", tmp_path / "again", "--flavour", "vinvl") == 0
    source, again = open_regions(folder), open_regions(tmp_path / "again")
    assert isinstance(again, VinvlRegions) and again.ids == source.ids
    for image in source.ids:
        expected, found = source[image], again[image]
        assert found.tags == expected.tags
        for name in ("features", "boxes", "confidence"):
            assert np.array_equal(getattr(found, name), getattr(expected, name))
    assert command("data", "regions", tmp_path / "db", "-o", tmp_path / "again", "--flavour", "vinvl") == 2


def test_boxes_of_detics_have_no_place_in_a_vinvl_folder(folder: Path, tmp_path: Path) -> None:
    record = open_regions(folder).record("7") | {"detic": np.ones(12, bool)}
    written = write_region_db([("7.npz", record)], tmp_path / "db", chosen=True)
    with pytest.raises(DataError, match=r"image 7\.npz in .* has boxes of Detic's"):
        write_vinvl_folder(open_regions(written), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_check_reads_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("data", "check", folder) == 0
    assert "3 images read" in capsys.readouterr().out
    lines = [line.split("\t") for line in (folder / "features.tsv").read_text().splitlines()]
    lines[2][2] = lines[2][2][:-8]
    write_tsv(folder / "features.tsv", lines)
    assert command("data", "check", folder) == 1
    assert "unreadable images" in capsys.readouterr().out


def test_uniter_reads_a_vinvl_folder(folder: Path) -> None:
    processor = UniterProcessor(cls=1, sep=2, mask=3, v_range=(5, 9), img_dim=10)
    regions = processor("image", [open_regions(folder)["7"], open_regions(folder)["522418"]])
    assert regions.features.shape == (2, 12, 10) and regions.boxes.shape == (2, 12, 7)  # type: ignore[union-attr]
