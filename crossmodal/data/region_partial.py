"""An image database under construction: the folder ``<database>.partial``, which the next run continues."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmdb

from crossmodal.data.json_text import parse
from crossmodal.data.region_records import BadRecord, unpack
from crossmodal.disk import disk_errors, require_room
from crossmodal.errors import DataError
from crossmodal.files import sync, write_synced

_SETTINGS = "settings.json"
_UNFINISHED = "unfinished.json"  # a file on its way to its name


class Partial:
    """The LMDB of a database that has no name yet, and the settings with which it was begun.

    Raises DataError where the folder was begun with other settings, or isn't an LMDB.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], map_size: int) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        begun = path / _SETTINGS
        if not begun.exists():
            self.write(begun, settings)
        elif read_json(begun) != settings:
            raise DataError(f"{path} was begun with other options or another source; remove it to start anew.")
        data = path / "data.mdb"
        written = data.stat().st_size if data.exists() else 0
        try:
            with disk_errors(path):
                require_room(path)
                self.env = lmdb.open(str(path), map_size=max(map_size, written))
        except lmdb.Error as error:
            raise DataError(f"{path} cannot be continued ({error}); remove it to start anew.") from error

    def rows(self, image: str) -> int | None:
        """How many boxes were written of an image, None if it wasn't (or is damaged)."""
        try:
            with self.env.begin(buffers=True) as txn:
                value = txn.get(image.encode())
                return None if value is None else len(unpack(value, ("norm_bb",), verify=True)["norm_bb"])
        except BadRecord:
            return None

    def put(self, batch: list[tuple[bytes, bytes]]) -> None:
        """Commit all of a batch, growing the map until it fits. Raises DiskError where the disk is full."""
        while True:
            try:
                with disk_errors(self.path), self.env.begin(write=True) as txn:
                    for key, value in batch:
                        txn.put(key, value)
                return
            except lmdb.MapFullError:
                self.env.set_mapsize(2 * self.env.info()["map_size"])

    def close(self) -> None:
        with disk_errors(self.path):
            self.env.sync(True)
        self.env.close()

    def write(self, path: Path, content: Mapping[str, Any]) -> None:
        """A JSON that appears whole: it grows in the partial folder, so that a kill leaves nothing elsewhere."""
        unfinished = self.path / _UNFINISHED
        write_synced(unfinished, json.dumps(content))
        os.replace(unfinished, path)
        sync(path.parent)

    def rename(self, final: Path) -> None:
        """Give the closed database its name."""
        (self.path / _UNFINISHED).unlink(missing_ok=True)  # of a killed run
        os.replace(self.path, final)
        sync(final.parent)
        forget_settings(final)


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is none, or something else."""
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError):
        return None


def forget_settings(final: Path) -> None:
    """Remove the settings from a database that has its name: until then they say how it is continued."""
    (final / _SETTINGS).unlink(missing_ok=True)
