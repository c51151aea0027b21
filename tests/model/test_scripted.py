"""Archives of TorchScript, read as plain data."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crossmodal.errors import CheckpointError
from crossmodal.model.checkpoints import read_state
from crossmodal.model.scripted import is_scripted, load_scripted

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        self.factor = nn.Parameter(torch.randn(2).half())
        self.register_buffer("resolution", torch.tensor(224))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.parts(x) * self.factor
        return out


def archive(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        torch.jit.save(torch.jit.trace(Small(), torch.randn(1, 3)), str(path))
    return path


def test_its_state_dict(tmp_path: Path) -> None:
    path = archive(tmp_path / "small.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(str(path)).state_dict()
    assert is_scripted(path)
    for found in (load_scripted(path), read_state(path)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value) and found[name].dtype == value.dtype


def test_other_files_are_none(tmp_path: Path) -> None:
    torch.save(Small().state_dict(), tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("no archive")
    assert not is_scripted(tmp_path / "state.pt") and not is_scripted(tmp_path / "text.pt")


def test_what_is_no_data_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "run",))  # type: ignore[return-value]

    with zipfile.ZipFile(archive(tmp_path / "small.pt")) as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, pickle.dumps(Evil(), 2) if name.endswith("/data.pkl") else good.read(name))
    with pytest.raises(CheckpointError, match=r"bad\.pt cannot be read as plain weights \(it holds .*was not run"):
        read_state(tmp_path / "bad.pt")
    assert not (tmp_path / "run").exists()


def test_an_archive_that_was_cut_off(tmp_path: Path) -> None:
    content = archive(tmp_path / "small.pt").read_bytes()
    (tmp_path / "small.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot be read as plain weights"):
        read_state(tmp_path / "small.pt")
