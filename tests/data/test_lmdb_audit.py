from __future__ import annotations

import random
from pathlib import Path

import lmdb
import pytest

from crossmodal.data.lmdb_audit import Damaged, audit


def fill(folder: Path, seed: int) -> Path:
    """A database after some hundred random changes in several transactions, so that pages were split and freed."""
    draw = random.Random(seed)
    keys: list[bytes] = []
    with lmdb.open(str(folder), map_size=1 << 27, sync=False) as env:
        for _ in range(draw.randrange(1, 6)):
            with env.begin(write=True) as txn:
                for _ in range(draw.randrange(1, 200)):
                    if keys and draw.random() < 0.2:
                        txn.delete(keys.pop(draw.randrange(len(keys))))
                    else:
                        keys.append(draw.randbytes(draw.choice([1, 10, 25, 511])))
                        txn.put(keys[-1], draw.randbytes(draw.choice([0, 1, 60, 1000, 2038, 4080, 4081, 30_000])))
    return folder / "data.mdb"


@pytest.mark.parametrize("seed", range(12))
def test_what_lmdb_wrote_is_sound(tmp_path: Path, seed: int) -> None:
    data = fill(tmp_path, seed)
    audit(data)
    # Compacted, as databases are before they are published.
    compact = tmp_path / "compact"
    compact.mkdir()
    with lmdb.open(str(tmp_path), readonly=True, lock=False) as env:
        env.copy(str(compact), compact=True)
    audit(compact / "data.mdb")


def test_an_empty_database_is_sound(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path)).close()
    audit(tmp_path / "data.mdb")


def test_what_is_no_lmdb_file_is_left_to_lmdb(tmp_path: Path) -> None:
    path = tmp_path / "data.mdb"
    path.write_bytes(b"not a database" * 1000)
    audit(path)
    path.write_bytes(b"short")
    audit(path)
    with pytest.raises(FileNotFoundError):
        audit(tmp_path / "nothing")


def test_a_value_on_the_pages_of_another_is_found(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(b"a", b"1" * 9000)
        txn.put(b"b", b"2" * 9000)
    data = tmp_path / "data.mdb"
    content = bytearray(data.read_bytes())
    first, second = content.index(b"1" * 9000) // 4096, content.index(b"2" * 9000) // 4096
    at = content.index(b"\x01\x00b" + second.to_bytes(8, "little"))  # flags or key size, key, first page
    content[at + 3 : at + 11] = first.to_bytes(8, "little")
    data.write_bytes(content)
    with pytest.raises(Damaged, match="a page belongs to two values"):
        audit(data)


def test_a_branch_that_leads_back_is_found(tmp_path: Path) -> None:
    """Following it, LMDB would never come to an end."""
    with lmdb.open(str(tmp_path), map_size=1 << 24) as env, env.begin(write=True) as txn:
        for i in range(500):
            txn.put(b"%04d" % i, bytes(60))
    data = tmp_path / "data.mdb"
    content = bytearray(data.read_bytes())
    branch = next(at for at in range(8192, len(content), 4096) if content[at + 10] == 1)
    node = branch + int.from_bytes(content[branch + 16 : branch + 18], "little")
    content[node : node + 6] = (branch // 4096).to_bytes(6, "little")
    data.write_bytes(content)
    with pytest.raises(Damaged):
        audit(data)


def test_named_databases_are_refused(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), max_dbs=2) as env:
        env.open_db(b"other")
    with pytest.raises(Damaged, match="named or sorted databases"):
        audit(tmp_path / "data.mdb")
