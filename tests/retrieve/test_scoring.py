"""The engine against one pair at a time, for a joint scorer and for plain vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossmodal.data.batches import Regions, Texts
from crossmodal.model.base import Encoded, Scorer, all_pairs, inference
from crossmodal.model.uniter import Uniter
from crossmodal.retrieve.scoring import score_blocks, score_matrix, score_pairs, top_k

BUDGETS = [1, 40, 10**6]


class Cosine:
    reads: tuple[str, ...] = ("vector",)

    def __call__(self, a: Encoded, b: Encoded, pairs: Tensor | None = None) -> Tensor:
        x, y = (torch.nn.functional.normalize(e.vectors["vector"], dim=-1) for e in (a, b))
        return x @ y.T if pairs is None else (x[pairs[:, 0]] * y[pairs[:, 1]]).sum(-1)


def joint() -> tuple[Scorer, Encoded, Encoded]:
    torch.manual_seed(0)
    model = Uniter({"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "intermediate_size": 32, "img_dim": 8, "initializer_range": 0.3}).double().eval()  # fmt: skip
    texts = Texts(torch.randint(1, 30, (7, 6)), torch.tensor([3, 6, 4, 6, 3, 5, 2]))
    regions = Regions(torch.randn(5, 4, 8), torch.rand(5, 4, 7), torch.tensor([4, 1, 3, 2, 4]))
    with inference(model):
        return model.scorers["itm"], model.encode("text", texts), model.encode("image", regions)


def vectors() -> tuple[Scorer, Encoded, Encoded]:
    torch.manual_seed(1)
    a, b = (Encoded(torch.ones(n, dtype=torch.int64), {}, {"vector": torch.randn(n, 4).double()}) for n in (7, 5))
    return Cosine(), a, b


@pytest.fixture(params=[joint, vectors], ids=["joint", "vectors"])
def subject(request: pytest.FixtureRequest) -> tuple[Scorer, Encoded, Encoded]:
    made: tuple[Scorer, Encoded, Encoded] = request.param()
    return made


def one_by_one(scorer: Scorer, a: Encoded, b: Encoded) -> Tensor:
    with torch.no_grad():
        rows = [[scorer(a[[i]], b[[j]]).flatten() for j in range(len(b))] for i in range(len(a))]
        return torch.stack([torch.cat(row) for row in rows])


@pytest.mark.parametrize("tokens", BUDGETS)
@torch.no_grad()
def test_any_budget_gives_every_score(subject: tuple[Scorer, Encoded, Encoded], tokens: int) -> None:
    scorer, a, b = subject
    expected = one_by_one(scorer, a, b)
    done: list[int] = []
    torch.testing.assert_close(score_matrix(scorer, a, b, tokens=tokens, progress=done.append), expected)
    assert sum(done) == 35
    pairs = all_pairs(7, 5)[torch.randperm(35)[:11]]
    torch.testing.assert_close(score_pairs(scorer, a, b, pairs, tokens=tokens), expected[pairs[:, 0], pairs[:, 1]])
    seen = torch.cat([index for index, _ in score_blocks(scorer, a, b, tokens=tokens)])
    assert sorted(seen.tolist()) == list(range(7))


@pytest.mark.parametrize("tokens", BUDGETS)
@torch.no_grad()
def test_running_top_k_is_that_of_the_matrix(subject: tuple[Scorer, Encoded, Encoded], tokens: int) -> None:
    scorer, a, b = subject
    matrix = score_matrix(scorer, a, b)
    images, texts = top_k(scorer, a, b, 3, tokens=tokens)
    torch.testing.assert_close(images.values, matrix.topk(3, dim=1).values)
    torch.testing.assert_close(matrix.gather(1, images.indices), images.values)
    torch.testing.assert_close(texts.values, matrix.T.topk(3, dim=1).values)
    torch.testing.assert_close(matrix.T.gather(1, texts.indices), texts.values)


@torch.no_grad()
def test_top_k_of_a_small_gallery_is_all_of_it(subject: tuple[Scorer, Encoded, Encoded]) -> None:
    scorer, a, b = subject
    images, texts = top_k(scorer, a, b, 10)
    assert images.values.shape == (7, 5) and texts.values.shape == (5, 7)


def test_no_pairs_no_scores(subject: tuple[Scorer, Encoded, Encoded]) -> None:
    scorer, a, b = subject
    assert score_pairs(scorer, a, b, torch.empty(0, 2, dtype=torch.int64)).shape == (0,)
