"""A model as a judge: every distinct caption and picture is encoded once, then pairs are scored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from crossmodal.data.batches import Items, Texts
from crossmodal.evaluate.zero_shot import classifier, classify
from crossmodal.model.base import Encoded, Model, check_scorers, inference
from crossmodal.retrieve.scoring import TOKENS, encode_all, score_matrix, score_pairs

from .items import Picture, places
from .pictures import PictureSource

_TEXTS, _PICTURES = 256, 64  # encoded at once


class ModelJudge:
    """Scores by one of the model's scorers, the first where none is named; pictures come from `source`."""

    def __init__(self, model: Model, source: PictureSource, scorer: str | None = None, *, tokens: int = TOKENS) -> None:
        check_scorers([scorer] if scorer else [], model.name, model.scorer_names)
        self.model, self.source, self.tokens = model, source, tokens
        self.scorer = scorer or model.scorer_names[0]

    def pairs(self, captions: Sequence[str], pictures: Sequence[Picture], pairs: Tensor) -> Tensor:
        with inference(self.model):
            (a, row), b = self._texts(captions), self._images(pictures)
            asked, back = torch.stack([row[pairs[:, 0]], pairs[:, 1]], dim=1).unique(dim=0, return_inverse=True)
            with tqdm(desc="pairs", total=len(asked), unit="pair", unit_scale=True) as bar:
                scorer = self.model.scorers[self.scorer]
                return score_pairs(scorer, a, b, asked, tokens=self.tokens, progress=bar.update).cpu()[back]

    def matrix(self, captions: Sequence[str], pictures: Sequence[Picture]) -> Tensor:
        with inference(self.model):
            (a, row), b = self._texts(captions), self._images(pictures)
            with tqdm(desc="pairs", total=len(a) * len(b), unit="pair", unit_scale=True) as bar:
                scorer = self.model.scorers[self.scorer]
                found = score_matrix(scorer, a, b, tokens=self.tokens, progress=bar.update)
            return found if len(found) == len(row) else found[row]

    def classify(self, prompts: Sequence[Sequence[str]], pictures: Sequence[Picture]) -> Tensor:
        """By the mean vector of a class's prompts where the scorer compares vectors, else by their mean score."""
        flat = [prompt for of_class in prompts for prompt in of_class]
        reads = self.model.scorers[self.scorer].reads
        if tuple(reads) != ("embeds",):
            return mean_scores(self.matrix(flat, pictures), prompts)
        with inference(self.model):
            encoded, row = self._texts(flat)
            embeds = encoded.vectors["embeds"]
            texts = embeds[row.to(embeds.device)].split([len(of_class) for of_class in prompts])
            weights = torch.stack([classifier(of_class[None])[:, 0] for of_class in texts], dim=1)
            return classify(self._images(pictures).vectors["embeds"], weights).cpu()

    def _texts(self, captions: Sequence[str]) -> tuple[Encoded, Tensor]:
        """The distinct texts, encoded, and which of them each caption is (T,).

        Captions are one text where the model reads the same tokens, so that they tie exactly. Those of similar length
        are encoded together.
        """
        rows = [row for texts in self._batches("text", captions, _TEXTS) for row in _token_rows(texts)]
        first: dict[tuple[int, ...], str] = {}
        for row, caption in zip(rows, captions, strict=True):
            first.setdefault(row, caption)
        place = places(first)
        order = sorted(place, key=len)
        encoded = self._encoded("text", [first[row] for row in order], _TEXTS)
        back = torch.tensor([place[row] for row in order], dtype=torch.int64).argsort()
        return encoded[back], torch.tensor([place[row] for row in rows], dtype=torch.int64)

    def _images(self, pictures: Sequence[Picture]) -> Encoded:
        return self._encoded("image", pictures, _PICTURES)

    def _encoded(self, side: str, raw: Sequence[Any], size: int) -> Encoded:
        total = math.ceil(len(raw) / size)
        return encode_all(self.model, side, tqdm(self._batches(side, raw, size), f"{side}s", total, unit="batch"))

    def _batches(self, side: str, raw: Sequence[Any], size: int) -> Iterator[Items]:
        for start in range(0, len(raw), size):
            chosen = raw[start : start + size]
            yield self.model.processor(side, chosen if side == "text" else [self.source(p) for p in chosen])


def _token_rows(texts: Items) -> Iterator[tuple[int, ...]]:
    assert isinstance(texts, Texts)
    for ids, length in zip(texts.input_ids.tolist(), texts.lengths.tolist(), strict=True):
        yield tuple(ids[:length])


def mean_scores(scores: Tensor, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Scores (prompts, pictures), class after class -> (pictures, classes): the mean over a class's prompts."""
    parts = scores.split([len(of_class) for of_class in prompts])
    return torch.stack([part.mean(dim=0) for part in parts], dim=1)
