from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from crossmodal.errors import CheckpointError
from crossmodal.model.checksums import SUMS, check_sums, digest, read_sums, write_sums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "a b.bin").write_bytes(bytes(range(256)) * 10_000)
    (tmp_path / "test_val").mkdir()
    write_sums(tmp_path)
    return tmp_path


def change(file: Path, edit: Callable[[bytearray], object]) -> None:
    content = bytearray(file.read_bytes())
    edit(content)
    file.write_bytes(content)


def flip(content: bytearray) -> None:
    content[len(content) // 2] ^= 4


def test_the_command_line_tool_reads_them_too(folder: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a b.bin: OK\nmodel.json: OK\n")


def test_a_whole_folder_passes(folder: Path) -> None:
    check_sums(folder)
    assert read_sums(folder) == {name: digest(folder / name) for name in ("model.json", "a b.bin")}
    (folder / "notes.txt").write_text("not listed, not checked")
    check_sums(folder)


def test_a_folder_without_checksums_passes(folder: Path) -> None:
    (folder / SUMS).unlink()
    change(folder / "a b.bin", flip)
    check_sums(folder)
    assert read_sums(folder) is None


@pytest.mark.parametrize("edit", [flip, lambda content: content.pop(), lambda content: content.append(0)])
def test_a_file_of_another_content_is_named(edit: Callable[[bytearray], object], folder: Path) -> None:
    change(folder / "a b.bin", edit)
    with pytest.raises(CheckpointError, match=rf"a b\.bin is damaged: its content does not match {SUMS}"):
        check_sums(folder)
    check_sums(folder, ["model.json"])


def test_files_that_are_missing_or_not_listed_are_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"training\.pt is not listed"):
        check_sums(folder, ["training.pt"])
    (folder / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.json is missing"):
        check_sums(folder)


def test_damaged_checksums_are_not_believed(folder: Path) -> None:
    """Whatever single byte of them changes, and wherever they are cut off."""
    whole = (folder / SUMS).read_bytes()
    for i in range(len(whole)):
        for damaged in (whole[:i], whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]):
            (folder / SUMS).write_bytes(damaged)
            with pytest.raises(CheckpointError):
                check_sums(folder)
