"""Evaluating into a folder: what is said beforehand, what a later call takes over, what is refused in time."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from crossmodal.data.corpus import Corpus, open_corpus
from crossmodal.errors import ConfigError
from crossmodal.evaluate.relevances import ndcg_of_corpus, open_relevances
from crossmodal.evaluate.results import load_results
from crossmodal.evaluate.run import (
    Counting,
    about,
    describe_heads,
    evaluate_corpus,
    evaluate_heads,
    evaluate_into,
)
from crossmodal.model.base import Model
from crossmodal.model.checkpoints import load


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    return load(trained)


@pytest.fixture(scope="module")
def corpus(tiny_world: Path) -> Corpus:
    return open_corpus([str(tiny_world / "texts" / "test.db")], [str(tiny_world / "regions" / "test")])


def test_results_are_those_of_the_scores(model: Model, corpus: Corpus, tmp_path: Path) -> None:
    found = evaluate_into(tmp_path, model, corpus, {"checkpoint": "best"}, tokens=100)
    assert found is not None
    stored = load_results(tmp_path)
    assert stored.metrics == found.metrics == evaluate_corpus(model, corpus, tokens=100).metrics
    assert stored.settings.pop("config") == json.loads(json.dumps(model.config_dict))
    assert stored.settings == {
        "checkpoint": "best", "model": "uniter", "folds": 1, "ties": "average", "reference_count": False,
        "processes": 1,
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranks.npz", "results.json", "scores.npz"]


def test_another_way_of_counting_needs_no_scoring(
    model: Model, corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "crossmodal")
    evaluate_into(tmp_path, model, corpus, {}, tokens=100)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["8 images x 24 captions, 192 pairs"]
    before = (tmp_path / "scores.npz").read_bytes()
    caplog.clear()
    found = evaluate_into(tmp_path, model, corpus, {}, counting=Counting(2, "pessimistic"), tokens=100)
    assert [record.getMessage() for record in caplog.records] == ["192 of 192 pairs were scored before and are kept"]
    assert found is not None and (tmp_path / "scores.npz").read_bytes() == before
    by_hand = evaluate_corpus(model, corpus, counting=Counting(2, "pessimistic"), tokens=100)
    assert found.metrics == by_hand.metrics
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["folds"] == 2


def test_results_of_another_evaluation_are_replaced_and_said(
    model: Model, corpus: Corpus, trained: Path, tiny_world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "crossmodal")
    val = open_corpus([str(tiny_world / "texts" / "val.db")], [str(tiny_world / "regions" / "val")])
    evaluate_into(tmp_path, model, val, {}, tokens=100)
    evaluate_into(tmp_path, model, corpus, {}, tokens=100)
    said = [record.getMessage() for record in caplog.records]
    assert f"the results of another evaluation in {tmp_path} will be replaced" in said
    with np.load(tmp_path / "scores.npz") as stored:
        assert stored["image_ids"].tolist() == [image for _, image in corpus.image_keys]


def test_relevances_add_ndcg(model: Model, corpus: Corpus, tmp_path: Path) -> None:
    relevances = open_relevances(["rougeL"], corpus, tmp_path)
    found = evaluate_heads(tmp_path, model, corpus, {}, relevances=relevances, tokens=100)["itm"]
    of_one = evaluate_into(tmp_path, model, corpus, {}, counting=Counting(2), relevances=relevances, tokens=100)
    assert of_one is not None
    for evaluation, folds in ((found, 1), (of_one, 2)):
        expected = ndcg_of_corpus(found.scored, relevances, corpus, folds=folds)
        assert expected.items() <= evaluation.metrics.items() and len(expected) == 2
    assert load_results(tmp_path).metrics == of_one.metrics
    assert f"NDCG@25 by rougeL: image {found.metrics['img_ndcg_rougeL']:.4f}" in describe_heads(
        {"itm": found}, "uniter"
    )


def test_what_is_said_of_several_scorers(model: Model, corpus: Corpus) -> None:
    found = evaluate_corpus(model, corpus)
    said = describe_heads({"alignment": found, "matching": found}, "aladin")
    first, second = said.split("scorer matching\n")
    assert first.startswith("scorer alignment\n") and "Alignment head rsum: " in first and "Sum score: " in second
    assert "image retrieval R1: " in describe_heads({"itm": found}, "uniter") and "scorer" not in describe_heads(
        {"itm": found}, "uniter"
    )


@pytest.mark.parametrize(
    ("counting", "said"),
    [
        (Counting(folds=9), "9 folds of 8 images: choose 1 to 8"),
        (Counting(folds=0), "0 folds of 8 images"),
        (Counting(reference_count=True), "lists of 10, but there are 24 captions and 8 images in 1 folds"),
    ],
)
def test_what_cannot_be_counted_is_said_before_anything_is_scored(
    counting: Counting, said: str, model: Model, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluate_into(tmp_path / "out", model, corpus, {}, counting=counting)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "less than a second"),
        (1, "about 1 s"),
        (89.4, "about 89 s"),
        (90, "about 2 min"),
        (59 * 60, "about 59 min"),
        (59.6 * 60, "about 1 h"),
        (2 * 3600 + 11 * 60, "about 2 h 10 min"),
        (2 * 3600 + 56 * 60, "about 3 h"),
        (23 * 3600 + 58 * 60, "about 1 d"),
        (27 * 3600 + 40 * 60, "about 1 d 4 h"),
        (47.8 * 3600, "about 2 d"),
    ],
)
def test_durations_as_people_say_them(seconds: float, said: str) -> None:
    assert about(seconds) == said
