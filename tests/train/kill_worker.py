"""Trains in a child that is killed, again and again, and then to the end.

python -m tests.train.kill_worker moments RECIPE OUTPUT KILLS     at a random moment of training
python -m tests.train.kill_worker changes RECIPE OUTPUT KILLS     just before a random change on the disk

Children are forked, so that each begins with everything imported. Prints a line a kill: ``moment``, or the change.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  building an optimizer imports it, which takes seconds in every child

from crossmodal.train.recipe import load_recipe
from crossmodal.train.trainer import Trainer

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
MOST = 60
"""A child dies at one of so many changes: about as many as two steps make."""
LONGEST = 0.6
"""Seconds of training after which a child dies at the latest."""


def train(source: Path, output: Path, tell: int) -> None:
    resume = (output / "recipe.yaml").is_file()
    trainer = Trainer(load_recipe(source), output, resume=resume, progress=False)
    os.write(tell, b"training")
    trainer.train()


def die_at(change: int, output: Path) -> None:
    """SIGKILL before the `change`-th change in the run folder: a name for writing, or one renamed or removed."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(output) in str(arguments[0]):
            seen += 1
            if seen == change:
                os.write(1, f"{event}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(kind: str, source: Path, output: Path, kills: int) -> None:
    draw, done = random.Random(0), 0
    while True:
        change, moment = draw.randint(1, MOST), draw.uniform(0, LONGEST)
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            if kind == "changes" and done < kills:
                die_at(change, output)
            train(source, output, tell)
            os._exit(0)
        os.close(tell)
        if kind == "moments" and done < kills and os.read(ready, 1):
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
            os.write(1, b"moment\n")
        os.close(ready)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))
        done += 1


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
