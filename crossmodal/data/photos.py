"""A folder of photos -> a region database, with any extractor; the built-in one needs no weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps

from crossmodal.data.extractors import GridExtractor, RegionExtractor
from crossmodal.data.region_db import Record
from crossmodal.data.region_writer import write_region_db
from crossmodal.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


def write_photo_db(
    folder: str | Path,
    output: str | Path,
    *,
    extractor: RegionExtractor | None = None,
    conf_th: float = 0.2,
    max_bb: int = 100,
    min_bb: int = 10,
    num_bb: int = 36,
    flavour: str = "msgpack",
    workers: int = 1,
) -> Path:
    """Extract the regions of every JPEG and PNG in `folder` to a database below `output`; return its folder.

    ``a.jpg`` is stored as ``a.npz``, as UNITER's texts name it. `extractor` is by default `GridExtractor()`, a
    stand-in for a detector. Unreadable pictures are skipped, counted and listed. The rest is as in
    `region_writer.write_region_db`. Raises DataError where there is no picture or two share a stem.
    """
    photos = find_photos(Path(folder))
    chosen: RegionExtractor = extractor if extractor is not None else GridExtractor()
    records: list[tuple[str, Callable[[], Record]]] = [
        (name, partial(photo_record, path, chosen)) for name, path in photos.items()
    ]
    return write_region_db(
        records,
        output,
        conf_th=conf_th,
        max_bb=max_bb,
        min_bb=min_bb,
        num_bb=num_bb,
        flavour=flavour,
        workers=workers,
        total=len(records),
        origin=chosen.identity,
    )


def find_photos(folder: Path) -> dict[str, Path]:
    """The pictures directly in `folder`, by the id they get: ``<stem>.npz``."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder of pictures; check the path.")
    photos: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
        name = f"{path.stem}.npz"
        if name in photos:
            raise DataError(f"{path} and {photos[name].name} would both be stored as {name}; rename one of them.")
        photos[name] = path
    if not photos:
        raise DataError(f"{folder} holds no picture ending in {', '.join(sorted(SUFFIXES))}.")
    return photos


def open_photo(path: Path) -> Image.Image:
    """An upright RGB picture. Raises DataError where the file cannot be decoded."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a picture ({error}).") from error


def photo_record(path: Path, extractor: RegionExtractor) -> Record:
    """The record of one picture, as `region_writer` stores it."""
    item = extractor(open_photo(path), f"{path.stem}.npz")
    record: Record = {"norm_bb": item.boxes, "features": item.features}
    if item.confidence is not None:
        record["conf"] = item.confidence[:, None]
    if item.soft_labels is not None:
        record["soft_labels"] = item.soft_labels
    return record
