"""One read-only LMDB environment a process and folder.

py-lmdb refuses to open one folder twice in a process, and an environment must not be used across `fork()`.
So every database asks here, at each access: environments are kept by real path, opened on first use, and
opened anew in a forked child.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import lmdb

from crossmodal.data.lmdb_audit import Damaged, audit
from crossmodal.errors import DataError

_lock = threading.Lock()
_pid = os.getpid()
_by_real: dict[str, lmdb.Environment] = {}
_by_path: dict[str, lmdb.Environment] = {}  # spellings already resolved: saves a realpath per access
_audited: dict[str, tuple[int, int, int]] = {}  # real path -> the file that was found sound; forked children inherit it


def environment(path: str | Path) -> lmdb.Environment:
    """The read-only environment of the LMDB folder `path` (it holds ``data.mdb``) in this process.

    Use it at once (``with environment(path).begin() as txn``) and copy what is read: neither the environment
    nor a view on its memory may be kept, since a forked child closes what it inherited.
    Raises DataError where the folder is missing, not an LMDB, or where reading it could crash (`lmdb_audit`).
    """
    global _pid, _lock
    if os.getpid() != _pid:
        # A forked child: py-lmdb would refuse to open the folder anew while the inherited environment is
        # open. Closing it here unmaps this process's copy only; the parent's stays as it is.
        _pid, _lock = os.getpid(), threading.Lock()
        for inherited in _by_real.values():
            inherited.close()
        _by_path.clear()
        _by_real.clear()
    name = os.fspath(path)
    found = _by_path.get(name)
    if found is None:
        with _lock:
            real = os.path.realpath(name)
            found = _by_real.get(real)
            if found is None:
                found = _by_real[real] = _open(real)
            # A relative spelling means another folder after a chdir.
            if os.path.isabs(name):
                _by_path[name] = found
    return found


def close(path: str | Path) -> None:
    """Close what this process has open of `path`: before its folder is rewritten or removed."""
    real = os.path.realpath(os.fspath(path))
    with _lock:
        found = _by_real.pop(real, None)
        for name in [name for name, value in _by_path.items() if value is found]:
            del _by_path[name]
        if found is not None and os.getpid() == _pid:
            found.close()


def _open(real: str) -> lmdb.Environment:
    data = os.path.join(real, "data.mdb")
    if not os.path.isfile(data):
        raise DataError(f"{real} is not an LMDB folder: it holds no data.mdb; check the path.")
    try:
        file = os.stat(data)
        version = (file.st_ino, file.st_size, file.st_mtime_ns)
        if _audited.get(real) != version:
            audit(Path(data))
            _audited[real] = version
        return lmdb.open(
            real,
            readonly=True,
            lock=False,
            create=False,
            readahead=file.st_size <= _physical_memory(),
            max_spare_txns=8,
        )
    except Damaged as error:
        raise DataError(f"{data} is damaged ({error}); copy or download it again.") from None
    except OSError as error:
        raise DataError(f"{data} cannot be read ({error.strerror}); check the path and its permissions.") from None
    except lmdb.Error as error:
        raise DataError(f"{data} cannot be opened as LMDB ({error}); copy or download it again.") from None


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
