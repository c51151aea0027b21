"""What the benchmarks share: two things measured in one run, one table, the rows that have a target as JSON.

Cases take turns, round after round, and a ratio is the median of the rounds' quotients, so that whatever else
the machine does meets both alike. With one thread the clock is the process's CPU time, with more it is the wall's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

from crossmodal.evaluate.results import text_table

Seconds = dict[str, list[float]]
"""Case -> its seconds in each round."""


@dataclass(frozen=True)
class Options:
    """quick: a smoke run on small shapes, whose ratios mean nothing; json: print the targets as the last line."""

    quick: bool
    json: bool
    threads: int


def options(description: str) -> Options:
    """Read the command line that every benchmark has, and set the number of threads."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run on small shapes; its ratios mean nothing")
    parser.add_argument("--json", action="store_true", help="last line: the rows that have a target, as JSON")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return Options(given.quick, given.json, given.threads)


def take_turns(cases: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: bool = True) -> Seconds:
    """The seconds of every case in each of `rounds` rounds, after one round that is not counted."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: Seconds = {name: [] for name in cases}
    for number in range(-int(warm_up), rounds):
        for name, run in cases.items():
            start = clock()
            run()
            if number >= 0:
                seconds[name].append(clock() - start)
    return seconds


def median(seconds: Seconds, case: str) -> float:
    return statistics.median(seconds[case])


def ratio(seconds: Seconds, slow: str, fast: str) -> float:
    """How many times longer `slow` takes than `fast`: the median over the rounds."""
    return statistics.median(s / f for s, f in zip(seconds[slow], seconds[fast], strict=True))


def peak_memory(run: Callable[[], object]) -> float:
    """Megabytes by which `run` raises the resident memory of this process at its peak (Linux, glibc)."""
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed goes back first, or it would not be counted again
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again from what is resident now
    before = _status("VmRSS")
    run()
    return max(0.0, _status("VmHWM") - before) / 1024


def peak_tensors(run: Callable[[], object]) -> float:
    """Megabytes that the tensors which `run` makes take up at their peak: the gaps that malloc leaves do not count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    assert seen.profiler is not None
    events = (event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]")
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(0, *accumulate(changes)) / 2**20


def _status(name: str) -> float:
    with open("/proc/self/status") as file:
        return next(float(line.split()[1]) for line in file if line.startswith(name + ":"))


@dataclass
class Report:
    """One table; `add` takes a row, with its ratio and target where it has them.

    clock: what the seconds are, where that is not CPU seconds of one thread or wall seconds of several.
    """

    title: str
    columns: list[str]
    clock: str = ""
    rows: list[list[str]] = field(default_factory=list)
    targets: list[dict[str, float | str]] = field(default_factory=list)

    def add(self, case: str, *cells: str, ratio: float | None = None, target: float | None = None) -> None:
        """A row holds when its ratio is at least its target."""
        verdict = ""
        if ratio is not None and target is not None:
            verdict = "holds" if ratio >= target else "missed"
            self.targets.append({"case": case, "ratio": round(ratio, 4), "target": target})
        shown = ["" if x is None else f"{x:.2f}" for x in (ratio, target)]
        self.rows.append([case, *cells, *shown, verdict])

    def print(self, options: Options) -> None:
        threads = "1 thread, CPU seconds" if options.threads == 1 else f"{options.threads} threads, wall seconds"
        print(f"{self.title}; {self.clock or threads}{', quick: ratios mean nothing' if options.quick else ''}\n")
        print(text_table([["case", *self.columns, "ratio", "target", ""], *self.rows]))
        if options.json:
            print(json.dumps(self.targets))
