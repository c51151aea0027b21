"""The published files themselves, where they are: how much they ask, and runs on the photos that are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from crossmodal.evaluate.suites import open_suite
from crossmodal.evaluate.suites.blind import open_blind
from crossmodal.evaluate.suites.classification import Classification, read_prompts
from crossmodal.evaluate.suites.items import Picture, Questions
from crossmodal.evaluate.suites.judges import ModelJudge
from crossmodal.evaluate.suites.pictures import PictureFolder
from crossmodal.evaluate.suites.retrieval import Retrieval
from crossmodal.evaluate.suites.runner import run_suite

from .worlds import SHARED, clip

CREPE = {"add_obj": 2062, "add_att": 692, "replace_obj": 1652, "replace_att": 788, "replace_rel": 1406, "swap_obj": 245,
         "swap_att": 666}  # fmt: skip


def needs(*names: str) -> pytest.MarkDecorator:
    reason = f"../shared/data/{{{','.join(names)}}} is not there"
    return pytest.mark.skipif(not all((SHARED / name).exists() for name in names), reason=reason)


@needs("sugar_crepe", "coco_photos_open")
def test_sugarcrepe() -> None:
    whole = open_suite("sugarcrepe", SHARED / "sugar_crepe" / "data")
    assert isinstance(whole, Questions)
    assert Counter(q.category for q in whole.questions) == CREPE
    blind = run_suite("sugarcrepe", whole, open_blind("brevity"), None).rows
    assert blind["add_obj"].value > 0.9 > 0.5 > blind["swap_obj"].value  # what is added makes captions longer
    source = PictureFolder(SHARED / "coco_photos_open" / "images")
    there = open_suite("sugarcrepe", SHARED / "sugar_crepe" / "with_photos_open")
    outcome = run_suite("sugarcrepe", there, ModelJudge(clip(), source), source)
    assert (outcome.asked, outcome.missing) == (294, [])
    cut = run_suite("sugarcrepe", whole, ModelJudge(clip(), source), source, skip_missing=True)
    assert (cut.asked, cut.left_out) == (294, 7511 - 294) and cut.rows == outcome.rows


@needs("valse", "coco_photos_open")
def test_valse() -> None:
    cut = open_suite("valse", SHARED / "valse" / "cut150")
    assert isinstance(cut, Questions)
    counts = Counter(q.category for q in cut.questions)
    assert len(counts) == 11 and counts["coreference-hard"] == 104 and all(n <= 150 for n in counts.values())
    assert "avg" in run_suite("valse", cut, open_blind("frequency"), None).rows
    there = open_suite("valse", SHARED / "valse" / "with_photos_open")
    source = PictureFolder(SHARED / "coco_photos_open" / "images")
    outcome = run_suite("valse", there, ModelJudge(clip(), source), source)
    assert outcome.missing == [] and outcome.asked == there.size > 20


class Own:
    """Every caption matches the image that it was written for, and no other."""

    def __init__(self, test: Retrieval) -> None:
        self.image_of = {caption.sentence: caption.image for caption in test.captions}

    def matrix(self, captions: Sequence[str], pictures: Sequence[Picture]) -> Tensor:
        column = {picture.name: i for i, picture in enumerate(pictures)}
        scores = torch.zeros(len(captions), len(pictures), dtype=torch.float16)
        scores[torch.arange(len(captions)), [column[self.image_of[caption]] for caption in captions]] = 1
        return scores


@needs("coco_karpathy_test", "coco_photos_open")
def test_retrieval_on_cocos_karpathy_test() -> None:
    folder = SHARED / "coco_karpathy_test"
    test = open_suite("retrieval", folder / "coco_karpathy_test.json", positives=folder / "eccv_caption")
    assert isinstance(test, Retrieval)
    assert (test.size, len(test.pictures)) == (25010, 5000)
    sizes = {name: (len(t.images_of), len(t.captions_of)) for name, t in test.tables.items()}
    assert sizes == {"original": (25000, 5000), "CxC": (24972, 5000), "ECCV": (1332, 1261)}
    pairs = {name: sum(map(len, t.images_of.values())) for name, t in test.tables.items()}
    assert pairs == {"original": 25000, "CxC": 35585, "ECCV": 11279}
    source = PictureFolder(SHARED / "coco_photos_open" / "images")
    gone = [picture for picture in test.pictures if picture not in source]
    small = test.without(gone)
    assert len(small.pictures) == 19
    rows = small.ask(Own(small)).rows  # type: ignore[arg-type]
    assert rows["original img_r1"].value == rows["original txt_map_at_r"].value == 1.0
    assert rows["CxC img_r1"].count <= rows["img_r1"].count


@needs("vocab/clip/prompts.md", "cifar10_jpg")
def test_zero_shot_on_cifar_10() -> None:
    prompts = SHARED / "vocab" / "clip" / "prompts.md"
    test = open_suite("zero_shot", prompts, images=SHARED / "cifar10_jpg" / "test", classes="CIFAR10")
    assert isinstance(test, Classification)
    assert test.size == 300 and len(test.prompts.classes) == 10 and len(test.prompts.of_class(3)) == 18
    source = PictureFolder(SHARED / "cifar10_jpg" / "test")
    outcome = run_suite("zero_shot", test, ModelJudge(clip(), source), source)
    assert outcome.rows["top1"].count == 300 and outcome.rows["cat"].count == 30
    faces = read_prompts(prompts, "FacialEmotionRecognition2013")
    assert any(len(names) > 1 for names in faces.classes)
