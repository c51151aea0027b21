"""CE-CLIP's records of wrong captions (spec 4.1): ``.npy`` files as published, or ``.jsonl`` without pickles."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossmodal.data.json_text import parse
from crossmodal.data.unpickle import read_object_array
from crossmodal.errors import DataError
from crossmodal.files import write_folder, write_whole

from .ce_clip import TYPES

KEYS = ("relation_aug_caption", "adj_aug_caption", "noun_aug_caption", "verb_aug_caption")
CHUNK = 50_000
"""Records of a published file."""
_COCO = re.compile(r"COCO_\w+_(\d{12})\.jpg$")


@dataclass(frozen=True)
class CeRecord:
    """A caption with its wrong captions in the order of `TYPES`; `valid` is 0 for those that are missing.

    image: a COCO image number, or a path. id: of the caption.
    """

    image: int | str
    id: int | str
    caption: str
    negatives: tuple[str, ...]
    valid: tuple[int, ...]

    def image_file(self, split: str) -> str:
        """Where the image lies below the folder of images; split: of COCO, such as train2014."""
        return self.image if isinstance(self.image, str) else f"{split}/COCO_{split}_{self.image:012d}.jpg"

    def published(self) -> dict[str, Any]:
        """As the published files hold it."""
        image = {"image_path" if isinstance(self.image, str) else "image_id": self.image}
        sentences = {"id": self.id, "caption": self.caption, **dict(zip(KEYS, self.negatives, strict=True))}
        return {**image, **sentences, "valid_caption": [1, *self.valid]}

    @classmethod
    def of(cls, record: Any, where: str = "the record") -> CeRecord:
        """What `published` gave. Raises DataError saying where it is not that."""
        try:
            image = record["image_id"] if "image_id" in record else record["image_path"]
            sentences = [record[key] for key in ("caption", *KEYS)]
            found = cls(image, record["id"], sentences[0], tuple(sentences[1:]), tuple(record["valid_caption"])[1:])
        except (KeyError, TypeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{where} is no record of wrong captions ({reason}); make the file again") from None
        whole = all(isinstance(sentence, str) for sentence in sentences) and isinstance(image, (int, str))
        if not whole or len(found.valid) != len(TYPES) or not set(found.valid) <= {0, 1}:
            raise DataError(f"{where} holds other things than sentences and flags; make the file again")
        return found


def coco_image(name: str) -> int | str:
    """The number of a COCO image by the name of its file; another name as it is."""
    found = _COCO.search(name)
    return int(found[1]) if found else name


def read_records(path: Path) -> list[CeRecord]:
    """The records of a ``.jsonl``, of a ``.npy``, or of every ``.npy`` in a folder, in the order of their numbers.

    Raises DataError where there are none or one cannot be read.
    """
    if path.is_dir():
        files = sorted(path.glob("*.npy"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.stem)] or [-1])
        records = [record for file in files for record in read_records(file)]
    elif path.suffix == ".npy":
        found = enumerate(read_object_array(path))
        records = [CeRecord.of(record, f"record {number} of {path}") for number, record in found]
    else:
        lines = read_text(path).split("\n")
        records = [_of_line(line, f"line {n} of {path}") for n, line in enumerate(lines, start=1) if line.strip()]
    if not records:
        raise DataError(f"{path} holds no records of wrong captions")
    return records


def write_records(records: Iterable[CeRecord], path: Path) -> Path:
    """A ``.jsonl`` file, or else a folder of published ``processed_dataset<k>.npy``. Complete or not there."""
    if path.suffix == ".jsonl":
        lines = (json.dumps(record.published(), ensure_ascii=False) + "\n" for record in records)
        return write_whole(path, lambda part: part.write_text("".join(lines), encoding="utf-8"))
    rows = [record.published() for record in records]

    def write(folder: Path) -> None:
        for number, start in enumerate(range(0, len(rows), CHUNK)):
            chunk = np.empty(len(rows[start : start + CHUNK]), dtype=object)
            chunk[:] = rows[start : start + CHUNK]
            np.save(folder / f"processed_dataset{number}.npy", chunk)

    write_folder(path, write)
    return path


def _of_line(line: str, where: str) -> CeRecord:
    try:
        return CeRecord.of(parse(line), where)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); make the file again") from None


def read_text(path: Path) -> str:
    """A file of UTF-8 text. Raises DataError where it is none."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); check the path") from None
