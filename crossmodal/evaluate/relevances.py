"""The relevances that `crossmodal test` is asked for, and NDCG by them, with images in the order of their files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from crossmodal.data.corpus import Corpus
from crossmodal.errors import ConfigError, DataError

from .ndcg import ndcg_metrics, read_relevances
from .rouge import cached_rouge_relevances
from .scored import Scored

log = logging.getLogger("crossmodal")

ROUGE = "rougeL"


def open_relevances(wanted: Sequence[str], corpus: Corpus, cache: Path) -> dict[str, Tensor]:
    """Name -> (captions, images), both in the order of the caption files.

    wanted: ``rougeL``, which is computed once and kept in the folder `cache`, or published files
    (`ndcg.read_relevances`), which are called by the end of their names: ``coco-test-spice.npy`` is ``spice``.

    Raises ConfigError for two of one name, DataError for a file of another split, and for captions without sentences.
    """
    opened: dict[str, Tensor] = {}
    for one in wanted:
        name = one if one == ROUGE else Path(one).stem.rpartition("-")[2]
        if name in opened:
            raise ConfigError(f"--relevance {one}: another one is called {name} too; give one of them")
        images = len(corpus.image_keys)
        if one == ROUGE:
            log.info("%s of %s captions and %s images, kept in %s", ROUGE, f"{len(corpus):,}", f"{images:,}", cache)
            opened[name] = cached_rouge_relevances(cache, _sentences(corpus), _places(corpus).tolist(), images)
        elif Path(one).suffix != ".npy":
            raise ConfigError(f"--relevance {one!r} is neither {ROUGE} nor a .npy file; give one of the two")
        else:
            opened[name] = read_relevances(one, len(corpus), images)
    return opened


def ndcg_of_corpus(
    scored: Scored, relevances: Mapping[str, Tensor], corpus: Corpus, *, folds: int = 1
) -> dict[str, float]:
    """`ndcg_metrics` of a corpus's scores; folds are runs of consecutive images of the caption files."""
    if not relevances:
        return {}
    scores = scored.scores[:, file_order(corpus)]
    return ndcg_metrics(scores, relevances, _places(corpus), folds=folds)


def file_order(corpus: Corpus) -> list[int]:
    """The columns of a corpus's images in the order of the caption files; they stand in evaluation order."""
    return [corpus.column_of[p, image] for p, part in enumerate(corpus.parts) for image in part.texts.images]


def _places(corpus: Corpus) -> Tensor:
    """(captions,) the place of each caption's image in the caption files."""
    return torch.tensor(file_order(corpus)).argsort()[corpus.image_of_texts()]


def _sentences(corpus: Corpus) -> list[str]:
    found = []
    for p, key in corpus.anchors:
        sentence = corpus.parts[p].text(key).sentence
        if sentence is None:
            raise DataError(
                f"caption {key!r} of {corpus.parts[p].texts.path} is kept without its sentence, and rougeL compares "
                "words; give a file of relevances"
            )
        found.append(sentence)
    return found
