"""A disk without room, in one sentence: whatever library found out that not everything could be written."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crossmodal.errors import DiskError

_FULL = {number: os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
# torch and numpy do not say why they could write only a part; LMDB calls it an input/output error.
_CUT_OFF = re.compile(r"inline_container\.cc|PytorchStreamWriter|iostream error|\d+ requested and \d+ written")
_LITTLE = 1 << 20  # bytes
_PAGES = 1 << 16  # bytes


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """While `path` is written: a full disk, quota or file size limit becomes a DiskError that names it."""
    try:
        yield
    except Exception as error:
        reason = reason_of(error, path)
        if reason is None:
            raise
        raise DiskError(
            f"{path} could not be written: {reason}; free some space and repeat the command, for training with --resume"
        ) from None


def require_room(folder: Path) -> None:
    """Raises DiskError unless a few pages can be written in an existing folder.

    For what opens an LMDB there: it maps its lock file, and touching a mapped page for which there is no room kills
    a process without a word.
    """
    probe = folder / ".room"
    with disk_errors(folder):
        try:
            probe.write_bytes(bytes(_PAGES))
        finally:
            probe.unlink(missing_ok=True)


def reason_of(error: Exception, path: Path | None = None) -> str | None:
    """Why a disk took no more, None where the error says something else.

    Without the path that was being written, only errors that say it by themselves are understood.
    """
    where = path or Path(getattr(error, "filename", None) or ".")
    if isinstance(error, OSError) and error.errno in _FULL:
        return _full(_FULL[error.errno], where)
    text, library = str(error), type(error).__module__.partition(".")[0]
    if library in ("safetensors", "lmdb"):
        told = next((said for said in _FULL.values() if said in text), None)
        if told is not None:
            return _full(told, where)
    # LMDB has a name of its own for a full map, which is no full disk.
    unexplained = _CUT_OFF.search(text) or (library == "lmdb" and os.strerror(errno.EIO) in text)
    return _guess(path) if unexplained and path is not None else None


def _guess(path: Path) -> str:
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if _free(path) >= _LITTLE and largest != resource.RLIM_INFINITY:
        return _full(_FULL[errno.EFBIG], path)
    return _full(_FULL[errno.ENOSPC] if _free(path) < _LITTLE else "the disk took only a part of it", path)


def _full(what: str, path: Path) -> str:
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    what = what[0].lower() + what[1:]
    if what == _FULL[errno.EFBIG].lower() and largest != resource.RLIM_INFINITY:
        return f"{what} (this process may write files of {largest} bytes at most)"
    return f"{what} ({_free(path) / 1e6:.1f} MB free there)"


def _free(path: Path) -> int:
    """Bytes that are free where `path` would stand."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
