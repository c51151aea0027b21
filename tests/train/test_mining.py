from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crossmodal.data.batches import Batch, Regions, Texts
from crossmodal.data.corpus import Corpus
from crossmodal.data.datasets import Pools
from crossmodal.errors import ConfigError
from crossmodal.model.base import Model
from crossmodal.train.mining import Hardest
from crossmodal.train.recipe import ModelSpec, parse_recipe
from crossmodal.train.setup import build_model, open_data

from ..recipes import tiny_recipe

POOL = 7


@pytest.fixture(scope="module")
def corpus(tiny_world: Path) -> Corpus:
    return open_data(parse_recipe(tiny_recipe(tiny_world)).data["train"])


@pytest.fixture(scope="module")
def model(tiny_world: Path, corpus: Corpus) -> Model:
    """Untrained, with dropout, in training mode; weights spread so widely that scores differ clearly."""
    config = {**tiny_recipe(tiny_world)["model"]["config"], "initializer_range": 0.2}
    torch.manual_seed(0)
    return build_model(ModelSpec(config=config, dropout=0.3), lambda: corpus).train()


def pools(corpus: Corpus, model: Model, anchor: Any, anchors: list[int]) -> Batch:
    return Pools(corpus, model.processor, anchor=anchor, pool=POOL).batch(anchors, 0)


def naive_scores(model: Model, batch: Batch) -> list[list[float]]:
    """The score of every pair, one pair at a time."""
    model.eval()
    assert batch.pairs is not None
    out = []
    with torch.no_grad():
        for i, j in batch.pairs.tolist():
            a = model.encode("text", batch.roles["text"][1].select(torch.tensor([i])))
            b = model.encode("image", batch.roles["image"][1].select(torch.tensor([j])))
            out.append(float(model.scorers["itm"](a, b)))
    model.train()
    return [out[start : start + batch.group] for start in range(0, len(out), batch.group)]


def ids(batch: Batch) -> list[list[tuple[str, str]]]:
    assert batch.pairs is not None
    pairs = [(batch.ids["text"][i], batch.ids["image"][j]) for i, j in batch.pairs.tolist()]
    return [pairs[start : start + batch.group] for start in range(0, len(pairs), batch.group)]


@pytest.mark.parametrize("anchor", ["text", "image"])
@pytest.mark.parametrize("keep", [1, 3, POOL - 1])
def test_the_positive_and_the_best_scored_negatives_of_every_pool_are_kept(
    corpus: Corpus, model: Model, anchor: str, keep: int
) -> None:
    batch = pools(corpus, model, anchor, [3, 40, 11, 12])
    kept = Hardest(keep=keep, tokens=60)(model, batch)
    assert kept.group == 1 + keep and kept.groups == 4
    assert kept.extras["matched"].tolist() == 4 * [[1] + keep * [0]]
    for scores, before, after in zip(naive_scores(model, batch), ids(batch), ids(kept), strict=True):
        hardest = sorted(range(1, POOL), key=lambda k: -scores[k])[:keep]
        assert after[0] == before[0]
        assert sorted(after[1:]) == sorted(before[k] for k in hardest)


def test_pools_are_scored_as_pair_by_pair(corpus: Corpus, model: Model) -> None:
    batch = pools(corpus, model, "text", [0, 5, 9])
    found = Hardest(tokens=60).score(model, batch)
    assert found.shape == (3, POOL) and not found.requires_grad
    torch.testing.assert_close(found, torch.tensor(naive_scores(model, batch)), rtol=1e-4, atol=1e-5)


def test_dropout_is_off_while_mining_and_every_module_gets_its_mode_back(corpus: Corpus, model: Model) -> None:
    batch = pools(corpus, model, "image", [0, 5])
    frozen = model.get_submodule("uniter.embeddings")
    frozen.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first, second = (Hardest(keep=2).score(model, batch) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes and not frozen.training
    assert all(parameter.grad is None for parameter in model.parameters())
    frozen.train()
    given: list[Tensor] = [model(batch, {"rank_scores"})["rank_scores"] for _ in range(2)]
    assert not torch.allclose(given[0], given[1])  # while training it is on


def test_modes_come_back_after_an_error(corpus: Corpus, model: Model) -> None:
    batch = pools(corpus, model, "text", [0])
    with pytest.raises(KeyError):
        Hardest(keep=2, scorer="cosine")(model, batch)
    assert all(module.training for module in model.modules())


def test_a_pool_with_fewer_negatives_than_are_kept_is_refused(corpus: Corpus, model: Model) -> None:
    batch = pools(corpus, model, "text", [0])
    with pytest.raises(ConfigError, match=rf"keeps {POOL} negatives but a pool has {POOL - 1}; lower keep or raise"):
        Hardest(keep=POOL)(model, batch)


def test_the_published_training_without_an_index_reads_the_first_columns_of_the_padded_pair(
    corpus: Corpus, model: Model
) -> None:
    batch = pools(corpus, model, "image", [0])
    kept = Hardest(keep=3, published_defect="no_index")(model, batch)
    assert ids(kept) == ids(Hardest(keep=3)(model, batch))
    text, image = kept.roles["text"][1], kept.roles["image"][1]
    whole = batch.roles["text"][1]
    assert isinstance(text, Texts) and isinstance(image, Regions) and isinstance(whole, Texts)
    assert text.input_ids.shape[1] == whole.input_ids.shape[1]  # the padding of the pool is kept
    lengths = [sum(pair) for pair in zip(*(n.tolist() for n in kept.pair_lengths()), strict=True)]
    expected = [[*range(n), *(max(lengths) - n) * [-1]] for n in lengths]
    assert kept.extras["joint_index"].tolist() == expected


@pytest.mark.parametrize("scorer", ["alignment", "matching"])
def test_it_mines_with_the_scorers_of_a_model_that_encodes_each_side_alone(
    scorer: str, tiny_world: Path, corpus: Corpus
) -> None:
    config = {**tiny_recipe(tiny_world)["model"]["config"], "initializer_range": 0.2}
    aladin = build_model(ModelSpec(use="aladin", config=config, dropout=0.0), lambda: corpus)
    batch = pools(corpus, aladin, "text", [3, 11])
    scores = Hardest(keep=2, scorer=scorer).score(aladin, batch)
    kept = Hardest(keep=2, scorer=scorer)(aladin, batch)
    for row, before, after in zip(scores, ids(batch), ids(kept), strict=True):
        assert after == [before[0], *(before[1 + i] for i in row[1:].argsort(descending=True)[:2].tolist())]
