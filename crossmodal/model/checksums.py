"""Checksums of a checkpoint folder: SHA256SUMS, which `sha256sum --check SHA256SUMS` reads too.

One line a file, ``<sha256>  <name>``, and a last one, ``# <number of files>``, by which a file that was cut off
is recognised. It is written last, into a folder that has not got its name yet.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from crossmodal.errors import CheckpointError

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_BLOCK = 1 << 20


def digest(file: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def write_sums(folder: Path) -> None:
    """Write the checksums of all files in a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    lines = [f"{digest(file)}  {file.name}" for file in files]
    (folder / SUMS).write_text("\n".join([*lines, f"# {len(files)}"]) + "\n", encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str] | None:
    """File name -> sha256; None where the folder has none. Raises CheckpointError where they are damaged."""
    file = folder / SUMS
    if not file.is_file():
        return None
    lines = file.read_bytes().decode("utf-8", errors="replace").split("\n")
    found = {match[2]: match[1] for line in lines if (match := _LINE.fullmatch(line))}
    if lines[len(found) :] != [f"# {len(found)}", ""]:
        raise CheckpointError(f"{file} is damaged, so {folder} cannot be trusted; {_AGAIN}")
    return found


def check_sums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Compare files with their checksums: `names`, or all that are listed. A folder without any passes.

    Raises CheckpointError naming the first file that is missing, unlisted or of another content.
    """
    sums = read_sums(folder)
    if sums is None:
        return
    for name in sums if names is None else names:
        file = folder / name
        if name not in sums:
            raise CheckpointError(f"{file} is not listed in {SUMS} beside it; {_AGAIN}")
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, {SUMS} lists it; {_AGAIN}")
        try:
            found = digest(file)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error.strerror}); {_AGAIN}") from None
        if found != sums[name]:
            raise CheckpointError(f"{file} is damaged: its content does not match {SUMS} beside it; {_AGAIN}")


_AGAIN = "copy the checkpoint again, or use another one"
