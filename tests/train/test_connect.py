"""Which interface the launcher's environment calls for, and what is said where it cannot be had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crossmodal.errors import ConfigError, RankLost
from crossmodal.train.distributed import OneProcess, connect
from crossmodal.train.recipe import DistributedSpec

from ..launchers import ROOT, environment, run, torchrun


def said_by(**variables: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "test_itm.py", "--checkpoint", "/nowhere"]
    return subprocess.run(words, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=120)


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "HOROVOD_SIZE", "HOROVOD_ELASTIC", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    ranks = connect()
    assert type(ranks) is OneProcess and (ranks.rank, ranks.size, ranks.name) == (0, 1, "one process")
    x = torch.arange(4.0, requires_grad=True)
    assert ranks.all_gather_with_gradients(x) is x and ranks.all_reduce(x) is x and ranks.broadcast(x) is x


def test_horovod_that_cannot_be_imported(tmp_path: Path) -> None:
    package = tmp_path / "horovod" / "torch"
    package.mkdir(parents=True)
    (tmp_path / "horovod" / "__init__.py").touch()
    (package / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    done = said_by(HOROVOD_RANK="0", HOROVOD_SIZE="2", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "undefined symbol" in done.stderr and "scripts/build_horovod.sh" in done.stderr


def test_ranks_that_do_not_meet_are_said_with_the_place() -> None:
    done = said_by(RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="none")
    assert done.returncode == RankLost.exit_code, done.stderr
    assert "127.0.0.1:none" in done.stderr and "Traceback" not in done.stderr


def test_sharding_is_refused_where_a_launcher_does_not_have_it() -> None:
    ranks = OneProcess()
    ranks.size = 2
    with pytest.raises(ConfigError, match=r"sharded works under torchrun.*flat or overlapped"):
        ranks.gradients(None, None, DistributedSpec(gradients="sharded"))  # type: ignore[arg-type]


def test_a_launcher_that_restarts_ranks_needs_a_folder_to_go_on_with(recipe_file: Path) -> None:
    done = run([*torchrun(1, "--max-restarts", 1), "train_itm.py", "--config", str(recipe_file)])
    assert done.returncode != 0
    assert "error: a launcher that restarts ranks needs --output" in done.stderr
    assert "Traceback" not in done.stderr.split("error: a launcher")[0]
