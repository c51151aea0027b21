from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crossmodal.data.npz import read_arrays


@given(
    hnp.arrays(
        st.sampled_from(["<f2", ">f4", "<f8", "<i8", "|u1", "|b1"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
    ),
    st.booleans(),
    st.booleans(),
)
def test_what_numpy_writes(array: np.ndarray, fortran: bool, compressed: bool) -> None:
    file = io.BytesIO()
    array = np.asfortranarray(array) if fortran else array
    (np.savez_compressed if compressed else np.savez)(file, a=array, b=array.reshape(-1))
    found = read_arrays(file)
    assert list(found) == ["a", "b"] and found["a"].dtype == array.dtype and found["a"].shape == array.shape
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(found["b"], array.reshape(-1))
    assert list(read_arrays(file, ["b"])) == ["b"]


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is no array"),
        (b"\x93NUMPY\x09\x00\x00\x00", "is no array"),
        (header("{}"), "damaged header"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }") + bytes(7), "which its 7 bytes have not"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + bytes(8), "never opened"),
        (header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }") + bytes(4), "not numbers"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }")[:40], "damaged header"),
    ],
)
def test_what_is_no_array_of_numbers(content: bytes, problem: str) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(ValueError, match=problem):
        read_arrays(file)
    assert read_arrays(file, ()) == {}


def test_other_compressions_and_repeated_names() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", bytes(100))
    with pytest.raises(ValueError, match="compressed in a way that numpy doesn't write"):
        read_arrays(file)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"1")
        archive.writestr("a", b"2")
    with pytest.raises(ValueError, match="two arrays of one name"):
        read_arrays(file)


def test_a_name_that_the_index_has_otherwise() -> None:
    """Not asked for under its other name, it would only be left out."""
    file = io.BytesIO()
    np.savez(file, features=np.ones(3), conf=np.ones(3))
    content = file.getvalue()
    at = content.rindex(b"conf.npy")
    damaged = content[:at] + b"cont.npy" + content[at + 8 :]
    with pytest.raises(zipfile.BadZipFile, match="differ"):
        read_arrays(io.BytesIO(damaged), ("features", "conf"))


def test_an_entry_that_another_hides() -> None:
    """A damaged length of a comment in the index, which `zipfile` would follow."""
    file = io.BytesIO()
    np.savez(file, features=np.ones(3), conf=np.ones(3))
    content = bytearray(file.getvalue())
    at = content.index(b"PK\x01\x02")
    content[at + 32] = 46 + len("conf.npy")
    assert len(zipfile.ZipFile(io.BytesIO(content)).infolist()) == 1
    with pytest.raises(ValueError, match="holds 1 arrays and announces 2"):
        read_arrays(io.BytesIO(content))


def test_an_archive_with_a_comment() -> None:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"made by hand"
    assert list(read_arrays(file)) == ["a"]
