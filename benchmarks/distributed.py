"""Training and evaluation with two ranks on this machine's cores, beside one process and beside two independent ones.

One update trains two streams of pools (a caption with images, an image with captions; the hardest kept, margin
ranking and IAIS), the same global batch in all cases:
one process          the whole batch
torchrun, horovodrun two ranks with half of it each; gradients in one buffer behind the backward pass (flat), or
                     summed while it runs (overlapped)
A ratio is the time of one process over that of the two ranks, at best 2. Then both score captions against images:
two processes        independent, at the same time, each half of the captions against all images
torchrun             one evaluation shared out over two ranks; the ratio is its pairs/s over the sum of the others'

Start-up is not measured. `cores` is CPU time over wall time, of all processes of a case: where it falls short of
their number, they waited for each other or for other work on this machine. `by CPU` is the ratio of the CPU seconds
of the process that is busiest (in each update): what is left of it where the cores are free and exchanges cost no
time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import Options, Report, Seconds, median, options, ratio
from distributed_rank import PATIENCE, REST, SHARES, WAYS
from scoring import write_images

from crossmodal.data.captions import Caption
from crossmodal.data.text_writer import write_text_db
from crossmodal.data.tokenizers import train_tokenizer

RANK = Path(__file__).with_name("distributed_rank.py")
RANKS = 2
INDEPENDENT = f"{RANKS} processes, pairs"

WORDS = ("a", "man", "woman", "dog", "street", "red", "blue", "small", "near", "behind", "holding", "two", "park")


@dataclass(frozen=True)
class Shapes:
    """What is trained and scored: `images`, each with one caption for every rank; `updates` of `batch` pools, those of
    `warm_up` not counted; both ways of scoring `scorings` times in each of `rounds` rounds."""

    width: int = 256
    layers: int = 3
    img_dim: int = 2048
    images: int = 56
    batch: int = 4
    pool: int = 16
    keep: int = 3
    warm_up: int = 2
    updates: int = 6
    scorings: int = 2
    rounds: int = 3

    def recipe(self, world: Path) -> dict[str, Any]:
        def stream(anchor: str, side: str) -> dict[str, Any]:
            iais = {"use": "iais", "alignment": "singular", "side": side, "weight": {"schedule": "exp", "scale": 8.0}}
            return {
                "data": {"use": "all", "draw": "pools", "anchor": anchor, "pool": self.pool},
                "miner": {"use": "hardest", "keep": self.keep},
                "losses": [{"use": "margin_ranking"}, iais],
            }

        return {
            "name": "benchmark",
            "steps": self.warm_up + self.updates + 1,
            "batch": self.batch,
            "model": {
                "config": {
                    "hidden_size": self.width,
                    "num_hidden_layers": self.layers,
                    "num_attention_heads": self.width // 64,
                    "intermediate_size": 4 * self.width,
                },
                "dropout": 0.1,
            },
            "data": {
                name: {"texts": str(world / "texts" / name), "images": str(world / "images")}
                for name in ("all", "few", *(f"part_{rank}" for rank in range(RANKS)))
            },
            "streams": [stream("image", "visual"), stream("text", "linguistic")],
            "log_every": 1,
        }


QUICK = Shapes(
    width=64, layers=1, img_dim=32, images=8, batch=2, pool=4, keep=1, warm_up=1, updates=1, scorings=1, rounds=1
)


def write_world(world: Path, shapes: Shapes) -> None:
    """The recipe, images of 10 to 100 boxes, and captions of 8 to 22 words: all, those of each rank, and a few."""
    draw = random.Random(0)
    ids = write_images(world / "images", shapes.images, shapes.img_dim).ids
    captions = [
        Caption(f"{rank}_{image}", image, " ".join(draw.choices(WORDS, k=draw.randint(8, 22))))
        for rank in range(RANKS)
        for image in ids
    ]
    tokenizer = train_tokenizer([caption.sentence for caption in captions], vocab_size=200)
    parts = {f"part_{rank}": captions[rank * len(ids) : (rank + 1) * len(ids)] for rank in range(RANKS)}
    for name, chosen in {"all": captions, "few": captions[:4], **parts}.items():
        write_text_db(chosen, world / "texts" / name, tokenizer)
    (world / "recipe.json").write_text(json.dumps(shapes.recipe(world)))


def torchrun() -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]


def horovodrun() -> list[str]:
    beside = Path(sys.executable).with_name("horovodrun")
    found = str(beside) if beside.exists() else shutil.which("horovodrun") or "horovodrun"
    return [found, "-np", str(RANKS), "--network-interface", "lo", sys.executable]


def launch(commands: list[list[str]], output: Path, threads: int) -> None:
    """Run these at the same time to their end, with what they say in `output`.

    Raises RuntimeError where one fails, or they are not done in time; none is left running.
    """
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # No GPU: the ranks would meet on the first one.
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "PATH": here}
    said = output / "said.txt"
    end = time.monotonic() + PATIENCE
    with said.open("wb") as log:
        # Launchers give each rank a session of its own, and Linux shares a busy core out by session.
        started = [
            subprocess.Popen(words, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            for words in commands
        ]
        try:
            while None in (codes := [process.poll() for process in started]) and not any(codes):
                if time.monotonic() > end:
                    break
                time.sleep(0.05)
        finally:
            for process in started:
                process.terminate()
                process.wait()
    if any(codes) or None in codes:
        raise RuntimeError(f"{' '.join(commands[0])}: failed or not done in time\n{said.read_text(errors='replace')}")


@dataclass
class Cases:
    """Seconds of an update, or of a pair, by the wall's clock and of CPU, of every case in each round."""

    wall: Seconds = field(default_factory=dict)
    cpu: Seconds = field(default_factory=dict)

    def add(self, case: str, wall: float, cpu: float) -> None:
        self.wall.setdefault(case, []).append(wall)
        self.cpu.setdefault(case, []).append(cpu)


class Bench:
    """`shares` has, of every case in each round, those of rank 0 and the cores in use."""

    def __init__(self, world: Path, shapes: Shapes, threads: int) -> None:
        self.world, self.shapes, self.threads = world, shapes, threads
        self.updates, self.pairs = Cases(), Cases()
        self.shares: dict[str, list[list[float]]] = {}

    def round(self) -> None:
        """Every case once; the two ways of scoring some times in turn. A row is a process, a column a turn."""
        own, shared = [[f"part_{rank}", REST] * self.shapes.scorings for rank in range(RANKS)], [REST, "all"]
        turns = {
            "torchrun": [REST, *WAYS, *shared * self.shapes.scorings],
            "alone": ["flat", REST, REST, *own[0]],
            **{f"alone_{rank}": [REST, REST, REST, *own[rank]] for rank in range(1, RANKS)},
        }
        found = self._take(turns, {"torchrun": torchrun()})
        self._trained("one process", [found["alone"][0].pop(0)])
        for way in WAYS:
            self._trained(f"torchrun, {way}", [rank.pop(0) for rank in found["torchrun"]])
        for _ in range(self.shapes.scorings):
            self._scored(INDEPENDENT, [[found[name][0].pop(0)] for name in turns if name != "torchrun"])
            self._scored("torchrun, pairs", [[rank.pop(0) for rank in found["torchrun"]]])
        if find_spec("horovod"):
            found = self._take({"horovodrun": [*WAYS]}, {"horovodrun": horovodrun()})
            for way in WAYS:
                self._trained(f"horovodrun, {way}", [rank.pop(0) for rank in found["horovodrun"]])

    def _take(self, turns: dict[str, list[str]], launchers: dict[str, list[str]]) -> dict[str, list[list[Any]]]:
        """What each rank of every name found in its turns; a name without a launcher is one process."""
        ranks = {name: RANKS if name in launchers else 1 for name in turns}
        with tempfile.TemporaryDirectory(dir=self.world) as folder:
            output = Path(folder)
            shared = ["--processes", str(sum(ranks.values())), "--warm-up", str(self.shapes.warm_up), "--"]
            commands = [
                [
                    *launchers.get(name, [sys.executable]),
                    str(RANK),
                    str(self.world),
                    folder,
                    "--name",
                    name,
                    *shared,
                    *own,
                ]
                for name, own in turns.items()
            ]
            launch(commands, output, self.threads)
            return {
                name: [json.loads((output / f"{name}_{rank}.json").read_text()) for rank in range(count)]
                for name, count in ranks.items()
            }

    def _trained(self, case: str, ranks: list[dict[str, Any]]) -> None:
        busiest = [max(seconds) for seconds in zip(*(one["cpu"] for one in ranks), strict=True)]
        self.updates.add(case, statistics.median(ranks[0]["wall"]), statistics.median(busiest))
        cores = sum(sum(one["cpu"]) / sum(one["wall"]) for one in ranks)
        self.shares.setdefault(case, []).append([*(ranks[0][name] for name in SHARES), cores])

    def _scored(self, case: str, jobs: list[list[dict[str, float]]]) -> None:
        """Jobs that ran at the same time, each of some ranks: their pairs/s are added up."""
        wall, cpu = (
            1 / sum(ranks[0]["pairs"] / max(one[clock] for one in ranks) for ranks in jobs) for clock in ("wall", "cpu")
        )
        self.pairs.add(case, wall, cpu)
        first = jobs[0][0]
        data, communication = (first[name] / first["wall"] for name in ("data", "communication"))
        cores = sum(one["cpu"] / one["wall"] for ranks in jobs for one in ranks)
        self.shares.setdefault(case, []).append([1 - data - communication, data, communication, cores])


def report(bench: Bench) -> Report:
    shapes = bench.shapes
    threads = f"{bench.threads} thread{'s' if bench.threads > 1 else ''} a process"
    out = Report(
        f"UNITER hidden {shapes.width}, {shapes.layers} layers; updates of {2 * shapes.batch} pools of {shapes.pool} "
        f"pairs, {shapes.keep + 1} trained; {RANKS * shapes.images} captions x {shapes.images} images scored; float32; "
        f"{os.cpu_count()} cores, {threads}",
        ["s a step", "pairs/s", *SHARES, "cores", "by CPU"],
        clock="wall seconds",
    )
    for cases, slow, target in ((bench.updates, "one process", None), (bench.pairs, INDEPENDENT, 0.9)):
        for case in cases.wall:
            *shares, cores = (statistics.median(column) for column in zip(*bench.shares[case], strict=True))
            taken = median(cases.wall, case)
            speed = [f"{taken:.3f}", ""] if cases is bench.updates else ["", f"{1 / taken:.1f}"]
            cells = [*speed, *(f"{share:.0%}" for share in shares), f"{cores:.2f}"]
            if case == slow:
                out.add(case, *cells, "")
            else:
                by_cpu = f"{ratio(cases.cpu, slow, case):.2f}"
                out.add(case, *cells, by_cpu, ratio=ratio(cases.wall, slow, case), target=target)
    return out


def main(given: Options) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of `launch`, which ends what it has started
    shapes = QUICK if given.quick else Shapes()
    if not find_spec("horovod"):
        print("horovodrun: left out, horovod is not installed (make horovod)")
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        write_world(world, shapes)
        bench = Bench(world, shapes, given.threads)
        for _ in range(shapes.rounds):
            bench.round()
    report(bench).print(given)


if __name__ == "__main__":
    main(options(__doc__ or ""))
