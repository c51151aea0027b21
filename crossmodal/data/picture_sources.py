"""Pictures as the image side of a corpus: what every image side is, and a folder of pictures."""

from __future__ import annotations

import copy
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar, Protocol, TypeVar

from PIL import Image

from crossmodal.data.items import RegionItem
from crossmodal.errors import DataError

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""How files of pictures end, in small letters."""

_COCO = re.compile(r"(?:coco_(?:train|val|test)20\d\d_)?(\d{12})(?:\.\w+)?", re.IGNORECASE)

P = TypeVar("P", bound="Pictures")


@dataclass(frozen=True)
class PictureItem:
    """One picture that is decoded when a processor reads it: its file, or an image that Pillow has opened."""

    id: str
    picture: Path | Image.Image


class ImageSource(Protocol):
    """What the image side of a corpus is: a `RegionDB`, or `Pictures`.

    content: what its images are, in words. advice: what to do about images that it lacks.
    lengths: image -> number of regions, 1 for a picture. over: the same for the use with these images.
    """

    @property
    def path(self) -> Path: ...
    @property
    def content(self) -> str: ...
    @property
    def advice(self) -> str: ...
    @property
    def lengths(self) -> Mapping[str, int]: ...
    @property
    def feature_dim(self) -> int: ...
    def over(self, images: Sequence[str]) -> ImageSource: ...
    def __contains__(self, image: object) -> bool: ...
    def __getitem__(self, image: str) -> RegionItem | PictureItem: ...
    def __len__(self) -> int: ...


class Pictures(ABC):
    """Pictures by name. `ids` are the names of all; an image of a caption file may have another one that `find` knows.

    lengths: 1 for each of `ids` and, behind `over`, for the images that were found.
    """

    content: ClassVar[str] = "picture"
    advice: ClassVar[str] = "complete the pictures, or leave their captions out"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, str] = {}

    @property
    @abstractmethod
    def ids(self) -> Sequence[str]: ...

    @abstractmethod
    def find(self, image: str) -> str | None:
        """The id of the picture that a caption file calls `image`. Raises DataError where that may be two."""

    @abstractmethod
    def item(self, id: str) -> PictureItem: ...

    @cached_property
    def lengths(self) -> dict[str, int]:
        return dict.fromkeys((*self.ids, *self._found), 1)

    @property
    def feature_dim(self) -> int:
        raise DataError(
            f"{self.path} holds pictures, and this model reads regions; detect them first, or make some without a "
            "detector with `crossmodal data photos`"
        )

    def over(self: P, images: Sequence[str]) -> P:
        used = copy.copy(self)
        used._found = {image: id for image in images if (id := self.find(image)) is not None}
        used.__dict__.pop("lengths", None)
        return used

    def __contains__(self, image: object) -> bool:
        return isinstance(image, str) and (image in self._found or self.find(image) is not None)

    def __getitem__(self, image: str) -> PictureItem:
        id = self._found.get(image) or self.find(image)
        if id is None:
            raise DataError(f"{self.path} holds no picture {image!r}; it holds {len(self)} such as {self.ids[:2]}")
        return self.item(id)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self)} pictures)"


class PictureFolder(Pictures):
    """The pictures below a folder; ids are their paths in it.

    An image is found by its path in the folder; else by the name of its file, with or without an ending, in whichever
    folder below it lies; else, of COCO, by its number: COCO_val2014_000000184613.jpg is 000000184613.jpg elsewhere.
    Raises DataError where the folder holds no picture.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(Path(path))
        self._ids = sorted(_pictures_below(self.path))
        if not self._ids:
            raise DataError(f"{self.path} is not a folder with pictures in it; check the path")
        self._paths = frozenset(self._ids)
        self._named: tuple[dict[str, list[str]], ...] = ({}, {})
        self._numbered: dict[str, str] = {}
        for id in self._ids:
            path_in = PurePosixPath(id)
            for table, name in zip(self._named, (path_in.name, path_in.stem), strict=True):
                table.setdefault(name, []).append(id)
            if number := coco_number(path_in.name):
                self._numbered.setdefault(number, id)

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    def find(self, image: str) -> str | None:
        if image in self._paths:
            return image
        name = PurePosixPath(image)
        files, stems = self._named
        found = files.get(name.name) or stems.get(name.name) or stems.get(name.stem) or []
        if len(found) > 1:
            raise DataError(
                f"{self.path} holds {len(found)} pictures that the captions' {image} may be ({', '.join(found[:2])}); "
                "name images with their folders, or give the folder of the right ones"
            )
        number = coco_number(name.name)
        return found[0] if found else self._numbered.get(number) if number else None

    def item(self, id: str) -> PictureItem:
        return PictureItem(id, self.path / id)


def coco_number(name: str) -> str | None:
    """The twelve digits of a COCO image by the name of its file: the same image in all of COCO's splits."""
    found = _COCO.fullmatch(PurePosixPath(name).name)
    return found[1] if found else None


def is_picture_folder(path: Path) -> bool:
    """Whether it is a folder with pictures in it or below it."""
    return path.is_dir() and next(_pictures_below(path), None) is not None


def _pictures_below(root: Path) -> Iterator[str]:
    """Paths in the folder, also through links to other folders."""
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder above it
            below.clear()
            continue
        seen.add(real)
        within = Path(folder).relative_to(root)
        for name in names:
            if os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith("."):
                yield (within / name).as_posix()
