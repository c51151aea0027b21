"""Training datasets: batches of anchors with what each objective pairs them with.

A batch is a pure function of (seed, stream, epoch, anchors): negatives are drawn by a generator keyed on the
anchor, from all captions or images of the anchor's database, whatever the number of ranks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from crossmodal.data.batches import Batch, Items, Texts
from crossmodal.data.corpus import Corpus
from crossmodal.data.processors import Processor, UniterProcessor
from crossmodal.data.samplers import keyed_random, negatives, stable_hash
from crossmodal.errors import ConfigError

Key = tuple[int, str]


class Dataset(Protocol):
    """`adds` names the fields that its batches carry beside the roles."""

    adds: frozenset[str]

    def __len__(self) -> int: ...

    def batch(self, anchors: Sequence[int], epoch: int) -> Batch: ...

    def id_of(self, anchor: int) -> str: ...


class _Anchored:
    """What the datasets share: a corpus of anchors, and draws keyed on the anchor."""

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


class Pools(_Anchored):
    """Hard-negative pools (UNITER, spec section 5): a matched pair, then `pool - 1` random wrong ones.

    anchor `text`: a caption with other images; `image`: its image with captions that do not describe it.
    `published_defect="last_text_offset"` gives image anchors the wrong index of the published dataset (spec
    section 15, row 2); it needs one pool a batch, as published.
    """

    adds = frozenset({"matched"})

    def __init__(
        self,
        corpus: Corpus,
        processor: Processor,
        *,
        anchor: Literal["text", "image"] = "text",
        pool: int = 400,
        published_defect: Literal["last_text_offset"] | None = None,
        seed: int = 0,
        stream: str = "0",
    ) -> None:
        super().__init__(corpus, processor, seed=seed, stream=stream)
        self.anchor, self.pool, self.published_defect = anchor, pool, published_defect

    def batch(self, anchors: Sequence[int], epoch: int) -> Batch:
        pairs: list[tuple[Key, Key]] = []
        for anchor in anchors:
            key = self.key(epoch, anchor)
            if self.anchor == "text":
                drawn = self.negative_images(anchor, self.pool - 1, key)
            else:
                drawn = self.negative_texts(anchor, self.pool - 1, key)
            pairs += self.pool_of(anchor, drawn)
        return self.collate_pools(pairs)

    def pool_of(self, anchor: int, drawn: Sequence[Key]) -> list[tuple[Key, Key]]:
        """The matched pair, then the anchor with each of the drawn captions or images."""
        text, image = self.positive(anchor)
        others = [(text, key) if self.anchor == "text" else (key, image) for key in drawn]
        return [(text, image), *others]

    def collate_pools(self, pairs: Sequence[tuple[Key, Key]]) -> Batch:
        batch = self.collate(pairs, self.pool)
        if self.published_defect and self.anchor == "image":
            if batch.groups > 1:
                raise ConfigError(
                    f"published_defect {self.published_defect} needs one pool at a time; set accumulate to batch"
                )
            index = last_text_offset(batch)
            batch = Batch(batch.roles, batch.pairs, batch.group, batch.ids, {**batch.extras, "joint_index": index})
        return batch


def last_text_offset(batch: Batch) -> Tensor:
    """The published index: regions are looked for after the length of the *last* caption of the pool, (P,L)."""
    n_text, n_image = batch.pair_lengths()
    position = torch.arange(int((n_text + n_image).max()))
    in_text, in_pair = position < n_text[:, None], position < (n_text + n_image)[:, None]
    index = torch.where(in_text, position, position - n_text[:, None] + n_text[-1])
    return torch.where(in_pair, index, -1)


class Triples(_Anchored):
    """Plain ranking groups (UNITER, spec section 4): the matched pair, `negatives` random images, as many texts."""

    adds = frozenset({"matched"})

    def __init__(
        self,
        corpus: Corpus,
        processor: Processor,
        *,
        negatives: int = 1,
        seed: int = 0,
        stream: str = "0",
    ) -> None:
        super().__init__(corpus, processor, seed=seed, stream=stream)
        self.negatives = negatives

    def batch(self, anchors: Sequence[int], epoch: int) -> Batch:
        pairs: list[tuple[Key, Key]] = []
        for anchor in anchors:
            text, image = self.positive(anchor)
            key = self.key(epoch, anchor)
            pairs.append((text, image))
            pairs += [(text, other) for other in self.negative_images(anchor, self.negatives, key)]
            pairs += [(other, image) for other in self.negative_texts(anchor, self.negatives, key)]
        return self.collate(pairs, 1 + 2 * self.negatives)


class MaskedWords(_Anchored):
    """Matched pairs with hidden words (spec section 8): of `probability` of the word pieces, 80% become
    [MASK], 10% a random word, 10% stay; at least one a caption.

    Adds `masked_words` (B,T) bool and `word_targets` (n,) int64, batch-major.
    """

    adds = frozenset({"matched", "masked_words", "word_targets"})

    def __init__(
        self,
        corpus: Corpus,
        processor: Processor,
        *,
        probability: float = 0.15,
        seed: int = 0,
        stream: str = "0",
    ) -> None:
        super().__init__(corpus, processor, seed=seed, stream=stream)
        if not isinstance(processor, UniterProcessor):
            raise ConfigError(
                f"draw: masked_words hides words for UNITER, not for {processor.use}; choose another draw"
            )
        self.processor: UniterProcessor
        self.probability = probability

    def batch(self, anchors: Sequence[int], epoch: int) -> Batch:
        # One text row an anchor, also where two anchors share a caption's image.
        batch = self.collate([self.positive(anchor) for anchor in anchors], 1)
        texts = batch.roles["text"][1]
        assert isinstance(texts, Texts)
        ids, masked = texts.input_ids.clone(), torch.zeros_like(texts.input_ids, dtype=torch.bool)
        for row, anchor in enumerate(anchors):
            draw = keyed_random((*self.key(epoch, anchor), "words"))
            hide_words(ids[row], masked[row], int(texts.lengths[row]), self.processor, self.probability, draw)
        extras = {**batch.extras, "masked_words": masked, "word_targets": texts.input_ids[masked]}
        roles = {**batch.roles, "text": ("text", Texts(ids, texts.lengths))}
        return Batch(roles, batch.pairs, 1, batch.ids, extras)


class Matched(_Anchored):
    """Matched pairs for losses over the global batch: text i goes with image i, and with no other (ALADIN, spec
    section 6). Two captions of one image may meet in a batch.

    Adds `image_ids` (B,) int64, equal where two images are the same. `teachers` name processors that make the same
    items for other models.
    """

    adds = frozenset({"image_ids"})

    def __init__(
        self,
        corpus: Corpus,
        processor: Processor,
        *,
        teachers: Mapping[str, Processor] | None = None,
        seed: int = 0,
        stream: str = "0",
    ) -> None:
        super().__init__(corpus, processor, seed=seed, stream=stream)
        self.teachers = dict(teachers or {})

    def batch(self, anchors: Sequence[int], epoch: int) -> Batch:
        pairs = [self.positive(anchor) for anchor in anchors]
        keys = {role: [pair[column] for pair in pairs] for column, role in enumerate(("text", "image"))}
        ids = {role: [key for _, key in of_role] for role, of_role in keys.items()}
        images = torch.tensor([stable_hash(key) >> 1 for key in keys["image"]])  # of 63 bits
        teachers = {name: self._roles(keys, processor) for name, processor in self.teachers.items()}
        return Batch(self._roles(keys, self.processor), ids=ids, extras={"image_ids": images}, teachers=teachers)

    def _roles(self, keys: Mapping[str, Sequence[Key]], processor: Processor) -> dict[str, tuple[str, Items]]:
        return {role: (role, next(self.corpus.batches(role, of, processor, len(of)))) for role, of in keys.items()}


def hide_words(
    ids: Tensor,
    masked: Tensor,
    length: int,
    processor: UniterProcessor,
    probability: float,
    draw: random.Random,
) -> None:
    """Hide words of one caption in place: ids (T,) int64, masked (T,) bool; specials stay."""
    for t in range(1, length - 1):
        if draw.random() < probability:
            masked[t] = True
            how = draw.random()
            if how < 0.8:
                ids[t] = processor.mask
            elif how < 0.9:
                ids[t] = draw.randrange(*processor.v_range)
    if length > 2 and not masked.any():
        masked[1] = True
        ids[1] = processor.mask


DATASETS: dict[str, Callable[..., Dataset]] = {
    "pools": Pools,
    "triples": Triples,
    "masked_words": MaskedWords,
    "matched": Matched,
}
