"""A cascade of a model's own scorers over a corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossmodal.data.corpus import Corpus, open_corpus
from crossmodal.errors import ConfigError
from crossmodal.evaluate.cascaded import describe_cascade, evaluate_cascade, parse_cascade, save_cascade
from crossmodal.evaluate.job import EncodedCorpus
from crossmodal.evaluate.run import evaluate_corpus
from crossmodal.model.base import Model
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.setup import build_model

from ..recipes import aladin_recipe

HEADS = ("alignment", "matching")


@pytest.fixture(scope="module")
def corpus(tiny_world: Path) -> Corpus:
    return open_corpus([str(tiny_world / "texts" / "test.db")], [str(tiny_world / "regions" / "test")])


@pytest.fixture(scope="module")
def model(tiny_world: Path, corpus: Corpus) -> Model:
    return build_model(parse_recipe(aladin_recipe(tiny_world)).model, lambda: corpus).eval()


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("matching:20,alignment", [("matching", 20), ("alignment", None)]),
        (" matching : 7 , alignment : 3 , matching ", [("matching", 7), ("alignment", 3), ("matching", None)]),
    ],
)
def test_stages_are_read(text: str, steps: list[tuple[str, int | None]]) -> None:
    assert parse_cascade(text, "aladin", HEADS) == steps


@pytest.mark.parametrize(
    "text", ["", "matching", "matching:20", "matching,alignment", "matching:x,alignment", "matching:-1,alignment",
             "matching:20,alignment:10", "matching:20,"]
)  # fmt: skip
def test_what_does_not_name_stages(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write SCORER:KEEP,SCORER|has no scorer"):
        parse_cascade(text, "aladin", HEADS)


def test_stages_that_keep_all_are_the_scorers_themselves(model: Model, corpus: Corpus) -> None:
    encoded = EncodedCorpus.of(model, corpus)
    found = evaluate_cascade(model, corpus, [("matching", len(corpus)), ("alignment", None)], encoded)
    whole = evaluate_corpus(model, corpus)  # by the alignment head
    assert found[1].metrics == whole.metrics
    assert [stage.pairs for stage in found] == [len(corpus) * len(corpus.image_keys)] * 2
    assert [stage.metrics for stage in evaluate_cascade(model, corpus, [("alignment", None)])] == [whole.metrics]


def test_what_is_said_and_kept(model: Model, corpus: Corpus, tmp_path: Path) -> None:
    steps = parse_cascade("matching:2,alignment", model.name, model.scorer_names)
    found = evaluate_cascade(model, corpus, steps)
    assert found[1].pairs < found[0].pairs == 24 * 8
    heading, _, first, second = describe_cascade(found, steps).splitlines()
    assert heading.split()[:4] == ["stage", "keeps", "pairs", "seconds"]
    assert first.split()[:3] == ["matching", "2", "192"] and second.split()[:2] == ["alignment", "-"]
    assert second.split()[-1] == f"{100 * found[1].metrics['r_mean']:.2f}"
    stored = json.loads(save_cascade(tmp_path, found, steps, {"split": "test"}).read_text())
    assert stored["settings"] == {"split": "test"}
    assert [(s["scorer"], s["keep"], s["pairs"]) for s in stored["stages"]] == [
        ("matching", 2, 192), ("alignment", None, found[1].pairs),
    ]  # fmt: skip
    assert stored["stages"][1]["metrics"] == found[1].metrics
