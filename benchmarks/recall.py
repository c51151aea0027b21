"""Recall in both directions from a score matrix, beside the published evaluation; five captions an image.

published  torch.topk along each side, the hit positions of captions at once, those of images in a Python loop
matrix     `ranks` and `recall` of the whole matrix
streamed   the same of a generator of row blocks
product    the same of two sets of vectors, whose product is made block by block and never held

Peak memory is that of making the scores from vectors of 64 numbers and ranking them, the vectors not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from common import Options, Report, median, options, peak_memory, ratio, take_turns
from torch import Tensor

from crossmodal.evaluate.blocks import Scores
from crossmodal.evaluate.recall import KS, ranks, recall
from crossmodal.retrieve.product import Product

CAPTIONS = 5


def published(scores: Tensor, image_of: Tensor) -> dict[str, float]:
    """The evaluation of UNITER and IAIS (spec section 13.3) with the correct count of image recall."""
    texts, images = scores.shape
    found = scores.topk(10, dim=1).indices  # (A,10)
    rank = (found == image_of[:, None]).nonzero()[:, 1]
    out = {f"img_r{k}": (rank < k).sum().item() / texts for k in KS}
    found = scores.topk(10, dim=0).indices  # (10,B)
    captions: list[list[int]] = [[] for _ in range(images)]
    for caption, image in enumerate(image_of.tolist()):
        captions[image].append(caption)
    hits = dict.fromkeys(KS, 0)
    for image in range(images):
        places = [(found[:, image] == caption).nonzero() for caption in captions[image]]
        best = min([10, *(int(place.item()) for place in places if place.numel())])
        for k in KS:
            hits[k] += best < k
    return out | {f"txt_r{k}": hits[k] / images for k in KS}


def ours(scores: Scores, image_of: Tensor) -> dict[str, float]:
    found = recall(ranks(scores, image_of))
    return {name: found[name] for name in (f"{side}_r{k}" for side in ("img", "txt") for k in KS)}


def held(product: Product) -> Tensor:
    """The whole matrix."""
    matrix = torch.empty(len(product.texts), len(product.images))
    top = 0
    for block in product:
        matrix[top : top + len(block)] = block
        top += len(block)
    return matrix


def memory(images: int) -> dict[str, float]:
    """Megabytes that each way to hand in the scores of so many images takes."""
    draw = torch.Generator().manual_seed(images)
    image = torch.randn(images, 64, generator=draw)
    image_of = torch.arange(CAPTIONS * images) // CAPTIONS
    text = image[image_of] + 4 * torch.randn(len(image_of), 64, generator=draw)
    product = Product(text, image)
    ways: Mapping[str, Callable[[], Scores]] = {
        "matrix": lambda: held(product),
        "streamed": lambda: iter(product),
        "product": lambda: product,
    }
    found: dict[str, dict[str, float]] = {}

    def run(way: str) -> None:
        found[way] = ours(ways[way](), image_of)

    peaks = {way: peak_memory(partial(run, way)) for way in ways}
    assert found["matrix"] == found["streamed"] == found["product"], found
    return peaks


def main(given: Options) -> None:
    images, rounds = (100, 2) if given.quick else (5000, 5)
    image_of = torch.arange(CAPTIONS * images) // CAPTIONS
    scores = torch.rand(len(image_of), images, generator=torch.Generator().manual_seed(0))
    scores[torch.arange(len(image_of)), image_of] += 0.998  # recalls between 0 and 1
    assert ours(scores, image_of) == published(scores, image_of)
    product = Product(torch.randn(len(image_of), 64), torch.randn(images, 64))
    half = len(image_of) // 2
    seconds = take_turns(
        {
            "published": lambda: published(scores, image_of),
            "matrix": lambda: ours(scores, image_of),
            "streamed": lambda: ours(iter(scores.split(256)), image_of),
            "product": lambda: ours(product, image_of),
            "half": lambda: ours(scores[:half], image_of[:half]),
        },
        rounds,
    )
    scores = torch.empty(0)
    sizes = [memory(images), memory(2 * images)]
    report = Report(
        f"recall of {len(image_of)} captions x {images} images, {CAPTIONS} captions an image; float32",
        ["seconds", "peak MB", "peak MB, four times the scores"],
    )
    report.add("published", f"{median(seconds, 'published'):.3f}", "", "")
    for way in sizes[0]:
        report.add(way, f"{median(seconds, way):.3f}", *(f"{peaks[way]:.0f}" for peaks in sizes))
    blank = ["", "", ""]
    report.add("published / matrix", *blank, ratio=ratio(seconds, "published", "matrix"), target=8.0)
    report.add("time when pairs double", *blank, ratio=ratio(seconds, "matrix", "half"))
    for way in sizes[0]:
        grown = sizes[1][way] / sizes[0][way] if sizes[0][way] else math.nan
        report.add(f"{way}: memory when the scores quadruple", *blank, ratio=grown)
    report.print(given)


if __name__ == "__main__":
    main(options(__doc__ or ""))
