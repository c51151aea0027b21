"""Several ranks give what one process gives with the sum of their batches: real processes under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from crossmodal.data.captions import Caption
from crossmodal.data.samplers import GlobalOrder
from crossmodal.data.text_writer import write_text_db
from crossmodal.data.texts import TextDB
from crossmodal.data.tokenizers import load_tokenizer
from crossmodal.train.distributed import OneProcess

from .dist_worker import ANCHORS, CASES, GLOBAL_BATCH, STEPS, losses_of, run_case

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parents[2]
CLOSE = 1e-9

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def texts(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first captions of the training split, so few that an epoch does not end with a full update."""
    stored = TextDB(tiny_world / "texts" / "train.db")
    chosen = [Caption(id, stored.image_of[id], stored[id].sentence or "") for id in stored.ids[:ANCHORS]]
    return write_text_db(chosen, tmp_path_factory.mktemp("texts") / "few.db", load_tokenizer(stored.path))


@pytest.fixture(scope="module")
def one(tiny_world: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Every case in this process, with the whole batch."""
    output = tmp_path_factory.mktemp("one")
    return {case: run_case(case, tiny_world, texts, output, OneProcess()) for case in CASES}


@pytest.fixture(scope="module", params=[2, 3], ids=["2_ranks", "3_ranks"])
def many(
    request: pytest.FixtureRequest, tiny_world: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Found]:
    """Every case under torchrun, in one launch: what each rank found."""
    output = tmp_path_factory.mktemp(f"ranks_{request.param}")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(request.param)]
    worker = ["-m", "tests.train.dist_worker", str(tiny_world), str(texts), str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *worker], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(output / f"rank_{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.parametrize("world", [2, 3])
def test_the_cases_hold_an_update_for_which_some_rank_has_no_anchor(world: int) -> None:
    batch = GLOBAL_BATCH // world
    orders = [GlobalOrder(ANCHORS, batch, seed=1, stream="0", rank=rank, world=world) for rank in range(world)]
    counts = [[len(order.slice(step)[1]) for order in orders] for step in range(STEPS)]
    assert counts[4] == [1] + [0] * (world - 1)
    assert counts[:4] + counts[5:] == 6 * [world * [batch]]


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_one_process(case: str, one: Found, many: list[Found]) -> None:
    expected, initial = one[case]["weights"], one[case]["initial"]
    for rank in many:
        found = rank[case]["weights"]
        assert found.keys() == expected.keys()
        assert {weight.dtype for weight in found.values()} == {torch.float64}
        assert max(float((found[name] - weight).abs().max()) for name, weight in expected.items()) <= CLOSE
        assert all(rank[case]["initial"][name].equal(weight) for name, weight in initial.items())
    # Training moved them by many times more than the bound.
    assert sum(float((weight - initial[name]).abs().max()) > 1e-3 for name, weight in expected.items()) > 30


@pytest.mark.parametrize("case", CASES)
def test_what_is_logged_is_that_of_one_process(case: str, one: Found, many: list[Found]) -> None:
    """Losses by tag, gradient norms and validation metrics, all over the global batch."""
    expected, found = one[case]["logged"], many[0][case]["logged"]
    assert [(row["step"], row["name"]) for row in found] == [(row["step"], row["name"]) for row in expected]
    assert {"train/loss", "train/grad_norm", "train/lr", "valid/r_mean"} <= {row["name"] for row in found}
    assert max(abs(a["value"] - b["value"]) for a, b in zip(found, expected, strict=True)) <= CLOSE


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_hold_the_same_weights_to_the_bit(case: str, many: list[Found]) -> None:
    for rank in many[1:]:
        assert all(weight.equal(many[0][case]["weights"][name]) for name, weight in rank[case]["weights"].items())


@pytest.mark.parametrize("case", CASES)
def test_parameters_that_no_rank_uses_are_left_alone_by_weight_decay(case: str, one: Found, many: list[Found]) -> None:
    unused = one[case]["unused"]
    assert "uniter.img_embeddings.mask_embedding.weight" in unused
    assert ("itm_output.weight" in unused) == ("itm" not in losses_of(case))
    for rank in many:
        assert rank[case]["unused"] == unused
        assert all(rank[case]["weights"][name].equal(one[case]["initial"][name]) for name in unused)


@pytest.mark.parametrize("case", CASES)
def test_scores_shared_out_over_ranks_are_those_of_one_process(case: str, one: Found, many: list[Found]) -> None:
    expected = one[case]["scores"]
    assert len(expected) == ANCHORS and expected.std() > 1e-3
    for rank in many:
        assert float((rank[case]["scores"] - expected).abs().max()) <= CLOSE
        assert rank[case]["metrics"] == one[case]["metrics"]
