"""The alignment head (ALADIN, spec section 4): cosines of all regions with all words, pooled into one score a pair."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .base import ragged_index
from .max_sum import max_sum, padded_index

Aggregation = Literal["sum", "mean", "MrSw", "MrAVGw", "MwSr", "symm", "scan-sentences"]
Clamp = Literal["batch", "always", "never"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
CLAMPS: tuple[Clamp, ...] = get_args(Clamp)

NO_WORDS = 3  # tokens of a caption that are no words: [CLS], the last word piece, [SEP]
NO_REGIONS = 1  # the first region, which stands for the whole image
ENTRIES = 1 << 22  # numbers held at once where items are padded: 16 MB in float32
GROUP = 8  # pairs of one image that are scored together

_PARTS = {"mean": ("sum",), "MrAVGw": ("MrSw",), "symm": ("MrSw", "MwSr")}


def alignment_scores(
    texts: Tensor,
    text_lengths: Tensor,
    images: Tensor,
    image_lengths: Tensor,
    *,
    aggregation: Aggregation = "MrSw",
    clamp: Clamp = "batch",
    widths: tuple[int, int] | None = None,
    pairs: Tensor | None = None,
) -> Tensor:
    """Every text with every image (A,B), or of `pairs` (P,2) on the host (P,): the pooled cosines of w words of the
    text and r regions of the image,

        sum   sum over w and r of cos           mean  sum divided by the numbers of words and regions
        MrSw  sum over w of max over r of cos   MrAVGw  MrSw divided by the number of words
        MwSr  sum over r of max over w of cos   symm    MrSw + MwSr
        scan-sentences  sum over r of cos(region, sum over w of p_rw word), p the softmax over w of relu(cos), which
                        is first divided by its L2 norm over r

    texts (N,E) and images (M,E): the tokens of all texts and the regions of all images, one item after the other,
    of any norm; text_lengths (A,) and image_lengths (B,) int64 on the host: how many each has. The first token, the
    last two, and the first region take no part. Half precision is computed in float32.

    The published code pads the items of a side to one width and lets the padding enter with cosine 0: a maximum over
    a padded item is at least 0, and `mean` divides by the padded numbers. clamp="batch" reproduces that for the
    `widths` (of texts, of images; tokens, first and last included) that it pads to, by default the longest of each
    side. With "always" or "never" a score depends on no other item, and `mean` divides by the item's own numbers.

    An item without a word or region that takes part scores 0 (the published code divides by 0, or scores padding).
    """
    has_words, has_regions = text_lengths > NO_WORDS, image_lengths > NO_REGIONS
    if pairs is None:
        shape = [len(text_lengths), len(image_lengths)]
        texts_of, images_of = has_words.nonzero()[:, 0], has_regions.nonzero()[:, 0]
        place: tuple[Tensor, ...] = (texts_of[:, None], images_of)
        text, image = torch.arange(len(texts_of))[:, None], torch.arange(len(images_of))
    else:
        shape = [len(pairs)]
        kept = (has_words[pairs[:, 0]] & has_regions[pairs[:, 1]]).nonzero()[:, 0]
        place = (kept,)
        texts_of, text = pairs[kept, 0].unique(return_inverse=True)
        images_of, image = pairs[kept, 1].unique(return_inverse=True)
    scores = (texts[:0].sum() + images[:0].sum()).to(_full(texts.dtype)).expand(shape).clone()  # 0, with a gradient
    if not (len(texts_of) and len(images_of)):
        return scores
    text_width, image_width = widths or (int(text_lengths.max()), int(image_lengths.max()))
    with torch.autocast(texts.device.type, enabled=False):
        a = _Sets.of(texts, text_lengths, texts_of, NO_WORDS, clamp, text_width)
        b = _Sets.of(images, image_lengths, images_of, NO_REGIONS, clamp, image_width)
        parts = _PARTS.get(aggregation, (aggregation,))
        if pairs is None:
            total = torch.stack([_every(a, b, part) for part in parts]).sum(dim=0)
        else:
            total = torch.stack([_listed(a, b, text, image, part) for part in parts]).sum(dim=0)
        if aggregation == "mean":
            total = total / (a.sizes[text] * b.sizes[image]).to(total)
        elif aggregation == "MrAVGw":
            total = total / a.counts[text].to(total)
    scores[tuple(p.to(scores.device) for p in place)] = total
    return scores


@dataclass(frozen=True)
class _Sets:
    """The vectors of n items that take part, each item having at least one.

    rows (N,E) of unit length; counts (n,) how many each has; clamped (n,) whether its maxima are at least 0;
    sizes (n,) what `mean` divides by; these three on the host.
    """

    rows: Tensor
    counts: Tensor
    clamped: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, rows: Tensor, lengths: Tensor, live: Tensor, dropped: int, clamp: Clamp, width: int) -> _Sets:
        counts = lengths[live] - dropped
        index = ragged_index((lengths.cumsum(0) - lengths)[live] + 1, counts)  # the first one of each is left out
        unit = F.normalize(rows.index_select(0, index.to(rows.device)).to(_full(rows.dtype)), dim=1, eps=1e-12)
        short = counts < width - dropped
        clamped = {"batch": short, "always": torch.ones_like(short), "never": torch.zeros_like(short)}[clamp]
        sizes = torch.full_like(counts, width - dropped) if clamp == "batch" else counts
        return cls(unit, counts, clamped, sizes)

    def sums(self) -> Tensor:
        """(n,E)"""
        item = torch.arange(len(self.counts)).repeat_interleave(self.counts).to(self.rows.device)
        return self.rows.new_zeros(len(self.counts), self.rows.shape[1]).index_add(0, item, self.rows)

    def padded(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """(m,) -> (m,L,E), the last row of an item repeated up to the widest, and which are real (m,L)."""
        counts = self.counts[items]
        index = padded_index((self.counts.cumsum(0) - self.counts)[items], counts)
        real = torch.arange(index.shape[1]) < counts[:, None]
        padded = self.rows.index_select(0, index.flatten().to(self.rows.device)).unflatten(0, index.shape)
        return padded, real.to(self.rows.device)


def _every(a: _Sets, b: _Sets, part: str) -> Tensor:
    """Words with regions, all with all: (A,B)."""
    if part == "sum":
        return a.sums() @ b.sums().T
    if part == "MrSw":
        return max_sum(a.rows, a.counts, b.rows, b.counts, b.clamped)
    if part == "MwSr":
        return max_sum(b.rows, b.counts, a.rows, a.counts, a.clamped).T
    side = max(1, isqrt(ENTRIES // (4 * int(a.counts.max()) * int(b.counts.max()))))
    images = torch.arange(len(b.counts)).split(side)
    return torch.cat([
        torch.cat([_scan_block(a, b, texts, block) for block in images], dim=1)
        for texts in torch.arange(len(a.counts)).split(side)
    ])  # fmt: skip


def _scan_block(a: _Sets, b: _Sets, texts: Tensor, images: Tensor) -> Tensor:
    """scan-sentences of some texts with some images; computed again in the backward pass, which keeps nothing else."""

    def block(*rows: Tensor) -> Tensor:
        x, word = _Sets(rows[0], a.counts, a.clamped, a.sizes).padded(texts)  # (m,W,E)
        y, region = _Sets(rows[1], b.counts, b.clamped, b.sizes).padded(images)  # (n,R,E)
        products = (y.flatten(0, 1) @ x.flatten(0, 1).T).view(*region.shape, *word.shape)  # (n,R,m,W)
        return _scan(products.permute(2, 0, 1, 3), word[:, None], region, (x @ x.mT)[:, None])

    if torch.is_grad_enabled():
        out: Tensor = checkpoint(block, a.rows, b.rows, use_reentrant=False)
        return out
    return block(a.rows, b.rows)


def _listed(a: _Sets, b: _Sets, texts: Tensor, images: Tensor, part: str) -> Tensor:
    """Words with regions, of the pairs of texts (P,) and images (P,): (P,).

    Pairs of one image stand together in groups of up to `GROUP`, so that its regions are copied once for all of them.
    """
    order = images.argsort(stable=True)
    runs = images[order].unique_consecutive(return_counts=True)[1]
    groups = (runs + GROUP - 1) // GROUP  # of each image, all full but the last
    sizes = torch.full((int(groups.sum()),), GROUP)
    sizes[groups.cumsum(0) - 1] = runs - (groups - 1) * GROUP
    starts = sizes.cumsum(0) - sizes
    numbers = (GROUP * int(a.counts.max()) + int(b.counts.max())) * a.rows.shape[1]
    scores, places = [], []
    for block in sizes.argsort().split(max(1, ENTRIES // numbers)):
        place = order[padded_index(starts[block], sizes[block])]  # (G,K), the last pair of a group repeated
        real = (torch.arange(place.shape[1]) < sizes[block, None]).flatten().nonzero()[:, 0]
        found = _group_block(a, b, texts[place], images[place[:, 0]], part).flatten()
        scores.append(found.index_select(0, real.to(found.device)))
        places.append(place.flatten()[real])
    return torch.cat(scores).index_select(0, torch.cat(places).argsort().to(a.rows.device))


def _group_block(a: _Sets, b: _Sets, texts: Tensor, images: Tensor, part: str) -> Tensor:
    """Words of texts (G,K) with the regions of images (G,): (G,K)."""
    x, word = (t.unflatten(0, texts.shape) for t in a.padded(texts.flatten()))  # (G,K,W,E), (G,K,W)
    y, region = (t[:, None] for t in b.padded(images))  # (G,1,R,E), (G,1,R)
    products = (y[:, 0] @ x.flatten(1, 2).mT).unflatten(2, word.shape[1:]).transpose(1, 2)  # (G,K,R,W)
    if part == "scan-sentences":
        return _scan(products, word, region, x @ x.mT)
    if part == "sum":
        return (products * region[..., None] * word[..., None, :]).sum(dim=(2, 3))
    across, clamped, counted = (2, b.clamped[images, None], word) if part == "MrSw" else (3, a.clamped[texts], region)
    best, floor = products.amax(dim=across), clamped[..., None].to(products.device)  # repeated rows change no maximum
    return (torch.where(floor, best.clamp(min=0), best) * counted).sum(dim=2)


def _scan(products: Tensor, word: Tensor, region: Tensor, gram: Tensor) -> Tensor:
    """products (...,R,W) of regions with words, word (...,W) and region (...,R) which are real, gram (...,W,W) the
    products of the words of a text with one another -> (...). What is not real has no part in any softmax.
    """
    relevance = F.normalize(products.relu() * region[..., None], dim=-2, eps=1e-12)
    p = relevance.masked_fill(~word[..., None, :], -torch.inf).softmax(dim=-1)
    dots = (p * products).sum(dim=-1)  # (...,R) of the region and the attended word vector
    norms = (p @ gram * p).sum(dim=-1).clamp(min=1e-16).sqrt()  # of the attended vector; the region's is 1
    return (dots / norms * region).sum(dim=-1)


def _full(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
