"""The one way of opening pickles: published files of plain data, read without running anything that they name.

Containers, numbers, strings, bytes, arrays, ``argparse.Namespace`` and ``collections.OrderedDict`` are built; a
file that names anything else is refused with that name. Devices of torch come as text, such as ``cuda:0``.
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import re
import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmodal.errors import CheckpointError, DataError

LARGEST = 1 << 30
"""Bytes that a pickle may have: several times what all captions of COCO have."""

_KIND = re.compile(r"[<>|=]?([?biufcSU]\d{0,4})")  # of arrays: numbers and strings
_LEGACY = 0x1950A86A20F9469CFC6C  # torch's files before 1.6 begin with this number, pickled
_LEGACY_PARTS = 3  # and then hold a version, the machine's sizes and the content
_MOVED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # as Python 2 and old protocols name them


class Refused(ValueError):
    """A pickle that holds something else than data, or is damaged."""


def unpickle(content: bytes) -> Any:
    """The value of a pickle. Raises Refused."""
    return _Reader(io.BytesIO(content)).value()


def unpickle_file(path: Path) -> Any:
    """The value in a bare pickle or in a file of ``torch.save``, old or new, without tensors.

    Raises DataError naming the file and what in it is refused.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise Refused(f"it has more than {LARGEST >> 20} MiB")
        if zipfile.is_zipfile(path):
            return unpickle(_zipped(path))
        with path.open("rb") as file:
            first = _Reader(file).value()
            if first != _LEGACY:
                return first
            for _ in range(_LEGACY_PARTS - 1):
                _Reader(file).value()
            return _Reader(file).value()
    except (OSError, Refused) as error:
        raise DataError(f"{path} cannot be read ({error}); download or copy it again") from None


def read_object_array(path: Path) -> list[Any]:
    """The values in a ``.npy`` of a one-dimensional array of objects, as `numpy.save` writes a list of dicts.

    Raises DataError naming the file and what in it is refused.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size > LARGEST:
                raise Refused(f"it has more than {LARGEST >> 20} MiB")
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = header(file)
            if kind.kind != "O" or len(shape) != 1:
                raise Refused(f"it holds an array of {kind} of shape {shape}, not a list of records")
            found = _ObjectReader(file).value()
            if not isinstance(found, _Objects) or len(found.values) != shape[0]:
                raise Refused(f"it does not hold the {shape[0]} records that it announces")
            return found.values
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); download or copy it again") from None


def read_training_args(folder: Path) -> dict[str, Any]:
    """The options in the ``training_args.bin`` of a checkpoint folder such as VinVL's (ALADIN, spec section 7).

    Raises CheckpointError where it isn't there, or is no pickled ``argparse.Namespace`` of plain values.
    """
    path = folder / "training_args.bin"
    try:
        options = unpickle_file(path)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(options, argparse.Namespace):
        raise CheckpointError(f"{path} holds {type(options).__name__}, not the options of a run; copy it again")
    return vars(options)


def _zipped(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")), None)
            if name is None:
                raise Refused("it is an archive without data.pkl")
            if archive.getinfo(name).file_size > LARGEST:
                raise Refused(f"its data.pkl is said to have more than {LARGEST >> 20} MiB")
            return archive.read(name)
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise Refused(str(error)) from None


class _Sealed(type):
    """A class whose attributes a pickle cannot set."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise Refused(f"it would change {cls.__name__}")


class _Namespace(argparse.Namespace, metaclass=_Sealed):
    """What an ``argparse.Namespace`` becomes."""


class _Kind:
    """A dtype as a pickle spells it; numpy's own would believe whatever state it is given."""

    def __init__(self, spelled: Any) -> None:
        found = _KIND.fullmatch(spelled) if isinstance(spelled, str) else None
        if found is None:
            raise Refused(f"it holds arrays of {str(spelled)[:20]!r}")
        self.dtype = np.dtype(found[1])

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise Refused("it holds an array of a damaged kind")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray, metaclass=_Sealed):
    """An array that takes no other state than numbers or strings of its shape's size."""

    def __setstate__(self, state: Any) -> None:
        try:
            _, shape, kind, fortran, raw = state
            sides, raw = _fitting(shape, kind, raw)
        except (TypeError, ValueError) as error:
            raise Refused(str(error) if isinstance(error, Refused) else "it holds a damaged array") from None
        trusted: Any = (1, sides, kind.dtype, bool(fortran), raw)
        super().__setstate__(trusted)


def _fitting(shape: Any, kind: Any, raw: Any) -> tuple[tuple[int, ...], bytes]:
    """The shape and the bytes of an array. Raises Refused where they aren't the numbers that `kind` says."""
    if isinstance(raw, str):
        raw = raw.encode("latin1")  # bytes of a pickle of Python 2
    if not isinstance(kind, _Kind) or not isinstance(raw, (bytes, bytearray)):
        raise Refused("it holds an array of objects, not of numbers")
    sides = tuple(int(side) for side in shape)
    if min(sides, default=0) < 0 or prod(sides) * kind.dtype.itemsize != len(raw):
        raise Refused(f"it holds an array of shape {sides} in {len(raw)} bytes")
    return sides, bytes(raw)


class _Reader(pickle.Unpickler):
    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")
        self._makers: dict[tuple[str, str], Any] = {
            ("argparse", "Namespace"): _Namespace,
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("builtins", "set"): self._set,
            ("builtins", "frozenset"): self._frozenset,
            ("builtins", "bytes"): self._bytes,
            ("builtins", "bytearray"): self._bytes,
            ("builtins", "complex"): self._complex,
            ("builtins", "object"): "object",
            ("_codecs", "encode"): self._encoded,
            ("copyreg", "_reconstructor"): self._old_style,
            ("numpy", "ndarray"): "ndarray",
            ("numpy", "dtype"): self._kind,
            ("torch", "device"): self._device,
        }
        for home in ("numpy.core", "numpy._core"):  # before numpy 2 and since
            self._makers[f"{home}.multiarray", "_reconstruct"] = self._empty
            self._makers[f"{home}.multiarray", "scalar"] = self._scalar
            self._makers[f"{home}.numeric", "_frombuffer"] = self._buffered

    def value(self) -> Any:
        """The next value of the file."""
        try:
            return self.load()
        except Refused:
            raise
        except RecursionError:
            raise Refused("it is nested too deeply") from None
        except Exception as error:  # of damaged opcodes, there are as many kinds as opcodes
            raise Refused(f"it is cut off or damaged: {str(error) or type(error).__name__}") from None

    def find_class(self, module: str, name: str) -> Any:
        module = _MOVED.get(module, module)
        if (module, name) not in self._makers:
            raise Refused(f"it holds {module}.{name}, which is no data, and was not run")
        return self._makers[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it holds tensors")

    # What a pickle may call, as bound methods: their attributes cannot be set from outside.

    def _empty(self, kind: Any, shape: Any, spelled: Any) -> _Array:
        return _Array((0,), np.uint8)

    def _scalar(self, kind: Any, raw: Any) -> Any:
        _, raw = _fitting((1,), kind, raw)
        return np.frombuffer(raw, kind.dtype)[0]

    def _buffered(self, raw: Any, kind: Any, shape: Any, order: Any) -> NDArray[Any]:
        sides, raw = _fitting(shape, kind, raw)
        return np.frombuffer(raw, kind.dtype).reshape(sides, order="F" if order == "F" else "C")

    def _kind(self, spelled: Any, align: Any = False, copy: Any = False) -> _Kind:
        return _Kind(spelled)

    def _set(self, items: Any = ()) -> set[Any]:
        return set(items)

    def _frozenset(self, items: Any = ()) -> frozenset[Any]:
        return frozenset(items)

    def _bytes(self, content: Any = b"", encoding: Any = None) -> bytes:
        """Never `bytes` of a number, which would allocate as many."""
        return self._encoded(content) if isinstance(content, str) else b"".join([content])

    def _complex(self, real: Any, imaginary: Any = 0.0) -> complex:
        return complex(real, imaginary)

    def _encoded(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise Refused("it holds bytes in an unknown spelling")
        return text.encode("latin1")

    def _old_style(self, kind: Any, base: Any, state: Any) -> Any:
        if kind is not _Namespace or base != "object" or state is not None:
            raise Refused("it holds objects of a class that is no data")
        return _Namespace()

    def _device(self, kind: Any, index: Any = None) -> str:
        return str(kind) if index is None else f"{kind}:{index}"


class _Objects:
    """What an array of objects, or their dtype, becomes: the list of them."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[4], list):
            self.values = state[4]


class _ObjectReader(_Reader):
    """Of one array of objects; arrays of numbers are no part of them."""

    def _empty(self, kind: Any, shape: Any, spelled: Any) -> Any:
        return _Objects()

    def _kind(self, spelled: Any, align: Any = False, copy: Any = False) -> Any:
        return _Objects() if spelled in ("O", "O4", "O8") else super()._kind(spelled)
