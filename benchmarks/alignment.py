"""ALADIN's heads beside the published code: score matrix, triplet step, and the evaluation of 1,000 x 5,000.

Captions of 9 to 20 tokens, images of 10 to 34 regions (uniform, one of each at the end of its range), 768 numbers.
published  every pair's two sets expanded and multiplied pair by pair, padded to the widest; in the evaluation query
           by query, both directions, padded to 71, one image's or five captions' queries measured and multiplied out
ours       the library's scorers, their tiles and ranks
matmul     the peak: 1024 x 1024 x 768 products; the share of it spent on words and regions is ours's ratio
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from common import Options, Report, Seconds, median, options, peak_memory, ratio, take_turns
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from crossmodal.evaluate.recall import ranks, recall
from crossmodal.losses.registry import Scores
from crossmodal.losses.triplet import triplet
from crossmodal.model.base import Encoded
from crossmodal.model.scorers import AlignmentScorer, VectorScorer
from crossmodal.retrieve.scoring import score_matrix

CAPTIONS, SLICES, PADDED = 5, 5, 71
TOKENS, REGIONS = (9, 20), (10, 34)


@dataclass(frozen=True)
class Sizes:
    """What is measured; the quick run has small ones."""

    width: int
    matrix: tuple[int, int]  # images, captions
    large: tuple[int, int]
    batches: tuple[int, ...]
    largest: int
    images: int
    rounds: int


FULL = Sizes(768, (50, 250), (500, 2500), (32, 64), 512, 1000, 5)
QUICK = Sizes(16, (5, 10), (10, 20), (4,), 8, 10, 2)


def sets(items: int, lengths: tuple[int, int], width: int, seed: int) -> Encoded:
    """Random unit rows and vectors."""
    draw = torch.Generator().manual_seed(seed)
    counts = torch.randint(lengths[0], lengths[1] + 1, (items,), generator=draw)
    counts[0] = lengths[1]
    rows, vectors = (torch.randn(n, width, generator=draw) for n in (int(counts.sum()), items))
    return Encoded(counts, {"tokens": F.normalize(rows, dim=1)}, {"embeds": F.normalize(vectors, dim=1)})


def padded(items: Encoded, width: int | None = None) -> Tensor:
    """(B,L,E), with zeros up to the widest or to `width`."""
    x = pad_sequence(list(items.rows["tokens"].split(items.lengths.tolist())), batch_first=True)
    return x if width is None else F.pad(x, (0, 0, 0, width - x.shape[1]))


def published(images: Tensor, image_lengths: Tensor, texts: Tensor, text_lengths: Tensor) -> Tensor:
    """MrSw as the published code computes it (spec section 4): (images, texts)."""
    images, texts = F.normalize(images, dim=2)[:, 1:], F.normalize(texts, dim=2)[:, 1:-2]
    left = images[:, None].expand(-1, len(texts), -1, -1)
    right = texts[None].expand(len(images), -1, -1, -1)
    products = left @ right.mT  # (B,A,R,W)
    region = torch.arange(images.shape[1]) >= image_lengths[:, None] - 1
    word = torch.arange(texts.shape[1]) >= text_lengths[:, None] - 3
    products = products.masked_fill(region[:, None, :, None] | word[None, :, None], 0)
    return products.max(2).values.sum(2)


def published_scores(a: Encoded, b: Encoded) -> Tensor:
    """(texts, images)"""
    return published(padded(b), b.lengths, padded(a), a.lengths).T


def step(scores: Callable[[Encoded, Encoded], Tensor], a: Encoded, b: Encoded) -> list[Tensor]:
    """The gradients of one triplet loss."""
    leaves = [x.rows["tokens"].detach().requires_grad_() for x in (a, b)]
    matrix = scores(*(replace(x, rows={"tokens": leaf}) for x, leaf in zip((a, b), leaves, strict=True)))
    triplet(Scores(matrix)).backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


class Evaluation:
    """Both heads on N images and five captions an image: the published protocol and ours."""

    def __init__(self, images: int, width: int) -> None:
        self.texts, self.images = sets(CAPTIONS * images, TOKENS, width, 3), sets(images, REGIONS, width, 4)
        self.image_of = torch.arange(CAPTIONS * images) // CAPTIONS
        self.slice = len(self.texts) // SLICES  # captions; of the images as many as make whole queries
        self.some_texts = padded(self.texts[: self.slice], PADDED)
        self.some_images = padded(self.images[: max(1, images // SLICES)], PADDED)
        self.scores = torch.empty(0)

    def image_query(self) -> Tensor:
        """One image against one of the five slices of the captions: (1, slice)."""
        captions = self.texts.lengths[: self.slice]
        return published(self.some_images[:1], self.images.lengths[:1], self.some_texts, captions)

    def text_query(self) -> Tensor:
        """The five captions of an image against one of the five slices of the images: (slice, 5)."""
        count = len(self.some_images)
        captions = self.some_texts[:CAPTIONS], self.texts.lengths[:CAPTIONS]
        return published(self.some_images, self.images.lengths[:count], *captions)

    def published_matching(self) -> None:
        """One product and one sort a query, both directions."""
        texts, images = self.texts.vectors["embeds"], self.images.vectors["embeds"]
        for image in range(len(images)):
            (texts @ images[image]).argsort(descending=True)
            (texts[CAPTIONS * image : CAPTIONS * (image + 1)] @ images.T).argsort(dim=1, descending=True)

    def ours(self) -> None:
        recall(ranks(score_matrix(VectorScorer(), self.texts, self.images), self.image_of))
        self.scores = score_matrix(AlignmentScorer(clamp="always"), self.texts, self.images)
        recall(ranks(self.scores, self.image_of))

    def published_seconds(self, seconds: Seconds) -> float:
        """One slice of one query measured, all slices of all queries of both directions multiplied out."""
        one = min(seconds["image query"]) + min(seconds["text query"])
        return one * SLICES * len(self.images) + min(seconds["published matching"])


def flops(a: Encoded, b: Encoded) -> float:
    """Of the products of words with regions, nothing else."""
    return 2.0 * float((a.lengths - 3).sum() * (b.lengths - 1).sum()) * a.rows["tokens"].shape[1]


def matrices(report: Report, size: Sizes) -> None:
    scorer = AlignmentScorer()
    pairs = []
    for images, captions in (size.matrix, size.large):
        pairs.append((sets(captions, TOKENS, size.width, 0), sets(images, REGIONS, size.width, 1)))
    small, large = pairs
    torch.testing.assert_close(scorer(*small), published_scores(*small), rtol=1e-5, atol=1e-5)
    x, y = torch.randn(1024, size.width), torch.randn(size.width, 1024)
    seconds = take_turns(
        {
            "published": lambda: published_scores(*small),
            "ours": lambda: scorer(*small),
            "large": lambda: scorer(*large),
            "matmul": lambda: [x @ y for _ in range(4)],
        },
        size.rounds,
    )
    peaks = {
        "published": peak_memory(lambda: published_scores(*small)),
        "ours": peak_memory(lambda: scorer(*small)),
        "large": peak_memory(lambda: scorer(*large)),
    }
    peaks = {case: max(megabytes, 0.1) for case, megabytes in peaks.items()}  # quick ones fit what is held already
    peak = 4 * 2 * 1024 * 1024 * size.width / median(seconds, "matmul")
    shapes = {"published": size.matrix, "ours": size.matrix, "large": size.large}
    for case, (images, captions) in shapes.items():
        a, b = large if case == "large" else small
        share = flops(a, b) / median(seconds, case) / peak
        cells = f"{1000 * median(seconds, case):.1f}", f"{peaks[case]:.1f}", f"{100 * share:.0f}"
        report.add(f"{case.replace('large', 'ours')}: {captions} x {images}", *cells)
    blank = ["", "", ""]
    times = size.large[0] * size.large[1] / (size.matrix[0] * size.matrix[1])
    report.add("published / ours: time", *blank, ratio=ratio(seconds, "published", "ours"), target=6.0)
    report.add("published / ours: memory", *blank, ratio=peaks["published"] / peaks["ours"], target=20.0)
    grown = times / ratio(seconds, "large", "ours")
    report.add(f"{times:.0f} times the pairs / growth of time", *blank, ratio=grown, target=1.0)
    grown = times * peaks["ours"] / peaks["large"]
    report.add(f"{times:.0f} times the pairs / growth of memory", *blank, ratio=grown, target=1.0)


def steps(report: Report, size: Sizes) -> None:
    scorer = AlignmentScorer()
    for batch in size.batches:
        a, b = sets(batch, TOKENS, size.width, 5), sets(batch, REGIONS, size.width, 6)
        for ours, theirs in zip(step(scorer, a, b), step(published_scores, a, b), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        cases = {"published": partial(step, published_scores, a, b), "ours": partial(step, scorer, a, b)}
        seconds = take_turns(cases, size.rounds)
        for case, run in cases.items():
            cells = f"{1000 * median(seconds, case):.1f}", f"{peak_memory(run):.1f}", ""
            report.add(f"{case}: triplet step, batch {batch}", *cells)
        name = f"published / ours: triplet step, batch {batch}"
        report.add(name, "", "", "", ratio=ratio(seconds, "published", "ours"), target=6.0)
    tokens, regions = (15, 15), (34, 34)
    a, b = sets(size.largest, tokens, size.width, 7), sets(size.largest, regions, size.width, 8)
    peak = peak_memory(lambda: step(scorer, a, b))
    seconds = take_turns({"ours": lambda: step(scorer, a, b)}, 1, warm_up=False)
    name = f"triplet step, batch {size.largest}, all of 15 tokens and 34 regions"
    report.add(f"ours: {name}", f"{1000 * median(seconds, 'ours'):.1f}", f"{peak:.1f}", "")
    report.add(f"8 GB / {name}", "", "", "", ratio=8192 / max(peak, 0.1), target=1.0)


def evaluation(report: Report, size: Sizes) -> None:
    bench = Evaluation(size.images, size.width)
    cases = {
        "image query": bench.image_query,
        "text query": bench.text_query,
        "published matching": bench.published_matching,
    }
    seconds = take_turns(cases, 2) | take_turns({"ours": bench.ours}, 1, warm_up=False)
    theirs, ours = bench.published_seconds(seconds), seconds["ours"][0]
    for query, found in (
        (bench.image_query(), bench.scores[: bench.slice, :1].T),
        (bench.text_query(), bench.scores[:CAPTIONS, : len(bench.some_images)].T),
    ):
        torch.testing.assert_close(query, found, rtol=1e-5, atol=1e-5)
    name = f"both heads, {len(bench.texts)} x {len(bench.images)}"
    report.add(f"published: {name}, multiplied out", f"{1000 * theirs:.0f}", "", "")
    report.add(f"ours: {name}", f"{1000 * ours:.0f}", f"{peak_memory(bench.ours):.1f}", "")
    report.add(f"published / ours: {name}", "", "", "", ratio=theirs / ours, target=50.0)


def main(given: Options) -> None:
    size = QUICK if given.quick else FULL
    title = f"alignment (MrSw) and matching heads, {size.width} numbers a vector; captions x images; float32"
    report = Report(title, ["ms", "peak MB", "% of matmul"])
    matrices(report, size)
    steps(report, size)
    evaluation(report, size)
    report.print(given)


if __name__ == "__main__":
    main(options(__doc__ or ""))
