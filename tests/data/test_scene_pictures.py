"""The demo world for pixels: readable by the usual readers, true captions of places, false edits, the same bytes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossmodal.data.caption_tables import open_captions
from crossmodal.data.clip_tokenizer import load_clip_tokenizer
from crossmodal.data.corpus import open_corpus
from crossmodal.data.scene_layout import COLOURS, KINDS, SIZES, sample_scene
from crossmodal.data.scene_pictures import SIDE, SLOTS, STAGING, write_picture_world
from crossmodal.data.scene_render import PAINT
from crossmodal.errors import ConfigError

SIZES_OF = {"train": 30, "val": 4, "test": 8}
_PLACED = re.compile(r"an? (\w+) (\w+) (at the left|at the right|at the top|at the bottom|in the middle)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_picture_world(tmp_path_factory.mktemp("worlds") / "world", seed=3, **SIZES_OF)


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_same_files_from_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    again = write_picture_world(tmp_path / "again", seed=3, workers=2, **SIZES_OF)
    assert digests(again) == digests(folder)
    other = write_picture_world(tmp_path / "other", seed=4, **SIZES_OF)
    assert digests(other)["captions_test.jsonl"] != digests(folder)["captions_test.jsonl"]


def test_the_usual_readers_read_it(folder: Path) -> None:
    for split, count in SIZES_OF.items():
        sources = [str(folder / f"captions_{split}.jsonl"), str(folder / f"places_{split}.json")]
        corpus = open_corpus(sources, [str(folder / "images" / split)])
        assert len(corpus) == (5 + 2) * count
        assert Image.open(folder / "images" / split / f"{split}_00000.png").size == (SIDE, SIDE)
    tokenizer = load_clip_tokenizer(folder)
    texts = open_captions(folder / "captions_train.jsonl")
    for id in texts.ids:
        sentence = str(texts[id].sentence)
        assert len(tokenizer.encode(sentence)) == len(re.findall(r"\w+|,", sentence))


ARTICLE = re.compile(r"\b(an?) (\w)")


def words_of(sentence: str) -> list[str]:
    """Without articles, which change with the word behind them."""
    return [word for word in re.findall(r"\w+", sentence) if word not in ("a", "an")]


def test_edits_are_minimal(folder: Path) -> None:
    texts = open_captions(folder / "captions_test.jsonl")
    negatives = json.loads((folder / "negatives_test.json").read_text())
    listed = {(n["caption_id"], SLOTS.index(n["kind"])): n["sentence"] for n in negatives}
    seen = set()
    for id in texts.ids:
        caption, wrong = words_of(str(texts[id].sentence)), texts.wrong[id]
        for slot, (sentence, valid) in enumerate(zip(wrong.sentences, wrong.valid, strict=True)):
            assert listed.get((id, slot)) == (sentence if valid else None)
            if not valid:
                continue
            seen.add(SLOTS[slot])
            words = words_of(sentence)
            assert all((article == "an") == (letter in "aeiou") for article, letter in ARTICLE.findall(sentence))
            if SLOTS[slot].startswith("replaced"):
                (new,) = set(words) - set(caption)
                assert new in {*KINDS, *COLOURS}
            elif SLOTS[slot] == "swapped_colours":
                assert sorted(words) == sorted(caption) and words != caption
    assert seen == set(SLOTS)


def test_things_are_where_their_captions_say(folder: Path) -> None:
    """By the pixels alone: the middle of those in the colour of a thing that is the only one of its colour."""
    texts = open_captions(folder / "places_test.json")
    checked = 0
    for image, ids in texts.texts_of.items():
        said = [_PLACED.fullmatch(str(texts[id].sentence)) for id in ids]
        colours = [match[1] for match in said if match]
        pixels = np.asarray(Image.open(folder / "images" / "test" / image).convert("RGB")).astype(float)
        palette = np.array([PAINT[colour] for colour in COLOURS] + [(240, 240, 240)])
        nearest = np.abs(pixels[:, :, None] - palette).sum(-1).argmin(-1)
        for match in said:
            assert match
            if colours.count(match[1]) > 1:
                continue
            rows, columns = (nearest == COLOURS.index(match[1])).nonzero()
            x, y = (np.mean([line.min(), line.max()]) / (SIDE - 1) for line in (columns, rows))
            slack = 0.03
            truth = {
                "at the left": x < 0.42 + slack,
                "at the right": x > 0.58 - slack,
                "at the top": y < 0.42 + slack,
                "at the bottom": y > 0.58 - slack,
                "in the middle": 0.42 - slack < x < 0.58 + slack and 0.42 - slack < y < 0.58 + slack,
            }
            assert truth[match[3]], (image, match[0], x, y)
            checked += 1
    assert checked > 5


def test_scenes_hold_what_the_staging_says() -> None:
    for i in range(30):
        scene = sample_scene("s", np.random.default_rng(i), STAGING)
        assert len(scene.objects) == 2
        for thing in scene.objects:
            assert thing.kind in KINDS and thing.colour in COLOURS
            x1, y1, x2, y2 = (160 * value for value in thing.box)
            side = ((x2 - x1) * (y2 - y1)) ** 0.5
            assert side == pytest.approx(STAGING.sides[SIZES.index(thing.size)], rel=0.11)


def test_a_folder_in_use_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="already"):
        write_picture_world(folder)
