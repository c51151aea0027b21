"""Small pictures with captions on disk, in the ways in which people keep them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossmodal.data.clip_processor import ClipProcessor
from crossmodal.data.clip_tokenizer import ClipTokenizer
from crossmodal.data.negatives.records import CeRecord, write_records
from crossmodal.data.negatives.table import TableRow, write_table

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}
MERGES = [("a", "n"), ("r", "e"), ("re", "d</w>")]


def picture(number: int, size: tuple[int, int] = (20, 14)) -> Image.Image:
    """A colour with noise, which the number determines; size: width and height."""
    generator = np.random.default_rng(number)
    noise = generator.integers(-20, 20, (size[1], size[0], 3))
    return Image.fromarray((np.array(list(COLOURS.values())[number % 4]) + noise).astype(np.uint8))


def write_pictures(folder: Path, names: Iterable[str]) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name)
    return folder


def sentence(number: int) -> str:
    return f"a {list(COLOURS)[number % 4]} thing {number}"


def ce_record(number: int, image: int | str, *, valid: Sequence[int] = (1, 0, 1, 1)) -> CeRecord:
    """The wrong captions of `sentence(number)`, those of the types that are not valid missing."""
    wrong = [f"wrong {kind} of {number}" if there else "###" for kind, there in zip("rany", valid, strict=True)]
    return CeRecord(image, number, sentence(number), tuple(wrong), tuple(valid))


def write_ce_clip(path: Path, images: Sequence[int | str]) -> Path:
    """A record for every image, the wrong captions of every other one without a relation."""
    return write_records([ce_record(n, image, valid=(n % 2, 0, 1, 1)) for n, image in enumerate(images)], path)


def write_negclip(path: Path, images: Sequence[str]) -> Path:
    """Row n has 1 + n % 3 wrong captions, and the next two as hard images."""
    count = len(images)
    rows = [
        TableRow(
            sentence(n),
            image,
            tuple(f"wrong {k} of {n}" for k in range(1 + n % 3)),
            ((n + 1) % count, (n + 2) % count),
        )
        for n, image in enumerate(images)
    ]
    return write_table(rows, path)


def write_csv(path: Path, rows: Iterable[Sequence[str]], separator: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return path


def write_coco(path: Path, images: Sequence[str], captions: int = 2) -> Path:
    """COCO's captions: `captions` an image."""
    annotations = [
        {"id": 10 * n + c, "image_id": n, "caption": sentence(n) + " again" * c}
        for n in range(len(images))
        for c in range(captions)
    ]
    listed = [{"id": n, "file_name": image} for n, image in enumerate(images)]
    path.write_text(json.dumps({"images": listed, "annotations": annotations}))
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample_files(numbers: Iterable[int]) -> dict[str, bytes]:
    """The files of samples as webdataset keeps them."""
    files: dict[str, bytes] = {}
    for number in numbers:
        encoded = io.BytesIO()
        picture(number).save(encoded, "PNG")
        files[f"{number:04d}.png"] = encoded.getvalue()
        files[f"{number:04d}.txt"] = f"{sentence(number)}\n".encode()
    return files


def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(MERGES)


def processor(**options: Any) -> ClipProcessor:
    return ClipProcessor(image_size=(8, 8), context=32, tokenizer=tokenizer(), **options)
