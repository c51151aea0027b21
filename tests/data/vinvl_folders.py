"""Small folders in VinVL's published layout, written from random numbers."""

from __future__ import annotations

import base64
import dbm.dumb
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

WIDTH, HEIGHT = 640, 480
CLASSES = ("man", "dog", "surfboard", "tennis racket", "tree", "water")


def boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    """(count,4) float32 corners in pixels."""
    low = generator.uniform(0, 0.6, (count, 2))
    high = low + generator.uniform(0.1, 0.4, (count, 2))
    return (np.concatenate([low, high], axis=1) * [WIDTH, HEIGHT, WIDTH, HEIGHT]).round(2).astype(np.float32)


def described(generator: np.random.Generator, rects: np.ndarray, **more: Sequence[Any]) -> list[dict[str, Any]]:
    """Objects with classes and descending confidences; `more` holds further values of each."""
    conf = np.sort(generator.uniform(0.2, 1, len(rects)))[::-1]
    return [
        {
            "class": str(generator.choice(CLASSES)),
            "conf": round(float(conf[i]), 4),
            "rect": [float(x) for x in rects[i]],
            **{name: values[i] for name, values in more.items()},
        }
        for i in range(len(rects))
    ]


def write_tsv(path: Path, lines: Sequence[Sequence[str]]) -> None:
    """The lines, and the index of their starts."""
    rows = ["\t".join(line) + "\n" for line in lines]
    starts = np.cumsum([0, *(len(row.encode()) for row in rows)])[:-1]
    path.write_text("".join(rows))
    path.with_suffix(".lineidx").write_text("".join(f"{start}\n" for start in starts))


def write_vinvl(folder: Path, counts: Mapping[str, int], *, features: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """A folder of so many boxes an image; predictions in the opposite order. Returns the whole rows of each."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, rows, named = np.random.default_rng(seed), {}, []
    for image, count in counts.items():
        rects = boxes(generator, count)
        norm = rects / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
        look = generator.normal(size=(count, features)).astype(np.float32)
        rows[image] = np.concatenate([look, norm, norm[:, 2:] - norm[:, :2]], axis=1)
        objects = described(generator, rects)
        named.append([image, json.dumps({"image_h": HEIGHT, "image_w": WIDTH, "objects": objects})])
    write_tsv(
        folder / "features.tsv",
        [[image, str(len(r)), base64.b64encode(r.astype("<f4").tobytes()).decode()] for image, r in rows.items()],
    )
    write_tsv(folder / "predictions.tsv", named[::-1])
    (folder / "imageid2idx.json").write_text(json.dumps({image: n for n, image in enumerate(rows)}))
    return rows


def write_shelve(path: Path, records: Mapping[str, Any], module: Any = dbm.dumb) -> None:
    with module.open(str(path), "n") as shelve:
        for image, record in records.items():
            shelve[image.encode()] = pickle.dumps(record)


def detic_records(counts: Mapping[str, int], *, features: int = 8, seed: int = 1) -> dict[str, dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return {
        image: {
            "image_h": HEIGHT,
            "image_w": WIDTH,
            "objects": described(
                generator,
                boxes(generator, count),
                features=generator.normal(size=(count, features)).astype(np.float32).tolist(),
            ),
        }
        for image, count in counts.items()
    }


def write_captions(path: Path, captions: Mapping[int, Any], *, legacy: bool = True, as_json: bool = True) -> Path:
    stored = {image: json.dumps(texts) if as_json else texts for image, texts in captions.items()}
    torch.save(stored, path, _use_new_zipfile_serialization=not legacy)
    return path
