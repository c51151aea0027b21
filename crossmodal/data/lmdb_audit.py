"""A look at the structure of an LMDB file before LMDB maps it into memory.

LMDB trusts the numbers in its pages: a damaged one ends the process (SIGBUS, or an abort inside LMDB), which
no caller can catch. So all that reading follows is checked first, on the bytes of the file alone: the header,
every page of the tree, and that every value lies inside the file and on pages of its own. Values themselves
are not looked at: the cost follows the number of entries, not their size.

The layout is that of LMDB 0.9, its numbers in the machine's byte order:

- pages 0 and 1: two headers, of which the one of the later transaction is in force;
- a page of the tree: u64 its own number, u16 unused, u16 kind, u16 end of the offsets, u16 begin of the nodes,
  then a u16 a node: where in the page it begins;
- a node: u16 and u16 the halves of the value's size, u16 flags, u16 size of the key, the key, the value. In a
  branch the first three together are the page of a child. A value too large for the page has a u64 in its
  place, the first of its own pages, which begin with 16 other bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Spans = tuple[Numbers, Numbers]
"""First pages and how many follow each: (N,), (N,)."""

_META = struct.Struct("=QHHHH IIQQ IHHQQQQQ IHHQQQQQ QQ")
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_EMPTY = (1 << 64) - 1  # the root of a tree without pages
_HEADER, _NODE = 16, 8  # bytes before the offsets of a page, and before the key of a node
_BRANCH, _LEAF, _HEADERS = 0x01, 0x02, 0x08  # kinds of pages
_BIG = 0x01  # flag of a node whose value has pages of its own
_SMALLEST, _LARGEST = 256, 1 << 15  # pages, in bytes
_DEEPEST = 32
_AT_ONCE = 1 << 23  # bytes of pages looked at together


class Damaged(ValueError):
    """What is wrong with the structure of a file."""


@dataclass(frozen=True)
class _Tree:
    size: int  # of a page, in bytes
    pages: int  # in use, the two headers included
    root: int
    depth: int
    entries: int


def audit(file: Path) -> None:
    """Raises Damaged where reading the file through LMDB could crash, OSError where it cannot be read at all.

    What is no LMDB file, or one of another version or byte order, passes: LMDB refuses it by name.
    """
    tree = _in_force(file)
    if tree is None or tree.root == _EMPTY:
        return
    content = np.memmap(file, np.uint8, "r", shape=(tree.pages, tree.size))
    level = np.array([tree.root], np.int64)
    spans: list[Spans] = [(level, np.ones_like(level))]
    for _ in range(tree.depth - 1):
        level = _children(content, level)
        spans.append((level, np.ones_like(level)))
    entries, values = _values(content, level)
    if entries != tree.entries:
        raise Damaged(f"it holds {entries} entries and announces {tree.entries}")
    _require_apart([*spans, values], tree.pages)


def _in_force(file: Path) -> _Tree | None:
    length = file.stat().st_size
    with open(file, "rb") as stream:
        first = _meta(stream.read(_META.size))
        if not length:
            raise Damaged("it is empty")
        if first is None:
            return None
        size = first[9]
        if not _SMALLEST <= size <= _LARGEST or size & (size - 1):
            raise Damaged(f"its pages are said to have {size} bytes")
        stream.seek(size)
        second = _meta(stream.read(_META.size))
    if second is None or second[9] != size:
        raise Damaged("its two headers do not agree")
    meta = second if first[-1] < second[-1] else first
    flags, depth, *_, entries, root, last, _ = meta[18:]
    pages = last + 1
    if length < pages * size:
        raise Damaged(f"it is cut short: {length} of {pages * size} bytes")
    if root != _EMPTY and (flags or not 0 < depth <= _DEEPEST or not 1 < root < pages):
        raise Damaged("its header leads nowhere")
    return _Tree(size, pages, root, depth, entries)


def _meta(page: bytes) -> tuple[int, ...] | None:
    """The numbers of a header of this version, else None."""
    if len(page) < _META.size:
        return None
    meta: tuple[int, ...] = _META.unpack(page)
    return meta if meta[2] & _HEADERS and meta[5:7] == (_MAGIC, _VERSION) else None


def _children(content: NDArray[np.uint8], level: Numbers) -> Numbers:
    """The pages one level below these branches. Each page has one parent, so a level has no page twice."""
    found = []
    for block in _blocks(content, level, _BRANCH, least=2):
        low, high, highest = (block.halves(at) for at in (0, 2, 4))
        block.require(_NODE + block.halves(6))
        found.append(low | high << 16 | highest << 32)
    children = np.concatenate(found)
    if children.min() < 2 or children.max() >= len(content) or np.unique(children).size != children.size:
        raise Damaged("a branch leads nowhere")
    return children


def _values(content: NDArray[np.uint8], level: Numbers) -> tuple[int, Spans]:
    """How many entries these leaves hold, and the pages of their large values."""
    entries = 0
    starts, counts = [], []
    size = content.shape[1]
    for block in _blocks(content, level, _LEAF, least=1):
        length = block.halves(0) | block.halves(2) << 16
        flags, value = block.halves(4), _NODE + block.halves(6)
        if (flags & ~_BIG).any():
            raise Damaged("it holds named or sorted databases")
        big = flags == _BIG
        block.require(value + np.where(big, 8, length))
        starts.append(block.longs(value, big))
        counts.append((length[big] + _HEADER - 1) // size + 1)
        entries += len(length)
    return entries, (np.concatenate(starts), np.concatenate(counts))


def _require_apart(spans: list[Spans], pages: int) -> None:
    """Raises Damaged unless all spans lie inside the file and no page belongs to two."""
    starts, counts = (np.concatenate(part) for part in zip(*spans, strict=True))
    if starts.min() < 2 or (starts > pages - counts).any():
        raise Damaged("a value is said to lie outside the file")
    order = np.argsort(starts)
    starts, counts = starts[order], counts[order]
    if (starts[1:] < starts[:-1] + counts[:-1]).any():
        raise Damaged("a page belongs to two values")


@dataclass(frozen=True)
class _Block:
    """The nodes of some pages: where each begins, and the bytes from there to the end of its page."""

    content: NDArray[np.uint8]
    starts: Numbers
    room: Numbers

    def halves(self, at: int) -> Numbers:
        """The u16 at an even offset of every node."""
        return self.content.view(np.uint16)[(self.starts + at) // 2].astype(np.int64)

    def longs(self, at: Numbers, chosen: NDArray[np.bool_]) -> Numbers:
        """The u64 at an offset of the chosen nodes."""
        where = (self.starts + at)[chosen, None] + np.arange(8)
        return self.content[where].view(np.int64)[:, 0]

    def require(self, length: Numbers) -> None:
        if (length > self.room).any():
            raise Damaged("an entry goes beyond its page")


def _blocks(content: NDArray[np.uint8], level: Numbers, kind: int, least: int) -> Any:
    """The nodes of the pages of a level, some pages at a time, after their headers and offsets are checked."""
    size = content.shape[1]
    step = _AT_ONCE // size
    for first in range(0, len(level), step):
        numbers = level[first : first + step]
        pages = np.array(content[numbers])
        halves = pages.view(np.uint16)
        end, begin = halves[:, 6].astype(np.int64), halves[:, 7].astype(np.int64)
        count = (end - _HEADER) // 2
        sound = (pages.view(np.int64)[:, 0] == numbers) & (halves[:, 5] == kind) & (count >= least)
        if not (sound & (end % 2 == 0) & (end <= begin) & (begin <= size)).all():
            raise Damaged("a page of its tree is not what it should be")
        offsets = halves[:, _HEADER // 2 : int(end.max()) // 2]
        offsets = offsets[np.arange(offsets.shape[1]) < count[:, None]].astype(np.int64)
        rows = np.repeat(np.arange(len(pages)), count)
        if (offsets % 2).any() or (offsets < begin[rows]).any() or (offsets > size - _NODE).any():
            raise Damaged("an entry begins outside its page")
        yield _Block(pages.reshape(-1), rows * size + offsets, size - offsets)
