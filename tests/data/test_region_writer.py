from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmodal.data.environments import close, environment
from crossmodal.data.region_lmdb import LmdbRegions
from crossmodal.data.region_names import ENDINGS
from crossmodal.data.region_records import pack, unpack
from crossmodal.data.region_writer import convert_region_db, write_region_db
from crossmodal.data.regions import open_regions
from crossmodal.errors import ConfigError, DataError

from ..commands import command, refused
from .test_regions import Record, detections, write_lmdb


def values(folder: Path) -> dict[bytes, bytes]:
    with environment(folder).begin() as txn:
        stored = dict(txn.cursor())
    close(folder)
    return stored


def lmdb_regions(path: Path) -> LmdbRegions:
    db = open_regions(path, verify=True)
    assert isinstance(db, LmdbRegions)
    return db


def broken(name: str) -> Record:
    raise DataError(f"{name} is damaged")


def test_layout_on_disk(tmp_path: Path) -> None:
    record = detections() | {"nbb": np.array(3)}
    record["features"] = record["features"].astype(np.float32)
    folder = write_region_db([("z.npz", record), ("a.npz", detections(1))], tmp_path)
    assert folder == tmp_path / "feat_th0.2_max100_min10"
    assert sorted(p.name for p in tmp_path.iterdir()) == [folder.name, "nbb_th0.2_max100_min10.json"]
    assert sorted(p.name for p in folder.iterdir()) == ["data.mdb", "lock.mdb"]
    counts = json.loads((tmp_path / "nbb_th0.2_max100_min10.json").read_text())
    stored = values(folder)
    assert json.loads(stored[b"__keys__"]) == ["z.npz", "a.npz"] == list(counts)
    arrays = unpack(stored[b"z.npz"])
    assert list(arrays) == ["norm_bb", "features", "conf", "soft_labels"]
    assert arrays["features"].dtype == np.float16
    assert {len(array) for array in arrays.values()} == {counts["z.npz"]}


def test_a_fixed_number_is_cut_by_the_reader(tmp_path: Path) -> None:
    folder = write_region_db([("a.npz", detections(boxes=50))], tmp_path, conf_th=-1, num_bb=36, max_bb=40)
    assert folder.name == "feat_numbb36" and [p.name for p in tmp_path.iterdir()] == ["feat_numbb36"]
    assert len(unpack(values(folder)[b"a.npz"])["conf"]) == 40
    assert len(open_regions(tmp_path, conf_th=-1)["a.npz"]) == 36


def test_fewer_boxes_than_the_fixed_number_are_counted(tmp_path: Path) -> None:
    records = {"a.npz": detections(boxes=50), "b.npz": detections(boxes=7)}
    folder = write_region_db(records.items(), tmp_path, conf_th=-1)
    for path in (tmp_path, folder):
        assert open_regions(path, conf_th=-1).lengths == {"a.npz": 36, "b.npz": 7}


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    conf_th=st.sampled_from([-1, 0.0, 0.2, 0.75]),
    bounds=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    flavour=st.sampled_from(list(ENDINGS)),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    conf_th: float,
    bounds: tuple[int, int],
    flavour: str,
) -> None:
    rule = {"conf_th": conf_th, "min_bb": min(bounds), "max_bb": max(bounds), "num_bb": max(bounds)}
    records = {f"{i}.npz": detections(i, boxes) for i, boxes in enumerate(sizes)}
    output = tmp_path_factory.mktemp("set")
    write_region_db(records.items(), output, flavour=flavour, **rule)  # type: ignore[arg-type]
    db = open_regions(output, flavour=flavour, **rule)  # type: ignore[arg-type]
    assert db.ids == list(records)
    for name, record in records.items():
        confident = (record["conf"] > conf_th).sum()
        kept = min(rule["max_bb"], max(rule["min_bb"], confident), len(record["conf"]))
        item = db.item(name, soft_labels=True)
        assert len(item) == kept
        assert np.array_equal(item.features, record["features"][:kept])
        assert np.array_equal(item.boxes, record["norm_bb"][:kept])
        assert np.array_equal(item.soft_labels, record["soft_labels"][:kept])  # type: ignore[arg-type]


@pytest.mark.parametrize("flavour", list(ENDINGS))
def test_workers_give_the_same_values_in_the_same_order(tmp_path: Path, flavour: str) -> None:
    records = [(f"{i}.npz", partial(detections, i)) for i in range(20)]
    one = write_region_db(records, tmp_path / "one", flavour=flavour)
    two = write_region_db(records, tmp_path / "two", flavour=flavour, workers=2, commit_every=3)
    assert values(one) == values(two)


def test_the_map_grows(tmp_path: Path) -> None:
    records = [(f"{i}.npz", detections(i, boxes=30, width=2048)) for i in range(12)]
    small = write_region_db(records, tmp_path / "small", map_size=1 << 15, commit_every=5)
    assert (small / "data.mdb").stat().st_size > 1 << 20
    assert values(small) == values(write_region_db(records, tmp_path / "large"))


def test_unreadable_images_are_skipped_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = detections() | {"features": np.zeros((3, 8), np.float16)}
    records: list[tuple[str, Any]] = [
        ("a.npz", detections()),
        ("b.npz", partial(broken, "b.npz")),
        ("c.npz", short),
    ]
    write_region_db(records, tmp_path, workers=2)
    assert open_regions(tmp_path).ids == ["a.npz"]
    skipped = json.loads((tmp_path / "skipped_feat_th0.2_max100_min10.json").read_text())
    assert skipped["b.npz"] == "b.npz is damaged" and "different numbers of boxes" in skipped["c.npz"]
    assert "2 unreadable images" in caplog.text


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No image could be written .*b is damaged"):
        write_region_db([("b.npz", partial(broken, "b"))], tmp_path / "none")
    assert not (tmp_path / "none" / "feat_th0.2_max100_min10").exists()
    with pytest.raises(DataError, match=r"Two images are named a\.npz"):
        write_region_db([("a.npz", detections())] * 2, tmp_path / "twice")
    for name in ("", "x" * 600, "__keys__"):
        with pytest.raises(DataError, match="cannot name an image"):
            write_region_db([(name, detections())], tmp_path / "name")
    write_region_db([("a.npz", detections())], tmp_path / "there")
    with pytest.raises(DataError, match="exists already"):
        write_region_db([("a.npz", detections())], tmp_path / "there")


WRITER = """
import sys, time
from crossmodal.data.region_writer import write_region_db
from tests.data.test_regions import detections

def slow():
    for i in range(40):
        if i == 25:
            print("here", flush=True)
            time.sleep(600)
        yield f"{i}.npz", detections(i)

if __name__ == "__main__":
    write_region_db(slow(), sys.argv[1], commit_every=4, workers=int(sys.argv[2]), origin="test")
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_is_resumed(tmp_path: Path, workers: int) -> None:
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    root = Path(__file__).parents[2]
    command = [sys.executable, str(script), str(tmp_path / "set"), str(workers)]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    name = "feat_th0.2_max100_min10"
    assert [p.name for p in (tmp_path / "set").iterdir()] == [f"{name}.partial"]
    done = values(tmp_path / "set" / f"{name}.partial")
    assert 12 <= len(done) < 25 and b"__keys__" not in done

    read = []

    def load(i: int) -> Record:
        read.append(i)
        return detections(i)

    records = [(f"{i}.npz", partial(load, i)) for i in range(40)]
    with pytest.raises(DataError, match="other options or another source"):
        write_region_db(records, tmp_path / "set", origin="elsewhere")
    resumed = write_region_db(records, tmp_path / "set", origin="test")
    assert sorted(read) == [i for i in range(40) if f"{i}.npz".encode() not in done]
    whole = write_region_db(records, tmp_path / "whole", origin="test")
    assert values(resumed) == values(whole)
    index = f"nbb_{name.removeprefix('feat_')}.json"
    assert (tmp_path / "set" / index).read_bytes() == (tmp_path / "whole" / index).read_bytes()
    assert not (tmp_path / "set" / f"{name}.partial").exists()


# -- from one flavour to another


def full(seed: int) -> Record:
    """A record of float32, whose confidences would choose other boxes in half precision."""
    record = {name: array.astype(np.float32) for name, array in detections(seed, boxes=30).items()}
    record["conf"][:15] = 0.9
    record["conf"][15:] = 0.20001  # 0.2 in half precision
    record["features"] += np.float32(1e-5)
    return record


@pytest.mark.parametrize("target", list(ENDINGS))
@pytest.mark.parametrize("source", list(ENDINGS))
@pytest.mark.parametrize("half", [False, True])
def test_a_conversion_loses_nothing(tmp_path: Path, source: str, target: str, half: bool) -> None:
    """Bits, precision, order, box counts and those arrays that nobody reads; so it can be undone."""
    records = {f"{i}.npz": full(i) | {"objects_id": np.arange(30)} for i in (3, 1, 2)}
    first = write_region_db(records.items(), tmp_path / "first", flavour=source, float16=half, min_bb=3)
    then = convert_region_db(lmdb_regions(first), tmp_path / "then", target)
    assert then.name == f"feat_th0.2_max100_min3{ENDINGS[target]}"
    before, after = open_regions(first), open_regions(then, verify=True)
    assert after.ids == before.ids == ["3.npz", "1.npz", "2.npz"]
    assert after.lengths == before.lengths == dict.fromkeys(after.ids, 30)
    for image in after.ids:
        old, new = before.record(image), after.record(image)
        assert list(new) == list(old) == [*records[image]]
        for name, array in old.items():
            assert new[name].dtype == array.dtype and new[name].tobytes() == array.tobytes()
        assert new["features"].dtype == (np.float16 if half else np.float32)
    counts = "nbb_th0.2_max100_min3.json"
    assert json.loads((then.parent / counts).read_text()) == json.loads((first.parent / counts).read_text())
    back = convert_region_db(lmdb_regions(then), tmp_path / "back", source)
    assert values(back) == values(first)


def test_a_conversion_keeps_what_the_reader_leaves_out(tmp_path: Path) -> None:
    """A fixed number of boxes: all stored rows stay, beside or without a JSON of counts."""
    records = {"a.npz": detections(boxes=50), "b.npz": detections(1, boxes=7)}
    for names in (["a.npz"], ["a.npz", "b.npz"]):
        folder = tmp_path / "_".join(names)
        first = write_region_db([(name, records[name]) for name in names], folder, conf_th=-1)
        raw = convert_region_db(lmdb_regions(first), folder, "raw")  # beside it
        assert raw == folder / "feat_numbb36_raw"
        assert (folder / "nbb_numbb36.json").exists() == (len(names) == 2)
        assert open_regions(folder, conf_th=-1, flavour="raw").lengths == open_regions(first).lengths
        assert len(open_regions(raw).record("a.npz")["features"]) == 50


def test_a_conversion_keeps_arrays_that_are_not_of_boxes(tmp_path: Path) -> None:
    record = detections() | {"scene": np.arange(5)}
    folder = write_lmdb(tmp_path / "feat_numbb5", {"a.npz": pack(record)})
    raw = convert_region_db(lmdb_regions(folder), tmp_path / "out", "raw")
    assert np.array_equal(open_regions(raw).record("a.npz")["scene"], np.arange(5))


@pytest.mark.parametrize("named", ["all", "mine"])
def test_a_conversion_keeps_the_name(tmp_path: Path, named: str) -> None:
    folder = write_lmdb(tmp_path / named, {"a.npz": pack(detections()), "b.npz": pack(detections(1))})
    (tmp_path / "nbb.json").write_text('{"a.npz": 4, "b.npz": 5}')
    raw = convert_region_db(lmdb_regions(folder), tmp_path / "out", "raw")
    assert raw.name == f"{named}_raw"
    assert open_regions(raw).lengths == open_regions(folder).lengths
    assert (tmp_path / "out" / "nbb.json").exists() == (named == "all")
    again = convert_region_db(lmdb_regions(raw), tmp_path / "again", "msgpack")
    assert again.name == named and values(again) == values(folder)


def test_a_damaged_value_is_not_given_a_new_checksum(tmp_path: Path) -> None:
    good, bad = pack(detections(boxes=12), "raw"), bytearray(pack(detections(1, boxes=12), "raw"))
    bad[-1] ^= 1
    folder = write_lmdb(tmp_path / "mine", {"a.npz": good, "b.npz": bytes(bad)})
    converted = convert_region_db(lmdb_regions(folder), tmp_path / "out", "raw")
    assert open_regions(converted).ids == ["a.npz"]
    assert "checksum" in json.loads((tmp_path / "out" / "skipped_mine_raw.json").read_text())["b.npz"]


def test_other_counts_beside_another_flavour_are_refused(tmp_path: Path) -> None:
    """All flavours of a database share one JSON."""
    write_region_db([("a.npz", detections())], tmp_path)
    counts = (tmp_path / "nbb_th0.2_max100_min10.json").read_bytes()
    with pytest.raises(DataError, match=r"feat_th0\.2_max100_min10 holds other images or box counts"):
        write_region_db([("b.npz", detections(1))], tmp_path, flavour="raw")
    assert (tmp_path / "nbb_th0.2_max100_min10.json").read_bytes() == counts
    write_region_db([("a.npz", detections())], tmp_path, flavour="npz")
    (tmp_path / "feat_th0.2_max100_min10_raw.partial" / "settings.json").unlink()
    write_region_db([("b.npz", detections(1))], tmp_path / "fixed", conf_th=-1, num_bb=20)
    with pytest.raises(DataError, match="feat_numbb20 holds other images"):
        write_region_db([("b.npz", detections(1, boxes=5))], tmp_path / "fixed", conf_th=-1, num_bb=20, flavour="npz")


def test_precision(tmp_path: Path) -> None:
    """float32 becomes float16 in the published flavours, as published, and stays in ours, unless one says so."""
    for flavour, float16, expected in [
        ("msgpack", None, np.float16),
        ("npz", None, np.float16),
        ("raw", None, np.float32),
        ("raw", True, np.float16),
        ("msgpack", False, np.float32),
    ]:
        folder = tmp_path / f"{flavour}{float16}"
        db = open_regions(write_region_db([("a.npz", full(0))], folder, flavour=flavour, float16=float16))
        assert db["a.npz"].features.dtype == expected
    halved = convert_region_db(lmdb_regions(tmp_path / "rawNone"), tmp_path / "halved", "npz", float16=True)
    assert open_regions(halved)["a.npz"].features.dtype == np.float16


def test_what_does_not_fit_is_skipped_with_the_reason(tmp_path: Path) -> None:
    odd = detections() | {"a_name_of_more_than_24_bytes": np.zeros(20)}
    write_region_db([("a.npz", detections()), ("b.npz", odd)], tmp_path, flavour="raw")
    skipped = json.loads((tmp_path / "skipped_feat_th0.2_max100_min10_raw.json").read_text())
    assert "names have 1 to 24 bytes" in skipped["b.npz"]
    with pytest.raises(ConfigError, match="choose one of raw, msgpack, npz"):
        write_region_db([("a.npz", detections())], tmp_path, flavour="zip")


# -- the command


def test_the_command_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dumps").mkdir()
    for i in range(4):
        np.savez(tmp_path / "dumps" / f"{i}.npz", **full(i))  # type: ignore[arg-type]
    out = tmp_path / "set"
    assert command("data", "regions", tmp_path / "dumps", "-o", out, "--flavour", "raw", "--min-bb", 5) == 0
    assert "4 images, 30 to 30 boxes each, 8 numbers a box" in capsys.readouterr().out
    raw = out / "feat_th0.2_max100_min5_raw"
    assert open_regions(raw)["0"].features.dtype == np.float32
    # A database keeps its precision, its rows and its name without being told, and beside the other flavours.
    assert command("data", "regions", raw, "-o", out) == 0
    assert open_regions(out, min_bb=5, flavour="msgpack")["0"].features.dtype == np.float32
    assert command("data", "regions", out, "-o", out, "--flavour", "npz", "--min-bb", 5, "--workers", 2) == 0
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*(f"feat_th0.2_max100_min5{ending}" for ending in ENDINGS.values()), "nbb_th0.2_max100_min5.json"]
    )
    for flavour in ENDINGS:
        db = open_regions(out, min_bb=5, flavour=flavour)
        assert all(np.array_equal(db.record(f"{i}")["features"], full(i)["features"]) for i in range(4))
    # Other boxes may be asked for, and half precision.
    assert command("data", "regions", raw, "-o", out, "--conf-th", 0.5, "--float16", "--flavour", "raw") == 0
    chosen = open_regions(out / "feat_th0.5_max100_min5_raw")
    assert chosen.lengths == {f"{i}.npz": 15 for i in range(4)} and chosen["0"].features.dtype == np.float16
    assert "exists already" in refused(capsys, "data", "regions", raw, "-o", out)
