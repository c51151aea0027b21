"""TSV files with an index of line starts beside them (``.lineidx``), as VinVL's are: any line is one read away."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossmodal.errors import DataError

_HEAD = 256  # bytes of a line that hold its first two columns
_INDEX = re.compile(rb"\s*(\d+\s+)*\d*\s*")


def index_of(tsv: Path) -> Path:
    """Where the index of a TSV stands: its name with another ending."""
    return tsv.with_suffix(".lineidx")


def line_starts(tsv: Path) -> NDArray[np.int64]:
    """(lines,) the byte at which each line begins, from the index, or from one pass where there is none.

    Raises DataError where the index isn't numbers, or a line doesn't begin where it says.
    """
    with _opened(tsv) as fd:
        if not index_of(tsv).is_file():
            return _scanned(fd)
        starts, size = _numbers(index_of(tsv)), os.fstat(fd).st_size
        fits = len(starts) > 0 and starts[0] == 0 and bool((np.diff(starts) > 0).all()) and starts[-1] < size
        # A line begins behind the end of another; the last one ends the file.
        fits = fits and all(os.pread(fd, 1, start - 1) == b"\n" for start in starts[1:].tolist())
        if not fits or len(_line(fd, int(starts[-1]))) != size - starts[-1]:
            raise DataError(
                f"{index_of(tsv)} is not the index of {tsv}: lines do not begin and end where it says; copy both "
                "again from one place, or remove the index"
            )
    return starts


def heads(tsv: Path, starts: NDArray[np.int64]) -> Iterator[list[bytes]]:
    """The first columns of every line, as many as its first 256 bytes hold whole."""
    with _opened(tsv) as fd:
        for start in starts.tolist():
            head = os.pread(fd, _HEAD, start)
            line, end, _ = head.partition(b"\n")
            columns = [column.strip() for column in line.split(b"\t")]
            yield columns if end or len(head) < _HEAD else columns[:-1]


def read_line(tsv: Path, start: int) -> list[bytes]:
    """The columns of the line that begins at a byte."""
    with _opened(tsv) as fd:
        return [column.strip() for column in _line(fd, start).split(b"\t")]


def _line(fd: int, start: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(start)
        return file.readline()


def _scanned(fd: int) -> NDArray[np.int64]:
    starts, at = [], 0
    with os.fdopen(os.dup(fd), "rb") as file:
        for line in file:
            starts.append(at)
            at += len(line)
    return np.array(starts, np.int64)


def _numbers(index: Path) -> NDArray[np.int64]:
    with _opened(index) as fd, os.fdopen(os.dup(fd), "rb") as file:
        content = file.read()
    if not _INDEX.fullmatch(content):
        raise DataError(f"{index} does not hold one number a line; copy it again, or remove it")
    return np.array(content.split(), dtype="S20").astype(np.int64)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    try:
        yield fd
    finally:
        os.close(fd)
