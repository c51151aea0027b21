"""Valid bytes damaged in every way that disks, networks and people know, and what a reader may make of them."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np
from hypothesis import strategies as st

from crossmodal.data.items import RegionItem
from crossmodal.data.region_values import FAR
from crossmodal.data.regions import RegionDB

SECONDS = 20  # for one reading: hundreds of times what it takes
MEMORY = 1 << 30  # bytes that a reading may add: thousands of times what the values need

_EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1]
_EDITS = st.one_of(
    st.tuples(st.just("byte"), st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("bit"), st.integers(0, 7)),
    st.tuples(st.just("number"), st.tuples(st.sampled_from(_EXTREMES), st.sampled_from([1, 2, 4, 8]))),
    st.tuples(st.just("insert"), st.binary(min_size=1, max_size=8)),
    st.tuples(st.sampled_from(["cut", "repeat"]), st.integers(1, 64)),
    st.tuples(st.just("truncate"), st.none()),
)


@st.composite
def damaged(draw: st.DrawFn, value: bytes, page: int = 0) -> bytes:
    """`value` after one to four edits; of a file of pages, half of them near the begin of a page."""
    content = bytearray(value)
    places = st.integers(0, len(value))
    if page:
        places |= st.tuples(st.integers(0, len(value) // page), st.integers(0, 100)).map(lambda p: p[0] * page + p[1])
    for at, (kind, what) in draw(st.lists(st.tuples(places, _EDITS), min_size=1, max_size=4)):
        at = min(at, len(content))
        if kind == "byte":
            content[at : at + len(what)] = what
        elif kind == "bit" and at < len(content):
            content[at] ^= 1 << what
        elif kind == "number":
            number, width = what
            content[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        elif kind == "insert":
            content[at:at] = what
        elif kind == "cut":
            del content[at : at + what]
        elif kind == "repeat":
            content[at:at] = content[at : at + what]
        elif kind == "truncate":
            del content[at:]
    return bytes(content)


@contextmanager
def bounded() -> Iterator[None]:
    """Whoever takes too long or too much memory inside gets an error that no reader turns into its own."""

    def late(_: int, __: FrameType | None) -> None:
        raise AssertionError(f"still reading after {SECONDS} seconds")

    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
        signal.signal(signal.SIGALRM, handler)


def require_item(db: RegionDB, image: str, width: int, *, confident: bool = True) -> RegionItem:
    """The image that a reader gives; its shapes and kinds must be right and its numbers usable.

    confident: there must be confidences, which not every format has.
    """
    item = db[image]
    rows = len(item)
    assert item.id == image and rows > 0
    assert item.features.shape == (rows, width) and item.features.dtype.kind == "f"
    assert item.boxes.shape == (rows, 6) and item.boxes.dtype == np.float32
    assert np.isfinite(item.features).all()
    assert item.boxes.min() >= -FAR and item.boxes.max() <= 1 + FAR  # not so for NaN
    if confident or item.confidence is not None:
        assert item.confidence is not None and item.confidence.shape == (rows,)
        assert np.isfinite(item.confidence).all()
    return item
