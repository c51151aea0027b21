"""Our own values of an image database: a small header, then the arrays as they are, read without a copy.

Everything is little-endian. A value is a header of 512 bytes,

| bytes | what |
| --- | --- |
| 0 | magic ``XMRG`` |
| 4 | version of this layout, u16: 1 |
| 6 | number of arrays, u16: at most 10 |
| 8 | length of the value in bytes, u32 |
| 12 | 48 bytes an array: name (24), dtype such as ``<f2`` (4), number of dimensions (u32), shape (4 x u32) |
| 508 | checksum, u32: CRC-32 of all other bytes of the value |

with zeros between, and then the arrays in that order, C-contiguous, each at the next multiple of 16.

A database of such values holds one more entry, written in the transaction that ends the writing: the *seal*
under `SCHEMA`, with the version of the schema and a checksum of the list of images. Without it, it isn't whole.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Collection, Mapping
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmodal.errors import DataError

Array = NDArray[Any]

MAGIC = b"XMRG"
SCHEMA = b"__schema__"
VERSION = 1

_HEAD = struct.Struct("<4sHHI")
_ROW = struct.Struct("<24s4sI4I")
_CHECKSUM = struct.Struct("<I")
_TABLE = 508  # bytes of the header before the checksum
_HEADER = _TABLE + _CHECKSUM.size
_ALIGN = 16
_MOST = (_TABLE - _HEAD.size) // _ROW.size  # arrays
_DIMENSIONS = 4
_LONGEST_NAME = 24  # bytes
_DTYPES = {
    name.encode(): np.dtype(name)
    for name in ("<f2", "<f4", "<f8", "|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8")
}


def pack_raw(record: Mapping[str, Array]) -> bytes:
    """The value of a record, its arrays in their order and precision. Raises DataError for what has no place in it."""
    if len(record) > _MOST:
        raise DataError(f"{len(record)} arrays do not fit into a raw record; it takes {_MOST}")
    rows, pieces = [], []
    at = _HEADER
    for name, array in record.items():
        array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        encoded, dtype = name.encode(), array.dtype.str.encode()
        if not 0 < len(encoded) <= _LONGEST_NAME or "\0" in name:
            raise DataError(f"{name!r} cannot name an array: names have 1 to {_LONGEST_NAME} bytes")
        if dtype not in _DTYPES or not 0 < array.ndim <= _DIMENSIONS:
            raise DataError(f"{name} of {array.dtype} and shape {array.shape} is not numbers in 1 to 4 dimensions")
        rows.append(_ROW.pack(encoded, dtype, array.ndim, *array.shape, *[0] * (_DIMENSIONS - array.ndim)))
        gap = -at % _ALIGN
        pieces += [bytes(gap), array.tobytes()]
        at += gap + array.nbytes
    if at >= 1 << 32:
        raise DataError(f"{at} bytes of arrays do not fit into an image database")
    header = b"".join([_HEAD.pack(MAGIC, VERSION, len(rows), at), *rows]).ljust(_TABLE, b"\0")
    payload = b"".join(pieces)
    return header + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(header))) + payload


def unpack_raw(
    value: bytes | memoryview, only: Collection[str] | None = None, *, verify: bool = False
) -> dict[str, Array]:
    """The arrays of a value, or those named in `only`, as read-only views on it.

    Lengths are always checked, the checksum with `verify`. Raises ValueError for a damaged value.
    """
    if verify and zlib.crc32(value[_HEADER:], zlib.crc32(value[:_TABLE])) != int.from_bytes(
        value[_TABLE:_HEADER], "little"
    ):
        raise ValueError("its checksum does not match its bytes")
    layout, length = _layout(bytes(value[:_TABLE]))
    if length != len(value):
        raise ValueError(f"{len(value)} bytes where {length} are announced")
    arrays = {}
    for name in layout if only is None else only:
        if name in layout:
            shape, dtype, offset = layout[name]
            arrays[name] = np.ndarray(shape, dtype, value, offset)
    return arrays


@lru_cache(maxsize=1024)  # the images of a database have few shapes
def _layout(header: bytes) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype[Any], int]], int]:
    """name -> (shape, dtype, offset) of every array, and the length of the value; of a header without its checksum."""
    if len(header) != _TABLE:
        raise ValueError(f"truncated: {len(header)} bytes")
    magic, version, count, length = _HEAD.unpack_from(header)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"its layout is {version}, and this version of crossmodal reads {VERSION}")
    if count > _MOST:
        raise ValueError(f"it announces {count} arrays")
    layout, end = {}, _HEADER
    for i in range(count):
        name, kind, dimensions, *sizes = _ROW.unpack_from(header, _HEAD.size + i * _ROW.size)
        dtype = _DTYPES.get(kind.rstrip(b"\0"))
        if dtype is None or not 0 < dimensions <= _DIMENSIONS:
            raise ValueError(f"it announces an array of {kind!r} in {dimensions} dimensions")
        shape, start = tuple(sizes[:dimensions]), end + -end % _ALIGN
        layout[name.rstrip(b"\0").decode()] = shape, dtype, start
        end = start + prod(shape) * dtype.itemsize
    if len(layout) != count or end != length:
        raise ValueError(f"its {count} arrays have {len(layout)} names and end at byte {end} of {length}")
    return layout, length


def seal(keys: bytes) -> bytes:
    """What stands under `SCHEMA` in a whole database whose list of images is `keys`."""
    return json.dumps({"flavour": "raw", "version": VERSION, "keys_crc32": zlib.crc32(keys)}).encode()


def unsealed(keys: bytes | None, sealed: bytes | None) -> str | None:
    """What is wrong with a database of raw values with these entries, to be said of it; None if nothing is."""
    if keys is None or sealed is None:
        return "is half-built: its list of images and its schema, written last, are not there; build or copy it again"
    try:
        schema = json.loads(sealed)
        version, checksum = schema["version"], schema["keys_crc32"]
    except (ValueError, LookupError, TypeError):
        return "is damaged: its schema cannot be read; build or copy it again"
    if version != VERSION:
        return f"has schema {version}, and this version of crossmodal reads {VERSION}; update crossmodal"
    if checksum != zlib.crc32(keys):
        return "is damaged: its list of images does not match its checksum; build or copy it again"
    return None
