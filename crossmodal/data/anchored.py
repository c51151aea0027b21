"""What the training datasets share, and matched pairs, the simplest of them.

A batch is a pure function of (seed, stream, epoch, anchors): what is drawn for an anchor is drawn by a generator keyed
on it, from all captions or images of the anchor's database, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from crossmodal.data.batches import Batch, Items
from crossmodal.data.corpus import Corpus
from crossmodal.data.processors import Processor
from crossmodal.data.samplers import negatives, stable_hash

Key = tuple[int, str]
"""The part of a corpus, and the id of a caption or an image in it."""


class Dataset(Protocol):
    """`adds` names the fields that its batches carry beside the roles, `roles` these."""

    adds: frozenset[str]
    roles: frozenset[str]

    def __len__(self) -> int: ...

    def batch(self, anchors: Sequence[int], epoch: int) -> Batch: ...

    def id_of(self, anchor: int) -> str: ...


class Anchored:
    """What the datasets share: a corpus of anchors, and draws keyed on the anchor."""

    roles = frozenset({"text", "image"})

    def __init__(self, corpus: Corpus, processor: Processor, *, seed: int = 0, stream: str = "0") -> None:
        self.corpus, self.processor, self.seed, self.stream = corpus, processor, seed, stream

    def __len__(self) -> int:
        return len(self.corpus)

    def id_of(self, anchor: int) -> str:
        """The caption's id."""
        return self.corpus.anchors[anchor][1]

    def key(self, epoch: int, anchor: int) -> tuple[Any, ...]:
        part, caption = self.corpus.anchors[anchor]
        return (self.seed, self.stream, epoch, part, caption)

    def negative_images(self, anchor: int, count: int, key: tuple[Any, ...]) -> list[Key]:
        part, caption = self.corpus.anchors[anchor]
        texts = self.corpus.parts[part].texts
        truth = frozenset([texts.image_of[caption]])
        return [(part, image) for image in negatives(texts.images, count, truth, (*key, "images"))]

    def negative_texts(self, anchor: int, count: int, key: tuple[Any, ...]) -> list[Key]:
        part, caption = self.corpus.anchors[anchor]
        texts = self.corpus.parts[part].texts
        truth = frozenset(texts.texts_of[texts.image_of[caption]])
        return [(part, text) for text in negatives(texts.ids, count, truth, (*key, "texts"))]

    def positive(self, anchor: int) -> tuple[Key, Key]:
        part, caption = self.corpus.anchors[anchor]
        return (part, caption), (part, self.corpus.parts[part].texts.image_of[caption])

    def collate(self, pairs: Sequence[tuple[Key, Key]], group: int) -> Batch:
        """Pairs of (caption, image) keys -> a batch that holds each item once."""
        columns, ids, roles = [], {}, {}
        for column, role in enumerate(("text", "image")):
            keys = list(dict.fromkeys(pair[column] for pair in pairs))
            row = {key: i for i, key in enumerate(keys)}
            columns.append(torch.tensor([row[pair[column]] for pair in pairs]))
            roles[role] = (role, next(self.corpus.batches(role, keys, self.processor, len(keys))))
            ids[role] = [key for _, key in keys]
        extras = {"matched": (torch.arange(group) == 0).long().expand(len(pairs) // group, -1)}
        return Batch(roles, torch.stack(columns, dim=1), group, ids, extras)


class Matched(Anchored):
    """Matched pairs for losses over the global batch: text i goes with image i, and with no other (ALADIN, spec
    section 6). Two captions of one image may meet in a batch.

    augment: pictures are cropped at random, where the processor does that, by a generator keyed on the anchor.
    Adds `image_ids` (B,) int64, equal where two images are the same. `teachers` name processors that make the same
    items for other models.
    """

    adds = frozenset({"image_ids"})

    def __init__(
        self,
        corpus: Corpus,
        processor: Processor,
        *,
        augment: bool = True,
        teachers: Mapping[str, Processor] | None = None,
        seed: int = 0,
        stream: str = "0",
    ) -> None:
        super().__init__(corpus, processor, seed=seed, stream=stream)
        self.augment, self.teachers = augment, dict(teachers or {})

    def batch(self, anchors: Sequence[int], epoch: int) -> Batch:
        texts, images = zip(*(self.positive(anchor) for anchor in anchors), strict=True)
        crops = [(*self.key(epoch, anchor), "crop") for anchor in anchors]

        def roles(processor: Processor) -> dict[str, tuple[str, Items]]:
            return {
                "text": ("text", self.texts(texts, processor)),
                "image": ("image", self.images(images, crops, processor)),
            }

        ids = {"text": [key for _, key in texts], "image": [key for _, key in images]}
        same = torch.tensor([stable_hash(key) >> 1 for key in images])  # of 63 bits
        teachers = {name: roles(processor) for name, processor in self.teachers.items()}
        return Batch(roles(self.processor), ids=ids, extras={"image_ids": same}, teachers=teachers)

    def texts(self, keys: Sequence[Key], processor: Processor) -> Items:
        return next(self.corpus.batches("text", keys, processor, len(keys)))

    def images(self, keys: Sequence[Key], crops: Sequence[tuple[Any, ...]], processor: Processor) -> Items:
        """Images for training, the random crop of each drawn by the generator of its key in `crops`."""
        augmented = getattr(processor, "augmented", None) if self.augment else None
        if augmented is None:
            return next(self.corpus.batches("image", keys, processor, len(keys)))
        raw = [self.corpus.parts[part].image(image) for part, image in keys]
        made: Items = augmented(raw, [torch.Generator().manual_seed(stable_hash(crop)) for crop in crops])
        return made
