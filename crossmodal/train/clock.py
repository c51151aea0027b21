"""Where the time of training goes: waiting for data, exchanging with other ranks, computing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from .distributed import OneProcess


class Clock:
    """Shares of the time. What a rank waits for others in an exchange counts as exchange; gradients that are exchanged
    while the backward pass runs do so only as far as they are waited for."""

    def __init__(self, ranks: OneProcess) -> None:
        self.ranks = ranks
        self.waited = 0.0
        self._first = self._last = self._now()

    def _now(self) -> tuple[float, ...]:
        return time.perf_counter(), self.waited, self.ranks.seconds

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, data is waited for."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, something else is done that does not count."""
        before = self._now()
        yield
        gone = [b - a for a, b in zip(before, self._now(), strict=True)]
        self._first = tuple(x + y for x, y in zip(self._first, gone, strict=True))
        self._last = tuple(x + y for x, y in zip(self._last, gone, strict=True))

    def seconds(self) -> tuple[float, float]:
        """The seconds since the last call of `shares`, and how many of them data was waited for."""
        whole, data, _ = (b - a for a, b in zip(self._last, self._now(), strict=True))
        return whole, data

    def shares(self) -> dict[str, float]:
        """`time/data`, `time/communication` and `time/compute` of this rank since the last call; they add up to 1."""
        before, self._last = self._last, self._now()
        return _shares(before, self._last)

    def __str__(self) -> str:
        """All of it: ``93% compute, 2% data, 5% communication``."""
        shares = _shares(self._first, self._now())
        return ", ".join(f"{shares[f'time/{name}']:.0%} {name}" for name in ("compute", "data", "communication"))


def _shares(before: tuple[float, ...], now: tuple[float, ...]) -> dict[str, float]:
    whole, data, exchange = (b - a for a, b in zip(before, now, strict=True))
    data, exchange = data / whole, exchange / whole
    return {"time/data": data, "time/communication": exchange, "time/compute": 1 - data - exchange}
