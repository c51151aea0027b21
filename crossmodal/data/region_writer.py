"""Writing UNITER-compatible image databases: in parallel, resumable, complete or not there at all.

    write_region_db(open_regions("dumps/").sources(), "img_db/flickr", workers=4)

Everything is written to ``<database>.partial`` and committed in batches. A killed run is continued by
repeating the call: images already written are kept. The index comes last, then the folder gets its name.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import lmdb
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from crossmodal.data.environments import close
from crossmodal.data.parallel import ordered_map
from crossmodal.data.region_db import BoxRule
from crossmodal.data.region_lmdb import KEYS
from crossmodal.data.region_names import counts_name, database_name
from crossmodal.data.region_records import pack, unpack
from crossmodal.errors import DataError
from crossmodal.files import sync, write_whole

Array = NDArray[Any]
Source: TypeAlias = "Mapping[str, Array] | Callable[[], Mapping[str, Array]]"

log = logging.getLogger(__name__)

_SETTINGS = "settings.json"
_LONGEST_KEY = 511  # bytes; a limit of LMDB


def write_region_db(
    records: Iterable[tuple[str, Source]],
    output: str | Path,
    *,
    conf_th: float = 0.2,
    max_bb: int = 100,
    min_bb: int = 10,
    num_bb: int = 36,
    compress: bool = False,
    workers: int = 1,
    total: int | None = None,
    origin: str = "",
    commit_every: int = 256,
    map_size: int = 1 << 28,
) -> Path:
    """Write records to a database below the folder `output` and return the database's folder.

    records: (name, record) pairs. The name is the ``<image>.npz`` by which texts refer to the image. The
    record is norm_bb (R,6), features (R,F) and perhaps conf (R,1), soft_labels (R,C), rows by descending
    confidence, or a picklable function that loads one, which then runs in the workers. An image whose loader
    raises DataError or OSError is skipped, counted, and listed in ``skipped_<database>.json``.
    conf_th, max_bb, min_bb, num_bb: how many rows are kept (`BoxRule.stored`) and the database's name
    (`region_names`). float32 becomes float16, as published; scalars are dropped.
    origin: what the records come from; a partial database is continued only if it is the same.
    commit_every: records a transaction, which is what a kill can lose. map_size: bytes, doubled as needed.
    Raises DataError where the database exists already, or nothing could be read.
    """
    rule, folder = BoxRule(conf_th, max_bb, min_bb, num_bb), Path(output)
    name = database_name(rule, compressed=compress)
    final, partial = folder / name, folder / f"{name}.partial"
    if final.exists():
        raise DataError(f"{final} exists already; remove it or write to another folder.")
    settings = {**vars(rule), "compress": compress, "origin": origin}
    counts: dict[str, int] = {}
    skipped: dict[str, str] = {}
    with closing(_Partial(partial, settings, map_size)) as store:
        order: list[str] = []
        jobs = _todo(records, store, order, counts)
        done = ordered_map(_encode, ((*job, rule, compress) for job in jobs), workers)
        with tqdm(total=total, desc=f"writing {name}", unit="image", disable=None) as bar:
            batch: list[tuple[bytes, bytes]] = []
            for image, value, rows, reason in done:
                if reason is None:
                    batch.append((image.encode(), value))
                    counts[image] = rows
                else:
                    skipped[image] = reason
                if len(batch) >= commit_every:
                    store.put(batch)
                    batch = []
                bar.update(len(order) - bar.n)
            bar.update(len(order) - bar.n)
        keys = [image for image in order if image in counts]
        if not keys:
            raise DataError(f"No image could be written to {final}: {_reasons(skipped) or 'there is none'}.")
        store.put([*batch, (KEYS, json.dumps(keys).encode())])
    _report(skipped, folder / f"skipped_{name}.json")
    (partial / _SETTINGS).unlink()
    index = folder / counts_name(rule)
    lengths = {image: min(counts[image], num_bb) if rule.fixed else counts[image] for image in keys}
    if not rule.fixed or min(lengths.values()) < num_bb:
        # Before the folder: a kill in between leaves a partial folder that the next call completes.
        _write(index, lengths)
    else:
        index.unlink(missing_ok=True)  # of a database removed earlier
    os.replace(partial, final)
    sync(folder)
    close(final)  # what this process may still have open of a folder removed earlier
    return final


class _Partial:
    """The LMDB under construction."""

    def __init__(self, path: Path, settings: Mapping[str, Any], map_size: int) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        begun = path / _SETTINGS
        if not begun.exists():
            _write(begun, settings)
        elif json.loads(begun.read_text()) != settings:
            raise DataError(f"{path} was begun with other options or another source; remove it to start anew.")
        data = path / "data.mdb"
        written = data.stat().st_size if data.exists() else 0
        try:
            self.env = lmdb.open(str(path), map_size=max(map_size, written))
        except lmdb.Error as error:
            raise DataError(f"{path} cannot be continued ({error}); remove it to start anew.") from error

    def rows(self, image: str) -> int | None:
        """How many boxes were written of an image, None if it wasn't."""
        with self.env.begin(buffers=True) as txn:
            value = txn.get(image.encode())
            return None if value is None else len(unpack(value, ("norm_bb",))["norm_bb"])

    def put(self, batch: list[tuple[bytes, bytes]]) -> None:
        """Commit all of a batch, growing the map until it fits."""
        while True:
            try:
                with self.env.begin(write=True) as txn:
                    for key, value in batch:
                        txn.put(key, value)
                return
            except lmdb.MapFullError:
                self.env.set_mapsize(2 * self.env.info()["map_size"])

    def close(self) -> None:
        self.env.sync(True)
        self.env.close()


def _todo(
    records: Iterable[tuple[str, Source]], store: _Partial, order: list[str], counts: dict[str, int]
) -> Iterator[tuple[str, Source]]:
    """The records still to be written; notes every name in `order`, and what is there in `counts`."""
    seen: set[str] = set()
    for image, source in records:
        if image in seen:
            raise DataError(f"Two images are named {image}; names must be unique.")
        if not 0 < len(image.encode()) <= _LONGEST_KEY or image.encode() == KEYS:
            raise DataError(f"{image!r} cannot name an image: names have 1 to {_LONGEST_KEY} bytes.")
        seen.add(image)
        order.append(image)
        rows = store.rows(image)
        if rows is None:
            yield image, source
        else:
            counts[image] = rows


def _encode(image: str, source: Source, rule: BoxRule, compress: bool) -> tuple[str, bytes, int, str | None]:
    """(name, packed value, rows, None), or the reason why the image is skipped."""
    try:
        record = _kept(source() if callable(source) else source, rule)
    except (DataError, OSError) as error:
        return image, b"", 0, str(error)
    return image, pack(record, compress=compress), len(record["norm_bb"]), None


def _kept(record: Mapping[str, Array], rule: BoxRule) -> dict[str, Array]:
    """The arrays as they are stored: the first rows, float16 for float32."""
    for name in ("norm_bb", "features"):
        if name not in record:
            raise DataError(f"the record has no {name}; arrays: {', '.join(record) or 'none'}")
    arrays = {name: np.asarray(array) for name, array in record.items() if np.ndim(array) > 0}
    if arrays["norm_bb"].ndim != 2 or arrays["norm_bb"].shape[1] != 6 or not len(arrays["norm_bb"]):
        raise DataError(f"norm_bb has shape {arrays['norm_bb'].shape} instead of (boxes, 6)")
    if len({len(array) for array in arrays.values()}) != 1:
        raise DataError(f"arrays of different numbers of boxes: { {n: len(a) for n, a in arrays.items()} }")
    rows = rule.stored(arrays.get("conf"), len(arrays["norm_bb"]))
    return {n: a[:rows].astype(np.float16) if a.dtype == np.float32 else a[:rows] for n, a in arrays.items()}


def _report(skipped: Mapping[str, str], path: Path) -> None:
    if skipped:
        _write(path, skipped)
        log.warning("%d unreadable images were skipped, listed in %s: %s", len(skipped), path, _reasons(skipped))


def _reasons(skipped: Mapping[str, str]) -> str:
    return "; ".join(f"{image}: {reason}" for image, reason in list(skipped.items())[:3])


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(content)))
