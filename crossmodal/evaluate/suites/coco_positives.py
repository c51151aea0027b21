"""More positives of COCO's Karpathy test: the tables of CxC and of ECCV Caption, as the latter's package holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossmodal.data.captions import Caption
from crossmodal.data.picture_sources import coco_number
from crossmodal.errors import DataError

from .files import read_json

NAMES = {"original": "original", "CxC": "cxc", "ECCV": "eccv"}
IDS = "coco_test_ids.npy"
PER_IMAGE = 5  # captions of an image that have an id in the tables; ten images have a sixth


@dataclass(frozen=True)
class Table:
    """Which images are right for a caption, and which captions for an image: ECCV judged the two apart.

    captions: ids, in the caption file, of all that was judged. images_of: of these -> COCO numbers. captions_of: COCO
    number -> such ids.
    """

    captions: frozenset[str]
    images_of: dict[str, tuple[str, ...]]
    captions_of: dict[str, tuple[str, ...]]


def read_tables(folder: Path, captions: Sequence[Caption], source: Path) -> dict[str, Table]:
    """The tables ``<name>_caption_to_image.json`` and ``<name>_image_to_caption.json`` for the captions of a file.

    Captions are known by COCO's ids, or by their order: five an image, in the order of ``coco_test_ids.npy``.
    Raises DataError where a file is damaged, or the captions are others.
    """
    own_id = _own_ids(folder, captions, source)
    tables = {}
    for name, stem in NAMES.items():
        to_image, to_caption = (folder / f"{stem}_{way}.json" for way in ("caption_to_image", "image_to_caption"))
        images_of = {own_id[c]: tuple(map(_number, i)) for c, i in _lists(to_image).items() if c in own_id}
        captions_of = {
            _number(i): tuple(own_id[str(c)] for c in c_of if str(c) in own_id)
            for i, c_of in _lists(to_caption).items()
        }
        tables[name] = Table(frozenset(own_id.values()), images_of, captions_of)
    return tables


def _number(image: Any) -> str:
    return f"{int(image):012d}"


def _lists(path: Path) -> dict[str, list[int]]:
    table = read_json(path)
    if not isinstance(table, dict) or not all(
        isinstance(row, list) and all(isinstance(i, int) for i in row) and str(key).isdecimal()
        for key, row in table.items()
    ):
        raise DataError(f"{path} is no table of ids; download it again")
    return table


def _own_ids(folder: Path, captions: Sequence[Caption], source: Path) -> dict[str, str]:
    """COCO's id of a caption -> its id in the file."""
    try:
        ids = [str(i) for i in np.load(folder / IDS, allow_pickle=False).tolist()]
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{folder / IDS} cannot be read ({reason}); give the data folder of ECCV Caption") from None
    given = {caption.id for caption in captions}
    if given.issuperset(ids):
        return {i: i for i in ids}
    seen: Counter[str] = Counter()
    own = []
    for caption in captions:
        seen[caption.image] += 1
        if seen[caption.image] <= PER_IMAGE and coco_number(caption.image) is not None:
            own.append(caption.id)
    if len(own) != len(ids):
        raise DataError(
            f"{source} has {len(own)} captions, at most {PER_IMAGE} a COCO image, and {folder / IDS} names {len(ids)}; "
            "give the whole Karpathy test split of COCO"
        )
    return dict(zip(ids, own, strict=True))
