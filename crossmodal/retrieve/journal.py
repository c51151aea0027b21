"""Finished tiles of scores on disk as soon as they are made: a killed run loses no more than the tile it was at.

    <folder>/journal/<16 hex digits of the key>.<rank>

One file a rank, all of which any later run reads, whatever its number of ranks. A file is the line MAGIC, the key
(32 bytes: what the scores were made from), then a record for each tile, everything little-endian:

    number u64 | bytes u32 | crc32 u32 of the two before and the scores | scores

The first record that is cut off or damaged ends a file; the run that goes on with the file writes over it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from crossmodal.disk import disk_errors, reason_of
from crossmodal.errors import ConfigError

MAGIC = b"crossmodal scores 1\n"
_HEADER = len(MAGIC) + 32
_HEAD = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_SYNC_EVERY = 30.0
"""Seconds between two syncs: what the machine can lose when it goes down. A killed process loses nothing written."""


class Journal:
    """The journal of one key (32 bytes) under an output folder; nothing is written before `open`."""

    def __init__(self, output: Path, key: bytes) -> None:
        self.output, self.folder, self.key = output, output / "journal", key
        self._path: Path | None = None
        self._file = -1
        self._synced = 0.0

    def read(self) -> Iterator[tuple[int, bytes]]:
        """(tile, scores) of every whole record, of all ranks."""
        for path in sorted(self.folder.glob(f"{self._name}.*")):
            for number, scores, _ in _records(path, self.key):
                yield number, scores

    def foreign(self) -> bool:
        """Whether there are journals of other keys, which are of no use here."""
        return any(not path.name.startswith(f"{self._name}.") for path in self.folder.glob("*.*"))

    def open(self, rank: int) -> None:
        """Go on with the file of a rank behind its last whole record, or begin it.

        Raises ConfigError where the folder cannot be written, or another process is writing the file.
        """
        self._path = self.folder / f"{self._name}.{rank}"
        with disk_errors(self._path):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                if reason_of(error):
                    raise
                raise ConfigError(
                    f"nothing can be written to {self.output} ({error.strerror}); choose another folder with --output"
                ) from None
            self._lock()
            end = _HEADER if _begins_well(self._path, self.key) else 0
            for _, _, end in _records(self._path, self.key):  # noqa: B007  where the last one ends
                pass
            os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)
            if end == 0:
                self._write(MAGIC + self.key)
            self._sync()

    def append(self, tile: int, scores: bytes) -> None:
        """Add a tile: with the operating system when this returns. Raises DiskError where there is no room."""
        assert self._path is not None
        head = _HEAD.pack(tile, len(scores))
        with disk_errors(self._path):
            self._write(head + _CRC.pack(zlib.crc32(scores, zlib.crc32(head))) + scores)
            if time.monotonic() > self._synced + _SYNC_EVERY:
                self._sync()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Remove the journals of every key: the folder holds finished results that take their place."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _name(self) -> str:
        return self.key.hex()[:16]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ConfigError(
                f"another process is writing to {self.output}; wait for it, or choose another folder with --output"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _write(self, record: bytes) -> None:
        left = memoryview(record)
        while left:
            left = left[os.write(self._file, left) :]

    def _sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()


def _begins_well(path: Path, key: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(_HEADER) == MAGIC + key


def _records(path: Path, key: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(tile, scores, where the record ends) up to the first record that is not whole."""
    with path.open("rb") as file:
        if file.read(_HEADER) != MAGIC + key:
            return
        while True:
            head = file.read(_HEAD.size)
            crc = file.read(_CRC.size)
            if len(crc) < _CRC.size:
                return
            number, size = _HEAD.unpack(head)
            if size > os.fstat(file.fileno()).st_size - file.tell():
                return
            scores = file.read(size)
            if _CRC.unpack(crc)[0] != zlib.crc32(scores, zlib.crc32(head)):
                return
            yield number, scores, file.tell()
