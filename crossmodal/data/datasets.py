"""Training datasets: batches of anchors with what each objective pairs them with, and the names of all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from crossmodal.data.anchored import Anchored, Dataset, Key, Matched
from crossmodal.data.batches import Batch, Texts
from crossmodal.data.corpus import Corpus
from crossmodal.data.negative_pairs import HardImages, MatchedNegatives
from crossmodal.data.processors import Processor, UniterProcessor
from crossmodal.data.samplers import keyed_random
from crossmodal.errors import ConfigError

__all__ = [
    "DATASETS", "Dataset", "HardImages", "MaskedWords", "Matched", "MatchedNegatives", "Pools", "Triples",
    "hide_words", "last_text_offset",
]  # fmt: skip


class Pools(Anchored):
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


class Triples(Anchored):
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


class MaskedWords(Anchored):
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
    "matched_negatives": MatchedNegatives,
    "hard_images": HardImages,
}
