"""Pickles in the place of numbers are refused by name, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from ..commands import command, refused
from .damage import DATABASE, change, record, train

Said = pytest.CaptureFixture[str]


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_pickles_in_dumps_are_refused_unopened(tmp_path: Path, capsys: Said) -> None:
    trace = tmp_path / "trace"
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    array = np.empty(12, object)
    array[:] = [Malicious(trace)] * 12
    np.savez(dumps / "a.npz", **{**record(), "features": array}, allow_pickle=True)
    said = refused(capsys, "data", "regions", dumps, "--output", tmp_path / "out")
    assert "a.npz" in said and "features holds Python objects, as a pickle, which is never opened" in said
    (dumps / "a.npz").write_bytes(pickle.dumps(Malicious(trace)))
    assert "File is not a zip file" in refused(capsys, "data", "regions", dumps, "--output", tmp_path / "out")
    # beside the arrays, where some detectors leave a dictionary, it is left alone
    np.savez(dumps / "a.npz", **record(), info=array, allow_pickle=True)
    assert command("data", "regions", dumps, "--output", tmp_path / "out") == 0
    assert not trace.exists()


@pytest.mark.parametrize("flavour", ["msgpack", "npz"])
def test_pickles_in_databases_are_refused_unopened(world: Path, tmp_path: Path, capsys: Said, flavour: str) -> None:
    trace = tmp_path / "trace"
    folder = world / "regions" / "train" / DATABASE
    hidden = pickle.dumps(Malicious(trace))

    def poisoned(_: str, value: bytes) -> bytes:
        if flavour == "npz":
            array = np.empty((12, 16), object)
            array[:] = Malicious(trace)
            np.savez(tmp_path / "value.npz", **{**record(), "features": array}, allow_pickle=True)
            return (tmp_path / "value.npz").read_bytes()
        found = msgpack.unpackb(value, raw=True)
        found[b"features"] |= {b"type": b"|O", b"kind": b"O", b"data": hidden}
        return bytes(msgpack.packb(found))

    change(folder, poisoned)
    said = refused(capsys, *train(world, tmp_path / "run"))
    assert f".npz in {folder} is damaged (features " in said
    assert not trace.exists()


def test_the_pickle_would_do_harm(tmp_path: Path) -> None:
    """Or the two tests above showed nothing."""
    pickle.loads(pickle.dumps(Malicious(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()
