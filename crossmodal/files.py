"""Files and folders that appear under their final name only when they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from crossmodal.disk import disk_errors


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """A file that appears under its name only when it is complete: temporary name, synced, renamed.

    Raises DiskError where there is no room for it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """The same for a folder, which replaces an older one of that name.

    A process that ends in between leaves either the older one or the new one, perhaps under a hidden name that
    `recover_folder` knows.
    """
    temporary, older = _hidden(folder, "partial"), _hidden(folder, "old")
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(folder)
        try:
            temporary.mkdir()
            write(temporary)
            for file in temporary.rglob("*"):
                sync(file)
            sync(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if folder.exists():
            os.rename(folder, older)
        os.rename(temporary, folder)
        sync(folder.parent)
    remove_folder(older)


def recover_folder(folder: Path) -> None:
    """Put in place what a `write_folder` that was cut off had finished, and clear away what it had not."""
    temporary, older = _hidden(folder, "partial"), _hidden(folder, "old")
    if older.exists() and not folder.exists():
        # The older one is moved away when the new one is complete.
        os.rename(temporary if temporary.exists() else older, folder)
        sync(folder.parent)
    for leftover in (older, temporary):
        remove_folder(leftover)


def recover_within(folder: Path) -> None:
    """`recover_folder` for every name in a folder, and clear away half-written files and half-removed folders."""
    for path in sorted(folder.glob(".*")):
        name, _, kind = path.name[1:].rpartition(".")
        if kind in ("partial", "old") and path.is_dir():
            recover_folder(folder / name)
        elif kind == "removed" and path.is_dir():
            shutil.rmtree(path)
        elif kind == "partial":
            path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder; half of one never stands under its name. Nothing happens where there is none."""
    gone = folder.with_name(f".{folder.name.removeprefix('.')}.removed")
    if gone.exists():
        shutil.rmtree(gone)
    if folder.exists():
        os.rename(folder, gone)
        shutil.rmtree(gone)


def write_synced(path: Path, text: str) -> None:
    """Write a file inside a folder that is renamed as a whole later: on the disk before this returns."""
    with disk_errors(path):
        path.write_text(text, encoding="utf-8")
        sync(path)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hidden(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")
