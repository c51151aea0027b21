from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmodal.data.samplers import (
    GlobalOrder,
    Place,
    draw_negatives,
    keyed_random,
    negatives,
    stable_hash,
    token_buckets,
)
from crossmodal.errors import ConfigError, DataError

sizes = st.integers(1, 60)
batches = st.integers(1, 7)
worlds = st.integers(1, 5)


@settings(deadline=None)
@given(sizes, batches, worlds, st.integers(0, 3), st.integers(0, 2))
def test_every_anchor_once_an_epoch_over_all_ranks(size: int, batch: int, world: int, seed: int, epoch: int) -> None:
    ranks = [GlobalOrder(size, batch, seed=seed, stream="t", rank=r, world=world) for r in range(world)]
    steps = range(epoch * ranks[0].steps_per_epoch, (epoch + 1) * ranks[0].steps_per_epoch)
    seen: list[int] = []
    for step in steps:
        parts = [order.slice(step) for order in ranks]
        assert {e for e, _ in parts} == {epoch}
        counts = [len(part) for _, part in parts]
        assert max(counts) - min(counts) <= 1 and max(counts) <= batch
        assert np.concatenate([part for _, part in parts]).tolist() == ranks[0].at(step)[1].tolist()
        seen += ranks[0].at(step)[1].tolist()
    assert sorted(seen) == list(range(size))


@settings(deadline=None)
@given(sizes, batches, st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 9))
def test_the_global_order_does_not_depend_on_the_number_of_ranks(size: int, batch: int, world: int, step: int) -> None:
    one = GlobalOrder(size, 12 * batch, seed=1, stream="i")
    many = GlobalOrder(size, 12 * batch // world, seed=1, stream="i", world=world)
    assert one.at(step)[0] == many.at(step)[0]
    assert one.at(step)[1].tolist() == many.at(step)[1].tolist()


@settings(deadline=None)
@given(sizes, batches, worlds, st.integers(0, 12), st.integers(0, 12))
def test_an_order_that_begins_at_a_place_goes_on_as_the_whole_one(
    size: int, batch: int, world: int, before: int, after: int
) -> None:
    def order(begin: Place) -> GlobalOrder:
        return GlobalOrder(size, batch, seed=5, stream="t", rank=world - 1, world=world, begin=begin)

    whole = order(Place())
    resumed = order(begin=whole.place(before))
    assert whole.place(before).step == before
    assert resumed.place(before + after) == whole.place(before + after)
    (epoch, part), (expected_epoch, expected) = resumed.slice(before + after), whole.slice(before + after)
    assert (epoch, part.tolist()) == (expected_epoch, expected.tolist())


@settings(deadline=None)
@given(sizes, st.lists(st.tuples(batches, worlds, st.integers(0, 6)), min_size=1, max_size=4), st.booleans())
def test_each_anchor_is_seen_once_an_epoch_whatever_the_ranks_were_in_between(
    size: int, parts: list[tuple[int, int, int]], finish: bool
) -> None:
    """Runs of some steps each with its own batch and number of ranks, then one to the end of its epoch."""
    begin, seen = Place(), dict[int, list[int]]()
    for batch, world, steps in parts:
        ranks = [GlobalOrder(size, batch, seed=2, stream="t", rank=r, world=world, begin=begin) for r in range(world)]
        last = begin.step + steps
        while finish and ranks[0].place(last).seen:
            last += 1
        for step in range(begin.step, last):
            for order in ranks:
                epoch, anchors = order.slice(step)
                seen.setdefault(epoch, []).extend(anchors.tolist())
        begin = ranks[0].place(last)
    expected = GlobalOrder(size, 1, seed=2, stream="t")
    for epoch, anchors in seen.items():
        order = expected.permutation(epoch).tolist()
        assert anchors == (order if epoch < begin.epoch else order[: begin.seen])


def test_a_step_before_the_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match="begins at step 3"):
        GlobalOrder(10, 2, seed=0, stream="t", begin=Place(step=3)).at(2)


def test_epochs_streams_and_seeds_differ() -> None:
    orders = [
        GlobalOrder(50, 50, seed=seed, stream=stream).at(step)[1].tolist()
        for seed in (0, 1)
        for stream in ("t", "i")
        for step in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 8


def test_drop_last() -> None:
    order = GlobalOrder(10, 2, seed=0, stream="t", world=2, drop_last=True)
    assert order.steps_per_epoch == 2
    assert [order.at(step)[0] for step in range(4)] == [0, 0, 1, 1]
    assert all(len(order.at(step)[1]) == 4 for step in range(4))
    with pytest.raises(ConfigError, match="3 anchors"):
        GlobalOrder(3, 4, seed=0, stream="t", drop_last=True)


def test_a_rank_may_get_none() -> None:
    parts = [GlobalOrder(5, 1, seed=0, stream="t", rank=r, world=4).slice(1)[1] for r in range(4)]
    assert [len(part) for part in parts] == [1, 0, 0, 0]


def test_what_cannot_be_ordered_is_refused() -> None:
    with pytest.raises(DataError, match="no anchors"):
        GlobalOrder(0, 4, seed=0, stream="t")
    with pytest.raises(ConfigError, match="rank 2"):
        GlobalOrder(5, 4, seed=0, stream="t", rank=2, world=2)


def test_keys_are_the_same_in_every_process() -> None:
    key = (42, "text", 3, "caption é")
    code = f"from crossmodal.data.samplers import stable_hash; print(stable_hash({key!r}))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert int(other.stdout) == stable_hash(key) == stable_hash((np.int64(42), "text", np.int32(3), key[3]))
    assert len({stable_hash((1, "2")), stable_hash(("1", 2)), stable_hash((12, "")), stable_hash((1, 2))}) == 4


def naive_buckets(lengths: list[int], tokens: int, size: int, multiple: int, rng: random.Random) -> list[list[int]]:
    """UNITER's sampler written out, without droplast."""
    ids = list(range(len(lengths)))
    rng.shuffle(ids)
    done = []
    while ids:
        bucket, ids = sorted(ids[:size], key=lambda i: -lengths[i]), ids[size:]
        longest, batch = lengths[bucket[0]], []
        while bucket:
            group, bucket = bucket[:multiple], bucket[multiple:]
            if longest * (len(batch) + multiple) > tokens:
                done.append(batch)
                batch = []
            batch += group
        done.append(batch)
    rng.shuffle(done)
    return done


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=200),
    st.integers(1, 4),
    st.integers(1, 50),
    st.integers(1, 6),
    st.integers(0, 5),
)
def test_token_buckets(lengths: list[int], groups: int, size: int, multiple: int, seed: int) -> None:
    tokens = 40 * multiple * groups
    options = {"max_tokens": tokens, "bucket_size": size, "size_multiple": multiple}
    ours = token_buckets(lengths, rng=random.Random(seed), **options)
    assert ours == naive_buckets(lengths, tokens, size, multiple, random.Random(seed))
    assert sorted(i for batch in ours for i in batch) == list(range(len(lengths)))
    assert all(max(lengths[i] for i in batch) * len(batch) <= tokens for batch in ours)
    dropped = token_buckets(lengths, rng=random.Random(seed), droplast=True, **options)
    assert all(batch in ours and len(batch) % multiple == 0 for batch in dropped)


def test_token_buckets_that_hold_no_group() -> None:
    with pytest.raises(ConfigError, match="at least 160"):
        token_buckets([5, 20], max_tokens=159, rng=random.Random(0))


POOL = [f"image {n}" for n in range(40)]


def test_negatives_are_distinct_and_no_ground_truth() -> None:
    truth = frozenset(POOL[3:8])
    drawn = negatives(POOL, 20, truth, (0, "t", 1, "caption"))
    assert len(set(drawn)) == 20 and truth.isdisjoint(drawn) and set(drawn) <= set(POOL)
    assert drawn == negatives(POOL, 20, truth, (0, "t", 1, "caption"))
    keys = [(1, "t", 1, "caption"), (0, "i", 1, "caption"), (0, "t", 2, "caption"), (0, "t", 1, "other")]
    assert all(drawn != negatives(POOL, 20, truth, key) for key in keys)


@pytest.mark.parametrize("seed", range(20))
def test_the_whole_draw_is_repeated(seed: int) -> None:
    truth = frozenset(POOL[:4])
    naive, drawn = random.Random(seed), [POOL[0]]
    while truth & set(drawn):
        drawn = naive.sample(POOL, 8)
    assert draw_negatives(POOL, 8, truth, random.Random(seed)) == drawn


def test_negatives_where_most_are_ground_truths() -> None:
    assert sorted(negatives(POOL, 2, frozenset(POOL[2:]), (0,))) == POOL[:2]
    assert negatives(POOL, 0, frozenset(POOL), (0,)) == []
    # what is excluded need not be in the pool
    assert len(negatives(POOL, 40, frozenset(map(str, range(100))), (0,))) == 40


def test_a_pool_that_is_too_small() -> None:
    with pytest.raises(DataError, match="ask for at most 35"):
        negatives(POOL, 36, frozenset(POOL[:5]), (0,))


def test_keyed_random_repeats() -> None:
    assert keyed_random((1, "a")).random() == keyed_random((1, "a")).random() != keyed_random((2, "a")).random()
