"""Weights in an archive of TorchScript, as OpenAI published CLIP: read without running the program in it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .pickles import named_in

_DATA = ("data.pkl", "version", "byteorder")  # beside the folder data/, all that a file of `torch.save` has


class _Module:
    """What every class of the program becomes: attributes and nothing else."""


def is_scripted(file: Path) -> bool:
    """Whether a file is an archive of TorchScript."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def load_scripted(file: Path) -> dict[str, Tensor]:
    """The state dict of an archive: its values alone are handed to `torch.load`, as plain data."""
    plain = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(plain, "w") as values:
        for name in archive.namelist():
            inner = name.partition("/")[2]
            if inner in _DATA or inner.startswith("data/"):
                values.writestr(name, archive.read(name))
    plain.seek(0)
    classes = sorted({name for name in named_in(file) if name.startswith("__torch__.")})
    with torch.serialization.safe_globals([(_Module, name) for name in classes]):
        module = torch.load(plain, map_location="cpu", weights_only=True)
    return dict(_tensors(vars(module), ""))


def _tensors(attributes: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in attributes.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(vars(value), f"{prefix}{name}.")
