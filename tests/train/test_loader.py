"""What stands in the way of reading a batch is said in one sentence, through worker processes too."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import lmdb
import pytest

from crossmodal.data.batches import Batch
from crossmodal.data.samplers import GlobalOrder
from crossmodal.errors import DataError
from crossmodal.train.loader import StreamLoader, WorkerLost
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.trainer import Trainer

from .runs import recipe

BAD = {"regions": "train_07.npz", "texts": "train_07_1"}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("side", BAD)
def test_a_record_that_cannot_be_read_is_named_with_its_database(
    side: str, workers: int, tiny_world: Path, tmp_path: Path
) -> None:
    world = tmp_path / "world"
    shutil.copytree(tiny_world, world)
    (database,) = (path.parent for path in (world / side).glob("**/data.mdb") if "train" in str(path))
    with lmdb.open(str(database)) as env, env.begin(write=True) as txn:
        txn.put(BAD[side].encode(), bytes(txn.get(BAD[side].encode()))[:40])
    trainer = Trainer(parse_recipe(recipe(world, steps=40, workers=workers)), tmp_path / "run")
    with pytest.raises(DataError) as error:
        trainer.train()
    said = str(error.value)
    assert BAD[side] in said and str(database) in said and "\n" not in said


class Anchors:
    """A dataset of which one anchor cannot be read, where there is an error."""

    adds = frozenset[str]()

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 8

    def id_of(self, anchor: int) -> str:
        return f"anchor_{anchor}"

    def batch(self, anchors: Sequence[int], epoch: int) -> Batch:
        if self.error is not None and 3 in anchors:
            raise self.error
        return Batch({}, ids={"text": [str(anchor) for anchor in anchors]})


def loader(error: Exception | None, workers: int) -> StreamLoader:
    order = GlobalOrder(8, 2, seed=0, stream="s")
    return StreamLoader(Anchors(error), order, accumulate=1, workers=workers, start=0, pin=False)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error", "/net/x.npz"), lmdb.CorruptedError("page 3")])
def test_what_libraries_raise_names_the_batch(error: Exception, workers: int) -> None:
    reader = loader(error, workers)
    with pytest.raises(DataError) as found:
        for _ in range(4):
            reader.next()
    said = str(found.value)
    assert str(error) in said and "anchor_3" in said.split("cannot be read")[0] and "\n" not in said
    assert said.endswith("check the databases with `crossmodal data check`")
    reader.close()


def test_workers_leave_signals_to_the_group_to_their_parent_and_end_with_the_loader() -> None:
    reader = loader(None, 2)
    reader.next(), reader.next()  # of each worker one: both are up
    workers = multiprocessing.active_children()
    assert [os.getpgid(worker.pid or 0) for worker in workers] == [worker.pid for worker in workers]
    reader.close()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_a_worker_still_ends_when_torch_terminates_it() -> None:
    reader = loader(None, 1)
    reader.next()
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0
    reader.close()


def test_a_worker_that_is_lost_between_batches_is_said() -> None:
    reader = loader(None, 1)
    reader.next()
    (worker,) = multiprocessing.active_children()
    time.sleep(0.5)  # it has read ahead as far as it does
    worker.kill()
    said = r"a process that reads batches ended unexpectedly \(DataLoader worker .*\) between two batches; "
    with pytest.raises(WorkerLost, match=said):
        for _ in range(9):
            reader.next()
    reader.close()


class Deadly(Anchors):
    """One of its anchors kills the process that reads it."""

    def batch(self, anchors: Sequence[int], epoch: int) -> Batch:
        if 3 in anchors:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(anchors, epoch)


def test_a_worker_that_is_lost_over_a_batch_names_it() -> None:
    order = GlobalOrder(8, 2, seed=0, stream="s")
    fatal = next(order.at(step)[1] for step in range(4) if 3 in order.at(step)[1])
    reader = StreamLoader(Deadly(None), order, accumulate=1, workers=2, start=0, pin=False)
    with pytest.raises(WorkerLost) as error:
        for _ in range(4):
            reader.next()
    named = ", ".join(f"anchor_{anchor}" for anchor in fatal)
    assert f"while it read the batch of the anchors {named}; where memory" in str(error.value)
    reader.close()
