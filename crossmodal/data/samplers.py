"""Which items a step sees: one global order for all ranks, token-bucket batches, negatives by key.

Everything here is a pure function of its key (seed, stream, epoch, ...), never of a process's history, so
runs of any number of ranks agree and a resumed run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossmodal.errors import ConfigError, DataError

_DRAWS = 100


def stable_hash(key: tuple[Any, ...]) -> int:
    """64 bits of numbers and strings, the same in every process (Python's own hash of strings is not)."""
    text = json.dumps(key, default=int)  # `default` turns numpy integers into plain ones
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def keyed_random(key: tuple[Any, ...]) -> random.Random:
    """Python's generator, seeded by a key such as (seed, stream, epoch, anchor id)."""
    return random.Random(stable_hash(key))


@dataclass(frozen=True)
class Place:
    """A place in a stream's order: before its step `step`, `seen` anchors of `epoch` have been handed out."""

    step: int = 0
    epoch: int = 0
    seen: int = 0


class GlobalOrder:
    """A shuffled order of `size` anchors, epoch after epoch, cut into global batches of ``batch * world``.

    The permutation of an epoch depends on (seed, stream, epoch) alone. A rank takes its contiguous slice of
    every global batch; the last batch of an epoch may be smaller and is shared as evenly as can be, so that a
    rank may get none, or is dropped (`drop_last`). Steps go on over epochs without end.

    begin: where the order goes on, as `place` gave it; the global batch may have been another one until there, and
    the anchors that its epoch has left are still seen once each.

    Raises DataError where there is nothing to order, ConfigError where `drop_last` would leave no batch.
    """

    def __init__(
        self,
        size: int,
        batch: int,
        *,
        seed: int,
        stream: str | int,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        begin: Place = Place(),
    ) -> None:
        if size < 1:
            raise DataError(f"stream {stream!r} has no anchors; its database is empty after the filters")
        if batch < 1 or not 0 <= rank < world:
            raise ConfigError(f"batch {batch}, rank {rank} and {world} ranks do not make batches")
        self.size, self.global_batch = size, batch * world
        self.seed, self.stream = seed, stream
        self.rank, self.world = rank, world
        self.drop_last = drop_last
        self.steps_per_epoch = self._steps(size)
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"stream {stream!r} has {size} anchors, fewer than one global batch of {self.global_batch}; "
                "make the batch smaller or keep the last batch"
            )
        self.begin = begin
        self._epoch = -1
        self._permutation: NDArray[np.int64] = np.empty(0, np.int64)

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """(size,) int64: all anchors in the order of this epoch. The last one asked for is kept."""
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64(stable_hash((self.seed, self.stream, epoch))))
            self._permutation, self._epoch = generator.permutation(self.size), epoch
        return self._permutation

    def place(self, step: int) -> Place:
        """Where the order is before a step, not earlier than where it begins."""
        gone = step - self.begin.step
        if gone < 0:
            raise ValueError(f"the order begins at step {self.begin.step}, step {step} is before it")
        left = self._steps(max(0, self.size - self.begin.seen))
        if gone < left:
            return Place(step, self.begin.epoch, self.begin.seen + gone * self.global_batch)
        epochs, within = divmod(gone - left, self.steps_per_epoch)
        return Place(step, self.begin.epoch + 1 + epochs, within * self.global_batch)

    def at(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch of a step and the anchors of its global batch, at most ``batch * world``."""
        place = self.place(step)
        return place.epoch, self.permutation(place.epoch)[place.seen : place.seen + self.global_batch].copy()

    def slice(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch of a step and this rank's part of its global batch; ranks differ by at most one."""
        epoch, anchors = self.at(step)
        return epoch, np.array_split(anchors, self.world)[self.rank]

    def _steps(self, anchors: int) -> int:
        return anchors // self.global_batch if self.drop_last else -(-anchors // self.global_batch)


def token_buckets(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    bucket_size: int = 8192,
    size_multiple: int = 8,
    droplast: bool = False,
    rng: random.Random,
) -> list[list[int]]:
    """Batches of sample indices, each of about `max_tokens` tokens once padded (UNITER's sampler).

    All samples are shuffled and cut into buckets of `bucket_size`; a bucket is sorted by descending length
    and filled into batches by groups of `size_multiple`; its rest is a smaller batch, or dropped.
    The longest length seen is kept over a whole bucket, as published: its later batches could be larger.
    Random calls: one shuffle of the indices, one of the batches. Raises ConfigError where a group of the
    longest samples does not fit into `max_tokens`.
    """
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), bucket_size):
        # reverse=True keeps equal lengths in their shuffled order
        bucket = sorted(order[start : start + bucket_size], key=lengths.__getitem__, reverse=True)
        batch: list[int] = []
        longest = 0
        for first in range(0, len(bucket), size_multiple):
            group = bucket[first : first + size_multiple]
            longest = max(longest, max(lengths[i] for i in group))
            if longest * (len(batch) + size_multiple) > max_tokens:
                if not batch:
                    raise ConfigError(
                        f"max_tokens {max_tokens} does not hold {size_multiple} samples of {longest} tokens; "
                        f"make it at least {longest * size_multiple}, or filter long captions"
                    )
                batches.append(batch)
                batch = []
            batch.extend(group)
        if batch and not droplast:
            batches.append(batch)
    rng.shuffle(batches)
    return batches


def negatives(pool: Sequence[str], count: int, exclude: Set[str], key: tuple[Any, ...]) -> list[str]:
    """`count` different items of `pool`, none of them in `exclude`, drawn by the generator of `key`.

    key: (seed, stream, epoch, anchor id), so every rank and every number of ranks draws the same.
    """
    return draw_negatives(pool, count, exclude, keyed_random(key))


def draw_negatives(pool: Sequence[str], count: int, exclude: Set[str], rng: random.Random) -> list[str]:
    """As UNITER draws them: ``rng.sample(pool, count)``, repeated while it holds a ground truth.

    pool: distinct ids. Where ground truths are a large part of it, the draw is made from the others after
    100 vain attempts. Raises DataError where the pool holds fewer than `count` others.
    """
    if len(pool) - len(exclude) < count:  # else there are enough, and the pool need not be walked
        others = sum(item not in exclude for item in pool)
        if others < count:
            raise DataError(
                f"{count} negatives cannot be drawn from {len(pool)} candidates, of which "
                f"{len(pool) - others} are ground truths; ask for at most {others} or use a larger database"
            )
    for _ in range(_DRAWS):
        drawn = rng.sample(pool, count)
        if exclude.isdisjoint(drawn):
            return drawn
    return rng.sample([item for item in pool if item not in exclude], count)
