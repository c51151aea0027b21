"""Two machines with a rank each give what two ranks of one machine give, to the bit: two launchers that meet."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ..launchers import end, ranks_of, start
from ..recipes import write_recipe
from .runs import PATIENCE, assert_same_run, logged_steps, of_two_ranks, wait_until

Jobs = list[subprocess.Popen[str]]


@contextmanager
def launched(
    machines: Sequence[Sequence[str]], options: Sequence[Sequence[str]], world: Path, folder: Path
) -> Iterator[Jobs]:
    """A run in ``folder/run`` of one rank on each machine: the words that start a command there, and its options."""
    source = write_recipe(folder / "r.yaml", of_two_ranks(world, save_every=1))
    script = ["train_itm.py", "--config", str(source), "--output", str(folder / "run")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(machines)), "--nproc-per-node", "1"]
    with ExitStack() as stack:
        processes: Jobs = []
        for node, machine in enumerate(machines):
            log = stack.enter_context((folder / f"{node}.log").open("w"))
            command = [*machine, *launcher, *options[node], *script]
            processes.append(start(command, stdout=log, stderr=subprocess.STDOUT))
            stack.callback(end, processes[-1])
        yield processes
        codes = [process.wait(PATIENCE) for process in processes]
        assert codes == [0, 0], "".join(log.read_text() for log in folder.glob("*.log"))


@pytest.mark.dist
def test_two_launchers_on_one_machine(tiny_world: Path, two_ranks: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [[f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"] for node in (0, 1)]
    with launched([[], []], options, tiny_world, tmp_path):
        pass
    assert_same_run(tmp_path / "run", two_ranks)


@pytest.fixture
def machines() -> Iterator[list[list[str]]]:
    """Two network namespaces that see nothing but each other, at 10.0.0.1 and 10.0.0.2."""
    names = [f"crossmodal{os.getpid()}{end}" for end in "ab"]
    devices = [f"cm{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", devices[0], "netns", names[0], "type", "veth",
            "peer", "name", devices[1], "netns", names[1])  # fmt: skip
        for number, (name, device) in enumerate(zip(names, devices, strict=True), start=1):
            _ip("-n", name, "address", "add", f"10.0.0.{number}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield [
            ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={device}"]
            for name, device in zip(names, devices, strict=True)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.mark.host("network namespaces")
def test_two_machines_of_which_one_loses_its_rank(
    machines: list[list[str]], tiny_world: Path, two_ranks: Path, tmp_path: Path
) -> None:
    """Both launchers start theirs again, and these find each other as well."""
    meet = ["--rdzv-backend=c10d", "--rdzv-endpoint=10.0.0.1:29500", "--rdzv-id=job", "--max-restarts=2"]
    # The name of the machine leads to none of these addresses.
    options = [
        [*meet, f"--rdzv-conf=is_host={node == 0}", f"--local-addr=10.0.0.{node + 1}"] for node in range(len(machines))
    ]
    with launched(machines, options, tiny_world, tmp_path) as processes:
        wait_until(lambda: logged_steps(tmp_path / "run") > 3, processes[0])
        (pid,) = (pid for process in processes for rank, pid in ranks_of(process).items() if rank == 1)
        os.kill(pid, signal.SIGKILL)
    assert "resumed from" in "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert_same_run(tmp_path / "run", two_ranks)
