"""Files of torch: written so that a full disk is noticed; and why one is not read, without running what it holds."""

from __future__ import annotations

import argparse
import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_DATA = re.compile(r"torch\.(_utils\._rebuild_\w+|\w+)|collections\.OrderedDict|argparse\.Namespace")


def save_torch(content: Any, file: Path) -> None:
    """`torch.save`, by way of a file of Python's.

    Given a path, torch does not notice when a full disk takes only the beginning of the file's last bytes.
    """
    with file.open("wb") as stream:
        torch.save(content, stream)


def load_torch(file: Path) -> Any:
    """`torch.load` of plain data, to which `argparse.Namespace` is counted: published files keep their options so."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(file, map_location="cpu", weights_only=True)


def why_unreadable(file: Path, error: Exception) -> str:
    """What `load_torch(file)` stumbled over when it raised `error`."""
    refused = _GLOBAL.search(str(error))
    name = refused[1] if refused else next((name for name in named_in(file) if not _DATA.fullmatch(name)), None)
    if name is not None:
        return f"it holds {name}, which is no data, and was not run"
    with file.open("rb") as stream:
        start = stream.read(2)
    if not start or (start == b"PK" and not zipfile.is_zipfile(file)):
        return "it is cut off"
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    # torch goes on to say how to load the pickle all the same; of what is no pickle it says a number.
    return "it is no plain dictionary of tensors" if "Weights only" in text or " " not in text else text


def named_in(file: Path) -> Iterator[str]:
    """The classes and functions that the pickle in a torch file, or a bare pickle, would have called."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                content = next(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))
        else:
            content = file.read_bytes()
        yield from _globals(content)
    except Exception:  # no pickle, or only the beginning of one: there are many ways of not being one
        return


def _globals(content: bytes) -> Iterator[str]:
    strings: list[str] = []
    memo: list[str] = []  # what MEMOIZE kept, by number; the last string stands for all that is none
    for code, argument, _ in pickletools.genops(io.BytesIO(content)):
        if code.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif code.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif code.name == "MEMOIZE":
            memo.append(strings[-1] if strings else "")
        elif code.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int) and argument < len(memo):
            strings.append(memo[argument])
        elif isinstance(argument, str):
            strings.append(argument)
