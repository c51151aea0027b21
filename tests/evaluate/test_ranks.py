"""Ranks by counting: a matrix worked out by hand, equality with sorting, ties, blocks, odd galleries."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmodal.errors import ConfigError, DataError
from crossmodal.evaluate import blocks as blocks_module
from crossmodal.evaluate import ranks as ranks_module
from crossmodal.evaluate.positives import columns_from_lists, image_columns
from crossmodal.evaluate.ranks import Ranks, ranks, ranks_from_lists

from .naive import naive_ranks

# 5 captions, 3 images; captions 0 and 1 belong to image 0, 2 to image 1, 3 and 4 to image 2
HAND = torch.tensor(
    [
        [0.9, 0.1, 0.2],  # best: rank 0
        [0.3, 0.8, 0.3],  # one better, one equal
        [0.5, 0.4, 0.6],  # two better
        [0.2, 0.4, 0.4],  # one equal
        [0.7, 0.1, 0.6],  # one better
    ]
)
IMAGE_OF = [0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("ties", "image", "text"),
    [
        ("optimistic", [0, 1, 2, 0, 1], [0, 1, 0]),
        ("average", [0, 1.5, 2, 0.5, 1], [0, 1.5, 0.5]),
        ("pessimistic", [0, 2, 2, 1, 1], [0, 2, 1]),
    ],
)
def test_matrix_by_hand(ties: str, image: list[float], text: list[float]) -> None:
    found = ranks(HAND, IMAGE_OF, ties=ties)  # type: ignore[arg-type]
    assert found.image.tolist() == image
    assert found.text.tolist() == text
    assert found.image_ties.tolist() == [0, 1, 0, 1, 0]
    assert found.text_ties.tolist() == [0, 1, 1]


def test_the_example_of_the_docstring_runs() -> None:
    outcome = doctest.testmod(ranks_module)
    assert outcome.attempted and not outcome.failed


@st.composite
def galleries(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]]]:
    texts, images = draw(st.integers(1, 9)), draw(st.integers(1, 7))
    few = st.sampled_from([-2.0, 0.0, 0.25, 0.5, 1.0, math.inf, -math.inf])
    cells = draw(st.lists(few, min_size=texts * images, max_size=texts * images))
    column = st.lists(st.integers(0, images - 1), max_size=3)
    columns = draw(st.lists(column, min_size=texts, max_size=texts).filter(any))
    return np.array(cells).reshape(texts, images), columns


@settings(max_examples=200, deadline=None)
@given(galleries(), st.sampled_from(["optimistic", "average", "pessimistic"]), st.integers(1, 4))
def test_equals_sorting(gallery: tuple[np.ndarray, list[list[int]]], ties: str, size: int) -> None:
    scores, columns = gallery
    image, text = naive_ranks(scores, columns, ties)
    whole = ranks(torch.tensor(scores), columns, ties=ties)  # type: ignore[arg-type]
    np.testing.assert_array_equal(whole.image.numpy(), image)
    np.testing.assert_array_equal(whole.text.numpy(), text)
    blocks = ranks(list(torch.tensor(scores).split(size)), columns, ties=ties)  # type: ignore[arg-type]
    _assert_equal(whole, blocks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_way_to_hand_in_scores_gives_the_same_ranks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(60, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    image_of = torch.arange(60) // 5
    whole = ranks(scores, image_of)

    def once() -> Iterator[torch.Tensor]:
        yield from scores.split(7)

    _assert_equal(whole, ranks(once(), image_of))
    monkeypatch.setattr(blocks_module, "_CHUNK", 25)  # two rows at a time
    _assert_equal(whole, ranks(scores, image_of))
    if dtype != torch.bfloat16:
        read_only = scores.numpy().copy()
        read_only.flags.writeable = False
        _assert_equal(whole, ranks(read_only, image_of.numpy()))


def test_blocks_of_different_types_are_compared_exactly() -> None:
    scores = torch.tensor([[1.0, 0.5], [1.0 + 2**-40, 0.0]], dtype=torch.float64)
    blocks = [scores[:1].half(), scores[1:]]
    for way in (blocks, iter(blocks)):
        found = ranks(way, [1, 0], ties="pessimistic")
        assert (found.image.tolist(), found.text.tolist()) == ([1, 0], [0, 0])
    assert ranks(blocks, [0, 1], ties="pessimistic").text.tolist() == [1, 1]


def test_infinities_of_both_signs_are_scores() -> None:
    found = ranks(torch.tensor([[math.inf, -math.inf], [0.0, -math.inf]]), [0, 1], ties="pessimistic")
    assert (found.image.tolist(), found.text.tolist()) == ([0, 1], [0, 1])


class Read:
    """Blocks that differ from one reading to the next."""

    def __init__(self, *readings: list[torch.Tensor]) -> None:
        self.readings = iter(readings)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(next(self.readings))


def test_scores_that_change_between_readings_are_refused() -> None:
    other = HAND.clone()
    other[2, 1] = 0.25
    with pytest.raises(DataError, match=r"caption 2 with image 1 was 0\.4\d* at first and 0\.25 when read again"):
        ranks(Read([HAND[:2], HAND[2:]], [other]), IMAGE_OF)
    for again in ([HAND[:3]], [], [HAND, HAND]):
        with pytest.raises(DataError, match=f"5 rows of scores at first and {sum(map(len, again))} when read again"):
            ranks(Read([HAND], again), IMAGE_OF)
    assert ranks(Read([HAND], [HAND[:1], HAND[1:]]), IMAGE_OF).image.tolist() == [0, 1.5, 2, 0.5, 1]


def test_a_generator_is_not_held_in_memory() -> None:
    """400 MB of scores raise the memory of a process by a fraction of that."""
    program = """
import resource, torch
from crossmodal.evaluate.ranks import ranks

def blocks(number):
    for i in range(number):
        yield torch.rand(500, 5000)

ranks(blocks(1), torch.arange(500))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ranks(blocks(40), torch.arange(20000) // 4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150_000, done.stdout  # kilobytes


def test_close_float64_scores_are_told_apart() -> None:
    scores = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert ranks(scores, [0], ties="optimistic").image.tolist() == [1]
    assert ranks(iter([scores]), [0], ties="optimistic").image.tolist() == [1]


def test_one_caption_one_image() -> None:
    found = ranks(torch.zeros(1, 1), [0], ties="pessimistic")
    assert found.image.tolist() == [0] and found.text.tolist() == [0]


def test_all_scores_equal_rank_in_the_middle() -> None:
    found = ranks(torch.zeros(20, 5), torch.arange(20) // 4)
    assert found.image.tolist() == [2.0] * 20
    assert found.text.tolist() == [8.0] * 5  # half of the 16 captions of other images


def test_captions_without_image_and_images_without_caption_only_distract() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.7]])
    found = ranks(scores, [[0], []])
    assert found.image[0] == 1 and found.image[1].isnan()
    assert found.text[0] == 1 and found.text[1].isnan()


def test_under_changes_the_tie_rule() -> None:
    for ties in ("optimistic", "average", "pessimistic"):
        _assert_equal(ranks(HAND, IMAGE_OF).under(ties), ranks(HAND, IMAGE_OF, ties=ties))


def test_lists_of_the_best_items() -> None:
    scores = torch.randn(30, 12, generator=torch.Generator().manual_seed(1))
    image_of = torch.arange(30) % 12
    whole = ranks(scores, image_of)
    images = scores.argsort(dim=1, descending=True)[:, :4].tolist()
    texts = scores.argsort(dim=0, descending=True)[:6].T.tolist()
    found = ranks_from_lists(images, texts, image_of)
    assert torch.equal(found.image, torch.where(whole.image < 4, whole.image, math.inf))
    assert torch.equal(found.text, torch.where(whole.text < 6, whole.text, math.inf))


@pytest.mark.parametrize(
    ("scores", "image_of", "words"),
    [
        (torch.tensor([[0.0, math.nan], [0.0, 0.0]]), [0, 1], "caption 0 with image 1 is NaN"),
        (torch.zeros(2, 3), [0], "2 rows of scores for 1 captions"),
        (torch.zeros(2, 3), [0, 3], "caption 1 belongs to image 3"),
        (torch.zeros(2, 3), [0, -1], "caption 1 belongs to image -1"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "caption 1 belongs to image -1"),
        (torch.zeros(2, 3), np.array([0.5, 0]), "caption 0 belongs to image 0.5"),
        (torch.zeros(0, 3), torch.zeros(0), "no caption belongs to any image"),
        (torch.zeros(2, 3), [[], []], "no caption belongs to any image"),
        ([torch.zeros(1, 3), torch.zeros(1, 4)], [0, 0], "from caption 1 on have 4 images"),
        (torch.zeros(3), [0, 0, 0], "shape"),
    ],
)
def test_what_cannot_be_ranked(scores: torch.Tensor, image_of: list[int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        ranks(scores, image_of)


def test_unknown_tie_rule() -> None:
    with pytest.raises(ConfigError, match="optimistic, average, pessimistic"):
        ranks(HAND, IMAGE_OF, ties="lucky")  # type: ignore[arg-type]


def test_correspondence_from_ids_and_lists() -> None:
    found = image_columns(["t1", "t0"], ["b", "a"], {"t0": "a", "t1": "b", "t9": "z"})
    assert found.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"'t0' \(z\) is not among the 1 images"):
        image_columns(["t0"], ["a"], {"t0": "z"})
    assert columns_from_lists([[0, 2], [2]], 4) == [[0], [], [0, 1], []]
    with pytest.raises(DataError, match="image 0 lists caption 4"):
        columns_from_lists([[4]], 4)


def _assert_equal(a: Ranks, b: Ranks) -> None:
    for name in ("image", "text", "image_ties", "text_ties"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0, equal_nan=True)
    assert a.ties == b.ties
