from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from crossmodal.errors import ConfigError
from crossmodal.train.recipe import Recipe, load_recipe, parse_recipe, read_config

from ..recipes import tiny_recipe, write_recipe

SHIPPED = ("itm-flickr-base-hn", "itm-flickr-large-hn", "itm-coco-base-hn", "itm-coco-large-hn", "itm-flickr-base")
TINY = tiny_recipe(Path("world"))


def refused(values: dict[str, Any], *overrides: str) -> list[str]:
    """The lines of the error after its heading."""
    with pytest.raises(ConfigError) as error:
        parse_recipe(values, overrides)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("form", ["{}", "configs/{}.yaml", "{}.yaml"])
def test_shipped_recipes_load_by_name(name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(form.format(name))
    assert recipe.name == name
    assert recipe.data.keys() == {"train", "val", "test"}
    assert recipe.test == "test"


def test_yaml_and_json_hold_the_same_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(TINY))
    assert load_recipe(write_recipe(tmp_path / "recipe.yaml", TINY)) == load_recipe(tmp_path / "recipe.json")


def test_the_resolved_form_is_a_recipe_of_its_own() -> None:
    recipe = parse_recipe(TINY)
    again = yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    assert parse_recipe(again) == recipe


@pytest.mark.parametrize("text", ["5e-5", "5.0e-5", "5E-05", "0.00005", "+.00005", "'5e-5'"])
def test_numbers_with_exponents_are_numbers(text: str) -> None:
    assert parse_recipe(TINY, [f"optimizer.lr={text}"]).optimizer.lr == 5e-5


@given(st.floats(min_value=1e-12, max_value=1e6))
def test_every_printed_number_comes_back(lr: float) -> None:
    assert parse_recipe(TINY, [f"optimizer.lr={lr}"]).optimizer.lr == lr


def test_overrides_reach_every_depth() -> None:
    changes = ["steps=7", "model.config.hidden_size=64", "streams.1.losses.0.margin=0.3", "validation=null"]
    recipe = parse_recipe(TINY, [*changes, "data.extra.texts=[a, b]", "data.extra.images=c"])
    assert recipe.steps == 7
    assert isinstance(recipe.model.config, dict) and recipe.model.config["hidden_size"] == 64
    assert [stream.losses[0].options["margin"] for stream in recipe.streams] == [0.2, 0.3]
    assert recipe.validation is None
    assert (recipe.data["extra"].texts, recipe.data["extra"].images) == (["a", "b"], ["c"])


def test_overrides_leave_the_given_mapping_alone() -> None:
    before = json.dumps(TINY)
    parse_recipe(TINY, ["streams.0.miner.keep=1", "steps=9"])
    assert json.dumps(TINY) == before


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps", "has no '='"),
        ("steps.of.what=1", "'steps' holds 4, which has no keys of its own"),
        ("streams.2.name=x", "'2' is not a position in a list of 2"),
        ("streams.first.name=x", "'first' is not a position in a list of 2"),
    ],
)
def test_overrides_that_lead_nowhere(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"--set '{override}'") as error:
        parse_recipe(TINY, [override])
    assert said in str(error.value)


def test_every_mistake_is_reported_at_once() -> None:
    values = tiny_recipe(Path("world"), stepps=3, batch=0, optimizer={"lr": -1, "clp": 3}, precision="fp8")
    del values["steps"]
    lines = refused(values)
    assert lines == [
        "steps: is missing; add it, or epochs",
        "batch: input should be greater than or equal to 1, found 0",
        "precision: input should be 'fp32', 'bf16' or 'fp16', found 'fp8'",
        "optimizer.lr: input should be greater than 0, found -1",
        "optimizer.clp: unknown key; did you mean clip?",
        "stepps: unknown key; did you mean steps or streams or test?",
    ]


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("data.train.text=x", "texts"),
        ("streams.0.mine=x", "miner"),
        ("model.dropot=0", "dropout"),
        ("validation.evry=3", "every"),
        ("streams.0.losses.0.weight={schdule: exp}", "schedule"),
    ],
)
def test_unknown_keys_come_with_the_nearest_known_one(override: str, near: str) -> None:
    assert any("unknown key; did you mean" in line and near in line for line in refused(TINY, override))


def test_names_of_data_that_no_one_defined() -> None:
    lines = refused(TINY, "streams.0.data.use=trian", "validation.data=vla", "test=tset")
    assert lines == [
        "streams.0.data.use: no data is called 'trian'; did you mean train?",
        "validation.data: no data is called 'vla'; did you mean val?",
        "test: no data is called 'tset'; did you mean test?",
    ]


def test_ratios_for_every_stream_or_for_none() -> None:
    assert "give every stream one, or none" in refused(TINY, "streams.0.ratio=2")[0]
    assert parse_recipe(TINY, ["streams.0.ratio=2", "streams.1.ratio=1"]).streams[0].ratio == 2


def test_half_precision_with_a_scaler_is_not_sharded() -> None:
    (line,) = refused({**TINY, "precision": "fp16", "distributed": {"gradients": "sharded"}})
    assert line == "precision: fp16 does not go with distributed.gradients: sharded; use bf16 or fp32"


def test_short_forms() -> None:
    stream = {"data": "train", "losses": [{"use": "margin_ranking", "weight": 0.5}]}
    recipe = parse_recipe(tiny_recipe(Path("world"), streams=[stream], model={"checkpoint": "uniter-base.pt"}))
    (found,) = recipe.streams
    assert (found.data.use, found.data.draw, found.data.options) == ("train", "pools", {})
    weight = found.losses[0].weight
    assert (weight.schedule, weight.scale) == ("constant", 0.5)
    assert recipe.model.checkpoint is not None and recipe.model.checkpoint.path == "uniter-base.pt"


def test_names_of_streams_differ() -> None:
    assert parse_recipe(TINY).stream_names() == ["0_image", "1_text"]
    assert parse_recipe(TINY, ["streams.0.name=first", "streams.1.data.draw=triples"]).stream_names()[0] == "first"


def test_a_name_that_is_neither_file_nor_shipped() -> None:
    with pytest.raises(ConfigError, match=r"no configuration 'itm-flikr-base'.*did you mean itm-flickr-base"):
        load_recipe("itm-flikr-base")
    with pytest.raises(ConfigError, match="it is no file"):
        load_recipe("/nowhere/itm-flickr-base.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "neither YAML nor JSON"), ("- 1", "no mapping"), ("", "no mapping"), ("word", "no mapping")],
)
def test_files_that_hold_no_recipe(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_config(path)


def test_keys_of_every_part_are_described_by_the_error() -> None:
    """A recipe with nothing right in it is refused in lines, never with pydantic's own words alone."""
    lines = refused(dict.fromkeys(Recipe.model_fields, "x"))
    assert len(lines) >= 10
    assert all(line.split(".")[0].split(":")[0] in Recipe.model_fields for line in lines)
