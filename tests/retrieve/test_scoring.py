"""The engine against one padded pair at a time, for a joint scorer and for plain vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.data.batches import Regions, Texts
from crossmodal.model.base import Encoded, Scorer, all_pairs, inference
from crossmodal.model.uniter import Uniter
from crossmodal.retrieve.scoring import Best, encode_all, score_blocks, score_matrix, score_pairs, top_k

from ..model import padded

BUDGETS = [1, 40, 10**6]
Subject = tuple[Scorer, Encoded, Encoded, Tensor]
"""A scorer, 7 texts, 5 images, and their scores one by one."""


class Cosine:
    """Late scoring of vectors: nothing of the engine may be UNITER's alone."""

    reads: tuple[str, ...] = ("vector",)
    cost = 1.0

    def __call__(self, a: Encoded, b: Encoded, pairs: Tensor | None = None) -> Tensor:
        x, y = (torch.nn.functional.normalize(e.vectors["vector"], dim=-1) for e in (a, b))
        return x @ y.T if pairs is None else (x[pairs[:, 0]] * y[pairs[:, 1]]).sum(-1)


class Table:
    """Scores looked up by item number, so that a test can choose them; keeps the largest tile it was asked for."""

    reads: tuple[str, ...] = ("number",)
    cost = 1.0

    def __init__(self, scores: Tensor) -> None:
        self.scores, self.largest = scores, 0

    def __call__(self, a: Encoded, b: Encoded, pairs: Tensor | None = None) -> Tensor:
        wanted = all_pairs(len(a), len(b)) if pairs is None else pairs
        self.largest = max(self.largest, int((a.lengths[wanted[:, 0]] + b.lengths[wanted[:, 1]]).sum()))
        scores = self.scores[a.vectors["number"][wanted[:, 0]], b.vectors["number"][wanted[:, 1]]]
        return scores.view(len(a), len(b)) if pairs is None else scores

    @staticmethod
    def items(lengths: list[int]) -> Encoded:
        return Encoded(torch.tensor(lengths, dtype=torch.int64), {}, {"number": torch.arange(len(lengths))})


def joint() -> Subject:
    torch.manual_seed(0)
    model = Uniter({"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "intermediate_size": 32, "img_dim": 8, "initializer_range": 0.3}).double().eval()  # fmt: skip
    texts = Texts(torch.randint(1, 30, (7, 6)), torch.tensor([3, 6, 4, 6, 3, 5, 2]))
    regions = Regions(torch.randn(5, 4, 8).double(), torch.rand(5, 4, 7).double(), torch.tensor([4, 1, 3, 2, 4]))
    with inference(model):
        halves = encode_all(model, "text", (texts.select(torch.arange(i, j)) for i, j in ((0, 3), (3, 7))))
        slow = padded.rank_scores(model, texts, regions, all_pairs(7, 5)).view(7, 5)
        return model.scorers["itm"], halves, model.encode("image", regions), slow


def vectors(length: int) -> Subject:
    torch.manual_seed(1)
    a, b = (Encoded(torch.full((n,), length), {}, {"vector": torch.randn(n, 4).double()}) for n in (7, 5))
    slow = [
        [torch.nn.functional.cosine_similarity(x, y, dim=0) for y in b.vectors["vector"]] for x in a.vectors["vector"]
    ]
    return Cosine(), a, b, torch.tensor(slow, dtype=torch.float64)


@pytest.fixture(
    params=[joint, lambda: vectors(1), lambda: vectors(0)], ids=["joint", "vectors", "vectors without rows"]
)
def subject(request: pytest.FixtureRequest) -> Subject:
    made: Callable[[], Subject] = request.param
    return made()


@pytest.mark.parametrize("tokens", BUDGETS)
@torch.no_grad()
def test_any_budget_gives_every_score(subject: Subject, tokens: int) -> None:
    scorer, a, b, expected = subject
    done: list[int] = []
    torch.testing.assert_close(score_matrix(scorer, a, b, tokens=tokens, progress=done.append), expected)
    assert sum(done) == 35 and min(done) > 0


@pytest.mark.parametrize("tokens", BUDGETS)
@torch.no_grad()
def test_blocks_hold_every_row_once(subject: Subject, tokens: int) -> None:
    scorer, a, b, expected = subject
    rows = []
    for index, scores in score_blocks(scorer, a, b, tokens=tokens):
        torch.testing.assert_close(scores, expected[index])
        rows += index.tolist()
    assert sorted(rows) == list(range(7))


@pytest.mark.parametrize("tokens", BUDGETS)
@torch.no_grad()
def test_pairs_come_back_in_their_order(subject: Subject, tokens: int) -> None:
    scorer, a, b, expected = subject
    done: list[int] = []
    pairs = torch.cat([all_pairs(7, 5)[torch.randperm(35)[:11]], torch.tensor([[2, 3], [2, 3]])])  # one pair twice
    scores = score_pairs(scorer, a, b, pairs, tokens=tokens, progress=done.append)
    torch.testing.assert_close(scores, expected[pairs[:, 0], pairs[:, 1]])
    assert sum(done) == 13


def test_no_pairs_no_scores(subject: Subject) -> None:
    scorer, a, b, _ = subject
    assert score_pairs(scorer, a, b, torch.empty(0, 2, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(("texts", "images"), [(0, 5), (7, 0), (0, 0)])
def test_an_empty_side_gives_an_empty_matrix(subject: Subject, texts: int, images: int) -> None:
    scorer, a, b, _ = subject
    a, b = a[:texts], b[:images]
    assert score_matrix(scorer, a, b).shape == (texts, images)
    assert list(score_blocks(scorer, a, b)) == []
    assert [(len(best.indices), best.values.numel()) for best in top_k(scorer, a, b, 2)] == [(texts, 0), (images, 0)]


lengths = st.lists(st.integers(0, 9), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(lengths, lengths, st.integers(1, 60), st.integers(0, 10**6))
def test_a_tile_keeps_to_the_budget_where_one_pair_does(t: list[int], r: list[int], tokens: int, seed: int) -> None:
    expected = torch.randn(len(t), len(r), generator=torch.Generator().manual_seed(seed))
    scorer, a, b = Table(expected), Table.items(t), Table.items(r)
    assert torch.equal(score_pairs(scorer, a, b, all_pairs(len(t), len(r)), tokens=tokens), expected.flatten())
    assert scorer.largest <= max(tokens, max(t) + max(r))
    assert torch.equal(score_matrix(scorer, a, b, tokens=tokens), expected)


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_scores_are_float32_at_least(given_dtype: torch.dtype, expected: torch.dtype) -> None:
    scorer, a, b = Table(torch.ones(3, 2, dtype=given_dtype)), Table.items([1, 2, 3]), Table.items([2, 2])
    assert score_matrix(scorer, a, b).dtype == score_pairs(scorer, a, b, all_pairs(3, 2)).dtype == expected
    assert {best.values.dtype for best in top_k(scorer, a, b, 1)} == {expected}


def same(found: Best, matrix: Tensor, k: int) -> None:
    """Of every row the k best, best first, the lower index first among equals."""
    for q, row in enumerate(matrix.tolist()):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        assert found.indices[q].tolist() == order
        torch.testing.assert_close(found.values[q], matrix[q, order])


@pytest.mark.parametrize("tokens", BUDGETS)
@pytest.mark.parametrize("k", [1, 3, 10])
def test_running_top_k_is_that_of_the_matrix(subject: Subject, tokens: int, k: int) -> None:
    scorer, a, b, expected = subject
    done: list[int] = []
    images, texts = top_k(scorer, a, b, k, tokens=tokens, progress=done.append)
    same(images, expected, k)
    same(texts, expected.T, k)
    assert sum(done) == 35 and not images.values.requires_grad


@settings(max_examples=60, deadline=None)
@given(lengths, lengths, st.integers(1, 10), st.integers(1, 60), st.integers(1, 4), st.integers(0, 10**6))
def test_top_k_of_equal_scores_takes_the_lower_index(
    t: list[int], r: list[int], k: int, tokens: int, values: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randint(0, values, (len(t), len(r)), generator=draw).float()
    images, texts = top_k(Table(matrix), Table.items(t), Table.items(r), k, tokens=tokens)
    same(images, matrix, k)
    same(texts, matrix.T, k)


def test_the_whole_matrix_is_never_held() -> None:
    class Watched(Table):
        def __call__(self, a: Encoded, b: Encoded, pairs: Tensor | None = None) -> Tensor:
            sizes.append(len(a) * len(b))
            return super().__call__(a, b, pairs)

    sizes: list[int] = []
    matrix: Any = torch.randn(40, 30)
    images, texts = top_k(Watched(matrix), Table.items([3] * 40), Table.items([2] * 30), 2, tokens=100)
    assert max(sizes) <= 20 and images.values.untyped_storage().nbytes() == 40 * 2 * 4
    same(texts, matrix.T, 2)
