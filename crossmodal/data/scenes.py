"""The built-in demo world, on disk: pictures, region and text databases, true scenes, false captions.

    write_world(Path("world"), seed=0)

Every pipeline runs on it, and what a model has learned can be measured, since the truth is known. A folder
written by this module holds

    world.json                  layout version, seed, splits, feature width, how to open the regions
    scenes_<split>.json         objects (kind, colour, size, box), relations and captions of each scene
    negatives_<split>.json      false captions by kind of edit (validation and test)
    regions/<split>/            a UNITER image database
    texts/<split>/              a UNITER text database
    tokenizer/                  trained on the training captions
    images/<split>/<name>.png   pictures (validation and test, training on request)

A picture ``test_00007.png`` is the image ``test_00007.npz`` of the databases; its captions are
``test_00007_0`` to ``test_00007_4``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crossmodal.data.captions import Caption
from crossmodal.data.region_writer import write_region_db
from crossmodal.data.scene_captions import Statement, describe, edits
from crossmodal.data.scene_features import FEATURE_DIM, detect
from crossmodal.data.scene_layout import CANVAS, COLOURS, KINDS, RELATIONS, SIZES, Scene, sample_scenes
from crossmodal.data.scene_render import render
from crossmodal.data.text_writer import refuse_existing, write_text_db
from crossmodal.data.tokenizers import train_tokenizer
from crossmodal.errors import ConfigError
from crossmodal.files import write_synced

__all__ = ["OPEN_OPTIONS", "SPLITS", "DescribedScene", "sample_world", "write_world"]

LAYOUT = 1
SPLITS = ("test", "val", "train")
"""In the order in which they are drawn, so that test and validation do not depend on the size of training."""

OPEN_OPTIONS: dict[str, Any] = {"conf_th": 0.2, "max_bb": 20, "min_bb": 2}
"""Options of `open_regions` for these databases: scenes have fewer boxes than the published minimum of 10."""

_VOCABULARY = 200
# A scene is laid out by a generator seeded with (seed, split, index); what follows adds one of these.
_PICTURE, _CAPTIONS, _EDITS = 1, 2, 3


@dataclass(frozen=True)
class DescribedScene:
    """A scene, its five true statements, and its place in the random streams."""

    scene: Scene
    statements: tuple[Statement, ...]
    stream: tuple[int, ...]

    @property
    def image(self) -> str:
        """Its key in the databases."""
        return f"{self.scene.name}.npz"

    @property
    def captions(self) -> list[Caption]:
        return [
            Caption(id=f"{self.scene.name}_{i}", sentence=str(statement), image=self.image)
            for i, statement in enumerate(self.statements)
        ]

    @property
    def negatives(self) -> list[dict[str, str]]:
        """False captions, each with the true one it was made of and the kind of edit."""
        rng = np.random.default_rng((*self.stream, _EDITS))
        return [
            {"caption_id": caption.id, "image": self.image, "kind": edit, "sentence": str(false)}
            for caption, statement in zip(self.captions, self.statements, strict=True)
            for edit, false in edits(statement, self.scene, rng)
        ]

    def observe(self) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
        """The picture (H,W,3) and its region record: norm_bb (R,6), features (R,F), conf (R,1), float16."""
        rng = np.random.default_rng((*self.stream, _PICTURE))
        picture = render(self.scene, rng)
        found = detect(self.scene, picture, rng)
        record = {"norm_bb": found.boxes, "features": found.features, "conf": found.confidence}
        return picture, {name: array.astype(np.float16) for name, array in record.items()}


def sample_world(seed: int, counts: Mapping[str, int]) -> dict[str, list[DescribedScene]]:
    """Draw `counts` scenes of each split. No two scenes of the world hold the same multiset of objects."""
    taken: set[tuple[tuple[str, str, str], ...]] = set()
    world: dict[str, list[DescribedScene]] = {}
    for number, split in enumerate(SPLITS):
        world[split] = []
        for index, scene in enumerate(sample_scenes(split, counts[split], (seed, number), taken)):
            stream = (seed, number, index)
            statements = describe(scene, np.random.default_rng((*stream, _CAPTIONS)))
            world[split].append(DescribedScene(scene, tuple(statements), stream))
    return world


def write_world(
    output: Path,
    *,
    seed: int = 0,
    train: int = 3000,
    val: int = 200,
    test: int = 200,
    train_pictures: bool = False,
    workers: int = 1,
) -> Path:
    """Write the world of this seed and size to the folder `output`, which must not exist or be empty.

    train_pictures: write the training pictures too, which most pipelines do not read (about 20 kB each).
    workers: processes that render the training scenes; the files do not depend on it.
    The same arguments give the same files. Everything is written to ``<output>.partial`` and renamed at the
    end. Raises ConfigError for a negative seed, an empty split, or an output that is there already.
    """
    counts = {"train": train, "val": val, "test": test}
    if seed < 0:
        raise ConfigError(f"The world's seed is {seed}; give 0 or a positive number.")
    for split, count in counts.items():
        if count < 1:
            raise ConfigError(f"The world's {split} split has {count} scenes; give at least 1.")
    output = Path(output).absolute()
    refuse_existing(output)
    unfinished = output.with_name(f"{output.name}.partial")
    if unfinished.exists():
        shutil.rmtree(unfinished)  # of an earlier run that was killed
    unfinished.mkdir(parents=True)
    try:
        world = sample_world(seed, counts)
        sentences = [c.sentence for described in world["train"] for c in described.captions]
        tokenizer = train_tokenizer(sentences, _VOCABULARY)
        tokenizer.save(unfinished / "tokenizer")
        for split, scenes in world.items():
            captions = [caption for described in scenes for caption in described.captions]
            write_text_db(captions, unfinished / "texts" / split, tokenizer, total=len(captions))
            pictures = unfinished / "images" / split if split != "train" or train_pictures else None
            records = _records(scenes, pictures)
            write_region_db(
                records,
                unfinished / "regions" / split,
                **OPEN_OPTIONS,
                total=len(scenes),
                workers=workers if split == "train" else 1,
            )
            write_synced(
                unfinished / f"scenes_{split}.json", json.dumps([_as_json(described) for described in scenes], indent=1)
            )
            if split != "train":
                negatives = [negative for described in scenes for negative in described.negatives]
                write_synced(unfinished / f"negatives_{split}.json", json.dumps(negatives, indent=1))
        write_synced(unfinished / "world.json", json.dumps(_summary(seed, counts), indent=1))
        os.replace(unfinished, output)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return output


def _records(
    scenes: list[DescribedScene], pictures: Path | None
) -> Iterator[tuple[str, Callable[[], dict[str, NDArray[Any]]]]]:
    """What makes the region record of each scene, and saves its picture where a folder is given."""
    if pictures is not None:
        pictures.mkdir(parents=True)
    for described in scenes:
        yield described.image, partial(_record, described, pictures)


def _record(described: DescribedScene, pictures: Path | None) -> dict[str, NDArray[Any]]:
    picture, record = described.observe()
    if pictures is not None:
        Image.fromarray(picture).save(pictures / f"{described.scene.name}.png", compress_level=4)
    return record


def _as_json(described: DescribedScene) -> dict[str, Any]:
    scene = described.scene
    return {
        "name": scene.name,
        "image": described.image,
        "objects": [asdict(thing) for thing in scene.objects],
        "relations": scene.relations,
        "captions": [{"id": caption.id, "sentence": caption.sentence} for caption in described.captions],
    }


def _summary(seed: int, counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "layout": LAYOUT,
        "seed": seed,
        "splits": dict(counts),
        "feature_dim": FEATURE_DIM,
        "open": OPEN_OPTIONS,
        "canvas": CANVAS,
        "kinds": KINDS,
        "colours": COLOURS,
        "sizes": SIZES,
        "relations": RELATIONS,
    }
