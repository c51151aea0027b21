from __future__ import annotations

import pytest

from crossmodal.train import clock as module
from crossmodal.train.clock import Clock
from crossmodal.train.distributed import OneProcess


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_shares_since_the_last_call_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    time, ranks = Time(), OneProcess()
    monkeypatch.setattr(module, "time", time)
    ranks.seconds = 7.0  # before the clock was made
    clock = Clock(ranks)
    with clock.waiting():
        time.now += 1
    time.now += 3
    ranks.seconds += 1
    assert clock.shares() == {"time/data": 0.25, "time/communication": 0.25, "time/compute": 0.5}
    with clock.paused():
        time.now += 50
        ranks.seconds += 40
    time.now += 4
    assert clock.shares() == {"time/data": 0.0, "time/communication": 0.0, "time/compute": 1.0}
    assert str(clock) == "75% compute, 12% data, 12% communication"
