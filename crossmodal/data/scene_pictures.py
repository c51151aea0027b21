"""The demo world for models that see pixels: simpler scenes, their pictures, and captions beside wrong ones, in the
formats in which people have them.

    write_picture_world(Path("world"), seed=0)

A folder written by this module holds, for each split,

    images/<split>/<name>.png   pictures of `SIDE` pixels
    captions_<split>.jsonl      five captions a scene, each with its false edits as CE-CLIP's wrong captions
    places_<split>.json         where each object stands, one caption an object, as COCO's JSON
    negatives_<split>.json      the false edits by kind, as in the larger world
    merges.txt                  byte pairs for CLIP's tokenizer, trained on the training captions

A scene is two objects, larger than in the other world, so that a kind can be seen in few pixels; scenes of different
splits may hold the same objects in other places.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crossmodal.data.clip_tokenizer import train_merges
from crossmodal.data.negatives.ce_clip import MISSING
from crossmodal.data.negatives.records import CeRecord, write_records
from crossmodal.data.parallel import ordered_map
from crossmodal.data.scene_captions import describe, edits, place
from crossmodal.data.scene_layout import Scene, Staging, sample_scene
from crossmodal.data.scene_render import render
from crossmodal.data.text_writer import refuse_existing
from crossmodal.files import write_folder

SIDE = 64
STAGING = Staging(objects=(2, 2), sides=(32, 46, 66))
SPLITS = ("train", "val", "test")
SLOTS = ("swapped_relation", "replaced_colour", "replaced_kind", "swapped_colours")
"""The edits as CE-CLIP's relation, adjective, noun and verb: nothing in this world does anything."""

_MERGES = 400  # more than the words of the captions need
_CHUNK = 250  # scenes that a worker makes at once


class PictureScene(NamedTuple):
    """A scene's picture (SIDE,SIDE,3), its captions with the false edits of each by kind, and its objects' places."""

    name: str
    picture: NDArray[np.uint8]
    captions: list[tuple[str, dict[str, str]]]
    places: list[str]


def write_picture_world(
    output: Path, *, seed: int = 0, train: int = 8000, val: int = 200, test: int = 2000, workers: int = 1
) -> Path:
    """Write the world of this seed and size to the folder `output`, which must not exist or be empty.

    The same arguments give the same files, whatever `workers` is. Raises ConfigError for an output that is there.
    """
    counts = {"train": train, "val": val, "test": test}
    output = Path(output).absolute()
    refuse_existing(output)
    write_folder(output, lambda folder: _write(folder, seed, counts, workers))
    return output


def _write(folder: Path, seed: int, counts: dict[str, int], workers: int) -> None:
    for number, split in enumerate(SPLITS):
        pictures = folder / "images" / split
        pictures.mkdir(parents=True)
        records: list[CeRecord] = []
        places: list[dict[str, Any]] = []
        images: list[dict[str, Any]] = []
        negatives: list[dict[str, str]] = []
        for at, scene in enumerate(_scenes(split, (seed, number), counts[split], workers)):
            image = f"{scene.name}.png"
            Image.fromarray(scene.picture).save(pictures / image, compress_level=1)
            images.append({"id": at, "file_name": image})
            for i, (caption, false) in enumerate(scene.captions):
                wrong = tuple(false.get(slot, MISSING) for slot in SLOTS)
                valid = tuple(int(slot in false) for slot in SLOTS)
                id = f"{scene.name}_{i}"
                records.append(CeRecord(image, id, caption, wrong, valid))
                negatives += [
                    {"caption_id": id, "image": image, "kind": kind, "sentence": sentence}
                    for kind, sentence in false.items()
                ]
            places += [
                {"id": f"{scene.name}_place_{i}", "image_id": at, "caption": caption}
                for i, caption in enumerate(scene.places)
            ]
        write_records(records, folder / f"captions_{split}.jsonl")
        (folder / f"places_{split}.json").write_text(json.dumps({"images": images, "annotations": places}))
        (folder / f"negatives_{split}.json").write_text(json.dumps(negatives, indent=1))
        if split == "train":
            sentences = [record.caption for record in records] + [said["caption"] for said in places]
            train_merges(sentences, _MERGES).save(folder)


def _scenes(split: str, stream: tuple[int, ...], count: int, workers: int) -> Iterator[PictureScene]:
    chunks = [(split, stream, range(start, min(start + _CHUNK, count))) for start in range(0, count, _CHUNK)]
    for made in ordered_map(_made, chunks, min(workers, len(chunks))):
        yield from made


def _made(split: str, stream: tuple[int, ...], numbers: range) -> list[PictureScene]:
    return [_scene(f"{split}_{i:05d}", np.random.default_rng((*stream, i))) for i in numbers]


def _scene(name: str, rng: np.random.Generator) -> PictureScene:
    scene: Scene = sample_scene(name, rng, STAGING)
    picture = Image.fromarray(render(scene, rng)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    captions = [
        (str(statement), {kind: str(false) for kind, false in edits(statement, scene, rng)})
        for statement in describe(scene, rng)
    ]
    return PictureScene(name, np.asarray(picture), captions, [place(thing, rng) for thing in scene.objects])
