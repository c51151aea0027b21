"""Matched pairs with wrong captions, and with hard images (CE-CLIP and NegCLIP, spec sections 3 and 4)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmodal.data.anchored import Key, Matched
from crossmodal.data.batches import Batch, Items
from crossmodal.data.caption_tables import SentenceTexts, Wrong, wrong_of_records
from crossmodal.data.corpus import Corpus, Part
from crossmodal.data.negatives.ce_clip import MISSING
from crossmodal.data.negatives.records import read_records
from crossmodal.data.processors import Processor
from crossmodal.data.samplers import keyed_random
from crossmodal.errors import ConfigError, DataError

log = logging.getLogger("crossmodal")


class MatchedNegatives(Matched):
    """`Matched`, with the wrong captions of each caption as the role `negative_text`: K rows a caption, those of the
    first caption first.

    negatives: a file of CE-CLIP's records (``.jsonl``, ``.npy`` or a folder of these) whose ids are the captions'; by
    default the wrong captions that the file of the captions carries.
    count: None takes all in their order, so that K is the number of types (four of CE-CLIP's), or the most that a
    caption has; a number K draws so many of those that there are, anew in every epoch (NegCLIP takes 1).

    Adds `negative_mask` (B,K) int64: 0 where there is none, and a row in its place (CE-CLIP's ``###``).
    Raises ConfigError where nothing carries wrong captions, DataError where a file has none of these captions, or has
    them of other sentences.
    """

    adds = frozenset({"image_ids", "negative_mask"})
    roles = frozenset({"text", "image", "negative_text"})

    def __init__(
        self,
        corpus: Corpus,
        processor: Processor,
        *,
        negatives: str | None = None,
        count: int | None = None,
        augment: bool = True,
        teachers: Mapping[str, Processor] | None = None,
        seed: int = 0,
        stream: str = "0",
    ) -> None:
        super().__init__(corpus, processor, augment=augment, teachers=teachers, seed=seed, stream=stream)
        if count is not None and count < 1:
            raise ConfigError(f"count is {count}; draw at least 1 wrong caption, or leave it out for all of them")
        self.count = count
        self.wrong = _wrong_captions(corpus, negatives)
        self.width = count or max(len(wrong.sentences) for of_part in self.wrong for wrong in of_part.values())

    def batch(self, anchors: Sequence[int], epoch: int) -> Batch:
        batch = super().batch(anchors, epoch)
        keys = [self.corpus.anchors[anchor] for anchor in anchors]
        items, mask, ids = self.wrong_items(keys, [(*self.key(epoch, anchor), "wrong") for anchor in anchors])
        return replace(
            batch,
            roles={**batch.roles, "negative_text": ("text", items)},
            ids={**batch.ids, "negative_text": ids},
            extras={**batch.extras, "negative_mask": mask},
        )

    def wrong_items(self, keys: Sequence[Key], draws: Sequence[tuple[Any, ...]]) -> tuple[Items, Tensor, list[str]]:
        """B captions, what is drawn for each by its key -> B*K wrong captions, which there are (B,K), and their ids."""
        sentences: list[str] = []
        valid: list[int] = []
        ids: list[str] = []
        for (part, caption), draw in zip(keys, draws, strict=True):
            wrong = self.wrong_of(part, caption)
            places = self.places(wrong, draw)
            missing = self.width - len(places)
            sentences += [*(wrong.sentences[place] for place in places), *[MISSING] * missing]
            valid += [*(wrong.valid[place] for place in places), *[0] * missing]
            ids += [*(f"{caption}#{place}" for place in places), *[f"{caption}#-"] * missing]
        return self.processor("text", sentences), torch.tensor(valid).view(-1, self.width), ids

    def places(self, wrong: Wrong, draw: tuple[Any, ...]) -> Sequence[int]:
        """Which of a caption's wrong captions are taken, at most K."""
        if self.count is None:
            return range(len(wrong.sentences))
        there = [place for place, valid in enumerate(wrong.valid) if valid]
        return keyed_random(draw).sample(there, min(self.count, len(there)))

    def wrong_of(self, part: int, caption: str) -> Wrong:
        """Raises DataError where they are wrong captions of another sentence."""
        texts = self.corpus.parts[part].texts
        wrong = self.wrong[part].get(caption, _NONE)
        sentence = texts[caption].sentence
        if wrong is not _NONE and sentence is not None and _letters(sentence) != _letters(wrong.caption):
            raise DataError(
                f"the wrong captions of caption {caption!r} were made of {wrong.caption!r}, and {texts.path} holds "
                f"{sentence!r} under this id; make them from these captions"
            )
        return wrong


class HardImages(MatchedNegatives):
    """`MatchedNegatives`, with an image that is hard to tell from each caption's own (NegCLIP, spec 3.2 and 4.3): the
    role `hard_image`, a caption of it as `hard_text`, and that one's wrong captions as `hard_negative_text`.

    Which images are hard, NegCLIP's table says that holds the captions; one of them is drawn anew in every epoch, as
    are its caption and `count` (1) of the wrong captions. Adds `hard_negative_mask` (B,K) too.
    Raises ConfigError where the captions come from no such table, DataError where an image has no hard ones.
    """

    adds = frozenset({"image_ids", "negative_mask", "hard_negative_mask"})
    roles = frozenset({"text", "image", "negative_text", "hard_image", "hard_text", "hard_negative_text"})

    def __init__(
        self,
        corpus: Corpus,
        processor: Processor,
        *,
        negatives: str | None = None,
        count: int | None = 1,
        augment: bool = True,
        teachers: Mapping[str, Processor] | None = None,
        seed: int = 0,
        stream: str = "0",
    ) -> None:
        super().__init__(
            corpus, processor, negatives=negatives, count=count, augment=augment, teachers=teachers, seed=seed,
            stream=stream,
        )  # fmt: skip
        self.hard = [_hard_images(part) for part in corpus.parts]

    def batch(self, anchors: Sequence[int], epoch: int) -> Batch:
        batch = super().batch(anchors, epoch)
        keys = [(*self.key(epoch, anchor), "hard") for anchor in anchors]
        texts, images = zip(*(self.hard_pair(a, key) for a, key in zip(anchors, keys, strict=True)), strict=True)
        wrong, mask, ids = self.wrong_items(texts, [(*key, "wrong") for key in keys])
        roles = {
            "hard_image": ("image", self.images(images, [(*key, "crop") for key in keys], self.processor)),
            "hard_text": ("text", self.texts(texts, self.processor)),
            "hard_negative_text": ("text", wrong),
        }
        hard_ids = {"hard_image": [id for _, id in images], "hard_text": [id for _, id in texts]}
        return replace(
            batch,
            roles={**batch.roles, **roles},
            ids={**batch.ids, **hard_ids, "hard_negative_text": ids},
            extras={**batch.extras, "hard_negative_mask": mask},
        )

    def hard_pair(self, anchor: int, key: tuple[Any, ...]) -> tuple[Key, Key]:
        """A caption of a hard image, and this image."""
        part, caption = self.corpus.anchors[anchor]
        texts, draw = self.corpus.parts[part].texts, keyed_random(key)
        image = draw.choice(self.hard[part][texts.image_of[caption]])
        return (part, draw.choice([text for text in texts.texts_of[image] if text in texts])), (part, image)


_NONE = Wrong("", (), ())


def _wrong_captions(corpus: Corpus, file: str | None) -> list[Mapping[str, Wrong]]:
    """Caption -> its wrong captions, of each part of the corpus."""
    paths = ", ".join(str(part.texts.path) for part in corpus.parts)
    if file is None:
        found: list[Mapping[str, Wrong]] = [
            part.texts.wrong if isinstance(part.texts, SentenceTexts) else {} for part in corpus.parts
        ]
        if not any(wrong.sentences for of_part in found for wrong in of_part.values()):
            raise ConfigError(
                f"no wrong captions stand beside the captions of {paths}; make a file of them with `crossmodal data "
                "negatives` and name it as negatives"
            )
    else:
        if Path(file).suffix in (".tsv", ".csv"):
            raise ConfigError(
                f"negatives {file} is a table that holds its captions itself; name it as the data's texts"
            )
        found = [wrong_of_records(read_records(Path(file)))] * len(corpus.parts)
    joined = sum(caption in found[part] for part, caption in corpus.anchors)
    if file is not None and not joined:
        raise DataError(
            f"none of the {len(corpus)} captions of {paths} has its id in {file} (theirs are such as "
            f"{corpus.anchors[0][1]!r}, there {next(iter(found[0]))!r}); make it from these captions"
        )
    if joined < len(corpus):
        log.warning("%d of %d captions of %s have no wrong captions", len(corpus) - joined, len(corpus), paths)
    return found


def _hard_images(part: Part) -> dict[str, list[str]]:
    """Image -> its hard images, of those that have a caption."""
    texts = part.texts
    used = {texts.image_of[caption] for caption in texts.ids}
    carried = texts.hard if isinstance(texts, SentenceTexts) else {}
    if not carried:
        raise ConfigError(
            f"{texts.path} does not say which images are hard to tell from each other; use NegCLIP's table as texts "
            "(`crossmodal data negatives --like negclip` with a checkpoint makes one)"
        )
    found = {image: [other for other in carried.get(image, ()) if other in used] for image in used}
    without = sorted(image for image, others in found.items() if not others)
    if without:
        raise DataError(
            f"{len(without)} of {len(used)} images in {texts.path} have no hard image (first: {without[0]}); make the "
            "table anew, from all of them"
        )
    return found


def _letters(sentence: str) -> str:
    return "".join(filter(str.isalnum, sentence.casefold()))
