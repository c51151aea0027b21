from __future__ import annotations

import os
from pathlib import Path

import pytest

from crossmodal.files import recover_folder, recover_within, remove_folder, write_folder, write_synced, write_whole


def fill(text: str) -> object:
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text(text)

    return write


def made(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "a.txt").write_text(text)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Stop(BaseException):
    """Not even an Exception: a process that is being stopped."""


def test_a_folder_is_written_and_replaced_whole(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_folder(tmp_path / "deep" / "x", fill(text))  # type: ignore[arg-type]
        assert (tmp_path / "deep" / "x" / "sub" / "b.txt").read_text() == text
        assert names(tmp_path / "deep") == ["x"]


@pytest.mark.parametrize("kind", [ValueError, Stop])
def test_a_folder_that_cannot_be_filled_leaves_the_older_one(kind: type[BaseException], tmp_path: Path) -> None:
    write_folder(tmp_path / "x", fill("one"))  # type: ignore[arg-type]

    def fail(folder: Path) -> None:
        (folder / "a.txt").write_text("two")
        raise kind

    with pytest.raises(kind):
        write_folder(tmp_path / "x", fail)
    assert names(tmp_path) == ["x"] and (tmp_path / "x" / "a.txt").read_text() == "one"


def test_a_file_that_cannot_be_written_leaves_the_older_one(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", lambda path: path.write_text("one"))

    def fail(path: Path) -> None:
        path.write_text("tw")
        raise Stop

    with pytest.raises(Stop):
        write_whole(tmp_path / "x", fail)
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "one"


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ({"x": "one", ".x.partial": "tw"}, "one"),  # while the new one was written
        ({".x.old": "one", ".x.partial": "two"}, "two"),  # between the renames: the new one was complete
        ({"x": "two", ".x.old": "one"}, "two"),  # before the older one was removed
        ({".x.old": "one"}, "one"),
        ({".x.partial": "o"}, None),  # while the first one was written
        ({"x": "one"}, "one"),
        ({}, None),
    ],
)
def test_what_a_killed_process_left_is_put_in_place(left: dict[str, str], expected: str | None, tmp_path: Path) -> None:
    for name, text in left.items():
        made(tmp_path / name, text)
    recover_folder(tmp_path / "x")
    assert names(tmp_path) == ([] if expected is None else ["x"])
    assert expected is None or (tmp_path / "x" / "a.txt").read_text() == expected


def test_the_next_write_puts_it_in_place_too(tmp_path: Path) -> None:
    made(tmp_path / ".x.old", "one")
    made(tmp_path / ".x.partial", "two")

    def fail(_: Path) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        write_folder(tmp_path / "x", fail)
    assert names(tmp_path) == ["x"] and (tmp_path / "x" / "a.txt").read_text() == "two"


def test_a_folder_is_cleared_of_what_was_cut_off(tmp_path: Path) -> None:
    for name in ("step_2", ".step_4.partial", ".step_6.old", ".step_6.partial", ".step_1.removed"):
        made(tmp_path / name, name)
    (tmp_path / ".recipe.yaml.123.partial").write_text("na")
    (tmp_path / ".hidden").write_text("somebody's")
    recover_within(tmp_path)
    assert names(tmp_path) == [".hidden", "step_2", "step_6"]
    assert (tmp_path / "step_6" / "a.txt").read_text() == ".step_6.partial"


def test_a_folder_that_is_being_removed_does_not_stand_under_its_name(tmp_path: Path) -> None:
    made(tmp_path / "x", "one")
    made(tmp_path / ".x.removed", "of an earlier removal")
    remove_folder(tmp_path / "x")
    remove_folder(tmp_path / "x")
    assert names(tmp_path) == []


def test_a_file_inside_a_folder_to_be_renamed(tmp_path: Path) -> None:
    write_synced(tmp_path / "x", "ä")
    assert (tmp_path / "x").read_bytes() == "ä".encode()
    assert not os.path.exists(tmp_path / ".x.partial")
