"""Damaged files of detectors, and sizes that are only said: one sentence, exit code 2, little memory."""

from __future__ import annotations

import base64
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import pytest

from crossmodal.data import region_hdf5
from crossmodal.data.region_records import unpack
from crossmodal.data.texts import decode_record

from ..commands import command, refused
from .damage import record

Said = pytest.CaptureFixture[str]


def tsv_row(name: str = "a", boxes: int = 3, **changes: str) -> str:
    found = record(boxes)
    columns = {
        "img_id": name,
        "img_w": "200",
        "img_h": "100",
        "num_boxes": str(boxes),
        "boxes": base64.b64encode((found["norm_bb"][:, :4] * [200, 100, 200, 100]).astype("<f4").tobytes()).decode(),
        "features": base64.b64encode(found["features"].tobytes()).decode(),
    }
    return "\t".join({**columns, **changes}.values()) + "\n"


def features(array: np.ndarray) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode()


TSV_FILES: list[tuple[str | bytes, str]] = [
    ("", "holds no image"),
    (b"\x89PNG\r\n\x1a\n", "is no name in UTF-8"),
    ("a.jpg\ta dog\n", "line 1, has 2 columns, not 10 (LXMERT) or 6"),
    (tsv_row(img_w="1e400"), "line 1, has b'1e400' where img_w, a whole number, is expected"),
    (tsv_row(img_w="9" * 400), "where img_w, a whole number, is expected"),
    (tsv_row(img_w="0"), "gives the image a size of 0"),
    (tsv_row(num_boxes="1099511627776"), "where num_boxes, a whole number, is expected"),
    (tsv_row(num_boxes="0"), "for 0 boxes"),
    (tsv_row(num_boxes="2"), "has 12 numbers in its boxes column for 2 boxes"),
    (tsv_row(features="not base64"), "has a damaged features column"),
    (tsv_row(features=features(np.full((3, 8), np.nan))), "holds NaN or infinite features"),
    (tsv_row(img_w="20"), "has a box outside its image"),
    (tsv_row() + tsv_row(), "holds image a.npz in lines 1 and 2"),
]


@pytest.mark.parametrize(("content", "problem"), TSV_FILES)
def test_tsv_files(tmp_path: Path, capsys: Said, content: str | bytes, problem: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused(capsys, "data", "regions", path, "--output", tmp_path / "out")
    assert problem in said and said.count("\n") == 0
    assert not list((tmp_path / "out").glob("feat*[0-9]/data.mdb"))


def test_a_row_whose_end_is_missing(tmp_path: Path, capsys: Said) -> None:
    """Cut where base64, numbers and boxes all come out even."""
    path = tmp_path / "a.tsv"
    path.write_text((tsv_row("a") + tsv_row("b")).rstrip("\n")[:-32])
    assert command("data", "regions", path, "--output", tmp_path / "out") == 0
    assert "b.npz: " in (said := capsys.readouterr().err) and "features 6 wide, and the other images have 8" in said


def test_npz_files(tmp_path: Path, capsys: Said) -> None:
    def said_of(content: bytes) -> str:
        (tmp_path / "a.npz").write_bytes(content)
        return refused(capsys, "data", "regions", tmp_path, "--output", tmp_path / "out")

    assert "File is not a zip file" in said_of(b"")
    assert "File is not a zip file" in said_of(b"\x93NUMPY\x01\x00")
    np.savez(tmp_path / "a.npz", **record())
    whole = (tmp_path / "a.npz").read_bytes()
    assert "File is not a zip file" in said_of(whole[: len(whole) // 2])
    at = whole.index(b"NUMPY") + 300
    assert "Bad CRC-32" in said_of(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    np.savez(tmp_path / "a.npz", **{**record(), "features": np.array(["a"] * 12)})
    assert "features holds <U1, not numbers" in said_of((tmp_path / "a.npz").read_bytes())
    np.savez(tmp_path / "a.npz", **{**record(), "features": record()["features"].astype(np.uint8)})
    assert "features of uint8 instead of floats" in said_of((tmp_path / "a.npz").read_bytes())


def test_hdf5_files(tmp_path: Path, capsys: Said) -> None:
    path = tmp_path / "a.h5"

    def said_of(**content: Any) -> str:
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            for name, value in content.items():
                file[name] = value
        return refused(capsys, "data", "regions", path, "--output", tmp_path / "out")

    whole = {name: array[None] for name, array in record().items()}
    assert "holds neither groups" in said_of()
    assert "repeated names" in said_of(ids=["a", "a"], **whole)
    assert "is no list of names" in said_of(ids=[[0.5]], **whole)
    assert "num_boxes says that it has -1 boxes" in said_of(ids=["a"], num_boxes=[-1], **whole)
    assert "pos_boxes says" in said_of(ids=["a"], pos_boxes=[[2, -1]], **record())
    assert "has 12 rows, and row 13 is wanted" in said_of(ids=["a"], pos_boxes=[[2, 14]], **record())
    assert "holds NaN or infinite" in said_of(ids=["a"], **(whole | {"conf": np.full((1, 12), np.nan)}))
    path.write_bytes(b"")
    assert f"{path} cannot be read as HDF5" in refused(capsys, "data", "regions", path, "--output", tmp_path / "out")


def test_names_that_keep_hdf5_busy_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    """HDF5 never comes back from a heap whose first string has no length."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["ids"] = ["a", "b", "c"]
        for name, array in record().items():
            file[name] = np.stack([array] * 3)
    content = bytearray(path.read_bytes())
    sizes = content.index(b"GCOL") + 16 + 8  # of the first string in the heap of strings
    assert content[sizes : sizes + 8] == (1).to_bytes(8, "little")
    monkeypatch.setattr(region_hdf5, "_PATIENCE", 5.0)
    for size in (1 << 40, 1 << 63, 3000):
        content[sizes : sizes + 8] = size.to_bytes(8, "little")
        path.write_bytes(content)
        said = refused(capsys, "data", "regions", path, "--output", tmp_path / "out")
        assert f"{path} cannot be read as HDF5 (`ids` " in said, size


# -- sizes that are only said


def test_an_array_that_is_said_to_be_huge(tmp_path: Path, capsys: Said) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 40}, 2048), }}".ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("features.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.encode())
    said = refused(capsys, "data", "regions", tmp_path, "--output", tmp_path / "out")
    assert "features is said to have the shape (1099511627776, 2048), which its 0 bytes have not" in said


def test_an_archive_that_grows(tmp_path: Path, capsys: Said) -> None:
    """Some kilobytes of zeros that unpack to 257 MiB, honestly announced and not."""
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("features.npy", "w") as entry,
    ):
        for _ in range(257):
            entry.write(bytes(1 << 20))
    said = refused(capsys, "data", "regions", tmp_path, "--output", tmp_path / "out")
    assert "its arrays are said to have more than 256 MiB" in said
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content.replace(struct.pack("<I", 257 << 20), struct.pack("<I", 1 << 20)))
    assert "Bad CRC-32" in refused(capsys, "data", "regions", tmp_path, "--output", tmp_path / "out")


def test_a_caption_that_grows() -> None:
    import lz4.frame

    with pytest.raises(ValueError, match="unpacks to more than 1048576 bytes"):
        decode_record(lz4.frame.compress(bytes(1 << 26)))
    huge = bytearray(lz4.frame.compress(b"x"))
    huge[6:14] = (1 << 60).to_bytes(8, "little")
    with pytest.raises((ValueError, RuntimeError)):
        decode_record(bytes(huge))
    nested = b"\xdd\x00\x0f\xff\xff" * 1000  # lists in lists, each of a million
    with pytest.raises(ValueError, match="exceeds max_array_len"):
        decode_record(lz4.frame.compress(nested))


def test_numbers_in_the_place_of_names_allocate_nothing() -> None:
    """``bytes(number)`` makes so many bytes."""
    array = np.ones((2, 3), np.float32)
    fields: dict[Any, Any] = {"nd": True, "type": "<f4", "kind": b"", "shape": [2, 3], "data": array.tobytes()}
    for fields_of in (
        {"features": {**fields, "kind": 1 << 40}},
        {"features": {**fields, 1 << 40: b""}},
        {1 << 40: fields},
        {"features": {**fields, "type": 1 << 40}},
        {"features": {**fields, "shape": [1 << 40, 1 << 40]}},
        {"features": {**fields, "shape": [1 << 63]}},
        {"features": {**fields, "type": "1099511627776f4"}},
    ):
        with pytest.raises(ValueError):
            unpack(msgpack.packb(fields_of))


def test_an_hdf5_dataset_that_is_said_to_be_huge(tmp_path: Path, capsys: Said) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_group("image")
        file["image"].create_dataset("features", shape=(1 << 30, 2048), dtype=np.float32, chunks=(1, 2048))
        file["image"]["norm_bb"] = record()["norm_bb"]
    said = refused(capsys, "data", "regions", path, "--output", tmp_path / "out")
    assert "features is said to have the shape (1073741824, 2048), more than 256 MiB an image" in said
