"""Several ranks give what one process gives with the sum of their batches: real processes under both launchers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from crossmodal.data.samplers import GlobalOrder
from crossmodal.evaluate.results import load_results
from crossmodal.train.distributed import OneProcess
from crossmodal.train.trainer import drawn_stream

from ..commands import command
from ..launchers import LAUNCHERS, run
from ..recipes import tiny_recipe, write_recipe
from .dist_worker import (
    ALONE,
    ANCHORS,
    CASES,
    GLOBAL_BATCH,
    STEPS,
    cases_of,
    losses_of,
    make_recipe,
    run_case,
    write_few,
)
from .exchanges import TYPES, rows

pytestmark = pytest.mark.dist

Found = dict[str, dict[str, Any]]
LAUNCHES = {f"{launcher}_{ranks}": (launcher, ranks) for launcher in LAUNCHERS for ranks in (2, 3)}
every_launch = pytest.mark.parametrize("launch", LAUNCHES)
every_case = pytest.mark.parametrize(
    ("launch", "case"), [(name, case) for name, (launcher, _) in LAUNCHES.items() for case in cases_of(launcher)]
)


@pytest.fixture(scope="module")
def few(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_few(tiny_world, tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def one(tiny_world: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Every case in this process, with the whole batch."""
    output = tmp_path_factory.mktemp("one")
    found = {case: run_case(case, tiny_world, few, output, OneProcess()) for case in ALONE}
    return {name: found[case.like or name] for name, case in CASES.items()}


@pytest.fixture(scope="module")
def launched(tiny_world: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Found]]:
    """What each rank found of all cases, which each pair of launcher and number of ranks runs in one launch."""

    @cache
    def found(launch: str) -> list[Found]:
        launcher, ranks = LAUNCHES[launch]
        output = tmp_path_factory.mktemp(launch)
        words = [launcher, *map(str, (tiny_world, few, output))]
        done = run([*LAUNCHERS[launcher](ranks), "-m", "tests.train.dist_worker", *words], timeout=900)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return [torch.load(output / f"rank_{rank}.pt", weights_only=True) for rank in range(ranks)]

    return found


@pytest.fixture
def many(launch: str, launched: Callable[[str], list[Found]]) -> list[Found]:
    return launched(launch)


@pytest.mark.parametrize("world", [2, 3])
def test_the_cases_hold_an_update_for_which_some_rank_has_no_anchor(world: int) -> None:
    batch = GLOBAL_BATCH // world
    orders = [GlobalOrder(ANCHORS, batch, seed=14, stream="0", rank=rank, world=world) for rank in range(world)]
    counts = [[len(order.slice(step)[1]) for order in orders] for step in range(STEPS)]
    assert counts == [world * [batch], [1] + [0] * (world - 1), world * [batch]]


def test_the_mixed_case_draws_both_of_its_streams(tiny_world: Path, few: Path, tmp_path: Path) -> None:
    mixed = make_recipe("mixed", tiny_world, few, 1, tmp_path)
    assert {drawn_stream(mixed, step) for step in range(STEPS)} == {0, 1}


@every_launch
def test_exchanges(many: list[Found]) -> None:
    size = len(many)
    parts = [rows(rank, size, torch.float64) for rank in range(size)]
    weights = torch.arange(1.0, size * (size - 1) + 1).view(-1, 2)
    for rank, found in enumerate(each["exchanged"] for each in many):
        assert found["rank"] == rank
        for dtype, total, gathered, sent in zip(TYPES, found["sums"], found["rows"], found["sent"], strict=True):
            expected = [size, size * (size - 1) // 2]
            if dtype == torch.bool:
                expected = [size, size - 1]
            assert total.tolist() == expected
            assert total.dtype == (dtype if dtype.itemsize >= 4 or dtype.is_floating_point else torch.int32)
            assert gathered.equal(torch.cat(parts).to(dtype)) and gathered.dtype == dtype
            assert sent.equal(torch.tensor([[0, 1]]).to(dtype)) and sent.dtype == dtype
        assert found["no_rows"].shape == (0, 3)
        assert str(found["sent_scalar"].item()) == "-0.0"
        assert found["object"] == {"from": 0}
        assert found["objects"] == [[other] * other for other in range(size)]
        assert found["gathered"].equal(torch.cat(parts))
        # Each rank's loss weighs the rows with (rank + 1): their sum comes back to the rank that has the rows.
        own = weights.split([len(part) for part in parts])[rank]
        assert found["gradient"].equal(own.double() * sum(range(1, size + 1)))
        assert found["gradient_alone"].tolist() == ([2.0 * size] * 2 if rank == 0 else [0.0, 0.0])
        for sent in found["halved"]:
            expected = 0.1 * size * (size + 1) / 2
            assert sent.dtype == torch.float32 and sent.half().float().equal(sent)
            assert float(sent) == pytest.approx(expected, rel=2e-3) and float(sent) != torch.tensor(expected).item()
        assert found["seconds"] > 0


@every_case
def test_weights_are_those_of_one_process(case: str, one: Found, many: list[Found]) -> None:
    expected, initial = one[case]["weights"], one[case]["initial"]
    for rank in many:
        found = rank[case]["weights"]
        assert found.keys() == expected.keys()
        assert {weight.dtype for weight in found.values()} == {CASES[case].dtype}
        assert max(float((found[name] - weight).abs().max()) for name, weight in expected.items()) <= CASES[case].close
        assert all(rank[case]["initial"][name].equal(weight) for name, weight in initial.items())
        for name, weight in one[case]["losses"].items():
            assert float((rank[case]["losses"][name] - weight).abs().max()) <= CASES[case].close
            assert not weight.eq(3).any()  # the scale was learnt
    # Training moved them by many times more than the bound, but for those whose gradients cancel.
    moved = [name for name, weight in expected.items() if float((weight - initial[name]).abs().max()) > 1e-3]
    unmoved = expected.keys() - {*moved, *one[case]["unused"]}
    assert all(name.endswith(("attention.self.key.bias", "rank_output.bias")) for name in unmoved), unmoved


@every_case
def test_what_is_logged_is_that_of_one_process(case: str, one: Found, many: list[Found]) -> None:
    """Losses by tag, gradient norms and validation metrics, all over the global batch."""
    expected, found = one[case]["logged"], many[0][case]["logged"]
    assert [(row["step"], row["name"]) for row in found] == [(row["step"], row["name"]) for row in expected]
    assert {"train/loss", "train/grad_norm", "train/lr", "valid/r_mean"} <= {row["name"] for row in found}
    differences = [abs(a["value"] - b["value"]) / max(1, abs(b["value"])) for a, b in zip(found, expected, strict=True)]
    assert max(differences) <= CASES[case].close


@every_case
def test_where_the_time_went_is_logged(case: str, many: list[Found]) -> None:
    shares = many[0][case]["shares"]
    for step in range(1, STEPS + 1):
        values = {row["name"]: row["value"] for row in shares if row["step"] == step}
        assert values.keys() == {"time/data", "time/communication", "time/compute"}
        assert sum(values.values()) == pytest.approx(1) and min(values.values()) > 0


@every_case
def test_all_ranks_hold_the_same_weights_to_the_bit(case: str, many: list[Found]) -> None:
    for rank in many[1:]:
        for part in ("weights", "losses"):
            assert all(weight.equal(many[0][case][part][name]) for name, weight in rank[case][part].items())


@pytest.mark.parametrize("case", [name for name in ALONE if losses_of(name) & {"cross_modal_rank", "ce_clip"}])
def test_thresholds_follow_the_model(case: str, one: Found) -> None:
    """Those of the cases do, so that it means something that they are the same on ranks and in one process."""
    (thresholds,) = (state for name, state in one[case]["losses"].items() if name.endswith("thresholds"))
    assert thresholds.gt(0).any() and thresholds.lt(50).all()
    assert thresholds.eq(0).any()  # of one type there is no wrong caption at all


@every_case
def test_parameters_that_no_rank_uses_are_left_alone_by_weight_decay(case: str, one: Found, many: list[Found]) -> None:
    unused = one[case]["unused"]
    if CASES[case].model == "uniter":
        assert "uniter.img_embeddings.mask_embedding.weight" in unused
        assert ("itm_output.weight" in unused) == ("itm" not in losses_of(case))
    elif CASES[case].model == "test_dual":
        assert unused == ["unused.weight", "unused.bias"]
    elif CASES[case].model == "clip":
        assert unused == []
    else:
        frozen = {"oscar_model.bert.pooler.dense", "oscar_model.classifier"}
        assert {name.rpartition(".")[0] for name in unused} == frozen
    for rank in many:
        assert rank[case]["unused"] == unused
        assert all(rank[case]["weights"][name].equal(one[case]["initial"][name]) for name in unused)


@every_case
def test_scores_shared_out_over_ranks_are_those_of_one_process(case: str, one: Found, many: list[Found]) -> None:
    expected = one[case]["scores"]
    assert expected.shape == (ANCHORS, ANCHORS) and expected.std() > 1e-3
    for rank in many:
        assert float((rank[case]["scores"] - expected).abs().max()) <= CASES[case].close
        assert rank[case]["metrics"] == one[case]["metrics"]


def test_the_last_test_of_a_sharded_run_is_of_all_its_weights(tiny_world: Path, tmp_path: Path) -> None:
    """What `train` scores at its end is what `test` scores with the checkpoint that it leaves."""
    values = tiny_recipe(tiny_world, test="test", distributed={"gradients": "sharded"}, optimizer={"lr": 0.01})
    words = ["--config", str(write_recipe(tmp_path / "r.yaml", values)), "--output", str(tmp_path / "run")]
    done = run([*LAUNCHERS["torchrun"](2), "train_itm.py", *words])
    assert done.returncode == 0, done.stderr[-4000:]
    last = tmp_path / "run" / "last"
    assert command("test", "--checkpoint", last, "--output", tmp_path / "again") == 0
    found, expected = (load_results(folder).scores for folder in (last / "test_test", tmp_path / "again"))
    assert float((found - expected).abs().max()) <= 1e-6 < float(expected.std())
