"""CLIP's and CE-CLIP's losses beside the published formulations, forward and backward; and what surrounds them.

both products  InfoNCE as published: images with texts and texts with images are two products
published      CE-CLIP's loss as published: a product for each direction of the first term, one for the intra-modal
               term, and the pairs of the rank term multiplied once more
ours           the library's losses: each product once

one batch      an update of a CLIP whose batch is encoded at once
in parts       the same update by gradient caching, in parts of the small batch's size
width 77       CLIP's text tower over captions padded to the whole context, as published
like length    the same captions in batches of like length
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from common import Options, Report, Seconds, median, options, peak_memory, peak_tensors, ratio, take_turns
from torch import Tensor
from torch.nn import functional as F

from crossmodal.data.batches import Batch, Pixels, Texts
from crossmodal.losses.ce_clip import CeClip
from crossmodal.losses.contrastive import clip_info_nce
from crossmodal.losses.registry import Items, Scalar
from crossmodal.model.clip import Clip
from crossmodal.model.clip_text import ClipText
from crossmodal.train.engine import Engine
from crossmodal.train.objectives import build_objectives
from crossmodal.train.optim import build_optimizer, parameter_groups
from crossmodal.train.recipe import parse_recipe

TYPES = 4
CMR, IMC = 0.2, 0.2
CONTEXT = 77
VOCABULARY = 49408


@dataclass(frozen=True)
class Sizes:
    """What is measured; the quick run has small ones."""

    width: int
    clip: int  # batch of InfoNCE
    ce_clip: int  # batch of CE-CLIP's loss
    rounds: int
    batch: int  # of an update by gradient caching
    part: int
    captions: int
    tower: dict[str, Any]  # the text tower's
    model: dict[str, Any]  # the whole CLIP's


B32_TEXT = {"width": 512, "heads": 8, "layers": 12, "embed_dim": 512}
SMALL = {"embed_dim": 64, "width": 128, "heads": 4, "layers": 4, "image_size": 64, "patch_size": 16,
         "vision_width": 128, "vision_heads": 4, "vision_layers": 4, "vocab_size": 1000}  # fmt: skip
TINY = {**SMALL, "width": 8, "heads": 1, "layers": 1, "vision_width": 8, "vision_heads": 1, "vision_layers": 1}
FULL = Sizes(512, 1024, 256, 9, 1024, 128, 96, B32_TEXT, SMALL)
QUICK = Sizes(16, 8, 4, 2, 8, 4, 6, {"width": 8, "heads": 1, "layers": 1, "embed_dim": 8}, TINY)


def unit(rows: int, width: int, seed: int) -> Tensor:
    draw = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(draw, dim=1).requires_grad_()


def both_products(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE as published (CE-CLIP, spec 3.1)."""
    matched = torch.arange(len(images))
    per_image, per_text = scale * images @ texts.T, scale * texts @ images.T
    return (F.cross_entropy(per_image, matched) + F.cross_entropy(per_text, matched)) / 2


def published(images: Tensor, texts: Tensor, negatives: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """CE-CLIP's first step as published (spec 3.3), with the target of its form v2024_01."""
    count = len(images)
    matched = torch.arange(count)
    per_image, per_text = scale * images @ torch.cat([texts, negatives]).T, scale * texts @ images.T
    itc = (F.cross_entropy(per_image, matched) + F.cross_entropy(per_text, matched)) / 2
    own = scale * (images * texts).sum(dim=1)
    wrong = mask * torch.einsum("bd,bkd->bk", scale * images, negatives.view(count, TYPES, -1))
    cmr = (mask * F.relu(wrong - own[:, None])).sum() / (TYPES * count)
    text_logits = torch.cat([own[:, None], scale * texts @ negatives.T], dim=1)
    imc = F.cross_entropy(text_logits, torch.zeros(count, dtype=torch.int64))
    return itc + CMR * cmr + IMC * imc


def ours(images: Tensor, texts: Tensor, negatives: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    loss = CeClip(cmr_weight=CMR, imc_weight=IMC, types=TYPES)  # a new one: thresholds 0, as in the first step
    return loss(Items(images), Items(texts), Items(negatives), Items(mask), Scalar(scale))


def step(loss: Callable[..., Tensor], fields: Sequence[Tensor]) -> list[Tensor]:
    """The loss and its gradients."""
    value = loss(*fields)
    return [value.detach(), *torch.autograd.grad(value, [field for field in fields if field.requires_grad])]


def measure(report: Report, name: str, cases: Mapping[str, Callable[[], object]], rounds: int) -> Seconds:
    seconds = take_turns(cases, rounds)
    for case, run in cases.items():
        report.add(f"{case}: {name}", f"{1000 * median(seconds, case):.2f}", f"{peak_memory(run):.1f}")
    return seconds


def info_nce(report: Report, size: Sizes) -> None:
    scale = torch.tensor(14.0, requires_grad=True)
    fields = (unit(size.clip, size.width, 0), unit(size.clip, size.width, 1), scale)
    for a, b in zip(step(clip_info_nce, fields), step(both_products, fields), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    cases = {"both products": partial(step, both_products, fields), "ours": partial(step, clip_info_nce, fields)}
    name = f"InfoNCE, batch {size.clip}"
    seconds = measure(report, name, cases, size.rounds)
    report.add(f"both products / ours: {name}", "", "", ratio=ratio(seconds, "both products", "ours"), target=1.25)


def ce_clip(report: Report, size: Sizes) -> None:
    draw = torch.Generator().manual_seed(5)
    mask = (torch.rand(size.ce_clip, TYPES, generator=draw) > 0.3).long()
    rows = (size.ce_clip, size.ce_clip, TYPES * size.ce_clip)
    vectors = [unit(count, size.width, seed) for seed, count in enumerate(rows, start=2)]
    fields = (*vectors, mask, torch.tensor(14.0, requires_grad=True))
    for a, b in zip(step(ours, fields), step(published, fields), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    cases = {"published": partial(step, published, fields), "ours": partial(step, ours, fields)}
    name = f"CE-CLIP, batch {size.ce_clip}, {TYPES} wrong captions"
    seconds = measure(report, name, cases, size.rounds)
    report.add(f"published / ours: {name}", "", "", ratio=ratio(seconds, "published", "ours"), target=1.0)


def captions(count: int, vocabulary: int) -> Texts:
    """Of lengths as COCO's have, the two special tokens included, padded to the whole context with zeros."""
    draw = torch.Generator().manual_seed(7)
    lengths = (12.5 + 2.5 * torch.randn(count, generator=draw)).round().long().clamp(8, 30)
    ids = torch.randint(1, vocabulary - 2, (count, CONTEXT), generator=draw)
    ids[torch.arange(CONTEXT) >= lengths[:, None]] = 0
    ids[:, 0] = vocabulary - 2
    ids[torch.arange(count), lengths - 1] = vocabulary - 1
    return Texts(ids, lengths)


def engine_of(model: Clip) -> Engine:
    recipe = parse_recipe({
        "steps": 1000, "model": {"use": "clip"}, "data": {"train": {"texts": "none", "images": "none"}},
        "streams": [{"data": {"use": "train", "draw": "matched"}, "losses": [{"use": "clip_info_nce"}]}],
        "optimizer": {"use": "adamw", "lr": 1e-5, "warmup": 0, "schedule": "constant"},
    })  # fmt: skip
    objectives, _ = build_objectives(recipe, model)
    optimizer = build_optimizer("adamw", parameter_groups(model, weight_decay=0.1), learning_rate=1e-5)
    return Engine(model, objectives, optimizer, recipe.optimizer, steps=recipe.steps)


def gradient_caching(report: Report, size: Sizes) -> None:
    torch.manual_seed(0)
    model = Clip(size.model).train()
    pictures = torch.randn(size.batch, 3, *model.config.image_size)
    texts = captions(size.batch, model.config.vocab_size)

    def batch(start: int, stop: int) -> Batch:
        rows = torch.arange(start, stop)
        return Batch({"text": ("text", texts.select(rows)), "image": ("image", Pixels(pictures[rows]))})

    whole = [[batch(0, size.batch)]]
    parts = [[batch(i, i + size.part) for i in range(0, size.batch, size.part)]]
    logged: list[dict[str, Any]] = [engine_of(deepcopy(model)).update(0, batches) for batches in (whole, parts)]
    for name in ("loss", "grad_norm"):
        torch.testing.assert_close(logged[0][name], logged[1][name], rtol=1e-4, atol=1e-5)
    engine = engine_of(model)
    cases = {"one batch": partial(engine.update, 0, whole), "in parts": partial(engine.update, 0, parts)}
    seconds = take_turns(cases, max(2, size.rounds // 3))
    memory = {case: peak_tensors(run) for case, run in cases.items()}
    small = peak_tensors(partial(engine.update, 0, [[batch(0, size.part)]]))
    name = f"an update of batch {size.batch}"
    for case in cases:
        report.add(f"{case}: {name}", f"{1000 * median(seconds, case):.0f}", f"{memory[case]:.0f}")
    report.add(f"one batch: an update of batch {size.part}", "", f"{small:.0f}")
    report.add(f"one batch / in parts: {name}", "", "", ratio=ratio(seconds, "one batch", "in parts"), target=1 / 1.5)
    share = small / memory["in parts"]  # below 1: whatever the parts, the vectors of the whole batch stay
    report.add(f"memory, batch {size.part} at once / in parts: {name}", "", "", ratio=share, target=0.9)


def text_tower(report: Report, size: Sizes) -> None:
    torch.manual_seed(0)
    tower = ClipText(vocab_size=VOCABULARY, context=CONTEXT, **size.tower).eval()
    texts = captions(size.captions, VOCABULARY)
    order = texts.lengths.argsort()

    @torch.no_grad()
    def padded() -> Tensor:
        rows = torch.arange(size.captions).split(16)
        return torch.cat([tower(Texts(texts.input_ids[r], torch.full((len(r),), CONTEXT)))[0] for r in rows])

    @torch.no_grad()
    def sorted_by_length() -> Tensor:
        found = torch.cat([tower(texts.select(rows))[0] for rows in order.split(16)])
        return torch.empty_like(found).index_copy_(0, order, found)

    a, b = (F.normalize(run(), dim=1) for run in (padded, sorted_by_length))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    cases: dict[str, Callable[[], object]] = {"width 77": padded, "like length": sorted_by_length}
    name = f"text tower, {size.captions} captions"
    seconds = measure(report, name, cases, max(2, size.rounds // 3))
    report.add(f"width 77 / like length: {name}", "", "", ratio=ratio(seconds, "width 77", "like length"), target=4.0)


def main(given: Options) -> None:
    size = QUICK if given.quick else FULL
    report = Report(f"contrastive losses, {size.width} numbers a vector; float32", ["ms", "peak MB"])
    info_nce(report, size)
    ce_clip(report, size)
    gradient_caching(report, size)
    text_tower(report, size)
    report.print(given)


if __name__ == "__main__":
    main(options(__doc__ or ""))
