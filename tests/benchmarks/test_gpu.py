"""The benchmark of GPUs: without one it says so; what it would do there, it does here on the CPU with small shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from .imported import FOLDER, imported

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    with imported("gpu") as script:
        yield script


@pytest.mark.parametrize("flag", ["", "--json"])
def test_without_a_gpu_it_says_so_in_a_sentence(flag: str) -> None:
    command = [sys.executable, FOLDER / "gpu.py", *flag.split()]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    sentence, *rest = done.stdout.splitlines()
    assert sentence.endswith(".") and "GPU" in sentence
    assert [json.loads(line) for line in rest] == ([[]] if flag else [])


def test_every_precision_has_its_rows_and_those_that_are_missing_a_line(gpu: ModuleType) -> None:
    table = gpu.Table(CPU, gpu.QUICK, compiling=False)
    table.measure()
    cases = [row[0] for row in table.report.rows]
    kinds = ("matmul", "scoring", "step")
    assert cases == [f"{precision}, {kind}" for precision in ("fp32", "fp16", "bf16") for kind in kinds]
    assert table.notes == ["tf32: left out, only GPUs have it"]
    apart = {row[0]: float(row[5]) for row in table.report.rows if "scoring" in row[0]}
    assert apart["fp32, scoring"] == 0 and 0 < apart["fp16, scoring"] < 1e-3 and 0 < apart["bf16, scoring"] < 1e-2
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_compiler_that_does_not_work_costs_its_own_rows_alone(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: torch.nn.Module) -> None:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(gpu, "compile_layers", broken)
    table = gpu.Table(CPU, gpu.QUICK)
    table.measure(["fp32"])
    assert [row[0] for row in table.report.rows] == ["fp32, matmul", "fp32, scoring", "fp32, step"]
    assert table.notes == ["fp32, compiled: left out, RuntimeError: no compiler here"]


@pytest.mark.slow
def test_compiled_layers_give_the_same_scores(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes that would stay
    plain, compiled = (gpu.Subject(gpu.QUICK, CPU, "fp32", compiled=compiled) for compiled in (False, True))
    assert compiled.score().sub(plain.score()).abs().max() < 1e-6
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.compiler.reset()


def test_work_is_counted_on_real_tokens(gpu: ModuleType) -> None:
    """Two pairs, of 3 and 5 tokens, by hand: two layers of width 2 and an inner width of 3."""
    config = gpu.UniterConfig(hidden_size=2, num_hidden_layers=2, num_attention_heads=1, intermediate_size=3)

    def layer(n: int, positions: int) -> int:
        """Multiply-adds: keys and values of n tokens; queries, output, both products of the inner part and attention
        of some positions."""
        return n * 2 * 2 * 2 + positions * (2 * 2 * 2 + 2 * 2 * 3) + 2 * positions * n * 2

    expected = 2 * sum(layer(n, n) + layer(n, 1) for n in (3, 5))
    assert gpu.flop(config, torch.tensor([3, 5])) == expected


def test_it_times_the_pairs_that_the_miner_keeps(gpu: ModuleType) -> None:
    subject = gpu.Subject(gpu.QUICK, CPU, "fp32", compiled=False)
    pool = torch.stack(subject.batch.pair_lengths()).sum(dim=0)
    assert len(pool) == gpu.QUICK.pool and len(subject.kept) == gpu.QUICK.keep + 1
    before = [p.clone() for p in subject.engine.model.parameters()]
    subject.step()
    assert subject.engine.skipped is None
    after = list(subject.engine.model.parameters())
    torch.testing.assert_close(after, before)
    tokens, work = subject.stepped()
    assert tokens == pool.sum() + subject.kept.sum()
    assert work > gpu.flop(gpu.QUICK.config, pool)
