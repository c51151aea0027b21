from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import lmdb
import pytest

from crossmodal.data.texts import TextDB, decode_record, encode_record
from crossmodal.errors import DataError

CAPTIONS = {  # id -> (image, ids, sentence)
    "7": ("b.npz", [10, 11, 12], "a red cube"),
    "3": ("a.npz", [13], "cube"),
    "12": ("b.npz", [14, 15, 16, 17], "a blue cube rolls"),
}


def records() -> dict[str, dict[str, Any]]:
    return {
        id: {"id": id, "sent": sentence, "input_ids": ids, "img_fname": image, "split": "test"}
        for id, (image, ids, sentence) in CAPTIONS.items()
    }


def write(folder: Path, stored: dict[str, Any], **changed: Any) -> Path:
    """A database made by hand, as published; `changed` replaces an index, None leaves it out."""
    folder.mkdir()
    env = lmdb.open(str(folder))
    with env.begin(write=True) as transaction:
        for id, record in stored.items():
            value = record if isinstance(record, bytes) else encode_record(record)
            transaction.put(id.encode(), value)
    env.close()
    indexes: dict[str, Any] = {
        "meta": {"bert": "bert-base-cased", "CLS": 101, "SEP": 102, "MASK": 103, "UNK": 100, "v_range": [106, 160]},
        "id2len": {id: len(ids) for id, (_, ids, _) in CAPTIONS.items()},
        "txt2img": {id: image for id, (image, _, _) in CAPTIONS.items()},
        "img2txts": {"b.npz": ["7", "12"], "a.npz": ["3"]},
    }
    for name, content in {**indexes, **changed}.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_what_is_stored_is_read(tmp_path: Path) -> None:
    db = TextDB(write(tmp_path / "x.db", records()))
    assert db.ids == ["7", "3", "12"] and db.images == ["b.npz", "a.npz"]
    assert db.lengths == {"7": 3, "3": 1, "12": 4}
    assert db.image_of["12"] == "b.npz" and db.texts_of == {"b.npz": ["7", "12"], "a.npz": ["3"]}
    assert (db.cls, db.sep, db.mask, db.v_range) == (101, 102, 103, (106, 160))
    assert db.tokenizer == db.meta["bert"] == "bert-base-cased"
    item = db["7"]
    assert (item.id, item.input_ids, item.sentence, item.image) == ("7", (10, 11, 12), "a red cube", "b.npz")
    assert item.tokenizer == "bert-base-cased" and item.extra == {"split": "test"}
    assert db.record("7") == records()["7"]


def test_long_captions_are_filtered_but_stay_known(tmp_path: Path) -> None:
    db = TextDB(write(tmp_path / "x.db", records()), max_len=3)
    assert db.ids == ["7", "3"] and len(db) == 2
    assert "7" in db and "12" not in db
    assert db.texts_of["b.npz"] == ["7", "12"] and db.lengths["12"] == 4
    assert db["12"].input_ids == (14, 15, 16, 17)


def test_a_record_may_lack_sentence_or_ids(tmp_path: Path) -> None:
    stored = records()
    del stored["7"]["sent"], stored["3"]["input_ids"], stored["12"]["input_ids"], stored["12"]["sent"]
    db = TextDB(write(tmp_path / "x.db", stored))
    assert db["7"].sentence is None and db["7"].input_ids == (10, 11, 12)
    assert db["3"].sentence == "cube" and db["3"].input_ids == ()
    with pytest.raises(DataError, match=r"'12' .* neither word pieces nor a sentence"):
        db["12"]


def test_opened_twice_and_in_other_processes(tmp_path: Path) -> None:
    folder = write(tmp_path / "x.db", records())
    first, second = TextDB(folder), TextDB(folder, max_len=3)
    assert first["7"] == second["7"]
    again = pickle.loads(pickle.dumps(second))
    assert again.ids == second.ids and again["7"] == first["7"]
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.map(first.__getitem__, ["7", "3"]) == [first["7"], first["3"]]


@pytest.mark.parametrize("name", ["meta", "id2len", "txt2img", "img2txts"])
def test_missing_indexes_are_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "x.db", records(), **{name: None})
    with pytest.raises(DataError, match=rf"{name}\.json missing"):
        TextDB(folder)


def test_missing_folder_and_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text database at"):
        TextDB(tmp_path / "nothing")
    folder = write(tmp_path / "x.db", records())
    (folder / "data.mdb").unlink()
    with pytest.raises(DataError, match=r"data\.mdb missing"):
        TextDB(folder)


def test_damaged_indexes_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "x.db", records())
    (folder / "id2len.json").write_text('{"7": 3')
    with pytest.raises(DataError, match=r"id2len\.json cannot be read as JSON"):
        TextDB(folder)
    with pytest.raises(DataError, match=r"img2txts\.json holds no JSON object"):
        TextDB(write(tmp_path / "y.db", records(), img2txts=[]))
    with pytest.raises(DataError, match="CLS, SEP, MASK and v_range"):
        TextDB(write(tmp_path / "z.db", records(), meta={"CLS": 1}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"txt2img": {"7": "b.npz", "3": "a.npz"}}, r"1 captions .*no image in txt2img\.json \(12\)"),
        ({"img2txts": {"b.npz": ["7", "12"]}}, r"not listed under their image in img2txts\.json \(3\)"),
        ({"img2txts": {"b.npz": ["7"], "a.npz": ["3", "12"]}}, "not listed under their image"),
        ({"img2txts": {"b.npz": ["7", "12"], "a.npz": ["3", "9"]}}, r"another image or none .*\(9\)"),
    ],
)
def test_ids_that_do_not_join(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TextDB(write(tmp_path / "x.db", records(), **changed))


def test_unreadable_records_are_named(tmp_path: Path) -> None:
    stored: dict[str, Any] = records()
    stored["7"] = b"no frame"
    stored["3"] = encode_record(stored["3"])[:-12]
    del stored["12"]
    db = TextDB(write(tmp_path / "x.db", stored))
    for id in ("7", "3"):
        with pytest.raises(DataError, match=f"caption '{id}' in .*x.db cannot be read"):
            db[id]
    with pytest.raises(DataError, match=r"caption '12' is not in .*data\.mdb"):
        db["12"]
    with pytest.raises(DataError, match=r"word pieces of caption '7' .* not integers"):
        TextDB(write(tmp_path / "y.db", {**records(), "7": {"input_ids": ["a"]}}))["7"]


def test_records_survive() -> None:
    record = {"id": "1", "sent": "naïve 猫", "input_ids": [1, 70000], "img_fname": "a.npz"}
    assert encode_record(record)[:4].hex() == "04224d18"  # an LZ4 frame
    assert decode_record(encode_record(record)) == record
    with pytest.raises(ValueError, match="instead of a map"):
        decode_record(encode_record([1]))  # type: ignore[arg-type]


def test_a_rebuilt_database_is_read_anew(tmp_path: Path) -> None:
    from crossmodal.data.environments import close

    folder = write(tmp_path / "x.db", records())
    assert TextDB(folder)["7"].sentence == "a red cube"
    close(folder)
    shutil.rmtree(folder)
    changed = records()
    changed["7"]["sent"] = "a green cube"
    assert TextDB(write(tmp_path / "x.db", changed))["7"].sentence == "a green cube"


def test_a_flipped_bit_in_our_own_frame_is_found() -> None:
    value = encode_record({"id": "1", "sent": "a red cube", "input_ids": [10, 11, 12], "img_fname": "a.npz"})
    for at in range(len(value)):
        for bit in range(8):
            damaged = value[:at] + bytes([value[at] ^ 1 << bit]) + value[at + 1 :]
            with pytest.raises((ValueError, RuntimeError)):
                decode_record(damaged)


def test_frames_of_the_published_converters_are_read() -> None:
    import lz4.frame
    import msgpack

    record = {"input_ids": [10, 11], "img_fname": "a.npz"}
    assert decode_record(lz4.frame.compress(msgpack.dumps(record, use_bin_type=True))) == record


def test_what_follows_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="3 bytes follow its frame"):
        decode_record(encode_record({"a": 1}) + b"abc")


def test_ids_that_lmdb_cannot_look_up(tmp_path: Path) -> None:
    db = TextDB(write(tmp_path / "x.db", records()))
    for id in ("", "\ud800"):
        with pytest.raises(DataError, match="cannot be looked up in"):
            db[id]
