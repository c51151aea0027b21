"""The schedules at hand-worked steps and at their ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossmodal.errors import ConfigError
from crossmodal.train.recipe import OptimizerSpec
from crossmodal.train.schedules import anneal, learning_rate, rate_at, warmup_linear


def test_warmup_then_linear_decay() -> None:
    factors = [warmup_linear(step, warmup=4, total=8) for step in range(10)]
    assert factors == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, 0]


def test_no_warmup_and_nothing_but_warmup() -> None:
    assert [warmup_linear(step, warmup=0, total=2) for step in range(4)] == [1, 0.5, 0, 0]
    assert [warmup_linear(step, warmup=2, total=2) for step in range(4)] == [0, 0.5, 0, 0]


def test_learning_rate_is_never_zero() -> None:
    rates = [learning_rate(step, base=5e-5, warmup=500, total=5000) for step in (1, 500, 4999, 5000, 6000)]
    assert rates == pytest.approx([1e-7, 5e-5, 5e-5 / 4500, 1e-8, 1e-8], rel=1e-12)


@given(warmup=st.integers(0, 50), rest=st.integers(1, 50), step=st.integers(0, 120))
def test_learning_rate_stays_within_its_bounds(warmup: int, rest: int, step: int) -> None:
    rate = learning_rate(step, base=1e-3, warmup=warmup, total=warmup + rest)
    assert 0 < rate <= 1e-3


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "cosine"}, [0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ({"schedule": "constant"}, [0.5, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "cooldown": 4}, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        (
            {"schedule": "constant", "cooldown": 2, "cooldown_power": 2, "end_lr": 0.2},
            [0.5, 1, 1, 1, 1, 0.8 / 4 + 0.2],
        ),
        ({"schedule": "step", "step_epochs": 2}, [0.5, 1, 1, 1, 0.1, 0.1]),
    ],
)
def test_rates_of_six_updates(options: dict[str, Any], rates: list[float]) -> None:
    """Two updates of warm-up; an epoch is two updates."""
    spec = OptimizerSpec(lr=1.0, warmup=2, **options)
    assert [rate_at(step, spec, 6, (step - 1) // 2) for step in range(1, 7)] == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_run_that_is_all_warm_up(schedule: str) -> None:
    spec = OptimizerSpec(lr=1.0, warmup=4, schedule=schedule, cooldown=2)
    assert [rate_at(step, spec, 4, 0) for step in range(1, 5)] == [0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("exp", lambda x: math.exp(5 * (x - 1))),
        ("linear", lambda x: x),
        ("log", lambda x: 1 - math.exp(-5 * x)),
        ("constant", lambda x: 1.0),
    ],
)
def test_annealing(name: str, formula) -> None:  # type: ignore[no-untyped-def]
    for step in (0, 1, 10, 99, 100, 120):
        assert anneal(name, step, 100) == pytest.approx(formula(step / 100), rel=1e-5, abs=1e-7)


def test_published_ends_of_the_exponential_schedule() -> None:
    assert anneal("exp", 0, 5000) == pytest.approx(0.00674, abs=5e-6)
    assert anneal("exp", 4999, 5000) == pytest.approx(0.9990, abs=5e-5)


def test_mistakes_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="did you mean linear"):
        anneal("lineal", 0, 10)
    with pytest.raises(ConfigError, match="at least 1"):
        anneal("exp", 0, 0)
