"""Reading damaged files in a process of its own: C libraries can end it, or never come back."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from crossmodal.data.environments import close
from crossmodal.data.regions import open_regions
from crossmodal.data.texts import TextDB
from crossmodal.errors import DataError

from .damage import SECONDS, require_item

WIDTH = 700  # of the features: a value of several LMDB pages


def read_hdf5(path: Path) -> None:
    """Every image of an HDF5 file. The first image says how wide features are."""
    db = open_regions(path, conf_th=-1)
    for image in db.ids:
        try:
            require_item(db, image, db.feature_dim, confident=False)
        except DataError:
            continue


def read_images(path: Path) -> None:
    """Every image of an image database whose ``data.mdb`` this is."""
    close(path.parent)
    db = open_regions(path.parent)
    for image in db.ids:
        try:
            require_item(db, image, WIDTH, confident=False)
        except DataError:
            continue


def read_texts(path: Path) -> None:
    """Every caption of a text database whose ``data.mdb`` this is; its frames have checksums."""
    close(path.parent)
    db = TextDB(path.parent)
    for caption in db.ids:
        try:
            item = db[caption]
        except DataError:
            continue
        assert item.id == caption and item.input_ids and item.sentence


class ReaderProcess:
    """A process that writes what it is sent to `path` and reads it; one that ends or hangs fails the test."""

    def __init__(self, read: Callable[[Path], None], path: Path) -> None:
        self.arguments = read, path
        self._start()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, *self.arguments), daemon=True)
        self.process.start()
        theirs.close()
        assert self.connection.recv() == "ready"

    def read(self, content: bytes) -> None:
        """Have it read. Raises AssertionError with what went wrong; then the next reading has a new process."""
        self.connection.send_bytes(content)
        said = f"still reading after {SECONDS} seconds"
        if self.connection.poll(SECONDS):
            try:
                said = self.connection.recv()
            except EOFError:
                self.process.join()
                said = f"the reader ended with {self.process.exitcode}"
        if said not in ("read", "refused"):
            self.close()
            self._start()
            raise AssertionError(said)

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, read: Callable[[Path], None], path: Path) -> None:
    connection.send("ready")
    while True:
        content = connection.recv_bytes()
        # A file of its own each time, as a copy or download makes it: nobody writes into one that is read.
        fresh = path.with_name("fresh")
        fresh.write_bytes(content)
        os.replace(fresh, path)
        try:
            read(path)
        except DataError:
            connection.send("refused")
        except BaseException:
            shutil.copy(path, path.with_name("failed"))
            connection.send(traceback.format_exc())
        else:
            connection.send("read")
