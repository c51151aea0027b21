"""Opening region databases of any kind behind one interface: `open_regions(path)[image_id]`."""

from __future__ import annotations

from pathlib import Path

from crossmodal.data.region_db import BoxRule, RegionDB
from crossmodal.data.region_names import flavours
from crossmodal.errors import DataError

__all__ = ["BoxRule", "RegionDB", "guess_format", "open_regions"]


def open_regions(
    path: str | Path,
    *,
    conf_th: float = 0.2,
    max_bb: int = 100,
    min_bb: int = 10,
    num_bb: int = 36,
    compressed: bool | None = None,
    flavour: str | None = None,
    verify: bool = False,
    kind: str | None = None,
) -> RegionDB:
    """Open detected boxes, whatever they are kept in.

    path: an image set of UNITER's (the folder of ``feat_*`` databases) or one of its database folders; a folder of
    ``.npz`` dumps; an LXMERT or bottom-up-attention ``.tsv``; an ``.h5`` or ``.hdf5`` file.
    conf_th, max_bb, min_bb, num_bb: how many boxes of an image are used (`BoxRule`), and which database of an
    image set is meant (`region_names`).
    flavour: ``raw``, ``msgpack`` or ``npz``; None takes the first of them that is there. compressed: the same in the
    published options' words: True means npz, False msgpack, or raw where that isn't there; `flavour` overrides it.
    verify: compare the checksum of every raw record that is read (of the others only npz has one, always compared).
    kind: ``lmdb``, ``npz``, ``tsv`` or ``hdf5``, None to tell by the path.
    Raises DataError naming what was found and which options would fit, ConfigError for an unknown flavour.
    """
    path, rule = Path(path), BoxRule(conf_th, max_bb, min_bb, num_bb)
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path of the image database.")
    kind = kind or guess_format(path)
    if path.is_file() != (kind in ("tsv", "hdf5")):
        raise DataError(f"{path} is a {'file' if path.is_file() else 'folder'}, which {kind} data isn't.")
    db: RegionDB
    if kind == "tsv":
        from crossmodal.data.region_tsv import TsvRegions

        db = TsvRegions(path, rule)
    elif kind == "hdf5":
        from crossmodal.data.region_hdf5 import Hdf5Regions

        db = Hdf5Regions(path, rule)
    elif kind == "npz":
        from crossmodal.data.region_npz import NpzRegions

        db = NpzRegions(path, rule)
    else:
        from crossmodal.data.region_lmdb import LmdbRegions

        db = LmdbRegions(path, rule, flavours(compressed) if flavour is None else (flavour,), verify=verify)
        db.ids  # noqa: B018  an unreadable database is reported here, where its path was given
    return db


def guess_format(path: Path) -> str:
    """``tsv``, ``hdf5``, ``npz`` (a folder of dumps) or ``lmdb``. Raises DataError for another file."""
    if path.is_file():
        kind = {".tsv": "tsv", ".h5": "hdf5", ".hdf5": "hdf5"}.get(path.suffix.lower())
        if kind is None:
            raise DataError(f"{path} is not a .tsv, .h5 or .hdf5 file of boxes; rename it or give a folder.")
        return kind
    if path.is_dir() and not any(path.glob("*/data.mdb")) and next(path.glob("*.npz"), None) is not None:
        return "npz"
    return "lmdb"
