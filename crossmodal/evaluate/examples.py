"""Examples for reports: queries with what was retrieved for them, and what words attend to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from crossmodal.data.batches import Batch
from crossmodal.data.corpus import Corpus
from crossmodal.data.items import RegionItem, TextItem
from crossmodal.model.base import Model, inference

from .plots import draw_attention
from .report import Hit, Query, Shown
from .retrieval import Scored

Pictures = Callable[[str], Path | None]
"""From an image id to its picture, or None where there is none."""


def pictures_in(*folders: Path) -> Pictures:
    """Pictures named like the image ids (``<stem>.npz``) in these folders."""

    def find(image: str) -> Path | None:
        stem = Path(image).stem
        candidates = (folder / f"{stem}{ending}" for folder in folders for ending in (".png", ".jpg", ".jpeg"))
        return next((path for path in candidates if path.is_file()), None)

    return find


def example_queries(
    scored: Scored, corpus: Corpus, ranks: Tensor, pictures: Pictures, *, count: int = 4, shown: int = 5
) -> list[Query]:
    """Caption queries, as many found as missed where there are such: `ranks` (texts,) is where each finds its image."""
    found, missed = (ranks < 1).nonzero().flatten(), (ranks >= 1).nonzero().flatten()
    texts = _texts(corpus)
    queries = []
    for row in [*_spread(found, count - count // 2), *_spread(missed, count // 2)]:
        best = scored.scores[row].topk(min(shown, scored.scores.shape[1]))
        hits = [
            Hit(
                column == int(scored.image_of[row]), pictures(scored.image_ids[column]), scored.image_ids[column], value
            )
            for value, column in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        queries.append(Query(hits, text=texts[row], rank=float(ranks[row])))
    return queries


def example_images(
    scored: Scored, corpus: Corpus, ranks: Tensor, pictures: Pictures, *, count: int = 2, shown: int = 5
) -> list[Query]:
    """Image queries with the captions retrieved: `ranks` (images,) is where each finds the best of its captions."""
    texts = _texts(corpus)
    queries = []
    for column in _spread(torch.arange(scored.scores.shape[1]), count):
        best = scored.scores[:, column].topk(min(shown, len(texts)))
        hits = [
            Hit(column == int(scored.image_of[row]), text=texts[row], score=value)
            for value, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        queries.append(Query(hits, image=pictures(scored.image_ids[column]), rank=float(ranks[column])))
    return queries


def matched_batch(model: Model, corpus: Corpus, anchors: Sequence[int]) -> Batch:
    """Captions with their own images, on the model's device."""
    texts, images = [], []
    for anchor in anchors:
        p, caption = corpus.anchors[anchor]
        part = corpus.parts[p]
        texts.append(part.text(caption))
        images.append(part.image(part.texts.image_of[caption]))
    roles = {"text": ("text", model.processor("text", texts)), "image": ("image", model.processor("image", images))}
    pairs = torch.arange(len(texts))[:, None].expand(-1, 2)
    return Batch(roles, pairs, 1).to(model.device)


def example_attention(
    model: Model, corpus: Corpus, pictures: Pictures, *, count: int = 2, words: int = 8
) -> list[Shown]:
    """Word-to-region attention of matched pairs whose picture is at hand; none where the model gives no such field."""
    if "text_image_attention" not in model.fields or model.processor.tokenizer is None:
        return []
    shown: list[Shown] = []
    for anchor in _spread(torch.arange(len(corpus)), 4 * count):
        p, caption = corpus.anchors[anchor]
        part = corpus.parts[p]
        picture = pictures(part.texts.image_of[caption])
        if picture is None or len(shown) == count:
            continue
        with inference(model):
            attention = model(matched_batch(model, corpus, [anchor]), {"text_image_attention"})["text_image_attention"]
        item = part.text(caption)
        pieces = model.processor.tokenizer.tokens(model.processor.words(item))[:words]
        region = part.image(part.texts.image_of[caption])
        assert isinstance(region, RegionItem)
        weights = attention[0, : len(pieces), : len(region)].float().cpu().numpy()
        with Image.open(picture) as opened:
            figure = draw_attention(opened.convert("RGB"), region.boxes[:, :4], pieces, weights)
        alt = f"the regions that each word of the caption attends to most, drawn on the picture {picture.name}"
        shown.append(Shown(_sentence(item, pieces), figure, alt))
    return shown


def _texts(corpus: Corpus) -> list[str]:
    """Every caption as people read it, in database order."""
    items = [corpus.parts[p].text(caption) for p, caption in corpus.anchors]
    return [_sentence(item, []) for item in items]


def _sentence(item: TextItem, pieces: Sequence[str]) -> str:
    return item.sentence or " ".join(pieces) or f"caption {item.id}"


def _spread(numbers: Tensor, count: int) -> list[int]:
    """At most `count` of the numbers, evenly spread."""
    if not len(numbers):
        return []
    chosen = torch.linspace(0, len(numbers) - 1, min(count, len(numbers))).long()
    return numbers[chosen].tolist()
