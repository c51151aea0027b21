from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossmodal.errors import ConfigError, DataError
from crossmodal.evaluate.ndcg import (
    ndcg,
    ndcg_metrics,
    ndcg_of_scores,
    read_relevances,
    relevance_file,
    write_relevances,
)


def dcg(relevance: Sequence[float]) -> float:
    return sum((2**value - 1) / math.log2(k + 2) for k, value in enumerate(relevance))


def naive(relevance: Sequence[float], order: Sequence[int], rank: int) -> float:
    found = [relevance[i] for i in order][:rank]
    ideal = dcg(sorted(relevance, reverse=True)[: len(found)])
    return dcg(found) / ideal if ideal else 0.0


@given(st.data(), st.integers(1, 6), st.integers(1, 9), st.integers(1, 12))
def test_ndcg_is_that_of_loops(data: st.DataObject, queries: int, gallery: int, rank: int) -> None:
    value = st.one_of(st.just(0.0), st.floats(0, 3, width=32))
    relevance = [data.draw(st.lists(value, min_size=gallery, max_size=gallery)) for _ in range(queries)]
    depth = data.draw(st.integers(1, gallery))
    order = [data.draw(st.permutations(range(gallery)))[:depth] for _ in range(queries)]
    found = ndcg(torch.tensor(relevance), torch.tensor(order), rank=rank)
    expected = [naive(r, o, rank) for r, o in zip(relevance, order, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_by_hand() -> None:
    relevance = torch.tensor([[0.0, 2.0, 1.0]])
    # 3 / log2(3) + 1 / log2(4) of 3 + 1 / log2(3)
    expected = (3 / math.log2(3) + 0.5) / (3 + 1 / math.log2(3))
    assert ndcg(relevance, torch.tensor([[0, 1, 2]])).tolist() == pytest.approx([expected])
    assert ndcg(relevance, torch.tensor([[1, 2, 0]])).tolist() == [1.0]
    assert ndcg(torch.zeros(1, 3), torch.tensor([[0, 1, 2]])).tolist() == [0.0]


def test_scores_are_ranked_with_equal_ones_as_they_stand() -> None:
    relevance = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.5, 0.0]])
    scores = torch.tensor([[-1.0, 3.0, 3.0], [0.0, 0.0, 0.0]])
    expected = ndcg(relevance, torch.tensor([[1, 2, 0], [0, 1, 2]]))
    assert torch.equal(ndcg_of_scores(scores, relevance), expected)
    assert expected[1] == 1


@pytest.mark.parametrize("folds", [1, 2, 3])
def test_metrics_are_means_over_queries_and_folds(folds: int) -> None:
    generator = torch.Generator().manual_seed(folds)
    scores = torch.rand(14, 6, generator=generator)
    relevance = torch.rand(14, 6, generator=generator)
    image_of = torch.randint(0, 6, (14,), generator=generator)
    image_of[:6] = torch.arange(6)
    found = ndcg_metrics(scores, {"rougeL": relevance, "spice": 1 - relevance}, image_of, folds=folds, rank=4)
    img, txt = [], []
    for columns in np.array_split(range(6), folds):
        rows = [i for i in range(14) if folds == 1 or int(image_of[i]) in columns]
        s, r = scores.numpy()[np.ix_(rows, columns)], relevance.double().numpy()[np.ix_(rows, columns)]
        img.append(np.mean([naive(r[i], np.argsort(-s[i]), 4) for i in range(len(rows))]))
        txt.append(np.mean([naive(r[:, j], np.argsort(-s[:, j]), 4) for j in range(len(columns))]))
    assert found["img_ndcg_rougeL"] == pytest.approx(np.mean(img))
    assert found["txt_ndcg_rougeL"] == pytest.approx(np.mean(txt))
    assert list(found) == ["img_ndcg_rougeL", "txt_ndcg_rougeL", "img_ndcg_spice", "txt_ndcg_spice"]
    assert found["img_ndcg_spice"] != found["img_ndcg_rougeL"]


def test_the_published_zero_is_not_reported() -> None:
    found = ndcg_metrics(torch.eye(3), {"rougeL": torch.eye(3)}, [0, 1, 2])
    assert found == {"img_ndcg_rougeL": 1.0, "txt_ndcg_rougeL": 1.0}


def test_relevances_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="relevances spice are for 3 captions and 2 images, and the scores for 3 and 3"):
        ndcg_metrics(torch.eye(3), {"spice": torch.zeros(3, 2)}, [0, 1, 2])
    with pytest.raises(DataError, match="img_ndcg_spice is nan: its relevances hold values that are no numbers"):
        ndcg_metrics(torch.eye(3), {"spice": torch.full((3, 3), torch.nan)}, [0, 1, 2])
    with pytest.raises(ConfigError, match="4 folds of 3 images"):
        ndcg_metrics(torch.eye(3), {}, [0, 1, 2], folds=4)


def test_published_files(tmp_path: Path) -> None:
    path = relevance_file(tmp_path, "coco", "test", "rougeL")
    assert path == tmp_path / "coco" / "relevances" / "coco-test-rougeL.npy"
    relevance = torch.rand(4, 3)
    write_relevances(path, relevance)
    assert path.read_bytes() == relevance.numpy().astype("<f4").tobytes()  # no header
    assert torch.equal(read_relevances(path, 4, 3), relevance)


@pytest.mark.parametrize(("texts", "images"), [(4, 4), (3, 3), (0, 0)])
def test_a_file_of_another_size(texts: int, images: int, tmp_path: Path) -> None:
    np.zeros(12, dtype=np.float32).tofile(path := tmp_path / "coco-test-spice.npy")
    with pytest.raises(DataError, match=rf"spice\.npy has 48 bytes, and {texts} captions times {images} images of raw"):
        read_relevances(path, texts, images)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npy cannot be read \(No such file or directory\); give the folder"):
        read_relevances(tmp_path / "none.npy", 1, 1)
