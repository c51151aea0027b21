from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmodal.data.region_records import unpack
from crossmodal.data.region_writer import write_region_db
from crossmodal.data.regions import open_regions
from crossmodal.errors import DataError

from .test_regions import Record, detections


def values(folder: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        return dict(txn.cursor())


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
    compress=st.booleans(),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    conf_th: float,
    bounds: tuple[int, int],
    compress: bool,
) -> None:
    rule = {"conf_th": conf_th, "min_bb": min(bounds), "max_bb": max(bounds), "num_bb": max(bounds)}
    records = {f"{i}.npz": detections(i, boxes) for i, boxes in enumerate(sizes)}
    output = tmp_path_factory.mktemp("set")
    write_region_db(records.items(), output, compress=compress, **rule)  # type: ignore[arg-type]
    db = open_regions(output, compressed=compress, **rule)  # type: ignore[arg-type]
    assert db.ids == list(records)
    for name, record in records.items():
        confident = (record["conf"] > conf_th).sum()
        kept = min(rule["max_bb"], max(rule["min_bb"], confident), len(record["conf"]))
        item = db.item(name, soft_labels=True)
        assert len(item) == kept
        assert np.array_equal(item.features, record["features"][:kept])
        assert np.array_equal(item.boxes, record["norm_bb"][:kept])
        assert np.array_equal(item.soft_labels, record["soft_labels"][:kept])  # type: ignore[arg-type]


@pytest.mark.parametrize("compress", [False, True])
def test_workers_give_the_same_values_in_the_same_order(tmp_path: Path, compress: bool) -> None:
    records = [(f"{i}.npz", partial(detections, i)) for i in range(20)]
    one = write_region_db(records, tmp_path / "one", compress=compress)
    two = write_region_db(records, tmp_path / "two", compress=compress, workers=2, commit_every=3)
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
