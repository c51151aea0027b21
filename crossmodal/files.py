"""Files and folders that appear under their final name only when they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """A file that appears under its name only when it is complete: temporary name, synced, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """The same for a folder, which replaces an older one of that name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.partial")
    older = folder.with_name(f".{folder.name}.old")
    for leftover in (temporary, older):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
    for file in temporary.iterdir():
        sync(file)
    sync(temporary)
    if folder.exists():
        os.rename(folder, older)
    os.rename(temporary, folder)
    sync(folder.parent)
    shutil.rmtree(older, ignore_errors=True)


def write_synced(path: Path, text: str) -> None:
    """Write a file inside a folder that is renamed as a whole later: on the disk before this returns."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
