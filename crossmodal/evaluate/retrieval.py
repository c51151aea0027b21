"""Score a corpus with a model: every caption against every image, or each caption against a gallery of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from crossmodal.data.corpus import Corpus
from crossmodal.errors import DataError
from crossmodal.model.base import Model, inference
from crossmodal.retrieve.scoring import TOKENS, Progress, score_pairs

from .job import EncodedCorpus, ScoringJob
from .scored import Scored

if TYPE_CHECKING:
    from crossmodal.data.texts import TextSource
    from crossmodal.train.distributed import OneProcess

__all__ = ["Scored", "fixed_galleries", "fixed_gallery_recall", "score_corpus"]


def score_corpus(
    model: Model,
    corpus: Corpus,
    encoded: EncodedCorpus | None = None,
    *,
    scorer: str | None = None,
    tokens: int = TOKENS,
    ranks: OneProcess | None = None,
    progress: Progress | None = None,
) -> Scored:
    """The score matrix of a corpus by one of the model's scorers, the first where none is named.

    Several ranks share the work, and all get all. `progress` is called on each rank with the number of pairs that it
    has just scored.
    """
    return ScoringJob(model, corpus, encoded, scorer=scorer, tokens=tokens, ranks=ranks).run(progress)


def fixed_galleries(texts: TextSource, size: int) -> list[list[str]]:
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
    progress: Progress | None = None,
) -> dict[str, float]:
    """`recall_1`, `recall_5`, `recall_10` of each caption's image within its fixed gallery (spec section 11)."""
    pairs = []
    row = 0
    for p, part in enumerate(corpus.parts):
        for gallery in fixed_galleries(part.texts, size):
            pairs += [(row, corpus.column_of[p, image]) for image in gallery]
            row += 1
    encoded = EncodedCorpus.of(model, corpus)
    with inference(model):
        scorer = model.scorers[model.scorer_names[0]]
        scores = score_pairs(
            scorer, encoded.texts, encoded.images, torch.tensor(pairs), tokens=tokens, progress=progress
        ).view(-1, size)
    better = (scores[:, 1:] > scores[:, :1]).sum(dim=1)
    return {f"recall_{k}": float((better < k).double().mean()) for k in (1, 5, 10)}
