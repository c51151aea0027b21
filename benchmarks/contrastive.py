"""CLIP's and CE-CLIP's losses beside the published formulations, forward and backward.

both products  InfoNCE as published: images with texts and texts with images are two products
published      CE-CLIP's loss as published: a product for each direction of the first term, one for the intra-modal
               term, and the pairs of the rank term multiplied once more
ours           the library's losses: each product once
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from common import Options, Report, Seconds, median, options, peak_memory, ratio, take_turns
from torch import Tensor
from torch.nn import functional as F

from crossmodal.losses.ce_clip import CeClip
from crossmodal.losses.contrastive import clip_info_nce
from crossmodal.losses.registry import Items, Scalar

TYPES = 4
CMR, IMC = 0.2, 0.2


@dataclass(frozen=True)
class Sizes:
    """What is measured; the quick run has small ones."""

    width: int
    clip: int  # batch of InfoNCE
    ce_clip: int  # batch of CE-CLIP's loss
    rounds: int


FULL = Sizes(512, 1024, 256, 9)
QUICK = Sizes(16, 8, 4, 2)


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


def main(given: Options) -> None:
    size = QUICK if given.quick else FULL
    report = Report(
        f"contrastive losses, {size.width} numbers a vector; forward and backward; float32", ["ms", "peak MB"]
    )
    info_nce(report, size)
    ce_clip(report, size)
    report.print(given)


if __name__ == "__main__":
    main(options(__doc__ or ""))
