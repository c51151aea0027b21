"""Every system on every kind of suite: each caption and picture encoded once, scores as the model gives them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from crossmodal.data.extractors import GridExtractor
from crossmodal.data.photos import write_photo_db
from crossmodal.errors import ConfigError, DataError
from crossmodal.evaluate.suites import open_suite
from crossmodal.evaluate.suites.items import Picture, Question, Questions, stacked
from crossmodal.evaluate.suites.judges import ModelJudge, mean_scores
from crossmodal.evaluate.suites.metrics import choose
from crossmodal.evaluate.suites.pictures import PictureFolder, StoredRegions
from crossmodal.evaluate.suites.runner import picture_source, run_suite
from crossmodal.model.base import Model

from .worlds import MODELS, SENTENCES, WIDTH, clip, photos, uniter, write_json


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return photos(tmp_path / "images", "000000000001.jpg", "000000000002.jpg", "a/000000000003.jpg")


def questions(*pictures: Picture) -> Questions:
    asked = [Question(str(i), "all", (p,), tuple(SENTENCES[: 2 + i % 2])[:2]) for i, p in enumerate(pictures)]
    return Questions(asked, lambda q, s: {"all": choose(stacked(q, s), 0).share()}, "a tie is wrong")


def test_scores_are_the_models_and_nothing_is_encoded_twice(
    model: Model, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Picture("000000000001.jpg"), Picture("000000000002.jpg", (0, 0, 20, 20))
    source = picture_source(model, images, None)
    encoded: Counter[str] = Counter()
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda side, items: encoded.update({side: len(items)}) or encode(side, items))
    outcome = run_suite("x", questions(one, two, one), ModelJudge(model, source), source)
    assert encoded == {"text": 2, "image": 2}
    for record, picture in zip(outcome.answers.records, (one, two, one), strict=True):
        expected = [model.score(caption, source(picture)) for caption in record["captions"]]
        assert record["scores"][0] == pytest.approx(expected, abs=2e-5)
    assert outcome.answers.records[0]["scores"] == outcome.answers.records[2]["scores"]


def test_retrieval_and_classification(model: Model, images: Path, tmp_path: Path) -> None:
    source = picture_source(model, images, None)
    judge = ModelJudge(model, source)
    names = ["000000000001.jpg", "000000000002.jpg"]
    captions = write_json(
        tmp_path / "c.json", [{"image": n, "caption": SENTENCES[i : i + 2]} for i, n in enumerate(names)]
    )
    outcome = run_suite("retrieval", open_suite("retrieval", captions), judge, source)
    assert outcome.rows["img_r1"].count == 4 and outcome.rows["txt_r5"].value == 1.0
    pictures = [Picture(name) for name in names]
    prompts = [SENTENCES[:2], SENTENCES[2:3]]
    found = judge.classify(prompts, pictures)
    matrix = judge.matrix(SENTENCES[:3], pictures)
    if model.name == "uniter":
        assert torch.allclose(found, mean_scores(matrix, prompts), atol=1e-5)
        assert found[0, 0] == pytest.approx(float(matrix[:2, 0].mean()))
    else:
        assert found.shape == (2, 2)


def test_captions_of_the_same_tokens_tie_exactly(model: Model, images: Path) -> None:
    same = [SENTENCES[0], SENTENCES[1], SENTENCES[0].replace(" ", "  "), SENTENCES[2]]
    judge = ModelJudge(model, picture_source(model, images, None))
    pictures = [Picture("000000000002.jpg"), Picture("000000000001.jpg")]
    pairs = torch.tensor([[i, p] for i in range(4) for p in range(2)])
    scores = judge.pairs(same, pictures, pairs).view(4, 2)
    assert torch.equal(scores[0], scores[2]) and not torch.equal(scores[0], scores[1])
    matrix = judge.matrix(same, pictures)
    assert torch.equal(matrix[0], matrix[2]) and torch.allclose(matrix, scores, atol=2e-5)
    encoded, row = judge._texts(same)
    assert len(encoded) == 3 and row.tolist() == [0, 1, 0, 2]


def test_the_classifier_of_vectors_is_the_mean_of_unit_vectors(images: Path) -> None:
    model = clip()
    judge = ModelJudge(model, PictureFolder(images))
    pictures = [Picture("000000000001.jpg"), Picture("000000000002.jpg")]
    found = judge.classify([SENTENCES[:2], SENTENCES[2:]], pictures)
    encoded, row = judge._texts(SENTENCES)
    texts = encoded.vectors["embeds"][row]
    weights = F.normalize(torch.stack([texts[:2].mean(dim=0), texts[2:].mean(dim=0)]), dim=1)
    expected = 100 * judge._images(pictures).vectors["embeds"] @ weights.T
    assert torch.allclose(found, expected, atol=1e-4)


def test_names_of_images(images: Path) -> None:
    folder = PictureFolder(images)
    assert folder.path("a/000000000003.jpg") == folder.path("000000000003.jpg") == images / "a" / "000000000003.jpg"
    assert folder.path("val2014/COCO_val2014_000000000002.jpg") == images / "000000000002.jpg"
    assert folder.path("000000000003") == images / "a" / "000000000003.jpg"
    assert folder.path("VisualDialog_val2018_000000000002.jpg") is None and folder.path("4.jpg") is None
    assert folder(Picture("000000000001.jpg", (5, 6, 15, 26))).size == (10, 20)
    with pytest.raises(DataError, match="is not a folder of images"):
        PictureFolder(images / "nowhere")
    with pytest.raises(DataError, match=r"holds no image 4.jpg"):
        folder(Picture("4.jpg"))


def test_regions_of_a_database(images: Path, tmp_path: Path) -> None:
    db = write_photo_db(images, tmp_path / "db", extractor=GridExtractor(WIDTH), conf_th=-1)
    model = uniter(extractor=None)
    source = picture_source(model, None, db)
    assert isinstance(source, StoredRegions)
    assert Picture("COCO_val2014_000000000002.jpg") in source and Picture("9.jpg") not in source
    outcome = run_suite("x", questions(Picture("000000000001.jpg")), ModelJudge(model, source), source)
    assert outcome.asked == 1
    with pytest.raises(ConfigError, match="a region database holds whole images; leave --regions out"):
        run_suite("x", questions(Picture("000000000001.jpg", (0, 0, 5, 5))), ModelJudge(model, source), source)
    with pytest.raises(ConfigError, match="clip reads pictures, not regions; give --images in place of --regions"):
        picture_source(clip(), images, db)
    with pytest.raises(ConfigError, match="give their folder as --images"):
        picture_source(model, None, None)


def test_a_model_without_an_extractor_gets_the_stand_in_and_that_is_said(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for build in (uniter, MODELS["aladin"]):
        model = build()
        model.processor = replace(model.processor, extractor=None)
        source: Any = picture_source(model, images, None)
        assert source.extractor.feature_dim == WIDTH
        assert f"the checkpoint of {model.name} names no region extractor" in caplog.text
        run_suite("x", questions(Picture("000000000001.jpg")), ModelJudge(model, source), source)


def test_missing_images_are_refused_or_listed_and_counted(images: Path) -> None:
    model = clip()
    source = picture_source(model, images, None)
    judge = ModelJudge(model, source)
    some = questions(Picture("000000000001.jpg"), Picture("8.jpg"), Picture("8.jpg"), Picture("9.jpg"))
    with pytest.raises(DataError, match=r"2 of the 3 images that x asks about are missing \(first: 8.jpg, 9.jpg\)"):
        run_suite("x", some, judge, source)
    outcome = run_suite("x", some, judge, source, skip_missing=True)
    assert (outcome.asked, outcome.left_out, outcome.missing) == (1, 3, ["8.jpg", "9.jpg"])
    with pytest.raises(DataError, match=r"1 of the 1 images .* complete the folder or database$"):
        run_suite("x", questions(Picture("8.jpg")), judge, source, skip_missing=True)
    with pytest.raises(DataError, match="hold no question"):
        run_suite("x", questions(), judge, source)


def test_an_image_that_does_not_decode(images: Path) -> None:
    (images / "000000000002.jpg").write_bytes(b"\xff\xd8 no picture")
    for build in MODELS.values():
        model = build()
        source = picture_source(model, images, None)
        with pytest.raises(DataError, match=r"000000000002.jpg cannot be read as a picture"):
            run_suite("x", questions(Picture("000000000002.jpg")), ModelJudge(model, source), source)


def test_a_score_that_is_no_number_is_refused(images: Path) -> None:
    model = clip()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    source = picture_source(model, images, None)
    with pytest.raises(DataError, match="question 0 of all has a score that is NaN"):
        run_suite("x", questions(Picture("000000000001.jpg")), ModelJudge(model, source), source)


def test_a_scorer_that_the_model_lacks(images: Path) -> None:
    with pytest.raises(ConfigError, match="the model clip has no scorer 'itm'"):
        ModelJudge(clip(), PictureFolder(images), "itm")
