"""Opening region databases of any kind behind one interface: `open_regions(path)[image_id]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossmodal.data.detections import MergedRegions
from crossmodal.data.detic import DeticRegions, is_shelve
from crossmodal.data.region_db import BoxRule, RegionDB
from crossmodal.data.region_names import flavours
from crossmodal.data.vinvl_regions import VinvlRegions, features_of, is_vinvl
from crossmodal.errors import ConfigError, DataError, nearest

__all__ = ["KINDS", "BoxRule", "RegionDB", "guess_format", "open_regions"]

_VINVL = ("vinvl", "fast")
_DETIC = ("det", "det_padded", "det+fast", "det+fast_labels")
KINDS = ("lmdb", "npz", "tsv", "hdf5", *_VINVL, *_DETIC)


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
    published: bool = False,
) -> RegionDB:
    """Open detected boxes, whatever they are kept in.

    path: an image set of UNITER's (the folder of ``feat_*`` databases) or one of its database folders; a folder of
    ``.npz`` dumps; an LXMERT or bottom-up-attention ``.tsv``; an ``.h5`` or ``.hdf5`` file; a VinVL folder or its
    ``features.tsv``; the shelve of Detic's detections in such a folder.
    conf_th, max_bb, min_bb, num_bb: how many boxes of an image are used (`BoxRule`), and which database of an
    image set is meant (`region_names`).
    flavour: ``raw``, ``msgpack`` or ``npz``; None takes the first of them that is there. compressed: the same in the
    published options' words: True means npz, False msgpack, or raw where that isn't there; `flavour` overrides it.
    verify: compare the checksum of every raw record that is read (of the others only npz has one, always compared).
    kind: one of `KINDS`, None to tell by the path. Of a VinVL folder: ``vinvl`` or, in ALADIN-2.0's words, ``fast``:
    VinVL's own boxes; ``det`` or ``det_padded``: Detic's; ``det+fast`` and ``det+fast_labels``: both, merged.
    published: a merge with ALADIN-2.0's mistakes (`detections.MergedRegions`).
    Raises DataError naming what was found and which options would fit, ConfigError for an unknown flavour or kind.
    """
    path, rule = Path(path), BoxRule(conf_th, max_bb, min_bb, num_bb)
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"{kind!r} is no kind of region databases; {nearest(kind, KINDS)}")
    detic = kind in _DETIC or is_shelve(path)
    if detic or kind in _VINVL or (kind is None and is_vinvl(path)):
        return _open_vinvl(path, rule, kind or "vinvl", published)
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


def _open_vinvl(path: Path, rule: BoxRule, kind: Any, published: bool) -> RegionDB:
    """What a VinVL folder holds; `path` is it, its features.tsv or the shelve in it."""
    if kind in ("det", "det_padded"):
        return DeticRegions(path, rule)
    if kind == "det+fast" or kind == "det+fast_labels":
        return MergedRegions(path, rule, kind, published=published)
    folder = path.parent if is_shelve(path) else path
    if not features_of(folder).is_file():
        raise DataError(f"{folder} holds no features.tsv of VinVL's; check the path")
    return VinvlRegions(folder, rule)


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
