"""The values of an image database: one record of arrays an image, packed as msgpack or as a compressed npz.

A *record* is ``{"norm_bb": (R,6), "features": (R,F), "conf": (R,1), "soft_labels": (R,C)}``, the last two
optional. The packed layouts are those of https://github.com/ChenRocks/UNITER (scripts/convert_imgdir.py).
msgpack-numpy's layout is read without that package: it may hold pickled objects, which are refused here.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_ZIP = b"PK"
_NUMBERS = frozenset("biuf")  # array kinds that a record may hold
_ARCHIVE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError)
MALFORMED = (*_ARCHIVE, ValueError, LookupError, TypeError)  # what numpy and zipfile raise on damaged values


class BadRecord(ValueError):
    """A packed value that is truncated, damaged or holds Python objects."""


def pack(record: Mapping[str, Array], *, compress: bool = False) -> bytes:
    """Pack the arrays of a record in their given order; bit for bit what the published converter writes.

    (The compressed flavour agrees in its arrays; its zip headers carry a fixed date, so that equal records
    give equal bytes.)
    """
    if compress:
        return _pack_npz(record)
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


def unpack(value: bytes | memoryview, only: Collection[str] | None = None) -> dict[str, Array]:
    """The arrays of a packed record; of these, only the names in `only`.

    msgpack arrays are read-only views on `value`, without a copy. Scalars and zero-dimensional arrays
    (older converters leave one named ``allow_pickle``) are left out. Raises BadRecord.
    """
    view = memoryview(value)
    try:
        named = _npz_arrays(view, only) if bytes(view[:2]) == _ZIP else _msgpack_arrays(view, only)
    except MALFORMED as error:
        raise BadRecord(str(error) or type(error).__name__) from error
    return {name: array for name, array in named.items() if array.ndim > 0}


def _pack_npz(record: Mapping[str, Array]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in record.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _npz_arrays(view: memoryview, only: Collection[str] | None) -> dict[str, Array]:
    with np.load(io.BytesIO(view), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files if only is None or name in only}


def _msgpack_arrays(view: memoryview, only: Collection[str] | None) -> dict[str, Array]:
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
    kind = fields.get("kind", b"")
    if not isinstance(fields["type"], (str, memoryview, bytes)) or bytes(kind or b"") not in (b"",):
        raise ValueError(f"{name} is not an array of numbers")
    dtype = np.dtype(_text(fields["type"]))
    if dtype.kind not in _NUMBERS:
        raise ValueError(f"{name} holds {dtype}, not numbers")
    array: Array = np.frombuffer(fields["data"], dtype).reshape(fields["shape"])
    return array


def _text(value: Any) -> str:
    return value if isinstance(value, str) else bytes(value).decode()


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
