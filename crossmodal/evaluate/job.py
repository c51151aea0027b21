"""Scoring a corpus as a job: cut into tiles, shared out over ranks, kept as it goes on, taken up where it stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import crossmodal
from crossmodal.data.corpus import Corpus
from crossmodal.errors import DataError
from crossmodal.model.base import Encoded, Model, all_pairs, inference
from crossmodal.retrieve.journal import Journal
from crossmodal.retrieve.scoring import Progress, encode_all
from crossmodal.retrieve.tiles import TOKENS, budget, plan_tiles, score_tile

from .identity import Identity
from .results import stored_scores
from .scored import Scored

if TYPE_CHECKING:
    from crossmodal.train.distributed import OneProcess

_PROBE = 1.0
"""Seconds of scoring after which a probe says how long the rest will take."""


@dataclass(frozen=True)
class EncodedCorpus:
    """Both sides of a corpus: captions in database order, images in evaluation order, each read and encoded once.

    read: what was read, where that was asked for.
    """

    texts: Encoded
    images: Encoded
    read: Identity | None = None

    @staticmethod
    def of(model: Model, corpus: Corpus, *, identify: bool = False) -> EncodedCorpus:
        """Raises DataError where the corpus is empty."""
        if not len(corpus):
            raise DataError("the corpus holds no captions after its filters; raise max_text or check the databases")
        read = Identity() if identify else None
        texts = corpus.batches("text", corpus.anchors, model.processor)
        images = corpus.batches("image", corpus.image_keys, model.processor)
        if read:
            texts, images = read.watched(texts), read.watched(images)
        with inference(model):
            return EncodedCorpus(encode_all(model, "text", texts), encode_all(model, "image", images), read)


class ScoringJob:
    """Every caption of a corpus against every image. What is not `encoded` is read and encoded when the job is made.

    The tiles and their scores do not depend on the number of ranks, which each take a run of neighbouring tiles
    that costs about as much as those of the others. With an `output` folder each tile is kept there as soon as
    it is scored, and those of an earlier job are not scored again where its `key` is the same: a hash of the
    model's weights, of all that it read, the ids, the scorer and the tiles.

    pairs: of the whole matrix; kept: those that an earlier job had scored; rest: those left to this rank.
    """

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        encoded: EncodedCorpus | None = None,
        *,
        scorer: str | None = None,
        tokens: int = TOKENS,
        ranks: OneProcess | None = None,
        output: Path | None = None,
    ) -> None:
        self.model, self.corpus, self.ranks, self.output = model, corpus, ranks, output
        self._rank, self._size = (ranks.rank, ranks.size) if ranks else (0, 1)
        name = scorer or model.scorer_names[0]
        encoded = encoded or EncodedCorpus.of(model, corpus, identify=output is not None)
        a, b, read = encoded.texts, encoded.images, encoded.read
        with inference(model):
            self._scorer = model.scorers[name]
        self.plan = plan_tiles(a.lengths, b.lengths, budget(self._scorer, tokens))
        self._a, self._b = a[self.plan.rows], b[self.plan.columns]
        kind = next(model.parameters()).dtype
        self._scores = torch.zeros(len(a), len(b), dtype=torch.float32 if kind.itemsize < 4 else kind)
        self._done = torch.zeros(len(self.plan), dtype=torch.bool)
        self._journal: Journal | None = None
        self.key: str | None = None
        if output and read:
            key = self._identify(read.copy(), name)
            self.key, self._journal = key.hex(), Journal(output, key)
            self._keep(output, self._journal)
        self._mine = share(self.plan.costs, (~self._done).nonzero().flatten(), self._size)[self._rank]

    @property
    def pairs(self) -> int:
        return self._scores.numel()

    @property
    def kept(self) -> int:
        return int(self.plan.pairs()[self._done].sum())

    @property
    def rest(self) -> int:
        return int(self.plan.pairs()[self._mine].sum())

    @property
    def starts_anew(self) -> bool:
        """Whether the output folder holds journals, but none of this key."""
        return self._journal is not None and not self.kept and self._journal.foreign()

    def estimate(self) -> float:
        """Seconds that this rank's rest will take, judging by pairs of the tile in the middle of it.

        The probe takes ever more pairs, so that a slow machine needs few and a fast one is measured at a full tile.
        """
        if not len(self._mine):
            return 0.0
        costs = self.plan.costs[self._mine].cumsum(0)
        middle = int(self._mine[torch.searchsorted(costs, costs[-1] // 2)])
        rows, columns = self.plan.tile(middle)
        a, b = self._a[rows], self._b[columns]
        pairs = all_pairs(len(a), len(b))
        with inference(self.model):
            self._scorer(a, b, pairs[:1]).cpu()  # the first call of everything is slow
            count = 1
            while True:
                some = pairs[:count]
                start = time.perf_counter()
                self._scorer(a, b, None if count >= len(pairs) else some).cpu()
                seconds = time.perf_counter() - start
                if seconds >= _PROBE or count >= len(pairs):
                    break
                count *= 2
        spent = (a.lengths[some[:, 0]] + b.lengths[some[:, 1]]).clamp(min=1).sum()
        return seconds * float(costs[-1] / spent)

    def run(self, progress: Progress | None = None) -> Scored:
        """Score the rest; every rank gets all scores. `progress` is called with the pairs of each finished tile.

        Raises DataError naming the caption and the image of a score that is NaN, ConfigError where nothing can be
        written to the output folder, DiskError where it is full.
        """
        if self._journal and len(self._mine):
            self._journal.open(self._rank)
        try:
            with inference(self.model):
                for number in self._mine.tolist():
                    tile = self.plan.tile(number)
                    scores = score_tile(self._scorer, self._a, self._b, tile).to("cpu", self._scores.dtype)
                    self._refuse_nan(scores, tile)
                    if self._journal:
                        self._journal.append(number, scores.numpy().tobytes())
                    self._place(tile, scores)
                    if progress:
                        progress(scores.numel())
        finally:
            if self._journal:
                self._journal.close()
        texts, images = [key for _, key in self.corpus.anchors], [key for _, key in self.corpus.image_keys]
        return Scored(self._of_all_ranks(), texts, images, self.corpus.image_of_texts(), self.key)

    def forget(self) -> None:
        """Remove what was kept for going on: the results that were saved take its place."""
        if self._journal:
            self._journal.remove()

    def _identify(self, read: Identity, scorer: str) -> bytes:
        for value in (
            (crossmodal.__version__, torch.__version__, self.model.device.type, self._scores.dtype),
            (self.model.name, self.model.config_dict, scorer),
            self.model.state_dict(),
            (self.corpus.anchors, self.corpus.image_keys),
            (self.plan.rows, self.plan.columns, self.plan.bounds),
        ):
            read.add(value)
        return read.digest()

    def _keep(self, output: Path, journal: Journal) -> None:
        """Take over what earlier jobs scored; rank 0 alone reads it, and tells the others what is done."""
        if self._rank == 0:
            finished = stored_scores(output, journal.key.hex())
            if finished is not None and finished.shape == self._scores.shape:
                self._scores.copy_(finished)
                self._done[:] = True
            else:
                sizes = (self.plan.pairs() * self._scores.itemsize).tolist()
                for number, content in journal.read():
                    if number < len(sizes) and len(content) == sizes[number]:
                        rows, columns = tile = self.plan.tile(number)
                        scores = torch.frombuffer(bytearray(content), dtype=self._scores.dtype)
                        self._place(tile, scores.view(rows.stop - rows.start, columns.stop - columns.start))
                        self._done[number] = True
        if self.ranks:
            done = self.ranks.broadcast_object(self._done.nonzero().flatten().tolist())
            self._done[done] = True

    def _place(self, tile: tuple[slice, slice], scores: Tensor) -> None:
        rows, columns = tile
        self._scores[self.plan.rows[rows, None], self.plan.columns[None, columns]] = scores

    def _of_all_ranks(self) -> Tensor:
        """One rank has a score and the others zeros there, so that adding the bits up gives every rank every score."""
        if self.ranks is None or self._size == 1:
            return self._scores
        bits = self._scores.view(torch.int32 if self._scores.itemsize == 4 else torch.int64)
        return self.ranks.all_reduce(bits).cpu().view(self._scores.dtype)

    def _refuse_nan(self, scores: Tensor, tile: tuple[slice, slice]) -> None:
        for row, column in scores.isnan().nonzero()[:1].tolist():
            text = self.corpus.anchors[int(self.plan.rows[tile[0]][row])][1]
            image = self.corpus.image_keys[int(self.plan.columns[tile[1]][column])][1]
            raise DataError(
                f"the score of caption {text} with image {image} is NaN: check the features of that image "
                "(`crossmodal data check`) and the weights"
            )


def share(costs: Tensor, numbers: Tensor, ranks: int) -> list[Tensor]:
    """Cut the tiles of these numbers into a run for each rank, all of about the same cost; some may be empty."""
    ends = costs[numbers].cumsum(0)
    twice_middle = 2 * ends - costs[numbers]  # a tile belongs to the rank whose share its middle lies in
    total = int(ends[-1]) if len(ends) else 0
    bounds = torch.searchsorted(twice_middle, torch.tensor([2 * total * r // ranks for r in range(ranks + 1)]))
    return [numbers[low:high] for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
