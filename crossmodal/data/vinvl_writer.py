"""Writing VinVL's layout from any database of boxes: what `vinvl_regions` reads."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crossmodal.data.items import RegionItem
from crossmodal.data.region_db import RegionDB
from crossmodal.data.vinvl_regions import FEATURES, PREDICTIONS, bare
from crossmodal.errors import DataError
from crossmodal.files import write_folder


def write_vinvl(db: RegionDB, output: Path) -> Path:
    """Write the boxes that `db` gives, and its tags, to the folder `output`, which appears when it is complete.

    Rects are normalised, of an image of 1 by 1 (a database doesn't keep sizes); they and confidences stand beside
    the tags where these are one a box. Class probabilities have no place in this layout and are left out.
    Raises DataError where the folder is there already, or an image has boxes of Detic's, whose rows it cannot hold.
    """
    if output.exists():
        raise DataError(f"{output} exists already; remove it or write to another folder.")
    write_folder(output, lambda folder: _write(db, folder))
    return output


def _write(db: RegionDB, folder: Path) -> None:
    numbers: dict[str, int] = {}
    with _Lines(folder / FEATURES) as features, _Lines(folder / PREDICTIONS) as predictions:
        for key in tqdm(db.ids, desc=f"writing {folder.name}", unit="image", disable=None):
            item, image = db[key], bare(key)
            if item.detic is not None:
                raise DataError(f"image {key} in {db.path} has boxes of Detic's, which VinVL's layout cannot hold")
            rows = np.concatenate([item.features, item.boxes], axis=1).astype("<f4")
            features.add(image, str(len(item)), base64.b64encode(rows.tobytes()).decode())
            predictions.add(image, json.dumps({"image_h": 1, "image_w": 1, "objects": _objects(item)}))
            numbers[image] = len(numbers)
    (folder / "imageid2idx.json").write_text(json.dumps(numbers))


def _objects(item: RegionItem) -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = [{"class": tag} for tag in item.tags]
    if len(objects) == len(item):
        for number, found in enumerate(objects):
            if item.confidence is not None:
                found["conf"] = float(item.confidence[number])
            found["rect"] = item.boxes[number, :4].tolist()
    return objects


class _Lines:
    """A TSV and the index of its lines, written together."""

    def __init__(self, path: Path) -> None:
        self._rows, self._starts = path.open("wb"), path.with_suffix(".lineidx").open("w")

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._starts.close()

    def add(self, *columns: str) -> None:
        self._starts.write(f"{self._rows.tell()}\n")
        self._rows.write(("\t".join(columns) + "\n").encode())
