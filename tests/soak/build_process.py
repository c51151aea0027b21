"""Builds databases in children that are killed, and repeats every build until it is whole.

python -m tests.soak.build_process BUILD moments FOLDER KILLS    at random moments, so many times in all
python -m tests.soak.build_process BUILD changes FOLDER          just before each change on the disk, one after another

Children are forked, so that each begins with everything imported. Whole builds are ``FOLDER/0``, ``FOLDER/1``, ...
Prints a line a kill: whether the database had its name then, and whether something unfinished was left.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from crossmodal.data.captions import Caption
from crossmodal.data.region_writer import write_region_db
from crossmodal.data.text_writer import write_text_db, write_texts
from crossmodal.data.tokenizers import train_tokenizer
from crossmodal.errors import ConfigError, DataError

T = TypeVar("T")
Tell = Callable[[bytes], None]
Record = dict[str, np.ndarray]

RECORDS, PAUSE = 60, 0.003
LONGEST = RECORDS * PAUSE * 1.1
"""Seconds of writing after which a child dies at the latest, if it is meant to die while writing."""
LAST = 0.03
"""Seconds for what comes after the last record."""
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
SENTENCES = [f"a {colour} {kind}" for colour in ("red", "green", "blue") for kind in ("dog", "cat", "tree", "ball")]


def record(seed: int) -> Record:
    rng = np.random.default_rng(seed)
    boxes = int(rng.integers(1, 9))
    corners = np.sort(rng.random((boxes, 2, 2), np.float32), axis=1).reshape(boxes, 4)
    return {
        "norm_bb": np.concatenate([corners, corners[:, 2:] - corners[:, :2]], 1),
        "features": rng.random((boxes, 300), np.float32),
        "conf": np.sort(rng.random((boxes, 1), np.float32), axis=0)[::-1],
    }


def told(items: list[T], tell: Tell) -> Iterator[T]:
    """The items, slowly if anybody listens; tells when the first and when the last is asked for."""
    tell(b"b")
    for item in items:
        time.sleep(0 if tell is silent else PAUSE)
        yield item
    tell(b"e")


def silent(what: bytes) -> None:
    """Tells nobody."""


def regions(flavour: str, output: Path, tell: Tell) -> None:
    """A small map, which has to grow while it is written."""
    records = [(f"{i * 7 % RECORDS}.npz", record(i)) for i in range(RECORDS)]
    rule: dict[str, Any] = {"conf_th": 0.5, "min_bb": 2}
    write_region_db(told(records, tell), output, flavour=flavour, commit_every=5, map_size=1 << 15, **rule)


def texts(output: Path, tell: Tell) -> None:
    captions = [Caption(f"c{i}", f"{i // 2}.npz", SENTENCES[i % len(SENTENCES)]) for i in range(RECORDS)]
    write_text_db(told(captions, tell), output / "texts.db", train_tokenizer(SENTENCES, vocab_size=60))


def divided(output: Path, tell: Tell) -> None:
    """Several text databases at once, from a file."""
    output.mkdir(exist_ok=True)
    rows = [f"{i // 2}.jpg\t{SENTENCES[i % len(SENTENCES)]}" for i in range(RECORDS)]
    (output / "captions.tsv").write_text("\n".join(rows) + "\n")
    tell(b"be")
    write_texts(output / "captions.tsv", output / "texts", vocab_size=60, divide={"train": 0.5, "test": 0.5})


BUILDS: dict[str, Callable[[Path, Tell], None]] = {
    "raw": partial(regions, "raw"),
    "msgpack": partial(regions, "msgpack"),
    "texts": texts,
    "divided": divided,
}


def run(build: str, output: Path, tell: Tell = silent) -> None:
    """Repeat the command; one that was killed when all was done finds the database in its place."""
    try:
        BUILDS[build](output, tell)
    except (ConfigError, DataError) as error:
        if "exists already" not in str(error):
            raise


def child(build: str, output: Path, prepare: Callable[[], Tell]) -> int:
    """A process that builds, after it has called `prepare`."""
    pid = os.fork()
    if pid == 0:
        run(build, output, prepare())
        os._exit(0)
    return pid


def killed(pid: int) -> bool:
    """Wait for a child; whether it was killed, and not done before."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    if status:
        sys.exit(f"a repeated build failed with {os.waitstatus_to_exitcode(status)}")
    return False


def die_at(change: int, output: Path) -> Tell:
    """SIGKILL before the `change`-th change below `output`: a file opened for writing, a name changed or removed."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(output) in str(arguments[0]):
            seen += 1
            if seen == change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return silent


def say(output: Path) -> None:
    names = [path.name for path in output.iterdir()] if output.is_dir() else []
    database = any(name.startswith(("feat_", "texts")) and not name.endswith(".partial") for name in names)
    unfinished = any(name.endswith(".partial") for name in names)
    print(f"{'named' if database else 'nameless'} {'unfinished' if unfinished else 'nothing'}", flush=True)


def moments(build: str, folder: Path, kills: int) -> None:
    draw, done, built = random.Random(build), 0, 0
    while done < kills:
        output = folder / str(built)
        ready, tell = os.pipe()
        pid = child(build, output, lambda: lambda what: os.write(tell, what) and None)  # noqa: B023  forked at once
        os.close(tell)
        # Half of the kills fall while records are written, half into what comes after them.
        last = draw.random() < 0.5
        while os.read(ready, 1) not in ((b"e", b"") if last else (b"b", b"")):
            pass
        time.sleep(draw.uniform(0, LAST if last else LONGEST))
        os.kill(pid, signal.SIGKILL)
        os.close(ready)
        if killed(pid):
            say(output)
            done += 1
        else:
            built += 1
    run(build, folder / str(built))


def changes(build: str, folder: Path) -> None:
    for change in count(1):
        output = folder / str(change - 1)
        if not killed(child(build, output, partial(die_at, change, output))):
            return
        say(output)
        assert not killed(child(build, output, lambda: silent))


if __name__ == "__main__":
    if sys.argv[2] == "moments":
        moments(sys.argv[1], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        changes(sys.argv[1], Path(sys.argv[3]))
