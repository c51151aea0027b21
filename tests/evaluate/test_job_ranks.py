"""Several ranks share the tiles of one evaluation and go on with it whatever their number: real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crossmodal.data.corpus import open_corpus
from crossmodal.evaluate.job import ScoringJob
from crossmodal.model.checkpoints import load
from crossmodal.retrieve.journal import Journal

from ..commands import command, databases, scores_of

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parents[2]
PAIRS = 72 * 24
TOKENS = 40


class Stop(Exception):
    """Raised by a progress callback."""


def words(trained: Path, world: Path, output: Path) -> list[str]:
    data = databases(world, "train")
    return [str(w) for w in ("--checkpoint", trained, *data, "--output", output, "--token_budget", TOKENS)]


def kept_by(text: str) -> int:
    """How many pairs a command said that it kept."""
    said = re.search(r"([\d,]+) of 1,728 pairs were scored before and are kept", text)
    assert said, text
    return int(said[1].replace(",", ""))


def begin(trained: Path, world: Path, output: Path, tiles: int) -> tuple[str, int]:
    """Score some tiles in this process and stop: the key, and the pairs done."""
    texts, images = ([str(world / kind)] for kind in ("texts/train.db", "regions/train"))
    job = ScoringJob(load(trained), open_corpus(texts, images), tokens=TOKENS, output=output)
    done: list[int] = []

    def progress(pairs: int) -> None:
        done.append(pairs)
        if len(done) == tiles:
            raise Stop

    with pytest.raises(Stop):
        job.run(progress)
    assert job.key is not None
    return job.key, sum(done)


def test_one_process_begins_two_ranks_go_on_and_are_killed_and_one_process_ends(
    trained: Path, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, errors = tmp_path / "out", tmp_path / "errors"
    key, begun = begin(trained, tiny_world, output, tiles=50)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / "test_itm.py")]
    with errors.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *launcher, *words(trained, tiny_world, output)],
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    while process.poll() is None:
        sizes = {path.suffix: path.stat().st_size for path in output.glob("journal/*")}
        if sizes.get(".0", 0) > 3000 and sizes.get(".1", 0) > 2000:
            break
        time.sleep(0.002)
    for rank in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(rank), signal.SIGKILL)
    assert process.wait(60) == 1, errors.read_text()
    assert kept_by(errors.read_text()) == begun
    pairs = sum(len(scores) // 4 for _, scores in Journal(output, bytes.fromhex(key)).read())
    assert begun < pairs < PAIRS
    capsys.readouterr()
    assert command("test", *words(trained, tiny_world, output)) == 0
    assert kept_by(capsys.readouterr().err) == pairs
    assert command("test", *words(trained, tiny_world, tmp_path / "whole")) == 0
    assert scores_of(output)[0].tobytes() == scores_of(tmp_path / "whole")[0].tobytes()
    assert sorted(path.name for path in output.iterdir()) == ["ranks.npz", "results.json", "scores.npz"]
