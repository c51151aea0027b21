"""Captions joined with the regions of their images, over one or several databases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from crossmodal.data.batches import Items
from crossmodal.data.items import RegionItem, TextItem
from crossmodal.errors import DataError

if TYPE_CHECKING:
    from crossmodal.data.processors import UniterProcessor
    from crossmodal.data.regions import RegionDB
    from crossmodal.data.texts import TextDB


@dataclass(frozen=True)
class Part:
    """One text database and the regions of its images.

    Raises DataError where an image has no regions, and where `max_len` leaves no caption.
    """

    texts: TextDB
    regions: RegionDB

    def __post_init__(self) -> None:
        missing = [image for image in self.texts.images if image not in self.regions]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(self.texts.images)} images named by the captions in {self.texts.path} have no "
                f"regions in {self.regions.path} (first: {', '.join(missing[:3])}); run `crossmodal data check` on "
                "the two databases"
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

    def image(self, key: str) -> RegionItem:
        return self.regions[key]


class Corpus:
    """Several parts as one: anchors are captions, numbered over all parts in database order."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self.anchors = [(p, caption) for p, part in enumerate(self.parts) for caption in part.texts.ids]

    def __len__(self) -> int:
        return len(self.anchors)

    def lengths(self) -> list[int]:
        """Word pieces plus regions of every anchor: what the token-bucket sampler balances."""
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
        self, side: str, keys: Sequence[tuple[int, str]], processor: UniterProcessor, size: int = 256
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
) -> Corpus:
    """Open text databases and the region database of each (one for all, or one each).

    Raises DataError where the numbers of databases do not fit or images are missing.
    """
    from crossmodal.data.regions import open_regions
    from crossmodal.data.texts import TextDB

    if len(images) not in (1, len(texts)):
        raise DataError(
            f"{len(texts)} text databases go with {len(images)} region databases; give one for all or one for each"
        )
    opened = [
        open_regions(path, conf_th=conf_th, max_bb=max_bb, min_bb=min_bb, num_bb=num_bb, compressed=compressed)
        for path in images
    ]
    if len(opened) == 1:
        opened *= len(texts)
    return Corpus([Part(TextDB(path, max_len=max_text), db) for path, db in zip(texts, opened, strict=True)])
