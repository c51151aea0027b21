"""Every reader of data on valid bytes that were damaged: the right thing or a named error, in little time and memory.

Formats with a checksum give the right values or DataError; those without give the right keys, shapes and kinds
with finite numbers, or DataError. What C libraries read is read in a process of its own.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pytest
from hypothesis import given

from crossmodal.data.captions import Caption, read_captions
from crossmodal.data.environments import close
from crossmodal.data.region_records import pack
from crossmodal.data.region_writer import write_region_db
from crossmodal.data.regions import RegionDB, open_regions
from crossmodal.data.text_writer import write_text_db
from crossmodal.data.texts import INDEXES, TextDB, decode_record, encode_record
from crossmodal.data.tokenizers import train_tokenizer
from crossmodal.errors import CrossmodalError, DataError

from .damage import bounded, damaged, require_item
from .reader_process import WIDTH, ReaderProcess, read_hdf5, read_images, read_texts

pytestmark = pytest.mark.soak

Record = dict[str, np.ndarray]
Note = Callable[[str, object], None]
BOXES = 5
NARROW = 8  # numbers a box, so that half of a value is what surrounds the numbers
SENTENCES = ["a red ball left of a blue cube", "a small green cone", "two rings"]


def record(seed: int = 0, width: int = NARROW) -> Record:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.5, (BOXES, 2))
    size = rng.uniform(0.1, 0.5, (BOXES, 2))
    return {
        "norm_bb": np.concatenate([low, low + size, size], 1).astype(np.float16),
        "features": rng.normal(size=(BOXES, width)).astype(np.float16),
        "conf": np.sort(rng.uniform(0.3, 1, (BOXES, 1)), axis=0)[::-1].astype(np.float16),
    }


def pixels(seed: int = 0) -> dict[str, Any]:
    """The same as detectors leave it: float32, boxes in pixels of an image of 200 x 100."""
    found = record(seed)
    return {
        "features": found["features"].astype(np.float32),
        "boxes": (found["norm_bb"][:, :4] * np.array([200, 100, 200, 100])).astype(np.float32),
        "conf": found["conf"][:, 0].astype(np.float32),
        "image_w": 200,
        "image_h": 100,
    }


def fuzz(note: Note, reader: str, value: bytes, read: Callable[[bytes], object], page: int = 0) -> None:
    """`read` must take every damaged form of `value` or raise DataError. The undamaged one it must take."""
    cases = 0
    read(value)

    @given(damaged(value, page))
    def case(content: bytes) -> None:
        nonlocal cases
        cases += 1
        with suppress(DataError):
            read(content)

    case()
    note(f"fuzz cases {reader}", cases)


# -- values of image databases


def database(folder: Path, values: dict[str, bytes], **options: Any) -> RegionDB:
    """An image database of these values, replacing the one before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with lmdb.open(str(folder), map_size=1 << 20, sync=False) as env, env.begin(write=True) as txn:
        for name, content in values.items():
            txn.put(name.encode(), content)
    close(folder)
    return open_regions(folder, **options)


def with_text_keys(found: Record) -> bytes:
    """A msgpack record as other encoders write it, which the fast way through published ones leaves out."""
    import msgpack

    return bytes(
        msgpack.packb(
            {
                name: {"nd": True, "type": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}
                for name, array in found.items()
            }
        )
    )


@pytest.mark.parametrize(
    ("reader", "value"),
    [("msgpack record", pack(record())), ("msgpack record of other encoders", with_text_keys(record()))],
)
def test_msgpack_records(tmp_path: Path, reader: str, value: bytes, record_property: Note) -> None:
    def read(content: bytes) -> None:
        db = database(tmp_path / f"feat_numbb{BOXES}", {"a.npz": pack(record(1)), "b.npz": content})
        with bounded():
            require_item(db, "b.npz", NARROW)

    fuzz(record_property, reader, value, read)


def test_compressed_records(tmp_path: Path, record_property: Note) -> None:
    def read(content: bytes) -> None:
        db = database(tmp_path / f"feat_numbb{BOXES}_compressed", {"a.npz": content})
        with bounded():
            require_same(db, "a.npz")

    fuzz(record_property, "compressed npz record", pack(record(), "npz"), read)


@pytest.mark.parametrize("verify", [True, False])
def test_raw_records(tmp_path: Path, verify: bool, record_property: Note) -> None:
    folder = write_region_db(
        [("a.npz", record(1)), ("b.npz", record())], tmp_path, conf_th=-1, num_bb=BOXES, flavour="raw"
    )
    with lmdb.open(str(folder)) as env, env.begin() as txn:
        stored = dict(txn.cursor())

    def read(content: bytes) -> None:
        values = {key.decode(): content if key == b"b.npz" else value for key, value in stored.items()}
        db = database(folder, values, verify=verify)
        with bounded():
            if verify:
                require_same(db, "b.npz")
            else:
                require_item(db, "b.npz", NARROW)

    fuzz(record_property, f"raw record {'with' if verify else 'without'} verify", stored[b"b.npz"], read)


def require_same(db: RegionDB, image: str) -> None:
    item, right = require_item(db, image, NARROW), record()
    assert np.array_equal(item.features, right["features"]) and np.array_equal(item.boxes, right["norm_bb"])
    assert np.array_equal(item.confidence, right["conf"][:, 0])


# -- files that detectors leave


@pytest.mark.parametrize("kind", ["normalised", "pixels"])
def test_npz_dumps(tmp_path: Path, kind: str, record_property: Note) -> None:
    whole = record() if kind == "normalised" else pixels()
    np.savez_compressed(tmp_path / "a.npz", **whole)
    right = open_regions(tmp_path)["a.npz"]

    def read(content: bytes) -> None:
        (tmp_path / "a.npz").write_bytes(content)
        with bounded():
            item = require_item(open_regions(tmp_path), "a.npz", NARROW)
        assert np.array_equal(item.features, right.features) and np.array_equal(item.boxes, right.boxes)

    fuzz(record_property, f"npz dump, {kind}", (tmp_path / "a.npz").read_bytes(), read)


def tsv_line(seed: int, lxmert: bool) -> str:
    found = pixels(seed)
    conf, boxes, features = (base64.b64encode(found[n].tobytes()).decode() for n in ("conf", "boxes", "features"))
    head = ["100", "200", conf, conf, conf, conf] if lxmert else ["200", "100"]
    return "\t".join([f"image_{seed}", *head, str(BOXES), boxes, features]) + "\n"


@pytest.mark.parametrize("lxmert", [True, False])
def test_tsv_rows(tmp_path: Path, lxmert: bool, record_property: Note) -> None:
    path = tmp_path / "a.tsv"

    def read(content: bytes) -> None:
        path.write_bytes(tsv_line(1, lxmert).encode() + content)
        with bounded():
            db = open_regions(path, conf_th=-1)
            for image in db.ids:
                # A damaged number of columns can turn one kind of row into the other.
                require_item(db, image, NARROW, confident=False)

    row = tsv_line(2, lxmert) + tsv_line(3, lxmert)
    fuzz(record_property, f"TSV rows, {'LXMERT' if lxmert else 'bottom-up attention'}", row.encode(), read)


@pytest.fixture(scope="module")
def hdf5_reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReaderProcess]:
    with closing(ReaderProcess(read_hdf5, tmp_path_factory.mktemp("hdf5") / "a.h5")) as reader:
        yield reader


@pytest.mark.parametrize("layout", ["groups", "rows", "spans"])
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_hdf5(tmp_path: Path, layout: str, version: str, hdf5_reader: ReaderProcess, record_property: Note) -> None:
    path = tmp_path / "whole.h5"
    images = [pixels(seed) for seed in range(3)]
    with h5py.File(path, "w", libver=version) as file:
        if layout == "groups":
            for i, found in enumerate(images):
                group = file.create_group(f"image_{i}")
                group.attrs.update(image_w=200, image_h=100)
                for name in ("features", "boxes", "conf"):
                    group[name] = found[name]
        else:
            together = np.stack if layout == "rows" else np.concatenate
            file["ids"] = np.array([b"image_0", b"image_1", b"image_2"])
            file["image_w"], file["image_h"] = [200] * 3, [100] * 3
            for name in ("boxes", "conf"):
                file[name] = together([found[name] for found in images])
            features = together([found["features"] for found in images])
            file.create_dataset("features", data=features, chunks=True, compression="gzip")
            if layout == "rows":
                file["num_boxes"] = [BOXES, BOXES - 1, BOXES]
            else:
                file["pos_boxes"] = [[i * BOXES, (i + 1) * BOXES] for i in range(3)]
    fuzz(record_property, f"HDF5, {layout}, {version} format", path.read_bytes(), hdf5_reader.read)


# -- whole LMDB files


def test_files_of_image_databases(tmp_path: Path, record_property: Note) -> None:
    folder = write_region_db(
        [(f"image_{i:02}.npz", record(i, WIDTH)) for i in range(8)], tmp_path, conf_th=-1, num_bb=BOXES
    )
    content = (folder / "data.mdb").read_bytes()
    with closing(ReaderProcess(read_images, folder / "data.mdb")) as reader:
        fuzz(record_property, "data.mdb of images", content, reader.read, page=4096)


def text_database(folder: Path, captions: int) -> Path:
    tokenizer = train_tokenizer(SENTENCES, 60)
    found = [Caption(str(i), f"image_{i // 3}.npz", SENTENCES[i % 3]) for i in range(captions)]
    return write_text_db(found, folder, tokenizer)


def test_files_of_text_databases(tmp_path: Path, record_property: Note) -> None:
    folder = text_database(tmp_path / "a.db", 60)
    content = (folder / "data.mdb").read_bytes()
    with closing(ReaderProcess(read_texts, folder / "data.mdb")) as reader:
        fuzz(record_property, "data.mdb of captions", content, reader.read, page=4096)


# -- captions


def without_checksum(value: bytes) -> bytes:
    """A frame as the published converters write it."""
    import lz4.frame
    import msgpack

    return bytes(lz4.frame.compress(msgpack.packb(decode_record(value))))


@pytest.mark.parametrize("checksum", [True, False])
def test_text_records(tmp_path: Path, checksum: bool, record_property: Note) -> None:
    folder = text_database(tmp_path / "a.db", 3)
    right = TextDB(folder)["1"]
    stored = encode_record(TextDB(folder).record("1"))

    def read(content: bytes) -> None:
        close(folder)
        (folder / "data.mdb").unlink()
        with lmdb.open(str(folder), map_size=1 << 20, sync=False) as env, env.begin(write=True) as txn:
            txn.put(b"1", content)
        with bounded():
            item = TextDB(folder)["1"]
        assert item == right or not checksum
        assert item.id == "1" and isinstance(item.sentence, str | None) and (item.sentence or item.input_ids)
        assert all(type(i) is int and 0 <= i < TextDB(folder).v_range[1] for i in item.input_ids)

    value = stored if checksum else without_checksum(stored)
    fuzz(record_property, f"text record {'with' if checksum else 'without'} checksum", value, read)


@pytest.mark.parametrize("name", INDEXES)
def test_indexes_of_text_databases(tmp_path: Path, name: str, record_property: Note) -> None:
    folder = text_database(tmp_path / "a.db", 6)

    def read(content: bytes) -> None:
        (folder / name).write_bytes(content)
        with bounded():
            db = TextDB(folder)
            for caption in db.ids:
                assert db.image_of[caption] in db.images and caption in db.texts_of[db.image_of[caption]]
                assert db.lengths[caption] >= 0
                assert db[caption].input_ids
        assert 0 <= min(db.cls, db.sep, db.mask) <= max(db.cls, db.sep, db.mask) < db.v_range[1] > db.v_range[0] >= 0

    fuzz(record_property, name, (folder / name).read_bytes(), read)


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"id": n, "image_id": 1 + n % 2, "caption": SENTENCES[n]} for n in range(3)],
}
KARPATHY = {
    "images": [
        {"filename": "a.jpg", "split": "train", "sentids": [0], "sentences": [{"raw": SENTENCES[0], "sentid": 0}]},
        {"filename": "b.jpg", "split": "test", "sentids": [1], "sentences": [{"raw": SENTENCES[1], "sentid": 1}]},
    ],
    "dataset": "coco",
}
FILES = {
    "coco.json": json.dumps(COCO),
    "karpathy.json": json.dumps(KARPATHY),
    "list.json": json.dumps([{"image": "a.jpg", "caption": SENTENCES[:2]}, {"image": "b.jpg", "caption": "naïve 猫"}]),
    "results.token": "".join(f"{n % 2}.jpg#{n}\t{sentence}\n" for n, sentence in enumerate(SENTENCES)),
    "plain.tsv": "".join(f"{n % 2}.jpg\t{sentence}\n" for n, sentence in enumerate(SENTENCES)),
    "header.tsv": "id\tsplit\timage\tcaption\n"
    + "".join(f"{n}\tval\t{n % 2}.jpg\t{sentence}\n" for n, sentence in enumerate(SENTENCES)),
}


@pytest.mark.parametrize("name", FILES)
def test_caption_files(tmp_path: Path, name: str, record_property: Note) -> None:
    def read(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with bounded():
            captions, _ = read_captions(tmp_path / name)
        assert captions and len({caption.id for caption in captions}) == len(captions)
        for caption in captions:
            assert isinstance(caption.split, str | None)
            assert all(isinstance(text, str) for text in (caption.id, caption.image, caption.sentence))
            f"{caption.id}{caption.image}{caption.sentence}".encode()

    fuzz(record_property, f"caption file {name}", FILES[name].encode(), read)


def test_options_with_damaged_caption_files(tmp_path: Path, record_property: Note) -> None:
    """A split and a format that were asked for are two more ways through the readers."""
    cases = 0

    @given(damaged(FILES["karpathy.json"].encode()))
    def case(content: bytes) -> None:
        nonlocal cases
        cases += 1
        (tmp_path / "a.json").write_bytes(content)
        with suppress(CrossmodalError), bounded():
            captions, format = read_captions(tmp_path / "a.json", format="karpathy", split="train")
            assert format == "karpathy" and {caption.split for caption in captions} == {"train"}

    case()
    record_property("fuzz cases caption file with a split", cases)
