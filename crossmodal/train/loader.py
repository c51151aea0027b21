"""From a global order of anchors to this rank's micro-batches, step after step, read in worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import lmdb
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from crossmodal.data.batches import Batch
from crossmodal.data.datasets import Dataset as Anchors
from crossmodal.data.samplers import GlobalOrder
from crossmodal.errors import CrossmodalError, DataError

Request = tuple[int, list[int]]  # epoch, anchors


class WorkerLost(DataError):
    """A process that reads batches ended by itself."""


class _Requests(Sampler[Request]):
    """The non-empty micro-batches of the steps from `start` on, without end."""

    def __init__(self, order: GlobalOrder, accumulate: int, start: int) -> None:
        self.order, self.accumulate, self.start = order, accumulate, start

    def step(self, step: int) -> list[Request]:
        epoch, anchors = self.order.slice(step)
        parts = np.array_split(anchors, self.accumulate)
        return [(epoch, part.tolist()) for part in parts if len(part)]

    def __iter__(self) -> Iterator[Request]:
        step = self.start
        while True:
            yield from self.step(step)
            step += 1


class _Batches(Dataset["Batch | CrossmodalError"]):
    """A batch, or the user's mistake that reading it came upon: raised, a worker would wrap it in its traceback."""

    def __init__(self, anchors: Anchors) -> None:
        self.anchors = anchors

    def __getitem__(self, request: Request) -> Batch | CrossmodalError:
        epoch, anchors = request
        try:
            return self.anchors.batch(anchors, epoch)
        except CrossmodalError as error:
            return error
        except (OSError, lmdb.Error) as error:
            return DataError(
                f"a batch of the anchors {anchors} cannot be read ({error}); check the databases with "
                "`crossmodal data check`"
            )


def _leave_signals_to_the_parent(_: int) -> None:
    """A terminal's Ctrl-C reaches workers too; the parent still needs them. They end on SIGTERM, as torch has it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class StreamLoader:
    """Hands out the micro-batches of one stream, step by step; a rank without anchors gets none.

    `close` ends its workers.
    """

    def __init__(
        self, anchors: Anchors, order: GlobalOrder, *, accumulate: int, workers: int, start: int, pin: bool
    ) -> None:
        self._requests = _Requests(order, accumulate, start)
        loader: DataLoader[Batch | CrossmodalError] = DataLoader(
            _Batches(anchors),
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=_leave_signals_to_the_parent,
            # Its own generator: drawing worker seeds from the global one would move the dropout's random state.
            generator=torch.Generator().manual_seed(order.seed),
        )
        self._batches: Iterator[Batch | CrossmodalError] = iter(loader)
        self._position = start

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
                f"a process that reads batches ended unexpectedly ({str(error).rstrip('. ')}); where memory ran out, "
                "lower workers, and go on with --resume"
            ) from None
        if isinstance(found, CrossmodalError):
            raise found
        return found
