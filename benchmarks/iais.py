"""The IAIS regulariser alone, forward and backward, beside the published looped form.

looped      four times the projections, scores and softmax of the whole padded sequence of every pair, then a
            Python loop over pairs that reads their lengths and argmax from the device
crossmodal  the last layer's queries and keys once, four block softmaxes, two gathers, no loop

Both from the input of the last layer down to its gradient and those of the query and key projections. Pairs
have 8 to 22 words (the first 22, so 24 with [CLS] and [SEP]) and 10 to 59 regions (the first 59).
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import torch
from common import Options, Report, median, options, peak_memory, ratio, take_turns
from torch import Tensor
from torch.nn import functional as F

from crossmodal.losses.iais import Alignment, Side, iais_terms
from crossmodal.model.base import Encoded
from crossmodal.model.uniter import ATTENTION_FIELDS, Uniter, UniterConfig, join

TARGETS = {1: 2.0, 16: 2.5, 32: 2.5}


class Pairs:
    """B matched pairs as the input of the last layer: packed, and padded with 0/1 masks of words and regions."""

    def __init__(self, model: Uniter, count: int) -> None:
        draw = torch.Generator().manual_seed(count)
        words = torch.randint(8, 23, (count,), generator=draw)
        regions = torch.randint(10, 60, (count,), generator=draw)
        words[0], regions[0] = 22, 59
        self.model, self.words, self.regions = model, words, regions
        width = model.config.hidden_size
        texts = Encoded(words + 2, {"tokens": torch.randn(int((words + 2).sum()), width, generator=draw)})
        images = Encoded(regions, {"tokens": torch.randn(int(regions.sum()), width, generator=draw)})
        self.joint = join(texts, images, torch.arange(count)[:, None].expand(-1, 2))
        self.packed = self.joint.x.detach().requires_grad_()
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        text, image = (pad(e.rows["tokens"].split(e.lengths.tolist())) for e in (texts, images))
        self.text_width = text.shape[1]
        self.padded = torch.cat([text, image], dim=1).requires_grad_()
        position = torch.arange(self.padded.shape[1])
        self.word_mask = ((position >= 1) & (position <= words[:, None])).float()
        starts = self.text_width
        self.region_mask = ((position >= starts) & (position < starts + regions[:, None])).float()

    def crossmodal(self, alignment: Alignment, side: Side) -> Tensor:
        blocks = self.model.attention_blocks(self.packed, self.joint, 1)
        loss = iais_terms(*(blocks[name] for name in ATTENTION_FIELDS), alignment=alignment, side=side).mean()
        loss.backward()
        return loss.detach()

    def looped(self, alignment: Alignment, side: Side) -> Tensor:
        """Spec sections 6.2 and 6.3, step by step."""
        masks = {"L": self.word_mask, "V": self.region_mask}
        cut = {"L": slice(1, self.text_width - 1), "V": slice(self.text_width, None)}
        block = {a + b: self._block(masks[a], masks[b])[:, cut[a], cut[b]] for a in "LV" for b in "LV"}
        own, other = ("L", "V") if side == "linguistic" else ("V", "L")
        total = self.padded.new_zeros(())
        for j in range(len(self.padded)):
            n, m = int(masks[own][j].sum().item()), int(masks[other][j].sum().item())
            mine, theirs = block[own + own][j, :n, :n], block[other + other][j, :m, :m]
            across, back = block[own + other][j, :n, :m], block[other + own][j, :m, :n]
            if alignment == "singular":
                partner = across.argmax(dim=1).cpu().tolist()
                pseudo = torch.stack([theirs[a][partner] for a in partner]).softmax(dim=1)
                total = total + _kl(pseudo, mine) + _kl(mine, pseudo)
            else:
                pseudo = across @ back
                total = total + _kl(pseudo, mine, 1e-6) + _kl(mine, pseudo, 1e-6)
        loss = total / len(self.padded)
        loss.backward()
        return loss.detach()

    def _block(self, rows: Tensor, columns: Tensor) -> Tensor:
        attention = self.model.uniter.encoder.last.attention.inner
        q, k = attention.split(attention.query(self.padded)), attention.split(attention.key(self.padded))
        mask = (rows[:, :, None] * columns[:, None, :])[:, None]
        scores = q @ k.transpose(-1, -2) / math.sqrt(attention.head_width) + (1 - mask) * -10000.0
        return (scores.softmax(dim=-1) * mask).mean(dim=1)


def _kl(p: Tensor, q: Tensor, epsilon: float = 0.0) -> Tensor:
    """The target q against the input p, summed and divided by the rows."""
    return F.kl_div((p + epsilon).log(), q, reduction="batchmean")


def main(given: Options) -> None:
    width, heads = (64, 4) if given.quick else (768, 12)
    rounds = 2 if given.quick else 9
    torch.manual_seed(0)
    config = UniterConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=1,
        intermediate_size=width,
        vocab_size=8,
        img_dim=8,
    )
    model = Uniter(config).eval()
    report = Report(
        f"IAIS regulariser, hidden {width}, {heads} heads, up to 24 words x 59 regions; float32",
        ["looped, s", "crossmodal, s", "looped, peak MB", "crossmodal, peak MB", "difference"],
    )
    alignments: tuple[Alignment, ...] = ("singular", "distributed")
    sides: tuple[Side, ...] = ("linguistic", "visual")
    forms = list(product(alignments, sides))
    last: dict[tuple[tuple[Alignment, Side], int], float] = {}
    for count in (1, 2, 4) if given.quick else (1, 16, 32):
        pairs = Pairs(model, count)
        for form in forms:
            looped, ours = partial(pairs.looped, *form), partial(pairs.crossmodal, *form)
            memory = [peak_memory(looped), peak_memory(ours)]
            apart = float((looped() - ours()).abs())
            seconds = take_turns({"looped": looped, "crossmodal": ours}, rounds)
            report.add(
                f"{form[0]}, {form[1]}, B {count}",
                *(f"{median(seconds, name):.4f}" for name in seconds), *(f"{m:.0f}" for m in memory), f"{apart:.1e}",
                ratio=ratio(seconds, "looped", "crossmodal"), target=TARGETS.get(count),
            )  # fmt: skip
            last[form, count] = median(seconds, "crossmodal")
            if (form, count // 2) in last:
                grown = last[form, count] / last[form, count // 2]
                report.add(f"{form[0]}, {form[1]}: time when pairs double", "", "", "", "", "", ratio=grown)
    report.print(given)


if __name__ == "__main__":
    main(options(__doc__ or ""))
