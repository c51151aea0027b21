"""Captions joined with the regions or the pictures of their images, over one or several databases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crossmodal.data.batches import Items
from crossmodal.data.items import RegionItem, TextItem
from crossmodal.data.picture_sources import ImageSource, PictureFolder, PictureItem, is_picture_folder
from crossmodal.errors import DataError

if TYPE_CHECKING:
    from crossmodal.data.processors import Processor
    from crossmodal.data.texts import TextSource


@dataclass(frozen=True)
class Part:
    """One source of captions and the regions, or the pictures, of its images.

    Raises DataError where an image has none, and where `max_len` leaves no caption.
    """

    texts: TextSource
    regions: ImageSource

    def __post_init__(self) -> None:
        missing = [image for image in self.texts.images if image not in self.regions]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(self.texts.images)} images named by the captions in {self.texts.path} have no "
                f"{self.regions.content} in {self.regions.path} (first: {', '.join(missing[:3])}); "
                f"{self.regions.advice}"
            )
        if not len(self.texts):
            shortest = min(self.texts.lengths.values(), default=None)
            reason = "it is empty" if shortest is None else f"the shortest has {shortest} word pieces"
            raise DataError(
                f"no caption of {self.texts.path} can be used ({reason}, max_text is {self.texts.max_len}); "
                "raise max_text or build the database again"
            )

    def text(self, key: str) -> TextItem:
        """A caption. Raises DataError where it has no words."""
        item = self.texts[key]
        if not item.input_ids and not (item.sentence or "").strip():
            raise DataError(
                f"caption {key!r} in {self.texts.path} has no words; build the database again, which leaves it out"
            )
        return item

    def image(self, key: str) -> RegionItem | PictureItem:
        return self.regions[key]


class Corpus:
    """Several parts as one: anchors are captions, numbered over all parts in database order."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self.anchors = [(p, caption) for p, part in enumerate(self.parts) for caption in part.texts.ids]

    def __len__(self) -> int:
        return len(self.anchors)

    def lengths(self) -> list[int]:
        """Word pieces plus regions of every anchor (a picture is one): what the token-bucket sampler balances."""
        out = []
        for p, caption in self.anchors:
            texts, regions = self.parts[p].texts, self.parts[p].regions
            out.append(texts.lengths[caption] + regions.lengths[texts.image_of[caption]])
        return out

    @cached_property
    def image_keys(self) -> list[tuple[int, str]]:
        """Images in evaluation order: those of the caption files, stably by number of regions (spec 13.2)."""
        keys = [(p, image) for p, part in enumerate(self.parts) for image in part.texts.images]
        return sorted(keys, key=lambda key: self.parts[key[0]].regions.lengths[key[1]])

    @cached_property
    def column_of(self) -> dict[tuple[int, str], int]:
        """The column of each image in evaluation order."""
        return {key: i for i, key in enumerate(self.image_keys)}

    def image_of_texts(self) -> torch.Tensor:
        """(texts,) the column of each caption's image in evaluation order."""
        column = self.column_of
        return torch.tensor([column[p, self.parts[p].texts.image_of[caption]] for p, caption in self.anchors])

    def batches(
        self, side: str, keys: Sequence[tuple[int, str]], processor: Processor, size: int = 256
    ) -> Iterator[Items]:
        """The items of these keys as model input, `size` at a time, each read once."""
        for start in range(0, len(keys), size):
            chosen = keys[start : start + size]
            part = self.parts
            yield processor(side, [part[p].text(k) if side == "text" else part[p].image(k) for p, k in chosen])


def open_corpus(
    texts: Sequence[str],
    images: Sequence[str],
    *,
    max_text: int = -1,
    conf_th: float = 0.2,
    max_bb: int = 100,
    min_bb: int = 10,
    num_bb: int = 36,
    compressed: bool | None = None,
    detections: str | None = None,
    published_merge: bool = False,
    **captions: Any,
) -> Corpus:
    """Open sources of captions and the images of each (one for all, or one each).

    images: region databases, folders of pictures, or tars (`open_images`); the options of boxes are for the first.
    detections: of a VinVL folder: ``fast`` (its own), ``det``, ``det_padded``, ``det+fast`` or ``det+fast_labels``
    (`regions.open_regions`); a merge is over the images of the captions. published_merge: with ALADIN-2.0's mistakes.
    captions: further options of `texts.open_texts`.
    Raises DataError where the numbers of databases do not fit or images are missing, ConfigError for options that
    do not.
    """
    from crossmodal.data.texts import open_texts

    if len(images) not in (1, len(texts)):
        raise DataError(
            f"{len(texts)} text databases go with {len(images)} region databases; give one for all or one for each"
        )
    opened = [
        open_images(
            path,
            conf_th=conf_th,
            max_bb=max_bb,
            min_bb=min_bb,
            num_bb=num_bb,
            compressed=compressed,
            kind=detections,
            published=published_merge,
        )
        for path in images
    ]
    if len(opened) == 1:
        opened *= len(texts)
    sources = [open_texts(path, max_text, **captions) for path in texts]
    return Corpus([Part(source, db.over(source.images)) for source, db in zip(sources, opened, strict=True)])


def open_images(path: str, **options: Any) -> ImageSource:
    """A folder of pictures, tars of them, or a region database, with the options of `regions.open_regions`.

    A folder that holds a database of regions is taken for that, whatever else is in it.
    """
    from crossmodal.data.regions import open_regions
    from crossmodal.data.tars import TarPictures, is_tars

    folder = Path(path)
    if is_tars(folder):
        return TarPictures(folder)
    if not _holds_regions(folder) and is_picture_folder(folder):
        return PictureFolder(folder)
    return open_regions(path, **options)


def _holds_regions(folder: Path) -> bool:
    from crossmodal.data.vinvl_regions import is_vinvl

    files = (file for pattern in ("data.mdb", "*/data.mdb", "*.npz") for file in folder.glob(pattern))
    return is_vinvl(folder) or next(files, None) is not None
