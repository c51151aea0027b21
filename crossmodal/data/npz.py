"""Reading npz archives of numbers: bounded in memory, compared with their checksums, never unpickled.

`numpy.load` allocates whatever a header announces and hands other compressions to libraries that do the same.
Here an array's header must agree with the size of its entry, and the sizes of all with `LARGEST`, before
anything is unpacked.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Collection
from math import prod
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 1 << 28
"""Bytes that the arrays of one image may have: a hundred times what 100 boxes of 2,048 numbers and labels have."""

_END = 22  # bytes of the record at the end of an archive, without the comment behind it
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_NUMBERS = re.compile(r"[<>|=]?[biuf]\d{1,2}")
_FIELDS = {
    "descr": re.compile(rb"'descr': *('[^']*'|\[)"),
    "fortran_order": re.compile(rb"'fortran_order': *(True|False)"),
    "shape": re.compile(rb"'shape': *\(([0-9L, ]*)\)"),
}


def read_arrays(file: IO[bytes], only: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an npz, or those named in `only`, read-only.

    Raises ValueError, or what `zipfile` and `zlib` raise (`region_records.MALFORMED`), where the archive is
    damaged, larger than `LARGEST`, or holds other things than arrays of numbers.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        # The index has no checksum, and `zipfile` doesn't count: a damaged length can hide an entry in the one before.
        file.seek(-_END - len(archive.comment), os.SEEK_END)
        announced = int.from_bytes(file.read(_END)[10:12], "little")
        if announced != len(entries):
            raise ValueError(f"its index holds {len(entries)} arrays and announces {announced}")
        names = [entry.filename.removesuffix(".npy") for entry in entries]
        if len(set(names)) != len(names):
            raise ValueError("it holds two arrays of one name")
        if sum(entry.file_size for entry in entries) > LARGEST:
            raise ValueError(f"its arrays are said to have more than {LARGEST >> 20} MiB")
        arrays = {}
        for name, entry in zip(names, entries, strict=True):
            # Also what isn't wanted: opening compares the name in the index with the one before the data.
            with archive.open(entry) as stream:
                if only is None or name in only:
                    arrays[name] = _array(name, entry, stream)
    return arrays


def _array(name: str, entry: zipfile.ZipInfo, stream: IO[bytes]) -> NDArray[Any]:
    if entry.compress_type not in _METHODS:
        raise ValueError(f"{name} is compressed in a way that numpy doesn't write")
    content = stream.read(entry.file_size)  # checks the CRC-32 at its end
    major = content[6] if content[:6] == b"\x93NUMPY" and len(content) > 8 else 0
    if major not in (1, 2, 3):
        raise ValueError(f"{name} is no array")
    begin = 10 if major == 1 else 12
    end = begin + int.from_bytes(content[8:begin], "little")
    fields = {field: pattern.search(content, begin, end) for field, pattern in _FIELDS.items()}
    descr, order, shape = (found and found[1].decode("latin-1") for found in fields.values())
    if descr is None or order is None or shape is None or end > len(content):
        raise ValueError(f"{name} has a damaged header")
    kind = descr.strip("'")
    if "O" in kind:
        raise ValueError(f"{name} holds Python objects, as a pickle, which is never opened")
    if not _NUMBERS.fullmatch(kind):
        raise ValueError(f"{name} holds {kind}, not numbers")
    dtype = np.dtype(kind)
    sides = tuple(int(side.rstrip("L")) for side in shape.replace(" ", "").split(",") if side)
    if end + prod(sides) * dtype.itemsize != len(content):
        raise ValueError(f"{name} is said to have the shape {sides}, which its {len(content) - end} bytes have not")
    return np.ndarray(sides, dtype, content, end, order="F" if order == "True" else "C")
