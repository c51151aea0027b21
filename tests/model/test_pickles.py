"""Files of torch: written whole or not at all, and refused by name where they hold more than data."""

from __future__ import annotations

import collections
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crossmodal.model.pickles import named_in, why_unreadable

UNTIL_FULL = """
import os, resource, sys
import torch
from crossmodal.model.pickles import save_torch
file = sys.argv[1]
content = {str(i): torch.randn(100 + i) for i in range(20)}
save_torch(content, __import__("pathlib").Path(file))
whole = os.path.getsize(file)
for largest in [*range(1, whole, 211), *range(whole - 900, whole)]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, whole))
    try:
        save_torch(content, __import__("pathlib").Path(file))
    except (OSError, RuntimeError):
        continue
    sys.exit(f"{largest} of {whole} bytes, and nothing was said")
"""


def test_a_file_that_is_cut_off_anywhere_is_noticed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", UNTIL_FULL, str(tmp_path / "x.pt")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Evil:
    """Would run a command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def torch_file(content: Any, file: Path) -> None:
    torch.save(content, file)


def torch_file_of_protocol_4(content: Any, file: Path) -> None:
    torch.save(content, file, pickle_protocol=4)


def old_torch_file(content: Any, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def bare_pickle(content: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


def old_pickle(content: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(content, protocol=0))


TORCH = [torch_file, torch_file_of_protocol_4, old_torch_file]
WRITERS = [*TORCH, bare_pickle, old_pickle]


def loaded(file: Path) -> str | None:
    """Why it was not loaded."""
    try:
        torch.load(file, weights_only=True)
    except Exception as error:
        return why_unreadable(file, error)
    return None


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", WRITERS)
def test_what_a_file_would_have_run_is_named_and_not_run(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    write({"weights": torch.zeros(2) if write in TORCH else 2.5, "more": [Evil(f"touch {tmp_path / 'sprung'}")]}, file)
    assert loaded(file) == "it holds posix.system, which is no data, and was not run"
    assert not (tmp_path / "sprung").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", TORCH)
def test_data_is_not_named(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    content = {"a": torch.zeros(2), "p": torch.nn.Parameter(torch.zeros(1)), "o": collections.OrderedDict(b=[1, 2.5])}
    write(content, file)
    assert loaded(file) in (None, "it is no plain dictionary of tensors")
    assert all(name.startswith(("torch.", "collections.OrderedDict", "_codecs")) for name in named_in(file))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_of_tensors_is_refused_since_torch_would_load_them_unchecked(tmp_path: Path) -> None:
    bare_pickle({"a": torch.zeros(2)}, tmp_path / "x.pt")
    assert "torch.storage._load_from_bytes" in (loaded(tmp_path / "x.pt") or "")


@pytest.mark.parametrize("cut", [0, 0.3, 0.95])
def test_a_file_that_is_cut_off(cut: float, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(1000)}, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(cut * len(content))])
    assert loaded(file) == "it is cut off"


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_text("hello")
    assert loaded(tmp_path / "x.pt") == "it is no plain dictionary of tensors"
