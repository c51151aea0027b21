from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import lmdb
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crossmodal.data import region_raw
from crossmodal.data.environments import close, environment
from crossmodal.data.region_db import BoxRule
from crossmodal.data.region_names import ENDINGS, counts_name, database_name
from crossmodal.data.region_raw import MAGIC, SCHEMA
from crossmodal.data.region_records import BadRecord, pack, unpack
from crossmodal.data.region_writer import write_region_db
from crossmodal.data.regions import open_regions
from crossmodal.errors import ConfigError, DataError

Record = dict[str, np.ndarray]
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "bua_features" / "train2014_obj36.tsv"


def detections(seed: int = 0, boxes: int = 20, width: int = 8) -> Record:
    """A detector dump as UNITER's converter gets it: float16, sorted by confidence."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.5, (boxes, 2))
    high = low + rng.uniform(0.1, 0.5, (boxes, 2))
    return {
        "norm_bb": np.concatenate([low, high, high - low], 1).astype(np.float16),
        "features": np.maximum(rng.normal(size=(boxes, width)), 0).astype(np.float16),
        "conf": np.sort(rng.uniform(0, 1, (boxes, 1)), axis=0)[::-1].astype(np.float16),
        "soft_labels": rng.uniform(0, 1, (boxes, 5)).astype(np.float16),
    }


def write_lmdb(folder: Path, values: dict[str, bytes], keys: bool = True, seal: bool | None = None) -> Path:
    """seal: whether the schema of the raw flavour is there; None tells by the values."""
    sealed = any(value[:4] == MAGIC for value in values.values()) if seal is None else seal
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 26) as env, env.begin(write=True) as txn:
        for name, value in values.items():
            txn.put(name.encode(), value)
        if keys:
            listed = json.dumps(list(values)).encode()
            txn.put(b"__keys__", listed)
            if sealed:
                txn.put(SCHEMA, region_raw.seal(listed))
    return folder


def b64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def tsv_line(name: str, conf: np.ndarray, boxes: np.ndarray, features: np.ndarray) -> str:
    ids = np.zeros(len(conf), np.int64)
    columns = [name, "100", "200", b64(ids), b64(conf), b64(ids), b64(conf), str(len(conf)), b64(boxes)]
    return "\t".join([*columns, b64(features)]) + "\n"


def f32(values: object) -> np.ndarray:
    return np.array(values, np.float32)


# -- how many boxes


@pytest.mark.parametrize(
    ("rule", "confident", "rows", "expected"),
    [
        (BoxRule(), 15, 100, 15),
        (BoxRule(), 3, 100, 10),
        (BoxRule(max_bb=20), 35, 100, 20),
        (BoxRule(), 3, 7, 7),
        (BoxRule(conf_th=-1, num_bb=36), 3, 100, 36),
        (BoxRule(conf_th=-1, num_bb=36), 3, 12, 12),
    ],
)
def test_box_count(rule: BoxRule, confident: int, rows: int, expected: int) -> None:
    conf = np.where(np.arange(rows) < confident, 0.9, 0.1)[:, None]
    assert rule.count(conf, rows) == expected


def test_threshold_is_strict_and_confidences_optional() -> None:
    assert BoxRule(conf_th=0.5, min_bb=0).count(np.array([0.5, 0.5, 0.75]), 3) == 1
    assert BoxRule(max_bb=4).count(None, 9) == 4


# -- names and choice of database


def test_names_are_printed_as_python_does() -> None:
    assert database_name(BoxRule(0.20, 100, 10)) == "feat_th0.2_max100_min10"
    assert database_name(BoxRule(-1, num_bb=36), "npz") == "feat_numbb36_compressed"
    assert database_name(BoxRule(-1, num_bb=36), "raw") == "feat_numbb36_raw"
    assert counts_name(BoxRule(0.3, 50, 5)) == "nbb_th0.3_max50_min5.json"
    assert counts_name(BoxRule(-1)) == "nbb_numbb36.json"


@pytest.mark.parametrize(("flavour", "ending"), ENDINGS.items())
def test_every_way_to_name_a_database(tmp_path: Path, flavour: str, ending: str) -> None:
    record = detections()
    confident = int((record["conf"] > 0.2).sum())
    value = {"a.npz": pack(record, flavour)}
    write_lmdb(tmp_path / f"all{ending}", value)
    write_lmdb(tmp_path / f"feat_numbb7{ending}", value)
    assert open_regions(tmp_path).lengths == {"a.npz": max(10, confident)}
    assert open_regions(tmp_path, conf_th=0.6, min_bb=1).lengths == {"a.npz": int((record["conf"] > 0.6).sum())}
    fixed = open_regions(tmp_path, conf_th=-1, num_bb=7)
    assert fixed.lengths == {"a.npz": 7} and len(fixed["a.npz"]) == 7
    (tmp_path / "nbb.json").write_text('{"a.npz": 3}')
    # `nbb.json` goes with `all` alone: `all_compressed` is counted from its confidences
    assert open_regions(tmp_path).lengths == {"a.npz": max(10, confident) if flavour == "npz" else 3}
    write_lmdb(tmp_path / f"feat_th0.2_max100_min10{ending}", value)
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text('{"a.npz": 5}')
    assert open_regions(tmp_path).lengths == {"a.npz": 5}
    assert len(open_regions(tmp_path)["a.npz"]) == 5


def test_a_database_folder_speaks_for_itself(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "feat_numbb7", {"a.npz": pack(detections())})
    folder = write_lmdb(tmp_path / "feat_th0.5_max12_min2", {"a.npz": pack(detections(boxes=12))})
    assert open_regions(tmp_path / "feat_numbb7").lengths == {"a.npz": 7}
    assert open_regions(folder).lengths == {"a.npz": int((detections(boxes=12)["conf"] > 0.5).sum())}
    (tmp_path / "nbb_th0.5_max12_min2.json").write_text('{"a.npz": 4}')
    assert open_regions(folder).lengths == {"a.npz": 4}


def test_whole_thresholds_have_two_spellings(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "feat_th0.0_max100_min10", {"a.npz": pack(detections())})
    (tmp_path / "nbb_th0.0_max100_min10.json").write_text('{"a.npz": 11}')
    assert open_regions(tmp_path, conf_th=0).lengths == {"a.npz": 11}


def test_all_flavours_side_by_side(tmp_path: Path) -> None:
    """Which one is read, asked for by its name or in the published options' words."""
    seeds = {"msgpack": 1, "npz": 2, "raw": 3}
    asked: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["raw", "msgpack", "npz"]),
        ({"compressed": None}, ["raw", "msgpack", "npz"]),
        ({"compressed": False}, ["msgpack", "raw"]),
        ({"compressed": True}, ["npz"]),
        *(({"flavour": flavour, "compressed": True}, [flavour]) for flavour in seeds),
    ]
    for there in (seeds, ["msgpack", "npz"], ["npz", "raw"], ["npz"]):
        folder = tmp_path / "_".join(there)
        for flavour in there:
            write_region_db([("a.npz", detections(seeds[flavour]))], folder, flavour=flavour, min_bb=20)
        for options, order in asked:
            found = next((flavour for flavour in order if flavour in there), None)
            if found is None:
                with pytest.raises(DataError, match="no database for these options"):
                    open_regions(folder, min_bb=20, **options)
            else:
                ours = open_regions(folder, min_bb=20, **options)["a.npz"].features
                assert np.array_equal(ours, detections(seeds[found])["features"])
    with pytest.raises(ConfigError, match="'zip' is no flavour of image databases; choose one of raw, msgpack, npz"):
        open_regions(tmp_path / "npz", flavour="zip")


def test_error_names_the_databases_there(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "feat_th0.2_max100_min10", {"a.npz": pack(detections())})
    with pytest.raises(DataError, match=r"feat_th0\.2_max100_min10 .*nbb_th0\.2_max100_min10\.json is missing"):
        open_regions(tmp_path)
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text('{"a.npz": 11}')
    with pytest.raises(DataError, match=r"databases there: .*conf_th=0\.2, max_bb=100, min_bb=10, compressed=False"):
        open_regions(tmp_path, conf_th=0.3)
    with pytest.raises(DataError, match="feat_numbb36"):
        open_regions(tmp_path, conf_th=-1)
    write_region_db([("a.npz", detections())], tmp_path, flavour="raw", conf_th=-1, num_bb=20)
    (tmp_path / "all_raw.partial").mkdir()
    shutil.copy(tmp_path / "feat_numbb20_raw" / "data.mdb", tmp_path / "all_raw.partial")
    with pytest.raises(DataError) as raised:
        open_regions(tmp_path, conf_th=-1, compressed=True)
    assert "looked for feat_numbb36_compressed)" in str(raised.value)
    assert "feat_numbb20_raw (conf_th=-1, num_bb=20, compressed unset)" in str(raised.value)
    assert "all_raw.partial (half-built)" in str(raised.value)
    with pytest.raises(DataError, match=r"all_raw\.partial is half-built; repeat the command that was writing it"):
        open_regions(tmp_path / "all_raw.partial")
    with pytest.raises(DataError, match="does not exist"):
        open_regions(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no LMDB folder"):
        (tmp_path / "empty").mkdir()
        open_regions(tmp_path / "empty")


# -- values


def test_record_layout_is_the_published_one() -> None:
    value = pack({"norm_bb": np.zeros((10, 6), np.float16), "features": np.zeros((10, 2048), np.float16)})
    assert value.startswith(b"\x82\xa7norm_bb\x85\xc4\x02nd\xc3\xc4\x04type\xa3<f2\xc4\x04kind\xc4\x00")
    assert b"\xc4\x05shape\x92\x0a\xcd\x08\x00\xc4\x04data\xc5\xa0\x00" in value


def test_other_encoders_records_are_read() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    plain = {"nd": True, "type": "<f4", "shape": [2, 3], "data": array.tobytes()}
    scalar = {"nd": False, "type": "<f4", "data": b"\0\0\0\0"}
    value = msgpack.packb({"features": plain, "nbb": scalar, "note": "x", "size": 1.5, "none": None})
    assert list(unpack(value)) == ["features"]
    assert np.array_equal(unpack(value)["features"], array)


@pytest.mark.parametrize("kind", ["O", "V"])
def test_pickled_arrays_are_refused(kind: str) -> None:
    entry = {b"nd": True, b"type": "|O", b"kind": kind.encode(), b"shape": (1,), b"data": pickle.dumps([1])}
    with pytest.raises(BadRecord):
        unpack(msgpack.packb({"features": entry}))
    entry[b"kind"] = b""
    with pytest.raises(BadRecord, match="not numbers"):
        unpack(msgpack.packb({"features": entry}))


def test_an_npz_of_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=np.array([{}], dtype=object))
    with pytest.raises(BadRecord, match="pickle"):
        unpack((tmp_path / "a.npz").read_bytes())
    with pytest.raises(DataError, match=r"a\.npz"):
        _ = open_regions(tmp_path)["a.npz"]


def test_zero_dimensional_leftovers_are_ignored(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **detections(), allow_pickle=np.array(True), nbb=np.array(3))  # type: ignore[arg-type]
    assert set(unpack((tmp_path / "a.npz").read_bytes())) == set(detections())


@settings(deadline=None, max_examples=50)
@given(
    arrays=st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=40),
        hnp.arrays(
            st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_]),
            hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=20),
        ),
        max_size=20,
    ),
    flavour=st.sampled_from(["msgpack", "npz"]),
)
def test_pack_round_trip(arrays: Record, flavour: str) -> None:
    value = pack(arrays, flavour)
    back = unpack(value)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert pack(back, flavour) == value


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(value: bytes) -> None:
    with suppress(BadRecord):
        unpack(value)


@pytest.mark.parametrize("flavour", list(ENDINGS))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_value_names_key_and_path(tmp_path: Path, flavour: str, share: float) -> None:
    value = pack(detections(), flavour)
    folder = write_lmdb(tmp_path / "feat_numbb5", {"bad.npz": value[: int(share * len(value))]}, seal=flavour == "raw")
    with pytest.raises(DataError, match=r"bad\.npz in .*feat_numbb5"):
        _ = open_regions(folder)["bad.npz"]


def test_a_cut_file_is_refused_when_opened(tmp_path: Path) -> None:
    folder = write_lmdb(tmp_path / "feat_numbb5", {f"{i}.npz": pack(detections(width=256)) for i in range(20)})
    data = folder / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    with pytest.raises(DataError, match="cut short"):
        open_regions(folder)
    data.write_bytes(b"not a database" * 1000)
    with pytest.raises(DataError, match="cannot be opened"):
        open_regions(folder)


def test_index_and_database_must_agree(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "feat_th0.2_max100_min10", {"a.npz": pack(detections())})
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text('{"b.npz": 11}')
    with pytest.raises(DataError, match=r"'a\.npz'"):
        _ = open_regions(tmp_path)["a.npz"]


# -- the interface


def test_items(tmp_path: Path) -> None:
    record = detections()
    write_region_db([("a.npz", record), ("b.npz", detections(1))], tmp_path)
    db = open_regions(tmp_path)
    item = db["a.npz"]
    n = db.lengths["a.npz"]
    assert db.ids == ["a.npz", "b.npz"] == list(db) and len(db) == 2 and db.feature_dim == 8
    assert item.id == "a.npz" and len(item) == n and item.soft_labels is None
    assert item.features.dtype == np.float16 and np.array_equal(item.features, record["features"][:n])
    assert item.boxes.dtype == np.float32 and np.array_equal(item.boxes, record["norm_bb"][:n])
    assert item.confidence is not None and item.confidence.shape == (n,)
    labels = db.item("a.npz", soft_labels=True).soft_labels
    assert labels is not None and np.array_equal(labels, record["soft_labels"][:n])
    assert "a" in db and "a.npz" in db and "c.npz" not in db and 3 not in db
    assert db["a"].id == "a.npz"
    with pytest.raises(DataError, match=r"no image 'c\.npz'"):
        _ = db["c.npz"]


def test_items_outlive_the_database(tmp_path: Path) -> None:
    folder = write_region_db([("a.npz", detections())], tmp_path)
    item = open_regions(folder)["a.npz"]
    expected = item.features.copy()
    close(folder)
    shutil.rmtree(folder)
    assert np.array_equal(item.features, expected)


def test_database_without_key_list(tmp_path: Path) -> None:
    values = {f"{i}.npz": pack(detections(i)) for i in (2, 1)}
    assert open_regions(write_lmdb(tmp_path / "feat_numbb5", values, keys=False)).ids == ["1.npz", "2.npz"]


def test_pickles_and_survives_a_fork(tmp_path: Path) -> None:
    write_region_db([("a.npz", detections())], tmp_path)
    db = open_regions(tmp_path)
    expected = db["a.npz"].features
    assert np.array_equal(pickle.loads(pickle.dumps(db))["a.npz"].features, expected)
    held = environment(db.path)  # someone keeps the parent's environment: the child must cope
    child = os.fork()
    if child == 0:
        same = np.array_equal(db["a.npz"].features, expected) and environment(db.path) is not held
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(db["a.npz"].features, expected)


def test_one_environment_for_every_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_region_db([("a.npz", detections())], tmp_path / "set")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    first = environment(folder)
    assert environment(str(folder)) is first and environment("link") is first
    close(folder)
    assert environment("link") is not first


# -- other sources


def generated_tsv(path: Path, images: int = 3, boxes: int = 6) -> dict[str, tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(0)
    content: dict[str, tuple[np.ndarray, ...]] = {}
    lines = []
    for i in range(images):
        conf = rng.uniform(0, 1, boxes).astype(np.float32)
        low = rng.uniform(0, 90, (boxes, 2))
        corners = np.concatenate([low, low + 5], 1).astype(np.float32)
        features = rng.uniform(0, 1, (boxes, 4)).astype(np.float32)
        content[f"img_{i}"] = (conf, corners, features)
        lines.append(tsv_line(f"img_{i}", conf, corners, features))
    path.write_text("".join(lines))
    return content


def test_lxmert_tsv(tmp_path: Path) -> None:
    content = generated_tsv(tmp_path / "x.tsv")
    db = open_regions(tmp_path / "x.tsv", min_bb=1, conf_th=0.5)
    assert db.ids == ["img_0.npz", "img_1.npz", "img_2.npz"] and db.feature_dim == 4
    for name, (conf, corners, features) in content.items():
        item, order = db[name], np.argsort(-conf)
        assert len(item) == max(1, (conf > 0.5).sum()) == db.lengths[item.id]
        assert np.array_equal(item.features, features[order][: len(item)])
        expected = corners[order][: len(item)] / f32([200, 100, 200, 100])
        np.testing.assert_allclose(item.boxes[:, :4], expected, rtol=1e-6)
        np.testing.assert_allclose(item.boxes[:, 4:], expected[:, 2:] - expected[:, :2], rtol=1e-6)
    assert pickle.loads(pickle.dumps(db))["img_1"].features.shape[1] == 4


def test_bottom_up_attention_tsv_without_confidences(tmp_path: Path) -> None:
    corners = f32([[0, 0, 100, 50], [20, 10, 40, 20]])
    features = np.eye(2, 3, dtype=np.float32)
    columns = ["7", "200", "100", "2", b64(corners), b64(features)]
    (tmp_path / "x.tsv").write_text("\t".join(columns) + "\n")
    item = open_regions(tmp_path / "x.tsv")["7"]
    assert item.confidence is None and np.array_equal(item.features, features)
    np.testing.assert_allclose(item.boxes[0], [0, 0, 0.5, 0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row[:5], "5 columns"),
        (lambda row: [*row[:8], "!!", row[9]], "damaged boxes"),
        (lambda row: [*row[:7], "5", *row[8:]], "numbers in its boxes column for 5 boxes"),
        (lambda row: [*row[:7], "many", *row[8:]], "num_boxes"),
        (lambda row: [row[0], "0", *row[2:]], "size"),
    ],
)
def test_damaged_tsv_names_line_and_column(tmp_path: Path, change: object, message: str) -> None:
    generated_tsv(tmp_path / "x.tsv")
    lines = (tmp_path / "x.tsv").read_text().splitlines()
    lines[1] = "\t".join(change(lines[1].split("\t")))  # type: ignore[operator]
    (tmp_path / "x.tsv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"x\.tsv, line 2,.*{message}"):
        _ = open_regions(tmp_path / "x.tsv")["img_1"]


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data/bua_features is not there")
def test_real_bottom_up_features(tmp_path: Path) -> None:
    """The ten published rows, directly and through a database."""
    tsv = open_regions(REAL)
    assert len(tsv) == 10 and tsv.feature_dim == 2048
    write_region_db(tsv.sources(), tmp_path)
    db = open_regions(tmp_path)
    assert db.ids == tsv.ids and db.lengths == tsv.lengths
    for image in db.ids:
        item = db[image]
        assert 10 <= len(item) <= 36 and (item.features >= 0).all()
        assert (item.boxes >= 0).all() and (item.boxes <= 1).all()
        assert item.confidence is not None and (np.diff(item.confidence) <= 0).all()
        assert np.array_equal(item.features, tsv[image].features.astype(np.float16))


def test_folder_of_dumps(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "b.npz", **detections(1))  # type: ignore[arg-type]
    pixels: dict[str, Any] = {"bbox": f32([[0, 0, 50, 50], [0, 0, 100, 200]]), "image_w": 100, "image_h": 200}
    features = f32([[1, 2, 3], [4, 5, 6]])
    np.savez(tmp_path / "a.npz", x=features.T, conf=f32([0.3, 0.9]), **pixels)
    db = open_regions(tmp_path)
    assert db.ids == ["a.npz", "b.npz"]
    assert np.array_equal(db["a"].features, features[::-1])  # sorted by confidence
    np.testing.assert_allclose(db["a"].boxes, f32([[0, 0, 1, 1, 1, 1], [0, 0, 0.5, 0.25, 0.5, 0.25]]))
    assert np.array_equal(db["b"].features, detections(1)["features"][: db.lengths["b.npz"]])
    np.savez(tmp_path / "c.npz", features=features, bbox=pixels["bbox"])
    with pytest.raises(DataError, match=r"c\.npz has boxes in pixels but no image_w"):
        _ = open_regions(tmp_path)["c"]
    np.savez(tmp_path / "c.npz", features=features, norm_bb=np.zeros((3, 6)))
    with pytest.raises(DataError, match=r"c\.npz has arrays of different numbers"):
        _ = open_regions(tmp_path)["c"]


def test_hdf5_layouts(tmp_path: Path) -> None:
    records = {f"{i}.npz": detections(i) for i in range(3)}
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        for name, record in records.items():
            group = file.create_group(name.removesuffix(".npz"))
            group["features"] = record["features"]
            group["boxes"] = record["norm_bb"][:, :4].astype(np.float32) * f32([200, 100, 200, 100])
            group["conf"] = record["conf"]
            group.attrs.update(image_w=200, image_h=100)
    with h5py.File(tmp_path / "padded.h5", "w") as file:
        file["ids"] = [name.removesuffix(".npz") for name in records]
        for name in ("norm_bb", "features", "conf"):
            file[name] = np.stack([np.pad(r[name], ((0, 4), (0, 0))) for r in records.values()])
        file["num_boxes"] = [20] * 3
    with h5py.File(tmp_path / "rows.hdf5", "w") as file:
        file["ids"] = list(records)
        for name in ("norm_bb", "features", "conf"):
            file[name] = np.concatenate([r[name] for r in records.values()])
        file["pos_boxes"] = [[0, 20], [20, 40], [40, 60]]
    for path in ("groups.h5", "padded.h5", "rows.hdf5"):
        db = open_regions(tmp_path / path)
        assert db.ids == list(records)
        for name, record in records.items():
            item = db[name]
            assert len(db.record(name)["features"]) == 20
            assert len(item) == max(10, (record["conf"] > 0.2).sum())
            assert np.array_equal(item.features, record["features"][: len(item)])
            np.testing.assert_allclose(item.boxes, record["norm_bb"][: len(item)], atol=1e-3)
    (tmp_path / "bad.h5").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="HDF5"):
        _ = open_regions(tmp_path / "bad.h5").ids
