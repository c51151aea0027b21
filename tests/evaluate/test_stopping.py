"""`crossmodal test` that is stopped, has no room, or is given what cannot be used: real processes."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from crossmodal.retrieve.journal import MAGIC

from ..commands import command, databases, refused, scores_of

ROOT = Path(__file__).parents[2]


def words(trained: Path, world: Path, output: Path, tokens: int = 48) -> list[str]:
    """An evaluation of 72 captions and 24 images, a few pairs at a time."""
    data = databases(world, "train")
    return [str(w) for w in ("test", "--checkpoint", trained, *data, "--output", output, "--token_budget", tokens)]


@pytest.fixture(scope="module")
def whole(trained: Path, tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The scores of an evaluation that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert command(*words(trained, tiny_world, output)) == 0
    return scores_of(output)[0].tobytes()


def start(arguments: list[str], errors: Path, limit: int | None = None) -> subprocess.Popen[bytes]:
    """The command as a process of its own; `limit`: bytes that it may write to one file."""

    def lower() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with errors.open("wb") as file:
        line = [sys.executable, str(ROOT / "test_itm.py"), *arguments[1:]]
        return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=file, env=environment, preexec_fn=lower)


def wait_for_scores(output: Path, process: subprocess.Popen[bytes], size: int) -> None:
    """Until the journal holds so many bytes."""
    while process.poll() is None:
        if sum(path.stat().st_size for path in output.glob("journal/*")) >= size:
            return
        time.sleep(0.005)
    pytest.fail(f"it ended with {process.returncode} before it was stopped")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once_and_it_goes_on(
    number: signal.Signals, status: int, trained: Path, tiny_world: Path, whole: bytes, tmp_path: Path
) -> None:
    output, errors = tmp_path / "out", tmp_path / "errors"
    process = start(words(trained, tiny_world, output), errors)
    wait_for_scores(output, process, 2000)
    process.send_signal(number)
    assert process.wait(60) == status
    said = errors.read_text()
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1] == (
        f"stopped by {number.name}; finished scores are kept in {output}, and the same command goes on with the rest"
    )
    assert [path.name for path in output.iterdir()] == ["journal"]
    assert command(*words(trained, tiny_world, output)) == 0
    assert scores_of(output)[0].tobytes() == whole


def test_a_full_disk_is_one_sentence_and_what_was_kept_serves_later(
    trained: Path, tiny_world: Path, whole: bytes, tmp_path: Path
) -> None:
    output, errors = tmp_path / "out", tmp_path / "errors"
    process = start(words(trained, tiny_world, output), errors, limit=3000)
    assert process.wait(120) == 2
    said = errors.read_text()
    assert "Traceback" not in said
    (journal,) = (output / "journal").iterdir()
    assert f"error: {journal} could not be written: file too large" in said
    assert 2900 < journal.stat().st_size <= 3000
    assert command(*words(trained, tiny_world, output)) == 0
    assert scores_of(output)[0].tobytes() == whole


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("file", "file is a file; name a folder"),
        ("file/below", "nothing can be written to .*below .Not a directory.; choose another folder with --output"),
    ],
)
def test_an_output_that_cannot_be(
    output: str, said: str, trained: Path, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(MAGIC)
    message = refused(capsys, *words(trained, tiny_world, tmp_path / output, 4000))
    assert re.search(said, message)
    assert (tmp_path / "file").read_bytes() == MAGIC


def test_a_budget_without_room_for_a_pair(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "test", "--checkpoint", trained, "--output", tmp_path / "out", "--token_budget", 0)
    assert "--token_budget 0 leaves no room for a pair" in said and not (tmp_path / "out").exists()


def test_weights_that_give_no_numbers_are_refused_at_the_first_score(
    exported: tuple[Path, Path], tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, config = exported
    state = torch.load(weights, weights_only=True)
    state["rank_output.bias"][:] = float("nan")
    torch.save(state, tmp_path / "model.pt")
    data = [*databases(tiny_world), "--model_config", config, "--output", tmp_path / "out"]
    said = refused(capsys, "test", "--checkpoint", tmp_path / "model.pt", *data)
    assert re.search(r"the score of caption test_\d\d_\d with image test_\d\d.npz is NaN", said)
    (journal,) = (tmp_path / "out" / "journal").iterdir()
    assert journal.stat().st_size == len(MAGIC) + 32  # no score
