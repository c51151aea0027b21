"""A map over worker processes that keeps the order and looks only a little ahead."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any, TypeVar

R = TypeVar("R")

_AHEAD = 4  # jobs a worker that are under way: bounds the memory that results wait in


def ordered_map(function: Callable[..., R], jobs: Iterable[tuple[Any, ...]], workers: int) -> Iterator[R]:
    """`function(*job)` for every job, in order; in this process unless `workers` is more than 1.

    Workers are spawned: an LMDB environment must not cross a fork, nor must the threads of a framework.
    They end when this process does, also when it is killed.
    """
    if workers <= 1:
        for job in jobs:
            yield function(*job)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=end_with_parent) as pool:
        pending: deque[Future[R]] = deque()
        for job in jobs:
            pending.append(pool.submit(function, *job))
            if len(pending) >= _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def end_with_parent() -> None:
    """A worker of a killed parent would wait for its next job forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
