"""Retrieval among the captions and images of a file, any number of captions an image (CE-CLIP, spec section 6.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor
from typing_extensions import Self

from crossmodal.data.caption_tables import is_records_folder, open_captions
from crossmodal.data.captions import Caption
from crossmodal.data.picture_sources import coco_number
from crossmodal.errors import DataError
from crossmodal.evaluate.positives import Positives, columns_from_lists
from crossmodal.evaluate.ranks import ranks
from crossmodal.evaluate.recall import KS, recall

from .coco_positives import Table, read_tables
from .items import Answers, Judge, Picture, Rows, Test, places
from .metrics import Share, precision_at_r
from .registry import suite
from .shuffles import MAX_WORDS, pre_caption


@suite("retrieval")
def retrieval(data: Path, *, split: str | None = None, positives: Path | None = None) -> Retrieval:
    """A caption file of any format that a recipe's `texts` may name.

    split: only these captions, where the file has splits. positives: the folder of ECCV Caption's data, for the 25,000
    captions of COCO's Karpathy test: recalls by CxC's and by ECCV's positives too, R-precision and mAP@R.
    """
    captions = _captions(data, split)
    tables = read_tables(positives, captions, data) if positives else {}
    return Retrieval(captions, tables)


@suite("aro_retrieval")
def aro_retrieval(data: Path, *, split: str | None = None) -> Retrieval:
    """The same with captions cleaned and cut to 30 words, as ARO's code does."""
    return Retrieval([replace(c, sentence=pre_caption(c.sentence, MAX_WORDS)) for c in _captions(data, split)])


def _captions(data: Path, split: str | None) -> list[Caption]:
    if data.is_dir() and not is_records_folder(data):
        raise DataError(f"{data} is no file of captions; a text database is evaluated by `crossmodal test`")
    texts = open_captions(data, split=split)
    return [Caption(id, texts.image_of[id], str(texts[id].sentence)) for id in texts.ids]


@dataclass(frozen=True)
class Retrieval(Test):
    """captions: in the order of the file. tables: more positives, by the name of who found them."""

    captions: list[Caption]
    tables: dict[str, Table] = field(default_factory=dict)
    ties = "a query that ties with a wrong item has the mean rank of the equals"
    shown = tuple(f"{side}_r{k}" for side in ("img", "txt") for k in KS)

    @property
    def pictures(self) -> list[Picture]:
        return [Picture(name) for name in places(caption.image for caption in self.captions)]

    @property
    def size(self) -> int:
        return len(self.captions)

    def without(self, pictures: Iterable[Picture]) -> Self:
        gone = {picture.name for picture in pictures}
        return replace(self, captions=[c for c in self.captions if c.image not in gone])

    def ask(self, judge: Judge) -> Answers:
        sentences = places(caption.sentence for caption in self.captions)
        found = judge.matrix(list(sentences), self.pictures)
        scores = found[[sentences[caption.sentence] for caption in self.captions]]  # equal captions: equal rows
        column = places(caption.image for caption in self.captions)
        rows = recalls(scores, [[column[caption.image]] for caption in self.captions])
        for name, table in self.tables.items():
            rows |= {f"{name} {key}": row for key, row in self._by(table, scores).items()}
        arrays = {
            "scores": scores.float().numpy(),
            "text_ids": np.array([caption.id for caption in self.captions]),
            "image_ids": np.array(list(column)),
        }
        return Answers(rows, arrays=arrays)

    def _by(self, table: Table, scores: Tensor) -> Rows:
        """Recalls and precisions by a table, among the captions that it knows and all images."""
        known = [row for row, caption in enumerate(self.captions) if caption.id in table.captions]
        row_of = {self.captions[row].id: place for place, row in enumerate(known)}
        numbers = [coco_number(picture.name) or "" for picture in self.pictures]
        column_of = {number: column for column, number in enumerate(numbers)}
        images_of = [[column_of[i] for i in table.images_of.get(c, ()) if i in column_of] for c in row_of]
        texts_of = [[row_of[c] for c in table.captions_of.get(i, ()) if c in row_of] for i in numbers]
        if not any(images_of) or not any(texts_of):
            return {}
        scores = scores[known]
        found = {
            "img": precision_at_r(scores, images_of),
            "txt": precision_at_r(scores.T, texts_of),
        }
        precisions = {f"{side}_{name}": share for side, shares in found.items() for name, share in shares.items()}
        return recalls(scores, images_of, columns_from_lists(texts_of, len(known))) | precisions


def recalls(scores: Tensor, images_of: Positives, of_images: Positives | None = None) -> Rows:
    """`img_r1` ... `txt_r10` of scores (texts, images): how many queries there are, and how many of them tie.

    images_of: the right images of each caption. of_images: the same as images see it, where that differs.
    """
    ranked = ranks(scores, images_of)
    if of_images is not None:
        other = ranks(scores, of_images)
        ranked = replace(ranked, text=other.text, text_ties=other.text_ties)
    found = recall(ranked)
    queries = {"img": int((~ranked.image.isnan()).sum()), "txt": int((~ranked.text.isnan()).sum())}
    return {
        f"{side}_r{k}": Share(found[f"{side}_r{k}"], queries[side], int(found[f"{side}_ties"]))
        for side in ("img", "txt")
        for k in KS
    }
