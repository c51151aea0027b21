"""Writing image databases of any flavour: in parallel, resumable, complete or not there at all.

    write_region_db(open_regions("dumps/").sources(), "img_db/flickr", workers=4)
    convert_region_db(open_regions("img_db/flickr"), "img_db/flickr", "raw")

Everything is written to ``<database>.partial`` and committed in batches. A killed run is continued by
repeating the call: images already written are kept. The index comes last, then the folder gets its name.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from crossmodal.data.environments import close
from crossmodal.data.parallel import ordered_map
from crossmodal.data.region_db import TAGS, BoxRule, require_boxes
from crossmodal.data.region_lmdb import KEYS, LmdbRegions
from crossmodal.data.region_names import ENDINGS, PARTIAL, counts_path, database_name, ending, stem
from crossmodal.data.region_partial import Partial, forget_settings, read_json
from crossmodal.data.region_raw import SCHEMA, seal
from crossmodal.data.region_records import pack
from crossmodal.data.region_values import require_usable
from crossmodal.errors import DataError

Array = NDArray[Any]
Source: TypeAlias = "Mapping[str, Array] | Callable[[], Mapping[str, Array]]"

log = logging.getLogger(__name__)

_LONGEST_KEY = 511  # bytes; a limit of LMDB


def write_region_db(
    records: Iterable[tuple[str, Source]],
    output: str | Path,
    *,
    conf_th: float = 0.2,
    max_bb: int = 100,
    min_bb: int = 10,
    num_bb: int = 36,
    flavour: str = "msgpack",
    float16: bool | None = None,
    chosen: bool = False,
    workers: int = 1,
    total: int | None = None,
    origin: str = "",
    commit_every: int = 256,
    map_size: int = 1 << 28,
) -> Path:
    """Write records to a database below the folder `output` and return the database's folder.

    records: (name, record) pairs. The name is the ``<image>.npz`` by which texts refer to the image. The
    record is norm_bb (R,6), features (R,F) and perhaps conf (R,1), soft_labels (R,C), detic (R,), rows by descending
    confidence, and perhaps tags (`region_db.pack_tags`), kept whole; or a picklable function that loads one, which
    then runs in the workers. An image whose loader
    raises DataError or OSError is skipped, counted, and listed in ``skipped_<database>.json``.
    conf_th, max_bb, min_bb, num_bb: how many rows are kept (`BoxRule.stored`) and the database's name
    (`region_names`). Scalars are dropped. chosen: the boxes are chosen already; only `max_bb` bounds them.
    flavour: ``msgpack`` or ``npz``, as published, or ``raw``. float16: whether float32 becomes float16; None does
    so in the published flavours, as published, and keeps what comes in ours.
    origin: what the records come from; a partial database is continued only if it is the same.
    commit_every: records a transaction, which is what a kill can lose. map_size: bytes, doubled as needed.
    Raises DataError where the database exists already, where another flavour of it there has other box counts,
    or nothing could be read; ConfigError for an unknown flavour.
    """
    rule = BoxRule(conf_th, max_bb, min_bb, num_bb)
    half = flavour != "raw" if float16 is None else float16

    def counts(rows: Mapping[str, int]) -> dict[str, int] | None:
        lengths = {image: min(n, num_bb) if rule.fixed else n for image, n in rows.items()}
        return None if rule.fixed and min(lengths.values()) >= num_bb else lengths

    build = _Build(
        folder=Path(output),
        name=database_name(rule, flavour),
        flavour=flavour,
        settings={**vars(rule), "flavour": flavour, "float16": half, "origin": origin, "chosen": chosen},
        keep=partial(_selected, rule=rule, half=half, chosen=chosen),
        rule=rule,
        counts=counts,
    )
    return _write(build, records, workers, total, commit_every, map_size)


def convert_region_db(
    db: LmdbRegions,
    output: str | Path,
    flavour: str,
    *,
    float16: bool = False,
    workers: int = 1,
    commit_every: int = 256,
    map_size: int = 1 << 28,
) -> Path:
    """Write an image database in another flavour (or the same) below the folder `output`; return its folder.

    Nothing is lost: all rows of all arrays, bit for bit in their precision, in the same order, with the same
    JSON of box counts, under the same name with the flavour's ending. Only byte order is made little-endian in
    ``raw``, and `float16` halves float32 if asked to. Images that cannot be read are skipped, counted and listed.
    The rest is as in `write_region_db`.
    """

    def counts(rows: Mapping[str, int]) -> dict[str, int] | None:
        return None if db.counts is None else {image: db.lengths[image] for image in rows}

    build = _Build(
        folder=Path(output),
        name=stem(db.path.resolve().name) + ending(flavour),
        flavour=flavour,
        settings={"convert": True, "flavour": flavour, "float16": float16, "origin": str(db.path)},
        keep=partial(_stored, half=float16),
        rule=db.rule,
        counts=counts,
    )
    return _write(build, db.sources(), workers, len(db), commit_every, map_size)


@dataclass(frozen=True)
class _Build:
    """A database to be written to ``folder / name``.

    settings: what a partial database must have been begun with to be continued.
    keep: what is stored of a record. rule: the boxes that are read. counts: rows stored, by image -> what the JSON
    of box counts holds, None where it must not be there.
    """

    folder: Path
    name: str
    flavour: str
    settings: Mapping[str, Any]
    keep: Callable[[Mapping[str, Array]], dict[str, Array]]
    rule: BoxRule
    counts: Callable[[Mapping[str, int]], dict[str, int] | None]


def _write(
    build: _Build,
    records: Iterable[tuple[str, Source]],
    workers: int,
    total: int | None,
    commit_every: int,
    map_size: int,
) -> Path:
    final = build.folder / build.name
    if final.exists():
        forget_settings(final)  # of a run that was killed as it ended
        raise DataError(f"{final} exists already; remove it or write to another folder.")
    rows: dict[str, int] = {}
    skipped: dict[str, str] = {}
    with closing(Partial(build.folder / (build.name + PARTIAL), build.settings, map_size)) as store:
        order: list[str] = []
        jobs = _todo(records, store, order, rows)
        done = ordered_map(_encode, ((*job, build.keep, build.flavour) for job in jobs), workers)
        with tqdm(total=total, desc=f"writing {build.name}", unit="image", disable=None) as bar:
            batch: list[tuple[bytes, bytes]] = []
            for image, value, count, reason in done:
                if reason is None:
                    batch.append((image.encode(), value))
                    rows[image] = count
                else:
                    skipped[image] = reason
                if len(batch) >= commit_every:
                    store.put(batch)
                    batch = []
                bar.update(len(order) - bar.n)
            bar.update(len(order) - bar.n)
        images = [image for image in order if image in rows]
        if not images:
            raise DataError(f"No image could be written to {final}: {_reasons(skipped) or 'there is none'}.")
        keys = json.dumps(images).encode()
        last = [(KEYS, keys), (SCHEMA, seal(keys))] if build.flavour == "raw" else [(KEYS, keys)]
        store.put([*batch, *last])
    if skipped:
        path = build.folder / f"skipped_{build.name}.json"
        store.write(path, skipped)
        log.warning("%d unreadable images were skipped, listed in %s: %s", len(skipped), path, _reasons(skipped))
    # Before the folder: a kill in between leaves a partial folder that the next call completes.
    _write_counts(build, store, {image: rows[image] for image in images})
    close(final)  # what this process may still have open of a folder removed earlier
    store.rename(final)
    return final


def _write_counts(build: _Build, store: Partial, rows: Mapping[str, int]) -> None:
    """The JSON of box counts. Raises DataError where another flavour of the database there needs another one."""
    path, counts = counts_path(build.folder / build.name, build.rule), build.counts(rows)
    if path is None or (read_json(path) == counts and (counts is not None or not path.exists())):
        return
    for suffix in ENDINGS.values():
        other = build.folder / (stem(build.name) + suffix)
        if other.exists() and counts_path(other, build.rule) == path:
            raise DataError(
                f"{other} holds other images or box counts, and {path.name} serves both; write to another folder."
            )
    if counts is None:
        path.unlink()  # of a database removed earlier
    else:
        store.write(path, counts)


def _todo(
    records: Iterable[tuple[str, Source]], store: Partial, order: list[str], rows: dict[str, int]
) -> Iterator[tuple[str, Source]]:
    """The records still to be written; notes every name in `order`, and what is there in `rows`."""
    seen: set[str] = set()
    for image, source in records:
        if image in seen:
            raise DataError(f"Two images are named {image}; names must be unique.")
        if not 0 < len(image.encode()) <= _LONGEST_KEY or image.encode() in (KEYS, SCHEMA):
            raise DataError(f"{image!r} cannot name an image: names have 1 to {_LONGEST_KEY} bytes.")
        seen.add(image)
        order.append(image)
        count = store.rows(image)
        if count is None:
            yield image, source
        else:
            rows[image] = count


def _encode(
    image: str, source: Source, keep: Callable[[Mapping[str, Array]], dict[str, Array]], flavour: str
) -> tuple[str, bytes, int, str | None]:
    """(name, packed value, rows, None), or the reason why the image is skipped."""
    try:
        record = keep(source() if callable(source) else source)
        require_boxes(record, "the record")
        require_usable(record, "the record")
        return image, pack(record, flavour), len(record["norm_bb"]), None
    except (DataError, OSError) as error:
        return image, b"", 0, str(error)


def _selected(record: Mapping[str, Array], rule: BoxRule, half: bool, chosen: bool) -> dict[str, Array]:
    """The first rows of the arrays, perhaps in half precision. Raises DataError for what isn't a record."""
    arrays = {name: np.asarray(array) for name, array in record.items() if np.ndim(array) > 0}
    if "norm_bb" not in arrays or len({len(array) for name, array in arrays.items() if name != TAGS}) != 1:
        shapes = {name: np.shape(array) for name, array in record.items()}
        raise DataError(f"it has no norm_bb, or arrays of different numbers of boxes: {shapes}")
    rows = rule.stored(None if chosen else arrays.get("conf"), len(arrays["norm_bb"]))
    return {name: _halved(array if name == TAGS else array[:rows], half) for name, array in arrays.items()}


def _stored(record: Mapping[str, Array], half: bool) -> dict[str, Array]:
    """All that a database has of an image, perhaps in half precision."""
    return {name: _halved(array, half) for name, array in record.items()}


def _halved(array: Array, half: bool) -> Array:
    if not half or array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):  # what becomes infinite is refused by `require_usable`
        return array.astype(np.float16)


def _reasons(skipped: Mapping[str, str]) -> str:
    return "; ".join(f"{image}: {reason.rstrip('.')}" for image, reason in list(skipped.items())[:3])
