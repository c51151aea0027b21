"""SIGTERM, SIGINT and SIGUSR1 during training: the step is finished and saved before the process ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_ONE = 0.2
"""Seconds within which signals count as one: `timeout` sends its signal to the process and to its group."""


class Interrupted(SystemExit):
    """Training ended because of a signal, with everything saved; uncaught, it gives the exit code 128 + signal."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(128 + number)
        self.number, self.message = number, message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return Interrupted, (self.number, self.message)


class Interrupts:
    """While this is entered, a signal is noted (`asked`) instead of ending the process; a second one ends it.

    advice: what to do next, the end of what is said. Python takes handlers in the main thread alone: elsewhere,
    and without `enabled`, nothing changes. What was ignored stays ignored. The old handlers come back at the end.
    """

    def __init__(self, advice: str, *, enabled: bool = True) -> None:
        self.advice = advice
        self.enabled = enabled and threading.current_thread() is threading.main_thread()
        self.asked: int | None = None
        self._when = 0.0
        self._raise_now = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Interrupts:
        self.asked = None
        if self.enabled:
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._set(number, self._note)
            self._set(signal.SIGCHLD, _without_errors(signal.getsignal(signal.SIGCHLD)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises Interrupted where it finds the process: for what can be repeated."""
        self._raise_now = True
        try:
            self.stop_if_asked()
            yield
        finally:
            self._raise_now = False

    def stop_if_asked(self) -> None:
        """Raises Interrupted where a signal was noted."""
        self.stop_if(self.asked)

    def stop_if(self, number: int | None) -> None:
        """Raises Interrupted where there is a signal."""
        if number is not None:
            raise Interrupted(number, f"stopped by {signal.Signals(number).name}; {self.advice}")

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker: it ends when its parent ends it
            return
        if self.asked is None:
            self.asked, self._when = number, time.monotonic()
            if not self._raise_now:
                _say("finishing the step and saving; a second signal ends it at once")
        elif time.monotonic() - self._when > _ONE:
            _say(f"ended at once by {signal.Signals(number).name}; {self.advice}")
            os._exit(128 + number)
        if self._raise_now:
            self._raise_now = False
            self.stop_if_asked()

    def _set(self, number: int, handler: Callable[[int, FrameType | None], object]) -> None:
        self._before[number] = signal.getsignal(number)
        signal.signal(number, handler)


def _without_errors(handler: Any) -> Callable[[int, FrameType | None], object]:
    """A handler of SIGCHLD that does not raise.

    That of `DataLoader` raises where a worker died, wherever the process is: in the middle of an update too. The
    loader finds out by itself when it waits for the worker's next batch.
    """

    def quiet(number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):
            if callable(handler):
                handler(number, frame)

    return quiet


def _say(text: str) -> None:
    """On stderr, past its buffer, which the process may be writing to right now."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
