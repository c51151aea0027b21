"""Databases that are to be damaged, and the words of a training on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from crossmodal.data.environments import close
from crossmodal.data.region_records import pack, unpack

from ..recipes import tiny_recipe, write_recipe

Record = dict[str, np.ndarray]
DATABASE = "feat_th0.2_max100_min10"
COUNTS = "nbb_th0.2_max100_min10.json"


def train(world: Path, output: Path, **changes: Any) -> list[object]:
    """The words of a short training on a world."""
    recipe = write_recipe(world / "recipe.yaml", tiny_recipe(world, **changes))
    return ["train", "--config", recipe, "--output", output]


def change(folder: Path, edit: Callable[[str, bytes], bytes], first: int = 0) -> None:
    """Rewrite the values of a database, from the entry numbered `first` on; lists of entries stay."""
    close(folder)
    with lmdb.open(str(folder), map_size=1 << 26) as env, env.begin(write=True) as txn:
        entries = [(key, value) for key, value in txn.cursor() if not key.startswith(b"__")]
        for key, value in entries[first:]:
            txn.put(key, edit(key.decode(), value))
    (folder / "lock.mdb").unlink(missing_ok=True)


def change_records(folder: Path, edit: Callable[[Record], object], first: int = 0) -> None:
    """The same for the arrays of image databases."""

    def edited(_: str, value: bytes) -> bytes:
        record = {name: np.array(array) for name, array in unpack(value).items()}
        edit(record)
        return pack(record, "npz" if value[:2] == b"PK" else "msgpack")

    change(folder, edited, first)


def record(boxes: int = 12, width: int = 8) -> Record:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, (boxes, 2))
    size = rng.uniform(0.1, 0.5, (boxes, 2))
    return {
        "norm_bb": np.concatenate([low, low + size, size], 1).astype(np.float32),
        "features": rng.normal(size=(boxes, width)).astype(np.float32),
        "conf": np.sort(rng.uniform(0.3, 1, (boxes, 1)).astype(np.float32), axis=0)[::-1],
    }
