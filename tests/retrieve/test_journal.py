"""The journal of finished tiles: what is read back after a kill, damage, other ranks and other keys."""

from __future__ import annotations

import errno
import os
import random
import struct
from pathlib import Path

import pytest

from crossmodal.errors import ConfigError, DiskError
from crossmodal.retrieve.journal import MAGIC, Journal

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
TILES = [(7, b"abcd" * 3), (0, b""), (2**40, os.urandom(1000)), (3, b"last")]
HEADER = len(MAGIC) + 32
HEAD = 16


def written(output: Path, tiles: list[tuple[int, bytes]] = TILES, rank: int = 0, key: bytes = KEY) -> Path:
    """The file of a rank that holds these tiles."""
    journal = Journal(output, key)
    journal.open(rank)
    for number, scores in tiles:
        journal.append(number, scores)
    journal.close()
    (path,) = (output / "journal").glob(f"{key.hex()[:16]}.{rank}")
    return path


def read(output: Path, key: bytes = KEY) -> list[tuple[int, bytes]]:
    return list(Journal(output, key).read())


def ends() -> list[int]:
    """Where each record of TILES ends."""
    sizes = [HEAD + len(scores) for _, scores in TILES]
    return [HEADER + sum(sizes[: i + 1]) for i in range(len(sizes))]


def test_what_was_appended_is_read_in_order_and_in_the_stated_format(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert read(tmp_path) == TILES
    content = path.read_bytes()
    assert content.startswith(MAGIC + KEY) and len(content) == ends()[-1]
    assert struct.unpack_from("<QI", content, HEADER) == (7, 12)


def test_nothing_is_written_before_it_is_opened(tmp_path: Path) -> None:
    assert read(tmp_path / "output") == [] and not Journal(tmp_path / "output", KEY).foreign()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", range(1, 45))
def test_a_record_that_is_cut_off_is_left_out_and_written_over(cut: int, tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    whole = sum(end <= ends()[-1] - cut for end in ends())
    assert read(tmp_path) == TILES[:whole]
    written(tmp_path, [(9, b"more")])
    assert read(tmp_path) == [*TILES[:whole], (9, b"more")]


def test_any_flipped_bit_ends_the_file_before_its_record(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        bit = draw.randrange(8 * HEADER, 8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert read(tmp_path) == TILES[: sum(end <= bit // 8 for end in ends())]
    written(tmp_path, [(9, b"more")])  # in place of the record that was damaged last
    assert read(tmp_path)[-1] == (9, b"more")


@pytest.mark.parametrize("content", [b"", MAGIC, MAGIC + OTHER, b"\0" * 500, MAGIC[:-1] + KEY + b"x" * 50])
def test_a_file_that_does_not_begin_well_is_begun_anew(content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(content)
    assert read(tmp_path) == []
    written(tmp_path, TILES[:1])
    assert read(tmp_path) == TILES[:1] and path.stat().st_size == ends()[0]


def test_a_length_beyond_the_file_is_no_record(tmp_path: Path) -> None:
    path = written(tmp_path, [])
    path.write_bytes(path.read_bytes() + struct.pack("<QII", 1, 2**32 - 1, 0) + b"x" * 100)
    assert read(tmp_path) == []


def test_files_of_every_rank_are_read_and_each_is_continued_by_its_own(tmp_path: Path) -> None:
    written(tmp_path, TILES[:2], rank=0)
    written(tmp_path, TILES[2:], rank=10)
    assert sorted(read(tmp_path)) == sorted(TILES)
    written(tmp_path, [(5, b"x")], rank=10)
    assert sorted(read(tmp_path)) == sorted([*TILES, (5, b"x")])
    assert len(list((tmp_path / "journal").iterdir())) == 2


def test_journals_of_another_key_are_not_used_and_go_with_the_rest(tmp_path: Path) -> None:
    written(tmp_path, key=OTHER)
    mine = Journal(tmp_path, KEY)
    assert mine.foreign() and read(tmp_path) == []
    mine.open(0)
    mine.append(1, b"1234")
    assert read(tmp_path, OTHER) == TILES
    mine.remove()
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    first, second = Journal(tmp_path, KEY), Journal(tmp_path, KEY)
    first.open(0)
    with pytest.raises(ConfigError, match=f"another process is writing to {tmp_path}; wait for it"):
        second.open(0)
    first.append(1, b"1234")
    first.close()
    second.open(0)
    second.append(2, b"5678")
    assert read(tmp_path) == [(1, b"1234"), (2, b"5678")]
    second.close()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=f"nothing can be written to {output} .*choose another folder"):
            Journal(output, KEY).open(0)


def test_a_full_disk_is_said_and_what_was_kept_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path, KEY)
    journal.open(0)
    journal.append(1, b"1234")
    kept = os.dup(journal._file)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._file)
    with pytest.raises(DiskError, match=os.strerror(errno.ENOSPC).lower()):
        journal.append(2, b"5678")
    os.dup2(kept, journal._file)
    journal.close()
    assert read(tmp_path) == [(1, b"1234")]
    for handle in (kept, full):
        os.close(handle)
