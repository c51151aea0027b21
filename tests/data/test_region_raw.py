from __future__ import annotations

import json
import shutil
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crossmodal.data.environments import close
from crossmodal.data.region_names import ENDINGS
from crossmodal.data.region_raw import SCHEMA, pack_raw, seal, unpack_raw
from crossmodal.data.region_records import BadRecord, pack, unpack
from crossmodal.data.region_writer import write_region_db
from crossmodal.data.regions import open_regions
from crossmodal.errors import DataError

from ..commands import refused
from .test_regions import Record, detections, write_lmdb

HEADER = 512
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: len(name.encode()) <= 24
)
ARRAYS = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.int64, np.uint16, np.bool_]),
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6),
)


def small() -> Record:
    """One box, no confidence."""
    return {"norm_bb": np.zeros((1, 6), np.float32), "features": np.arange(3, dtype=np.float16)[None]}


def flipped(value: bytes, bit: int) -> bytes:
    changed = bytearray(value)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def change(folder: Path, key: bytes, value: bytes | None) -> None:
    """Replace an entry of a database, or remove it."""
    close(folder)
    with lmdb.open(str(folder), map_size=1 << 26) as env, env.begin(write=True) as txn:
        if value is None:
            assert txn.delete(key)
        else:
            txn.put(key, value)


# -- values


def test_layout() -> None:
    """The documented one, byte by byte."""
    value = pack_raw(small())
    magic, version, count, length = struct.unpack_from("<4sHHI", value)
    assert (magic, version, count, length) == (b"XMRG", 1, 2, len(value))
    first, second = (struct.unpack_from("<24s4sI4I", value, 12 + 48 * i) for i in range(2))
    assert first == (b"norm_bb".ljust(24, b"\0"), b"<f4\0", 2, 1, 6, 0, 0)
    assert second == (b"features".ljust(24, b"\0"), b"<f2\0", 2, 1, 3, 0, 0)
    assert not any(value[12 + 2 * 48 : 508])
    assert struct.unpack_from("<I", value, 508)[0] == zlib.crc32(value[:508] + value[HEADER:])
    assert value[HEADER:] == bytes(24) + bytes(8) + np.arange(3, dtype="<f2").tobytes()


@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=10))
def test_round_trip(arrays: Record) -> None:
    value = pack(arrays, "raw")
    back = unpack(value, verify=True)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()
        assert list(unpack(value, [name, "absent"])) == [name]
    assert pack(back, "raw") == value


def test_arrays_are_aligned_views() -> None:
    value = pack_raw(detections(boxes=7, width=33))
    for name, array in unpack_raw(memoryview(value)).items():
        begin = array.__array_interface__["data"][0] - np.frombuffer(value, np.uint8).__array_interface__["data"][0]
        assert begin % 16 == 0 and begin >= HEADER, name
        assert not array.flags.owndata and not array.flags.writeable


def test_other_orders_of_bytes_and_numbers_are_kept_as_ours() -> None:
    big = np.arange(6, dtype=">f4").reshape(2, 3)
    back = unpack(pack({"features": big, "turned": big.T}, "raw"), verify=True)
    assert back["features"].dtype == np.dtype("<f4")
    assert np.array_equal(back["features"], big) and np.array_equal(back["turned"], big.T)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"x" * 25: np.zeros(1)}, "cannot name an array: names have 1 to 24 bytes"),
        ({"": np.zeros(1)}, "cannot name an array"),
        ({"a\0": np.zeros(1)}, "cannot name an array"),
        ({"a": np.array(3.0)}, "not numbers in 1 to 4 dimensions"),
        ({"a": np.zeros((1, 1, 1, 1, 1))}, "not numbers in 1 to 4 dimensions"),
        ({"a": np.array([{}])}, "a of object"),
        ({"a": np.array(["x"])}, "a of <U1"),
        ({str(i): np.zeros(1) for i in range(11)}, "11 arrays do not fit"),
    ],
)
def test_what_has_no_place_in_a_value(record: Record, said: str) -> None:
    with pytest.raises(DataError, match=said):
        pack(record, "raw")


def test_every_flipped_bit_is_found() -> None:
    value = pack_raw(small())
    for bit in range(8 * len(value)):
        with pytest.raises(BadRecord):
            unpack(flipped(value, bit), verify=True)


def test_every_cut_is_found_without_the_checksum() -> None:
    value = pack_raw(small())
    for length in range(len(value)):
        with pytest.raises(BadRecord):
            unpack(value[:length])
    with pytest.raises(BadRecord, match=f"{len(value) + 1} bytes where {len(value)} are announced"):
        unpack(value + b"\0")


@given(
    table=st.binary(max_size=500),
    head=st.tuples(st.sampled_from([0, 1, 2]), st.integers(0, 12)),
    length=st.integers(0, 700),
)
def test_arbitrary_headers_are_read_or_refused(table: bytes, head: tuple[int, int], length: int) -> None:
    value = (struct.pack("<4sHHI", b"XMRG", *head, length) + table).ljust(length, b"\0")
    with suppress(BadRecord):
        assert sum(array.nbytes for array in unpack(value).values()) <= len(value)


def test_two_arrays_of_one_name_are_refused() -> None:
    value = pack_raw({"ab": np.zeros(2), "ac": np.zeros(2)})
    with pytest.raises(BadRecord, match="2 arrays have 1 names"):
        unpack(value.replace(b"ac", b"ab"))


def test_a_newer_layout_is_refused() -> None:
    value = bytearray(pack_raw(small()))
    value[4] = 2
    with pytest.raises(BadRecord, match="its layout is 2, and this version of crossmodal reads 1"):
        unpack(bytes(value))


# -- databases


@pytest.fixture
def database(tmp_path: Path) -> Path:
    records = [(f"{name}.npz", detections(seed, boxes=12)) for seed, name in enumerate("abc")]
    return write_region_db(records, tmp_path, flavour="raw")


def test_files_of_a_database(database: Path) -> None:
    assert database.name == "feat_th0.2_max100_min10_raw"
    counts = database.parent / "nbb_th0.2_max100_min10.json"
    assert sorted(p.name for p in database.parent.iterdir()) == sorted([database.name, counts.name])
    assert list(json.loads(counts.read_text())) == ["a.npz", "b.npz", "c.npz"] == open_regions(database).ids


@pytest.mark.parametrize("flavour", list(ENDINGS))
def test_features_are_those_of_the_item(tmp_path: Path, flavour: str) -> None:
    """With many numbers and with few, in half and in full precision, and longer than the database is open."""
    records = {"a.npz": detections(boxes=1, width=4), "b.npz": detections(1, boxes=40, width=300)}
    records["c.npz"] = {name: array.astype(np.float32) for name, array in records["b.npz"].items()}
    folder = write_region_db(records.items(), tmp_path, flavour=flavour, float16=False)
    db = open_regions(folder)
    read = {image: (db[image], db.features(image)) for image in db.ids}
    close(folder)
    shutil.rmtree(folder)
    assert [len(item) for item, _ in read.values()] == list(db.lengths.values())
    for image, (item, features) in read.items():
        assert str(features.dtype) == "torch.float32" and item.features.dtype == records[image]["features"].dtype
        expected = records[image]["features"][: len(item)]
        assert np.array_equal(item.features, expected) and np.array_equal(features.numpy(), expected)


@pytest.mark.parametrize("flavour", list(ENDINGS))
def test_one_box_without_confidence(tmp_path: Path, flavour: str) -> None:
    db = open_regions(write_region_db([("a.npz", small())], tmp_path, flavour=flavour))
    item = db["a"]
    assert len(item) == db.lengths["a.npz"] == 1 and item.confidence is None and item.soft_labels is None
    assert np.array_equal(item.features, small()["features"]) and db.features("a").tolist() == [[0, 1, 2]]


def test_features_of_other_sources(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **detections(boxes=9))  # type: ignore[arg-type]
    db = open_regions(tmp_path)
    assert np.array_equal(db.features("a").numpy(), db["a"].features)


def test_features_in_another_order_of_bytes(tmp_path: Path) -> None:
    record = detections() | {"features": detections()["features"].astype(">f4")}
    folder = write_lmdb(tmp_path / "mine", {"a.npz": pack(record)})
    assert np.array_equal(open_regions(folder).features("a").numpy()[:9], record["features"][:9])


def test_features_that_are_not_there_or_no_table(tmp_path: Path) -> None:
    values = {"a.npz": pack({"norm_bb": np.zeros((2, 6))}), "b.npz": pack(detections() | {"features": np.zeros(20)})}
    db = open_regions(write_lmdb(tmp_path / "feat_numbb5", values))
    for image in values:
        with pytest.raises(DataError, match=rf"The record of {image} in .*feat_numbb5"):
            db.features(image)


def test_a_half_built_database_is_refused(database: Path) -> None:
    for key in (SCHEMA, b"__keys__"):
        change(database, key, None)
        with pytest.raises(DataError) as raised:
            open_regions(database)
        assert str(raised.value) == (
            f"{database} is half-built: its list of images and its schema, written last, are not there; "
            "build or copy it again."
        )


def test_a_newer_or_damaged_schema_is_refused(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = json.dumps(["a.npz", "b.npz", "c.npz"]).encode()
    newer = {**json.loads(seal(keys)), "version": 2}
    change(database, SCHEMA, json.dumps(newer).encode())
    said = refused(capsys, "data", "check", database)
    assert "has schema 2, and this version of crossmodal reads 1; update crossmodal." in said
    for damaged in (b"{", b"[]", b"{}", b"\xff"):
        change(database, SCHEMA, damaged)
        with pytest.raises(DataError, match="its schema cannot be read"):
            open_regions(database)
    change(database, SCHEMA, seal(keys))
    change(database, b"__keys__", keys.replace(b"b.npz", b"a.npz"))
    with pytest.raises(DataError, match="its list of images does not match its checksum"):
        open_regions(database)


def test_raw_values_anywhere_need_a_schema(tmp_path: Path) -> None:
    """Whatever the folder is called, and with a key that stands before the list of images."""
    folder = write_lmdb(tmp_path / "mine", {"A.npz": pack(detections(), "raw")}, seal=False)
    with pytest.raises(DataError, match="half-built"):
        open_regions(folder)
    folder = write_lmdb(tmp_path / "yours", {"a.npz": pack(detections(), "raw")}, seal=True)
    assert open_regions(folder).ids == ["a.npz"]


def test_a_changed_number_is_found_when_verified(database: Path) -> None:
    value = pack(detections(1, boxes=12), "raw")
    change(database, b"b.npz", flipped(value, 8 * HEADER + 8 * 12 * 12 + 3))  # in the features
    assert len(open_regions(database)["b.npz"]) == open_regions(database).lengths["b.npz"]
    db = open_regions(database, verify=True)
    assert len(db["a.npz"]) and len(db["c.npz"])
    for read in (db.item, db.features, db.record, lambda image: db.loader(image)()):
        with pytest.raises(DataError) as raised:
            read("b.npz")
        assert str(raised.value) == (
            f"The record of b.npz in {database} is damaged (its checksum does not match its bytes); "
            "convert that image again."
        )


def test_a_cut_value_names_key_and_folder(database: Path) -> None:
    change(database, b"b.npz", pack(detections(1, boxes=12), "raw")[:-1])
    for read in (open_regions(database).item, open_regions(database).features):
        with pytest.raises(DataError, match=rf"The record of b\.npz in {database} is damaged \(\d+ bytes where \d+"):
            read("b.npz")
