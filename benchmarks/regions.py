"""Reading the regions of one image into a float32 tensor, from every flavour of image database.

    python benchmarks/regions.py [--quick] [--json] [--threads N]

UNITER's way stands here as its data/data.py has it: the whole value is decoded, with the class probabilities
that fine-tuning never asks for. A ratio is how many times longer than our raw flavour a way takes.
"""

from __future__ import annotations

import io
import multiprocessing
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from common import Options, Report, median, options, peak_memory, ratio, take_turns

from crossmodal.data.environments import environment
from crossmodal.data.items import RegionItem
from crossmodal.data.region_db import Record, RegionDB
from crossmodal.data.region_writer import write_region_db
from crossmodal.data.regions import open_regions

WIDTH, CLASSES = 2048, 1601
STORED, FEW = 100, 36  # boxes of a record, and how many of them are read at the least
NPZ = 8  # one image in so many is also kept compressed, which is slow to write and to read
FOLDERS = {"msgpack": "all", "raw": "all_raw", "npz": "all_compressed"}


def record(seed: int) -> Record:
    """What a detector leaves of an image: 100 boxes, half of the features 0 after ReLU, class probabilities."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((STORED, 2, 2)), axis=1).reshape(STORED, 4)
    scores = rng.random((STORED, CLASSES), np.float32) ** 8
    confident = np.arange(STORED) < rng.integers(FEW, STORED + 1)
    return {
        "norm_bb": np.concatenate([corners, corners[:, 2:] - corners[:, :2]], 1).astype(np.float16),
        "features": np.maximum(rng.standard_normal((STORED, WIDTH), np.float32), 0).astype(np.float16),
        "conf": np.where(confident, 0.9, 0.1)[:, None].astype(np.float16),
        "soft_labels": (scores / scores.sum(1, keepdims=True)).astype(np.float16),
    }


@cache
def transaction(path: Path) -> Any:
    """UNITER keeps one open, whose values are views."""
    return environment(path).begin(buffers=True)


def published_msgpack(db: RegionDB, image: str) -> torch.Tensor:
    dump = msgpack.unpackb(transaction(db.path).get(image.encode()), object_hook=decode, raw=False)
    return torch.tensor(dump["features"][: db.lengths[image], :]).float()


def published_npz(db: RegionDB, image: str) -> torch.Tensor:
    with np.load(io.BytesIO(transaction(db.path).get(image.encode())), allow_pickle=False) as dump:
        return torch.tensor(dump["features"][: db.lengths[image], :]).float()


def decode(fields: dict[Any, Any]) -> Any:
    """What msgpack-numpy, with which UNITER patches msgpack, makes of a map."""
    if b"nd" not in fields:
        return fields
    if b"kind" in fields and fields[b"kind"] in (b"V", b"O"):
        raise ValueError("not numbers")
    return np.ndarray(buffer=fields[b"data"], dtype=np.dtype(fields[b"type"]), shape=fields[b"shape"])


def memcpy(db: RegionDB, image: str) -> np.ndarray[Any, Any]:
    """The bytes of the features as they are kept, copied from the memory map and nothing else."""
    with environment(db.path).begin(buffers=True) as txn:
        value: Any = txn.get(image.encode())
        return np.array(np.frombuffer(value, np.uint8, db.lengths[image] * WIDTH * 2))


def features(db: RegionDB, image: str) -> torch.Tensor:
    return db.features(image)


def item(db: RegionDB, image: str) -> RegionItem:
    return db[image]


Way = Callable[[RegionDB, str], object]
GROUPS: dict[str, dict[str, tuple[str, Way]]] = {
    f"{FEW} of {STORED} boxes": {
        "msgpack, UNITER's way": ("msgpack", published_msgpack),
        "npz, UNITER's way": ("npz", published_npz),
        "msgpack, ours": ("msgpack", features),
        "npz, ours": ("npz", features),
        "raw, ours": ("raw", features),
        "raw, ours, checksums verified": ("verified", features),
        "raw, ours, with boxes, checked, as float16": ("raw", item),
        "raw, memcpy of the features": ("raw", memcpy),
    },
    f"{FEW} to {STORED} of {STORED}": {
        "msgpack, UNITER's way": ("confident msgpack", published_msgpack),
        "raw, ours": ("confident raw", features),
        "raw, memcpy of the features": ("confident raw", memcpy),
    },
    f"{FEW} of {FEW}": {
        "msgpack, UNITER's way": ("cut msgpack", published_msgpack),
        "raw, ours": ("cut raw", features),
        "raw, memcpy of the features": ("cut raw", memcpy),
    },
}
WAYS = {(group, way): used for group, ways in GROUPS.items() for way, used in ways.items()}
TARGETS = {
    (f"{FEW} of {STORED} boxes", "msgpack, UNITER's way"): 2.5,
    (f"{FEW} to {STORED} of {STORED}", "msgpack, UNITER's way"): 2.5,
    (f"{FEW} of {STORED} boxes", "npz, UNITER's way"): 20.0,
}
"""How many times longer than the raw flavour it should take."""


def build(folder: Path, images: int) -> None:
    """The same records in every flavour, the first of them as npz; all boxes are kept, as a detector leaves them."""
    records = [(f"{i}.npz", record(i)) for i in range(images)]
    for flavour, name in FOLDERS.items():
        chosen = records[: -(-images // NPZ)] if flavour == "npz" else records
        written = write_region_db(chosen, folder / flavour, flavour=flavour, conf_th=-1, num_bb=STORED)
        written.rename(folder / name)
    chosen = [(name, {n: a[:FEW] for n, a in dump.items()}) for name, dump in records]
    for flavour in ("msgpack", "raw"):
        write_region_db(chosen, folder / "cut", flavour=flavour, conf_th=-1, num_bb=FEW)


def databases(folder: Path) -> dict[str, RegionDB]:
    """The first boxes of each image, those that the confidences choose, and databases that keep no others."""
    first: dict[str, Any] = {"conf_th": -1, "num_bb": FEW}
    dbs = {flavour: open_regions(folder / name, **first) for flavour, name in FOLDERS.items()}
    dbs["verified"] = open_regions(folder / FOLDERS["raw"], verify=True, **first)
    for flavour in ("msgpack", "raw"):
        dbs[f"confident {flavour}"] = open_regions(folder / FOLDERS[flavour], conf_th=0.2, min_bb=FEW)
        dbs[f"cut {flavour}"] = open_regions(folder / "cut", flavour=flavour, **first)
    return dbs


def read(db: RegionDB, way: Way, images: list[str]) -> Callable[[], None]:
    def run() -> None:
        for image in images:
            way(db, image)

    return run


def peak(folder: Path, name: str, way: Way) -> float:
    """Megabytes that reading takes beside the pages of the database, in a process of its own."""
    db = databases(folder)[name]
    with environment(db.path).begin(buffers=True) as txn:
        for image in db.ids:
            value: Any = txn.get(image.encode())
            bytes(value[::1024])  # its pages are resident from here on
    return peak_memory(read(db, way, db.ids))


def report(given: Options, folder: Path, images: int, rounds: int) -> Report:
    build(folder, images)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["common", "torch", "msgpack", "crossmodal.data.region_writer"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(peak, [(folder, *used) for used in WAYS.values()], chunksize=1)
    dbs = databases(folder)
    few = dbs["npz"].ids
    counts = {key: len(dbs[name]) for key, (name, _) in WAYS.items()}
    cases = {": ".join(key): read(dbs[name], way, dbs[name].ids) for key, (name, way) in WAYS.items()}
    # What raw is compared with: the same images where npz has only some; and twice as many images.
    cases |= {"few": read(dbs["raw"], features, few), "half": read(dbs["raw"], features, dbs["raw"].ids[: images // 2])}
    seconds = take_turns(cases, rounds)

    out = Report(
        f"features of one image, {WIDTH} float16 a box, to a float32 tensor; {CLASSES} soft labels a box beside; "
        f"{images} images, {len(few)} of them as npz, page cache warm",
        ["microseconds", "peak MB"],
    )
    for (group, way), peaked in zip(WAYS, peaks, strict=True):
        case = f"{group}: {way}"
        cells = [f"{median(seconds, case) / counts[group, way] * 1e6:.0f}", f"{peaked:.1f}"]
        raw = "few" if counts[group, way] == len(few) else f"{group}: raw, ours"
        out.add(case, *cells, ratio=ratio(seconds, case, raw), target=TARGETS.get((group, way)))
    growth = ratio(seconds, f"{FEW} of {STORED} boxes: raw, ours", "half")
    out.add("raw, ours, twice as many images", f"x {growth:.2f}", "")
    return out


def main() -> None:
    given = options(__doc__ or "")
    images, rounds = (16, 2) if given.quick else (200, 21)
    with tempfile.TemporaryDirectory() as folder:
        report(given, Path(folder), images, rounds).print(given)


if __name__ == "__main__":
    main()
