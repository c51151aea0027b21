"""Databases on a disk without room: one sentence, nothing under the final name, and the same command completes it.

Training on such a disk: tests/train/test_full_disk.py.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import lmdb
import numpy as np
import pytest

from crossmodal.data.regions import open_regions
from crossmodal.data.texts import TextDB
from crossmodal.disk import disk_errors, reason_of
from crossmodal.errors import DiskError

from .commands import command
from .full_disk import limited, needs_small_disk, on_small_disk, one_sentence, size_of

IMAGES = 120


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `data regions` and `data texts` read: 120 images of about 16 KB, and as many captions of 2 KB."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "npz").mkdir()
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        x, y = rng.uniform(0, 0.5, (2, 10, 1))
        boxes = np.concatenate([x, y, x + 0.3, y + 0.3, 0 * x + 0.3, 0 * y + 0.3], axis=1)
        np.savez(
            folder / "npz" / f"{i}.npz",
            norm_bb=boxes.astype(np.float32),
            features=rng.normal(size=(10, 400)).astype(np.float32),
            conf=np.ones((10, 1), np.float32),
        )
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(IMAGES * 300)]
    lines = [f"{i}.jpg#0\t{' '.join(words[300 * i : 300 * i + 300])}" for i in range(IMAGES)]
    (folder / "captions.token").write_text("\n".join(lines) + "\n")
    return folder


def words_of(kind: str, sources: Path, output: Path) -> list[object]:
    if kind == "regions":
        return ["data", "regions", sources / "npz", "--output", output]
    return ["data", "texts", sources / "captions.token", "--output", output, "--vocab-size", 400]


def finals(kind: str, output: Path) -> list[str]:
    """The names of databases that look complete."""
    if kind == "texts":
        return ["."] if (output / "meta.json").exists() else []
    return [path.name for path in output.glob("*") if path.is_dir() and not path.name.endswith(".partial")]


def assert_complete(kind: str, output: Path) -> None:
    if kind == "texts":
        texts = TextDB(output)
        assert len([texts[id] for id in texts.ids]) == IMAGES
    else:
        (database,) = finals(kind, output)
        regions = open_regions(output / database)
        assert len([regions[image] for image in regions.ids]) == IMAGES


@pytest.mark.parametrize("kind", ["regions", "texts"])
@pytest.mark.parametrize("largest", [4096, 200_000])
def test_a_database_that_cannot_become_so_large(
    kind: str, largest: int, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first file already, and in the middle of its records."""
    output = tmp_path / "out" / "db"
    with limited(largest):
        assert command(*words_of(kind, sources, output)) == 2
    said = one_sentence(capsys.readouterr().err)
    assert "could not be written: file too large (" in said and str(output) in said
    assert finals(kind, output) == []
    assert command(*words_of(kind, sources, output)) == 0
    assert_complete(kind, output)


@needs_small_disk
@pytest.mark.parametrize("kind", ["regions", "texts"])
@pytest.mark.parametrize("free", [0, 250_000])
def test_a_database_on_a_disk_that_is_full(kind: str, free: int, sources: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = on_small_disk(disk, 20_000_000, free, tmp_path / "kept", *words_of(kind, sources, disk / "db"))
    assert done.stdout.replace(str(disk), "").split()[0] == "2", done.stderr
    (said,) = (line for line in done.stderr.splitlines() if "error: " in line)
    assert f"{disk}/db" in said and "could not be written: no space left on device (0." in said
    assert "Traceback" not in done.stderr
    assert finals(kind, tmp_path / "kept" / "full" / "db") == []
    assert_complete(kind, tmp_path / "kept" / "after" / "db")
    assert size_of(tmp_path / "kept" / "after") > free


# --- what is understood as a full disk -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError("1000 requested and 100 written"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598"),
        RuntimeError("basic_ios::clear: iostream error"),
        lmdb.DiskError("mdb_txn_commit: No space left on device"),
        lmdb.Error("mdb_txn_commit: Input/output error"),
    ],
)
def test_what_libraries_say_of_a_full_disk(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(DiskError) as found, disk_errors(tmp_path / "deep" / "x"):
        raise error
    said = str(found.value)
    assert said.startswith(f"{tmp_path / 'deep' / 'x'} could not be written: ") and " MB free there); " in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, os.strerror(errno.ENOENT)),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        RuntimeError("shapes do not fit"),
        lmdb.MapFullError("mdb_put: MDB_MAP_FULL: Environment mapsize limit reached"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_no_full_disk_passes_through(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as found, disk_errors(tmp_path / "x"):
        raise error
    assert found.value is error


def test_an_error_of_a_disk_that_nobody_translated_is_one_sentence_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the name of what was being written, where the error does not tell."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (reason_of(full) or "").startswith("no space left on device (")
    assert reason_of(lmdb.Error("mdb_txn_commit: Input/output error")) is None  # it may have been read

    def fail(*_: object, **__: object) -> None:
        raise full

    monkeypatch.setattr("crossmodal.data.scenes.write_world", fail)
    assert command("data", "scenes", "--output", "nowhere") == 2
    said = one_sentence(capsys.readouterr().err)
    assert said.startswith("error: not everything could be written: no space left on device (")
