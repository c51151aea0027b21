"""The values of an image database: one record of arrays an image, packed in one of three flavours.

A *record* is ``{"norm_bb": (R,6), "features": (R,F), "conf": (R,1), "soft_labels": (R,C)}``, the last two
optional. ``msgpack`` and ``npz`` (compressed) are those of https://github.com/ChenRocks/UNITER
(scripts/convert_imgdir.py); ``raw`` is ours (`region_raw`).
msgpack-numpy's layout is read without that package: it may hold pickled objects, which are refused here.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from crossmodal.data.npz import read_arrays
from crossmodal.data.region_raw import MAGIC, pack_raw, unpack_raw

Array = NDArray[Any]

_ZIP = b"PK"
_NUMBERS = re.compile(r"[<>|=]?[biuf]\d{1,2}")  # what a record may hold
_ARCHIVE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OverflowError)
MALFORMED = (*_ARCHIVE, ValueError, LookupError, TypeError)  # what numpy and zipfile raise on damaged values


class BadRecord(ValueError):
    """A packed value that is truncated, damaged or holds Python objects."""


def pack(record: Mapping[str, Array], flavour: str = "msgpack") -> bytes:
    """Pack the arrays of a record in their given order; bit for bit what the published converter writes.

    (``npz`` agrees in its arrays; its zip headers carry a fixed date, so that equal records give equal bytes.)
    flavour: ``msgpack``, ``npz`` or ``raw``. Raises DataError for an array that ours cannot hold.
    """
    return _PACKERS[flavour](record)


def unpack(value: bytes | memoryview, only: Collection[str] | None = None, *, verify: bool = False) -> dict[str, Array]:
    """The arrays of a packed record of any flavour; of these, only the names in `only`.

    msgpack and raw arrays are read-only views on `value`, without a copy. Scalars and zero-dimensional arrays
    (older converters leave one named ``allow_pickle``) are left out. verify: compare the checksum of a raw value
    (zip compares its own; msgpack has none). Raises BadRecord.
    """
    head = bytes(value[:4])
    try:
        if head == MAGIC:
            return unpack_raw(value, only, verify=verify)
        view = memoryview(value)
        named = _npz_arrays(view, only) if head[:2] == _ZIP else _msgpack_arrays(view, only)
    except MALFORMED as error:
        raise BadRecord(str(error) or type(error).__name__) from error
    return {name: array for name, array in named.items() if array.ndim > 0}


def _pack_msgpack(record: Mapping[str, Array]) -> bytes:
    encoded = {
        name: {
            b"nd": True,
            b"type": array.dtype.str,
            b"kind": b"",
            b"shape": array.shape,
            b"data": np.ascontiguousarray(array).tobytes(),
        }
        for name, array in record.items()
    }
    return bytes(msgpack.packb(encoded, use_bin_type=True))


def _pack_npz(record: Mapping[str, Array]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in record.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


_PACKERS = {"msgpack": _pack_msgpack, "npz": _pack_npz, "raw": pack_raw}


def _npz_arrays(view: memoryview, only: Collection[str] | None) -> dict[str, Array]:
    return read_arrays(io.BytesIO(view), only)


def _msgpack_arrays(view: memoryview, only: Collection[str] | None) -> dict[str, Array]:
    found = _published_arrays(view, only)
    if found is not None:
        return found
    value, end = _read(view, 0)
    if not isinstance(value, dict):
        raise ValueError("the value is not a map of arrays")
    if end != len(view):
        raise ValueError(f"{len(view) - end} bytes follow the record")
    arrays = {}
    for key, encoded in value.items():
        name = _text(key)
        if isinstance(encoded, dict) and (only is None or name in only):
            fields = {_text(k): v for k, v in encoded.items()}
            if fields.get("nd"):
                arrays[name] = _array(name, fields)
    return arrays


def _array(name: str, fields: Mapping[str, Any]) -> Array:
    # A type of text and no kind: msgpack-numpy marks pickled and structured arrays so. Numbers stand nowhere here:
    # `bytes` of a number would allocate as many bytes.
    if not isinstance(fields["type"], (str, memoryview)) or fields.get("kind") not in (b"", "", None):
        raise ValueError(f"{name} is not an array of numbers")
    kind = _text(fields["type"])
    if not _NUMBERS.fullmatch(kind):
        raise ValueError(f"{name} holds {kind[:20]!r}, not numbers")
    dtype = np.dtype(kind)
    array: Array = np.frombuffer(fields["data"], dtype).reshape(fields["shape"])
    return array


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, (bytes, memoryview)):
        raise ValueError(f"a name is {type(value).__name__}")
    return bytes(value).decode()


# The bytes that the published converter writes before the numbers of an array: name, dtype, shape, length.
_INTEGER = rb"([\x00-\x7f]|\xcc.|\xcd..|\xce....)"
_ANNOUNCED = re.compile(
    rb"([\xa1-\xbf])([a-z_]+)\x85\xc4\x02nd\xc3\xc4\x04type\xa3(<f[248])\xc4\x04kind\xc4\x00\xc4\x05shape\x92"
    + 2 * _INTEGER
    + rb"\xc4\x04data(\xc4.|\xc5..|\xc6....)",
    re.DOTALL,
)


def _published_arrays(view: memoryview, only: Collection[str] | None) -> dict[str, Array] | None:
    """The arrays of a record exactly as published, several times faster than reading it value by value; else None."""
    if not len(view) or not 0x81 <= view[0] <= 0x8F:
        return None
    arrays, at = {}, 1
    for _ in range(view[0] & 0x0F):
        found = _ANNOUNCED.match(view, at)
        if found is None:
            return None
        mark, encoded, dtype, rows, columns, size = found.groups()
        shape, length, start = (_integer(rows), _integer(columns)), _integer(size), found.end()
        at = start + length
        if mark[0] != 0xA0 | len(encoded) or length != shape[0] * shape[1] * int(dtype[2:]) or at > len(view):
            return None
        name = encoded.decode()
        if only is None or name in only:
            arrays[name] = np.ndarray(shape, dtype.decode(), view, start)
    return arrays if at == len(view) else None


def _integer(encoded: bytes) -> int:
    """A msgpack integer, or the length of a `bin`, from its bytes."""
    return int.from_bytes(encoded[1:] or encoded, "big")


# msgpack, as far as records use it. Its own unpacker copies every array; here a `bin` is a view.

_LENGTHS = {  # first byte -> (what follows, struct format of its length)
    0xC4: ("bin", ">B"),
    0xC5: ("bin", ">H"),
    0xC6: ("bin", ">I"),
    0xD9: ("str", ">B"),
    0xDA: ("str", ">H"),
    0xDB: ("str", ">I"),
    0xDC: ("array", ">H"),
    0xDD: ("array", ">I"),
    0xDE: ("map", ">H"),
    0xDF: ("map", ">I"),
}
_SCALARS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_SCALARS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def _read(view: memoryview, at: int) -> tuple[Any, int]:
    """The msgpack value at offset `at`, and the offset behind it."""
    head = view[at]
    at += 1
    if head < 0x80:
        return head, at
    if head >= 0xE0:
        return head - 256, at
    if head < 0x90:
        return _read_map(view, at, head & 0x0F)
    if head < 0xA0:
        return _read_array(view, at, head & 0x0F)
    if head < 0xC0:
        return _read_bytes(view, at, head & 0x1F, text=True)
    if head in _CONSTANTS:
        return _CONSTANTS[head], at
    if head in _SCALARS:
        form = _SCALARS[head]
        return struct.unpack_from(form, view, at)[0], at + struct.calcsize(form)
    if head not in _LENGTHS:
        raise ValueError(f"unexpected msgpack byte 0x{head:02x} at offset {at - 1}")
    what, form = _LENGTHS[head]
    count = struct.unpack_from(form, view, at)[0]
    at += struct.calcsize(form)
    if what == "map":
        return _read_map(view, at, count)
    if what == "array":
        return _read_array(view, at, count)
    return _read_bytes(view, at, count, text=what == "str")


def _read_bytes(view: memoryview, at: int, count: int, *, text: bool) -> tuple[Any, int]:
    end = at + count
    if end > len(view):
        raise ValueError(f"truncated: {len(view)} bytes where {end} or more are announced")
    piece = view[at:end]
    return (str(piece, "utf-8") if text else piece), end


def _read_array(view: memoryview, at: int, count: int) -> tuple[list[Any], int]:
    values = []
    for _ in range(count):
        value, at = _read(view, at)
        values.append(value)
    return values, at


def _read_map(view: memoryview, at: int, count: int) -> tuple[dict[Any, Any], int]:
    values = {}
    for _ in range(count):
        key, at = _read(view, at)
        if isinstance(key, memoryview):
            key = bytes(key)
        values[key], at = _read(view, at)
    return values, at
