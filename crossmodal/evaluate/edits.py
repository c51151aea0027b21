"""Accuracy by kind of edit: is the true caption scored above a minimally edited, false one?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from crossmodal.data.corpus import Corpus
from crossmodal.errors import DataError
from crossmodal.model.base import Model, inference
from crossmodal.retrieve.scoring import score_pairs

from .retrieval import Scored

_CHUNK = 4096  # edited captions that are encoded at once


def edit_accuracy(
    model: Model, corpus: Corpus, scored: Scored, negatives: Sequence[Mapping[str, str]]
) -> dict[str, float]:
    """Share of edits of each kind where the true caption scores strictly higher for its image; chance is 1/2.

    negatives: {"caption_id", "image", "kind", "sentence"} each; `scored` holds the true captions' scores.
    Raises DataError where a caption or image is not in `scored`.
    """
    row = {text: i for i, text in enumerate(scored.text_ids)}
    column = {image: i for i, image in enumerate(scored.image_ids)}
    lost = [n for n in negatives if n["caption_id"] not in row or n["image"] not in column]
    if lost:
        raise DataError(
            f"{len(lost)} edited captions belong to no caption or image of the split (first: {lost[0]['caption_id']}); "
            "give the edits of the same split"
        )
    images = [column[n["image"]] for n in negatives]
    sentences = [n["sentence"] for n in negatives]
    edited = torch.empty(len(sentences))
    with inference(model):
        size = len(scored.image_ids)
        b = model.encode(
            "image", next(corpus.batches("image", corpus.image_keys, model.processor, size)).to(model.device)
        )
        scorer = next(iter(model.scorers.values()))
        for start in range(0, len(sentences), _CHUNK):
            a = model.encode("text", model.processor("text", sentences[start : start + _CHUNK]).to(model.device))
            pairs = [list(pair) for pair in enumerate(images[start : start + _CHUNK])]
            edited[start : start + _CHUNK] = score_pairs(scorer, a, b, torch.tensor(pairs)).cpu()
    true = scored.scores[[row[n["caption_id"]] for n in negatives], images]
    right: dict[str, list[bool]] = defaultdict(list)
    for negative, won in zip(negatives, (true > edited).tolist(), strict=True):
        right[negative["kind"]].append(won)
    return {kind: sum(won) / len(won) for kind, won in right.items()}
