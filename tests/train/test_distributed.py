"""Several ranks give what one process gives with the sum of their batches: real processes under torchrun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from crossmodal.data.samplers import GlobalOrder
from crossmodal.train.distributed import OneProcess

from .dist_worker import CASES, GLOBAL_BATCH, run_case
from .tiny import PER_IMAGE, write_corpus

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parents[2]
IMAGES = 5
CLOSE = 1e-9

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_corpus(tmp_path_factory.mktemp("corpus"), images=IMAGES)


@pytest.fixture(scope="module")
def one(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Every case in this process, with the whole batch."""
    output = tmp_path_factory.mktemp("one")
    return {name: run_case(name, data, output, OneProcess()) for name in CASES}


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def many(request: pytest.FixtureRequest, data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """Every case under torchrun, in one launch: what each rank found."""
    output = tmp_path_factory.mktemp(f"ranks_{request.param}")
    corpus = output / "corpus.json"
    corpus.write_text(json.dumps(data))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(request.param)]
    command = [sys.executable, *launcher, "-m", "tests.train.dist_worker", str(corpus), str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(output / f"rank_{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_cases_hold_an_update_for_which_a_rank_has_no_anchor(ranks: int) -> None:
    counts = [
        [len(GlobalOrder(IMAGES * PER_IMAGE, GLOBAL_BATCH // ranks, seed=7, stream="0", rank=rank, world=ranks).slice(step)[1])
         for rank in range(ranks)]
        for step in range(6)
    ]  # fmt: skip
    assert counts[4] == [1] + [0] * (ranks - 1)
    assert counts[:4] + counts[5:] == 5 * [ranks * [GLOBAL_BATCH // ranks]]


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_one_process(case: str, one: Found, many: list[Found]) -> None:
    for rank in many:
        assert rank[case]["weights"].keys() == one[case]["weights"].keys()
        for name, weight in one[case]["weights"].items():
            assert weight.dtype == torch.float64
            torch.testing.assert_close(rank[case]["weights"][name], weight, rtol=0, atol=CLOSE, msg=lambda m: f"{name}: {m}")
    moved = [name for name, weight in one[case]["weights"].items() if not weight.equal(one[case]["initial"][name])]
    assert len(moved) > 30


@pytest.mark.parametrize("case", CASES)
def test_logged_losses_and_gradient_norms_are_those_of_one_process(case: str, one: Found, many: list[Found]) -> None:
    expected = one[case]["logged"]
    found = many[0][case]["logged"]
    assert [(row["step"], row["name"]) for row in found] == [(row["step"], row["name"]) for row in expected]
    assert {"train/loss", "train/grad_norm", "train/lr"} <= {row["name"] for row in found}
    assert [row["value"] for row in found] == pytest.approx([row["value"] for row in expected], rel=0, abs=CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_hold_the_same_weights_to_the_bit(case: str, many: list[Found]) -> None:
    for rank in many[1:]:
        assert all(weight.equal(many[0][case]["weights"][name]) for name, weight in rank[case]["weights"].items())


@pytest.mark.parametrize("case", CASES)
def test_parameters_that_no_rank_uses_are_left_alone_by_weight_decay(case: str, one: Found, many: list[Found]) -> None:
    unused = one[case]["without_gradient"]
    assert "uniter.img_embeddings.mask_embedding.weight" in unused
    assert ("itm_output.weight" in unused) == ("itm" not in _losses(case))
    for rank in many:
        assert rank[case]["without_gradient"] == unused
        for name in unused:
            assert rank[case]["weights"][name].equal(one[case]["initial"][name]), name


@pytest.mark.parametrize("case", CASES)
def test_scores_shared_out_over_ranks_are_those_of_one_process(case: str, one: Found, many: list[Found]) -> None:
    for rank in many:
        torch.testing.assert_close(rank[case]["scores"], one[case]["scores"], rtol=0, atol=CLOSE)
        assert rank[case]["scores"].shape == (IMAGES * PER_IMAGE, IMAGES)
        assert rank[case]["metrics"] == one[case]["metrics"]


def _losses(case: str) -> set[str]:
    streams = CASES[case]({"texts": "t", "images": "v"}, 1, False).streams
    return {loss.use for stream in streams for loss in stream.losses}
