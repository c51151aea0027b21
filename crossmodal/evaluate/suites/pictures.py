"""Where the pictures of a suite come from: a folder, or a database of their regions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from crossmodal.data.extractors import RegionExtractor
from crossmodal.data.items import RegionItem
from crossmodal.data.picture_sources import coco_number
from crossmodal.data.pictures import open_picture
from crossmodal.data.region_db import RegionDB
from crossmodal.errors import ConfigError, DataError

from .items import Picture


class PictureSource(Protocol):
    """Picture -> what a model's processor takes for one."""

    def __contains__(self, picture: Picture) -> bool: ...

    def __call__(self, picture: Picture) -> Any: ...


@dataclass(frozen=True)
class PictureFolder:
    """The pictures below a folder: under the name in the published file, wherever a file of that name lies, or, of
    COCO, under the name in another of its splits. Boxes are cut out; nothing is rotated, as in the published code.
    """

    root: Path

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder of images; check the path")

    def __contains__(self, picture: Picture) -> bool:
        return self.path(picture.name) is not None

    def __call__(self, picture: Picture) -> Image.Image:
        path = self.path(picture.name)
        if path is None:
            raise DataError(f"{self.root} holds no image {picture.name}; complete the folder")
        image = open_picture(path)
        return image if picture.box is None else image.convert("RGB").crop(picture.box)

    def path(self, name: str) -> Path | None:
        direct = self.root / name
        if direct.is_file():
            return direct
        last = Path(name).name
        return self._files.get(last) or self._files.get(coco_number(last) or last)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Every file by its name, by the name without ending, and by its number in COCO; the first of equal ones."""
        found: dict[str, Path] = {}
        for folder, below, names in os.walk(self.root):
            below.sort()
            for name in sorted(names):
                path = Path(folder, name)
                for key in (name, path.stem, coco_number(name) or name):
                    found.setdefault(key, path)
        return found


@dataclass(frozen=True)
class ExtractedRegions:
    """The regions that an extractor finds in the pictures of a folder, after boxes were cut out."""

    folder: PictureFolder
    extractor: RegionExtractor

    def __contains__(self, picture: Picture) -> bool:
        return picture in self.folder

    def __call__(self, picture: Picture) -> RegionItem:
        return self.extractor(self.folder(picture).convert("RGB"), picture.name)


@dataclass(frozen=True)
class StoredRegions:
    """The regions of a database, under the names that UNITER, VinVL and `crossmodal data` give to images."""

    db: RegionDB

    def __contains__(self, picture: Picture) -> bool:
        return self._key(picture) is not None

    def __call__(self, picture: Picture) -> RegionItem:
        key = self._key(picture)
        if key is None:
            raise DataError(f"{self.db.path} holds no image {picture.name}; complete the database")
        return self.db[key]

    def _key(self, picture: Picture) -> str | None:
        if picture.box is not None:
            raise ConfigError(
                f"this suite asks about a part of {picture.name}, and a region database holds whole images; "
                "leave --regions out, so that the regions are extracted from the cut images"
            )
        stem, number = Path(picture.name).stem, coco_number(picture.name)
        names = [picture.name, stem]
        if number is not None:
            names += [number, str(int(number)), *(f"coco_{split}2014_{number}" for split in ("val", "train"))]
        return next((name for name in names if name in self.db), None)
