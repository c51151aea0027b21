"""From a global order of anchors to this rank's micro-batches, step after step, read in worker processes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import lmdb
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from crossmodal.data.batches import Batch
from crossmodal.data.datasets import Dataset as Anchors
from crossmodal.data.samplers import GlobalOrder, Place
from crossmodal.errors import CrossmodalError, DataError

Request = tuple[int, list[int], bool]  # epoch, anchors, whether they are a ghost's

_NONE = -1


class WorkerLost(DataError):
    """A process that reads batches ended by itself."""


class _Requests(Sampler[Request]):
    """The micro-batches of the steps from `start` on, without end: on every rank as many as on the one with most.

    Where this rank has no anchors left, it takes one of another rank as a ghost.
    """

    def __init__(self, order: GlobalOrder, accumulate: int, start: int) -> None:
        self.order, self.accumulate, self.start = order, accumulate, start

    def step(self, step: int) -> list[Request]:
        epoch, anchors = self.order.slice(step)
        parts = np.array_split(anchors, self.accumulate)
        requests = [(epoch, part.tolist(), False) for part in parts if len(part)]
        _, every = self.order.at(step)
        most = min(self.accumulate, -(-len(every) // self.order.world))
        return requests + [(epoch, every[:1].tolist(), True)] * (most - len(requests))

    def __iter__(self) -> Iterator[Request]:
        step = self.start
        while True:
            yield from self.step(step)
            step += 1


class _Batches(Dataset["Batch | CrossmodalError"]):
    """A batch, or the user's mistake that reading it came upon: raised, a worker would wrap it in its traceback.

    reading: (workers, 1 + anchors) int64 in shared memory: the process of each worker, and what it is reading now,
    so that one that dies has said what it was at.
    """

    def __init__(self, anchors: Anchors, workers: int, most: int) -> None:
        self.anchors = anchors
        self.reading = torch.full((max(1, workers), 1 + most), _NONE).share_memory_()

    def __getitem__(self, request: Request) -> Batch | CrossmodalError:
        epoch, anchors, ghost = request
        worker = get_worker_info()
        row = self.reading[worker.id if worker else 0]
        row[0] = os.getpid()
        row[1 : 1 + len(anchors)] = torch.tensor(anchors)
        try:
            return replace(self.anchors.batch(anchors, epoch), ghost=ghost)
        except CrossmodalError as error:
            return error
        except (OSError, lmdb.Error) as error:
            return DataError(
                f"the batch of {self._named(anchors)} cannot be read ({error}); check the databases with "
                "`crossmodal data check`"
            )
        finally:
            row[1:] = _NONE

    def lost(self, text: str) -> str:
        """When the processes whose numbers stand in a text ended."""
        gone = {int(number) for number in re.findall(r"\d+", text)}
        anchors = [a for row in self.reading.tolist() if row[0] in gone for a in row[1:] if a != _NONE]
        return f"while it read the batch of {self._named(anchors)}" if anchors else "between two batches"

    def _named(self, anchors: Sequence[int]) -> str:
        return f"the anchors {', '.join(self.anchors.id_of(anchor) for anchor in anchors)}"


def _leave_the_group(_: int) -> None:
    """Signals to the process group (a terminal's Ctrl-C, a launcher's SIGTERM) are for the parent, which still needs
    its workers; they end with it."""
    os.setpgid(0, 0)


class StreamLoader:
    """Hands out the micro-batches of one stream, step by step.

    `close` ends its workers.
    """

    def __init__(
        self, anchors: Anchors, order: GlobalOrder, *, accumulate: int, workers: int, start: int, pin: bool
    ) -> None:
        self.order = order
        self._requests = _Requests(order, accumulate, start)
        self._dataset = _Batches(anchors, workers, order.global_batch)
        loader: DataLoader[Batch | CrossmodalError] = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=_leave_the_group,
            # Its own generator: drawing worker seeds from the global one would move the dropout's random state.
            generator=torch.Generator().manual_seed(order.seed),
        )
        self._batches: Iterator[Batch | CrossmodalError] = iter(loader)
        self._position = start

    @property
    def place(self) -> Place:
        """Where the stream is: before its next step."""
        return self.order.place(self._position)

    def next(self) -> list[Batch]:
        """The micro-batches of the stream's next step. Raises what stood in the way of reading them."""
        count = len(self._requests.step(self._position))
        self._position += 1
        return [self._read() for _ in range(count)]

    def close(self) -> None:
        self._batches = iter(())  # torch ends the workers of an iterator that nobody holds

    def _read(self) -> Batch:
        try:
            found = next(self._batches)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise WorkerLost(
                f"a process that reads batches ended unexpectedly ({str(error).rstrip('. ')}) "
                f"{self._dataset.lost(str(error))}; where memory ran out, lower workers; else check the databases "
                "with `crossmodal data check`; and go on with --resume"
            ) from None
        if isinstance(found, CrossmodalError):
            raise found
        return found
