"""The demo world: learnable features, true captions, false negatives, clean splits, reproducible bytes."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossmodal.data.regions import open_regions
from crossmodal.data.scene_captions import EDITS, Mention, Statement
from crossmodal.data.scene_features import FEATURE_DIM, detect, region_features
from crossmodal.data.scene_layout import (
    COLOURS,
    KINDS,
    RELATIONS,
    SIZES,
    Scene,
    SceneObject,
    relation_between,
)
from crossmodal.data.scene_render import PAINT, render
from crossmodal.data.scenes import DescribedScene, sample_world, write_world
from crossmodal.data.texts import TextDB
from crossmodal.data.tokenizers import load_tokenizer
from crossmodal.errors import ConfigError

World = dict[str, list[DescribedScene]]


@pytest.fixture(scope="module")
def world() -> World:
    return sample_world(0, {"train": 300, "val": 40, "test": 200})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("worlds") / "world", seed=3, train=12, val=4, test=6)


# An independent reader: it parses the sentence itself and looks at the boxes with its own rules.

_THING = re.compile(rf"\b(an?) (?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(KINDS)})\b")
_SAID = {
    "left of": "left",
    "right of": "right",
    "above": "above",
    "below": "below",
    "on": "on",
    "under": "under",
}


def _parse(sentence: str) -> tuple[list[tuple[str | None, str | None, str]], list[tuple[str, int]]]:
    """(size, colour, kind) of each mention, and (relation, mention) of the first mention's relations."""
    mentions = [(m[2] or None, m[3] or None, m[4]) for m in _THING.finditer(sentence)]
    between = _THING.split(sentence)[5::5]  # the words after each mention
    relations, relation = [], None
    for index, words in enumerate(between[:-1], start=1):
        found = re.search("|".join(_SAID), words.replace("on top of", "on"))
        if ", with" in words:
            relation = None
        elif found:
            relation = _SAID[found[0]]
        if relation:
            relations.append((relation, index))
    return mentions, relations


def _seen(a: SceneObject, relation: str, b: SceneObject, *, apart: bool) -> bool:
    """apart: also ask for the distance (or touch) that the word implies, not for the order alone."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.box, b.box
    if relation in ("right", "below", "under"):
        return _seen(b, {"right": "left", "below": "above", "under": "on"}[relation], a, apart=apart)
    if relation == "left":
        return ax2 < bx1 if apart else ax1 + ax2 < bx1 + bx2
    if not apart:
        return ay1 + ay2 < by1 + by2
    gap = by1 - ay2
    touching = abs(gap) < 0.02 and min(ax2, bx2) > max(ax1, bx1)
    return touching if relation == "on" else gap > 0.05


def _true(sentence: str, scene: Scene, *, apart: bool = True) -> bool:
    mentions, relations = _parse(sentence)
    for chosen in permutations(scene.objects, len(mentions)):
        if all(
            kind == thing.kind and colour in (None, thing.colour) and size in (None, thing.size)
            for (size, colour, kind), thing in zip(mentions, chosen, strict=True)
        ) and all(_seen(chosen[0], relation, chosen[j], apart=apart) for relation, j in relations):
            return True
    return False


def test_the_world_has_the_promised_variety(world: World) -> None:
    scenes = [described.scene for described in world["train"]]
    assert {len(scene.objects) for scene in scenes} == {2, 3, 4, 5}
    for trait, values in (("kind", KINDS), ("colour", COLOURS), ("size", SIZES)):
        assert {getattr(thing, trait) for scene in scenes for thing in scene.objects} == set(values)
    assert {relation for scene in scenes for _, relation, _ in scene.relations} == set(RELATIONS)
    assert len(KINDS) >= 8 and len(COLOURS) >= 8 and len(SIZES) == 3 and len(RELATIONS) >= 5


def test_a_linear_probe_reads_kind_colour_and_size(world: World) -> None:
    def observed(split: str) -> tuple[np.ndarray, list[SceneObject]]:
        features, things = [], []
        for described in world[split]:
            rng = np.random.default_rng((*described.stream, 9))
            found = detect(described.scene, render(described.scene, rng), rng)
            features += [feature for feature, owner in zip(found.features, found.owner, strict=True) if owner >= 0]
            things += [described.scene.objects[owner] for owner in found.owner if owner >= 0]
        stacked = np.stack(features).astype(np.float64)
        return np.concatenate([stacked, np.ones((len(stacked), 1))], axis=1), things

    (x, things), (held_out, truths) = observed("train"), observed("test")
    for trait, values in (("kind", KINDS), ("colour", COLOURS), ("size", SIZES)):
        targets = np.eye(len(values))[[values.index(getattr(thing, trait)) for thing in things]]
        probe = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ targets)  # ridge regression
        read = [values[best] for best in (held_out @ probe).argmax(axis=1)]
        accuracy = np.mean([word == getattr(thing, trait) for word, thing in zip(read, truths, strict=True)])
        assert accuracy >= 0.98, f"{trait} is read with {accuracy:.3f}"


def test_features_are_about_standardised_and_come_from_the_pixels(world: World) -> None:
    pictures = [(described.scene, described.observe()) for described in world["val"]]
    features = np.concatenate([record["features"] for _, (_, record) in pictures]).astype(np.float64)
    assert features.shape[1] == FEATURE_DIM
    assert abs(features.mean()) < 0.1 and 0.7 < features.std() < 1.3
    scene, (picture, _) = pictures[0]
    boxes = [thing.box for thing in scene.objects]
    changed = picture.copy()
    x1, y1, x2, y2 = (int(v * picture.shape[0]) for v in boxes[0])
    changed[y1:y2, x1:x2] = 240  # the object is painted over
    before, after = region_features(picture, boxes), region_features(changed, boxes)
    distances = np.abs(before - after).mean(axis=1)
    assert distances[0] > 0.3 and distances[1:].max() < 1e-5


def test_detections_look_like_a_detectors(world: World) -> None:
    kept = distractors = 0
    for described in world["val"]:
        rng = np.random.default_rng(described.stream)
        found = detect(described.scene, render(described.scene, rng), rng)
        boxes, confidence = found.boxes, found.confidence[:, 0]
        assert (np.diff(confidence) <= 0).all() and (confidence > 0).all() and (confidence < 1).all()
        assert (boxes >= 0).all() and (boxes <= 1).all()
        np.testing.assert_allclose(boxes[:, 4:], boxes[:, 2:4] - boxes[:, :2], atol=1e-6)
        assert sorted(owner for owner in found.owner if owner >= 0) == list(range(len(described.scene.objects)))
        assert confidence[found.owner >= 0].min() > 0.2
        for box, owner in zip(boxes, found.owner, strict=True):
            if owner >= 0:
                assert np.abs(box[:4] - described.scene.objects[owner].box).max() < 0.06
        distractors += int((found.owner < 0).sum())
        kept += int(((found.owner < 0) & (confidence > 0.2)).sum())
    assert 0 < kept < distractors


def test_pictures_show_each_object_in_its_box_and_colour(world: World) -> None:
    for described in world["val"][:10]:
        picture = described.observe()[0].astype(int)
        side = picture.shape[0]
        outside = np.ones(picture.shape[:2], dtype=bool)
        for thing in described.scene.objects:
            x1, y1, x2, y2 = (round(v * side) for v in thing.box)
            outside[y1:y2, x1:x2] = False
            crop = picture[y1:y2, x1:x2]
            painted = crop.min(axis=-1) < 217
            # The silhouette reaches all four edges of its box.
            assert painted[:2].any() and painted[-2:].any() and painted[:, :2].any() and painted[:, -2:].any()
            middle = np.median(crop[painted], axis=0)
            nearest = min(PAINT, key=lambda name: float(np.abs(middle - PAINT[name]).sum()))
            assert nearest == thing.colour
        assert picture[outside].min() > 205


def test_relations_are_read_from_the_boxes(world: World) -> None:
    for described in world["train"]:
        things = described.scene.objects
        for i, relation, j in described.scene.relations:
            assert _seen(things[i], relation, things[j], apart=True)
            assert not _seen(things[j], relation, things[i], apart=False)


@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        ((0.4, 0.2, 0.6, 0.5), "on"),
        ((0.4, 0.2, 0.6, 0.4), "above"),
        ((0.0, 0.5, 0.2, 0.7), "left"),
        ((0.8, 0.5, 0.95, 0.7), "right"),
        ((0.0, 0.2, 0.2, 0.35), None),  # diagonal: neither word is the obvious one
        ((0.4, 0.85, 0.6, 0.95), "below"),
    ],
)
def test_relation_between_boxes(upper: tuple[float, float, float, float], expected: str | None) -> None:
    assert relation_between(upper, (0.3, 0.5, 0.7, 0.7)) == expected


def test_no_scene_repeats_another(world: World) -> None:
    looks = [
        tuple(sorted((thing.kind, thing.colour, thing.size) for thing in described.scene.objects))
        for scenes in world.values()
        for described in scenes
    ]
    assert len(set(looks)) == len(looks)


def test_held_out_scenes_do_not_depend_on_the_training_set() -> None:
    small, large = (sample_world(1, {"train": train, "val": 5, "test": 5}) for train in (1, 20))
    assert small["test"] == large["test"] and small["val"] == large["val"]
    assert sample_world(2, {"train": 1, "val": 5, "test": 5})["test"] != small["test"]


def test_captions_are_true_and_differ(world: World) -> None:
    for described in (*world["train"], *world["test"]):
        sentences = [caption.sentence for caption in described.captions]
        assert len(set(sentences)) == 5
        assert len({str(sorted(map(str, _parse(sentence)))) for sentence in sentences}) == 5
        assert len(_parse(sentences[0])[0]) == len(described.scene.objects)
        for sentence in sentences:
            assert _true(sentence, described.scene), sentence


def test_negatives_are_false_and_of_every_kind(world: World) -> None:
    counts = dict.fromkeys(EDITS, 0)
    for described in world["test"]:
        captions = {caption.id: caption.sentence for caption in described.captions}
        for negative in described.negatives:
            counts[negative["kind"]] += 1
            positive, false = captions[negative["caption_id"]], negative["sentence"]
            # Not even a reader who grants a relation by the order of the centres alone finds it true.
            assert not _true(false, described.scene, apart=False), (positive, false)
            words, changed = (re.sub(r"\ban\b", "a", s).split() for s in (positive, false))
            if negative["kind"] == "swapped_colours":
                assert sorted(w.strip(",") for w in words) == sorted(w.strip(",") for w in changed)
            if negative["kind"].startswith("replaced"):
                assert sum(a != b for a, b in zip(words, changed, strict=True)) == 1
    assert counts["replaced_kind"] == counts["replaced_colour"] == 1000
    assert counts["swapped_colours"] > 700 and counts["swapped_relation"] > 500


def test_an_oracle_finds_the_image_of_nearly_every_caption(world: World) -> None:
    scenes = world["test"]
    found = [
        1 / sum(statement.holds(other.scene) for other in scenes)  # the oracle guesses among the scenes that fit
        for described in scenes
        for statement in described.statements
    ]
    assert np.mean(found) >= 0.9


def test_sentences_are_grammatical(world: World) -> None:
    words = {
        "is",
        "there",
        "and",
        "picture",
        "scene",
        "of",
        "with",
        "nearby",
        "to",
        "the",
        "top",
        "on",
        "a",
        "an",
    }
    words |= {*KINDS, *COLOURS, *SIZES, "left", "right", "above", "below", "under"}
    for described in world["test"]:
        sentences = [str(statement) for statement in described.statements]
        for sentence in sentences + [negative["sentence"] for negative in described.negatives]:
            assert set(re.findall(r"\w+", sentence)) <= words
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  | ,|\band and\b", sentence), sentence
            assert sentence == sentence.strip()
            mentions = _parse(sentence)[0]
            assert len(set(mentions)) == len(mentions) >= 2


@pytest.mark.parametrize(
    ("relations", "wording", "sentence"),
    [
        ((), 1, "there is a ball, an orange moon and a small red star"),
        (((0, "left", 1),), 5, "a ball is to the left of an orange moon, with a small red star nearby"),
        (
            ((0, "on", 1), (0, "left", 2)),
            4,
            "a ball on top of an orange moon and to the left of a small red star",
        ),
        (
            ((0, "below", 1), (0, "below", 2)),
            3,
            "a picture of a ball below an orange moon and a small red star",
        ),
    ],
)
def test_wordings(relations: tuple[tuple[int, str, int], ...], wording: int, sentence: str) -> None:
    mentions = (Mention("ball"), Mention("moon", "orange"), Mention("star", "red", "small"))
    assert str(Statement(mentions, relations, wording)) == sentence


def _digests(folder: Path) -> dict[str, str]:
    """Of every file but LMDB's own, whose pages hold bytes that were never written."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mdb")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = write_world(tmp_path / "again", seed=3, train=12, val=4, test=6)
    assert _digests(folder) == _digests(again)
    options = json.loads((folder / "world.json").read_text())["open"]
    for split in ("train", "val", "test"):
        one, two = (open_regions(path / "regions" / split, **options) for path in (folder, again))
        assert one.ids == two.ids
        for image in one.ids:
            assert one[image].features.tobytes() == two[image].features.tobytes()
            assert one[image].boxes.tobytes() == two[image].boxes.tobytes()


def test_a_written_world_reads_back(folder: Path) -> None:
    described = json.loads((folder / "world.json").read_text())
    assert described["splits"] == {"train": 12, "val": 4, "test": 6}
    tokenizer = load_tokenizer(folder / "tokenizer")
    for split, count in described["splits"].items():
        scenes: list[dict[str, Any]] = json.loads((folder / f"scenes_{split}.json").read_text())
        regions = open_regions(folder / "regions" / split, **described["open"])
        texts = TextDB(folder / "texts" / split)
        assert regions.ids == texts.images == [scene["image"] for scene in scenes]
        assert len(scenes) == count and regions.feature_dim == described["feature_dim"]
        assert all(len(scene["objects"]) <= regions.lengths[scene["image"]] for scene in scenes)
        for caption in (caption for scene in scenes for caption in scene["captions"]):
            assert texts[caption["id"]].sentence == caption["sentence"]
            assert tokenizer.unk not in tokenizer.encode(caption["sentence"])
        pictures = {path.stem for path in (folder / "images" / split).glob("*.png")}
        assert pictures == (set() if split == "train" else {scene["name"] for scene in scenes})
        negatives = folder / f"negatives_{split}.json"
        assert negatives.exists() == (split != "train")
        if negatives.exists():
            for negative in json.loads(negatives.read_text()):
                assert texts.image_of[negative["caption_id"]] == negative["image"]


def test_training_pictures_on_request(tmp_path: Path) -> None:
    written = write_world(tmp_path / "world", train=2, val=1, test=1, train_pictures=True)
    assert len(list((written / "images" / "train").glob("*.png"))) == 2


def test_mistakes_are_named_and_nothing_is_left(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="seed is -1"):
        write_world(tmp_path / "world", seed=-1)
    with pytest.raises(ConfigError, match="val split has 0 scenes"):
        write_world(tmp_path / "world", val=0)
    with pytest.raises(ConfigError, match="exists already"):
        write_world(folder)
    assert list(tmp_path.iterdir()) == []
