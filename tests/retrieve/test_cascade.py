from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from crossmodal.errors import ConfigError, DataError
from crossmodal.evaluate.ranks import TieRule, ranks
from crossmodal.evaluate.recall import recall
from crossmodal.model.base import Encoded
from crossmodal.model.scorers import AlignmentScorer, VectorScorer
from crossmodal.retrieve.cascade import Ranked, Stage, run_cascade
from crossmodal.retrieve.scoring import score_matrix

from .test_scoring import Table


def stages(matrices: list[Tensor], keeps: list[int | None], lengths: list[int] | None = None) -> list[Stage]:
    a, b = matrices[0].shape
    texts, images = Table.items(lengths or [1 + i % 3 for i in range(a)]), Table.items([2] * b)
    keeps = [*keeps, None]
    return [
        Stage(texts, images, Table(scores), keep, f"stage {i}")
        for i, (scores, keep) in enumerate(zip(matrices, keeps, strict=True))
    ]


def naive(matrices: list[Tensor], keeps: list[int | None], rows: bool = True) -> list[list[list[int]]]:
    """The whole order of every query after every stage, by sorting."""
    tables = [m if rows else m.T for m in matrices]
    count = tables[0].shape[1]
    order = [sorted(range(count), key=lambda j: -float(row[j])) for row in tables[0]]
    found = [order]
    for table, keep in zip(tables[1:], keeps, strict=True):
        order = [
            sorted(items[:keep], key=lambda j: -float(row[j])) + (items[keep:] if keep else [])
            for items, row in zip(order, table, strict=True)
        ]
        found.append(order)
    return found


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    a, b = draw(st.integers(1, 8)), draw(st.integers(1, 7))
    count = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    matrices = [torch.randperm(a * b, generator=generator).view(a, b).float() for _ in range(count)]
    keeps = sorted(draw(st.lists(st.integers(1, 8), min_size=count - 1, max_size=count - 1)), reverse=True)
    positives = draw(st.lists(st.lists(st.integers(0, b - 1), max_size=2), min_size=a, max_size=a))
    positives[0] = [b - 1]
    return {"matrices": matrices, "keeps": keeps, "positives": positives}


@given(problems(), st.sampled_from([1, 20, 10**6]))
def test_lists_and_ranks_are_those_of_sorting(problem: dict[str, Any], tokens: int) -> None:
    matrices, keeps, positives = problem["matrices"], problem["keeps"], problem["positives"]
    found = run_cascade(stages(matrices, keeps), positives, tokens=tokens)
    without = run_cascade(stages(matrices, keeps), tokens=tokens)
    columns = range(matrices[0].shape[1])
    right_texts = [[i for i, images in enumerate(positives) if j in images] for j in columns]
    for number, result in enumerate(found):
        of_texts, of_images = (naive(matrices, keeps, rows)[number] for rows in (True, False))
        assert result.images_of_text.tolist() == of_texts and result.texts_of_image.tolist() == of_images
        assert torch.equal(without[number].images_of_text, result.images_of_text)
        assert without[number].ranks is None and without[number].metrics == {}
        assert result.ranks is not None
        for ranked, order, right in (
            (result.ranks.image, of_texts, positives),
            (result.ranks.text, of_images, right_texts),
        ):
            expected = [
                min((items.index(j) for j in wanted), default=math.nan)
                for items, wanted in zip(order, right, strict=True)
            ]
            # Other right items count for nothing: the best one has only wrong ones before it.
            torch.testing.assert_close(ranked, torch.tensor(expected, dtype=torch.float64), equal_nan=True)


def test_lists_are_cut_and_ranks_are_not() -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.rand(60, 40, generator=generator) for _ in range(3)]
    keeps: list[int | None] = [12, 5]
    image_of = torch.randint(0, 40, (60,), generator=generator)
    for number, result in enumerate(run_cascade(stages(matrices, keeps), image_of)):
        whole = naive(matrices, keeps)[number]
        assert result.images_of_text.tolist() == [items[:12] for items in whole]
        assert result.texts_of_image.shape == (40, 12)
        assert result.ranks is not None
        assert result.ranks.image.tolist() == [whole[i].index(j) for i, j in enumerate(image_of.tolist())]
        assert int(result.ranks.image.max()) > 12
        assert result.metrics == recall(result.ranks)


def test_lists_hold_ten_where_fewer_are_kept() -> None:
    results = run_cascade(stages([torch.rand(20, 15), torch.rand(20, 15)], [3]))
    assert [result.images_of_text.shape for result in results] == [(20, 10), (20, 10)]


def test_the_re_ranked_first_has_the_highest_score_of_the_last_stage() -> None:
    generator = torch.Generator().manual_seed(2)
    first, last = torch.rand(30, 30, generator=generator), torch.rand(30, 30, generator=generator)
    image_of = torch.arange(30)
    before, after = run_cascade(stages([first, last + 5 * torch.eye(30)], [29]), image_of)
    kept = before.images_of_text[:, :29]
    assert torch.equal(
        after.images_of_text[:, 0], kept.gather(1, (last + 5 * torch.eye(30)).gather(1, kept).argmax(1)[:, None])[:, 0]
    )
    # A last stage that knows the answer brings it to the front: sorted the other way, recall would be 0.
    assert after.metrics["r_mean"] > 0.9 > before.metrics["r_mean"]


@pytest.mark.parametrize("keep", [None, 12, 100])
@pytest.mark.parametrize("ties", ["optimistic", "average", "pessimistic"])
def test_keeping_the_gallery_is_the_last_scorer_alone(keep: int | None, ties: TieRule) -> None:
    generator = torch.Generator().manual_seed(3)
    first, last = (torch.randint(0, 4, (12, 9), generator=generator).float() for _ in range(2))
    image_of = torch.randint(0, 9, (12,), generator=generator)
    result = run_cascade(stages([first, last], [keep]), image_of, ties=ties)[-1]
    alone = ranks(last, image_of, ties=ties)
    assert result.ranks is not None
    torch.testing.assert_close(result.ranks.image, alone.image)
    torch.testing.assert_close(result.ranks.text, alone.text, equal_nan=True)
    described = ~alone.text.isnan()
    assert torch.equal(result.ranks.image_ties, alone.image_ties)
    assert torch.equal(result.ranks.text_ties[described], alone.text_ties[described])


def test_a_tie_at_the_edge_does_not_bring_a_lost_item_before_the_candidates() -> None:
    first, last = torch.ones(1, 5), torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    before, after = run_cascade(stages([first, last], [3]), [4], ties="average")
    assert before.ranks is not None and before.ranks.image.tolist() == [2]  # of five equal ones
    assert after.images_of_text.tolist() == [[2, 1, 0, 3, 4]]
    assert after.ranks is not None and after.ranks.image.tolist() == [3]


def test_equal_scores_keep_the_order_of_the_stage_before() -> None:
    first, last = torch.tensor([[1.0, 3.0, 2.0, 0.0]]), torch.tensor([[5.0, 5.0, 5.0, 9.0]])
    assert run_cascade(stages([first, last], [3]))[-1].images_of_text.tolist() == [[1, 2, 0, 3]]


def test_cost_is_of_each_pair_once() -> None:
    scores = torch.rand(10, 10) + 10 * torch.eye(10)
    seen: list[int] = []
    first, same, last = run_cascade(stages([scores, scores, scores], [4, 1]), torch.arange(10), progress=seen.append)
    assert first.pairs == 100
    assert 40 <= same.pairs <= 80 and last.pairs == 10  # both directions ask for the same ten
    assert sum(seen) == first.pairs + same.pairs + last.pairs
    assert all(isinstance(result, Ranked) and result.seconds > 0 for result in (first, same, last))
    assert [result.name for result in (first, same, last)] == ["stage 0", "stage 1", "stage 2"]


def test_stages_may_have_encoded_the_items_differently() -> None:
    first, last = torch.rand(4, 3), torch.rand(4, 3)
    cheap, dear = stages([first, last], [2])
    dear = Stage(Table.items([9, 1, 4, 2]), Table.items([1, 7, 3]), dear.scorer)
    found = run_cascade([cheap, dear], [0, 1, 2, 0])[-1]
    assert found.images_of_text.tolist() == naive([first, last], [2])[-1]


def test_the_heads_of_aladin() -> None:
    def items(count: int, seed: int) -> Encoded:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(4, 9, (count,), generator=generator)
        rows, vectors = (torch.randn(n, 6, generator=generator) for n in (int(lengths.sum()), count))
        return Encoded(lengths, {"tokens": F.normalize(rows, dim=1)}, {"embeds": F.normalize(vectors, dim=1)})

    texts, images = items(12, 0), items(9, 1)
    matching, alignment = VectorScorer(), AlignmentScorer(clamp="always")
    heads = [Stage(texts, images, matching, 4, "matching"), Stage(texts, images, alignment, name="alignment")]
    first, last = run_cascade(heads, torch.arange(12) % 9)
    vectors, sets = (score_matrix(scorer, texts, images) for scorer in (matching, alignment))
    assert torch.equal(first.images_of_text, vectors.argsort(dim=1, descending=True))
    kept = first.images_of_text[:, :4]
    best = kept.gather(1, sets.gather(1, kept).argmax(dim=1, keepdim=True))
    assert torch.equal(last.images_of_text[:, :1], best)
    assert torch.equal(last.images_of_text[:, 4:], first.images_of_text[:, 4:])


def test_no_gradients() -> None:
    scores = torch.rand(3, 3, requires_grad=True)
    assert run_cascade(stages([scores, scores], [2]), [0, 1, 2])[-1].metrics["rsum"] > 0


def test_stages_that_do_not_follow_each_other() -> None:
    scores = torch.rand(4, 3)
    with pytest.raises(ConfigError, match="a cascade without stages ranks nothing"):
        run_cascade([])
    with pytest.raises(ConfigError, match="stage 2 keeps 3 of the 2 that it is given; keep fewer"):
        run_cascade(stages([scores] * 3, [2, 3]))
    with pytest.raises(ConfigError, match="stage 2 keeps all of the 2 that it is given"):
        run_cascade(stages([scores] * 3, [2, None]))
    with pytest.raises(ConfigError, match="stage 1 keeps 0 candidates; keep 1 at least"):
        run_cascade(stages([scores] * 2, [0]))
    one, other = stages([scores], [])[0], stages([torch.rand(4, 2)], [])[0]
    with pytest.raises(ConfigError, match="stage 2 has 4 captions and 2 images, the first one 4 and 3"):
        run_cascade([one, other])


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("positives", [None, [0, 1, 1]])
def test_nan_scores(number: int, positives: list[int] | None) -> None:
    matrices = [torch.rand(3, 2), torch.rand(3, 2)]
    matrices[number][1, 1] = torch.nan
    with pytest.raises(DataError, match="a score is NaN"):
        run_cascade(stages(matrices, [2]), positives)
