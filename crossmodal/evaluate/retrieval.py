"""Score a corpus with a model: every caption against every image, each item read and encoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from crossmodal.data.corpus import Corpus
from crossmodal.errors import DataError
from crossmodal.model.base import Encoded, Model, inference
from crossmodal.retrieve.scoring import TOKENS, encode_all, score_matrix, score_pairs

from .ranks import TieRule, ranks
from .recall import RetrievalMetrics, recall

if TYPE_CHECKING:
    from crossmodal.data.texts import TextDB
    from crossmodal.train.distributed import OneProcess


@dataclass(frozen=True)
class Scored:
    """scores (texts, images) float32 with the ids of rows and columns; image_of (texts,) the right columns."""

    scores: Tensor
    text_ids: list[str]
    image_ids: list[str]
    image_of: Tensor

    def metrics(self, *, ties: TieRule = "average", reference_count: bool = False) -> RetrievalMetrics:
        return recall(ranks(self.scores, self.image_of, ties=ties), reference_count=reference_count)


def encode_corpus(model: Model, corpus: Corpus, text_rows: slice = slice(None)) -> tuple[Encoded, Encoded]:
    """Both sides of a corpus, encoded: captions in database order (those of `text_rows`), images in
    evaluation order."""
    texts = corpus.batches("text", corpus.anchors[text_rows], model.processor)
    images = corpus.batches("image", corpus.image_keys, model.processor)
    return encode_all(model, "text", texts), encode_all(model, "image", images)


def score_corpus(
    model: Model,
    corpus: Corpus,
    *,
    scorer: str | None = None,
    tokens: int = TOKENS,
    ranks: OneProcess | None = None,
    progress: bool = False,
) -> Scored:
    """The score matrix of a corpus. Under several ranks each scores every `size`-th caption, and all get all."""
    if not len(corpus):
        raise DataError("the corpus holds no captions after its filters; raise max_text or check the databases")
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    rows = slice(rank, None, size)
    mine = range(len(corpus))[rows]
    scores = torch.zeros(0, len(corpus.image_keys), dtype=next(model.parameters()).dtype)
    if scores.dtype.itemsize < 4:
        scores = scores.float()
    if len(mine):  # with more ranks than captions, some have none
        with inference(model):
            a, b = encode_corpus(model, corpus, rows)
            chosen = model.scorers[scorer or next(iter(model.scorers))]
            with tqdm(total=len(a) * len(b), unit="pair", unit_scale=True, disable=not progress or rank > 0) as bar:
                scores = score_matrix(chosen, a, b, tokens=tokens, progress=bar.update)
    if ranks and size > 1:
        gathered = ranks.all_gather_rows(scores).cpu()
        numbers = torch.arange(len(corpus))
        order = torch.cat([numbers[r::size] for r in range(size)]).argsort()
        scores = gathered[order]
    return Scored(scores, [k for _, k in corpus.anchors], [k for _, k in corpus.image_keys], corpus.image_of_texts())


def fixed_galleries(texts: TextDB, size: int) -> list[list[str]]:
    """Published quick validation: each caption's image and the next `size - 1` of the file, wrapping round.

    Raises DataError where there are fewer images than `size`.
    """
    images = texts.images
    if len(images) < size:
        raise DataError(f"a gallery of {size} needs as many images, {texts.path} has {len(images)}; lower it")
    place = {image: i for i, image in enumerate(images)}
    return [[images[(place[texts.image_of[text]] + k) % len(images)] for k in range(size)] for text in texts.ids]


def fixed_gallery_recall(
    model: Model,
    corpus: Corpus,
    size: int,
    *,
    tokens: int = TOKENS,
    progress: Callable[[int], object] | None = None,
) -> dict[str, float]:
    """`recall_1`, `recall_5`, `recall_10` of each caption's image within its fixed gallery (spec section 11)."""
    pairs = []
    row = 0
    for p, part in enumerate(corpus.parts):
        for gallery in fixed_galleries(part.texts, size):
            pairs += [(row, corpus.column_of[p, image]) for image in gallery]
            row += 1
    with inference(model):
        a, b = encode_corpus(model, corpus)
        scorer = next(iter(model.scorers.values()))
        scores = score_pairs(scorer, a, b, torch.tensor(pairs), tokens=tokens, progress=progress).view(-1, size)
    better = (scores[:, 1:] > scores[:, :1]).sum(dim=1)
    return {f"recall_{k}": float((better < k).double().mean()) for k in (1, 5, 10)}
