from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossmodal.errors import ConfigError
from crossmodal.train.published import DIRECT, READ, WITHOUT_MEANING, add_iais, load_any, translate
from crossmodal.train.recipe import Recipe, load_recipe, parse_recipe, read_config

from ..recipes import tiny_recipe, write_recipe

# A hard-negative configuration, key for key as published.
HARD: dict[str, Any] = {
    "compressed_db": False,
    "checkpoint": "/pretrain/uniter-base.pt",
    "output_dir": "/storage/itm/flickr/hard_neg",
    "max_txt_len": 60,
    "conf_th": 0.2,
    "max_bb": 100,
    "min_bb": 10,
    "num_bb": 36,
    "train_batch_size": 8,
    "negative_size": 399,
    "hard_neg_size": 31,
    "inf_minibatch_size": 400,
    "margin": 0.2,
    "learning_rate": 5e-05,
    "valid_steps": 500,
    "num_train_steps": 5000,
    "optim": "adamw",
    "betas": [0.9, 0.98],
    "dropout": 0.1,
    "weight_decay": 0.01,
    "grad_norm": 2.0,
    "warmup_steps": 500,
    "seed": 42,
    "full_val": True,
    "fp16": True,
    "n_workers": 4,
    "pin_mem": True,
    "train_txt_dbs": ["/txt/itm_flickr30k_train.db"],
    "train_img_dbs": ["/img/flickr30k/"],
    "val_txt_db": "/txt/itm_flickr30k_val.db",
    "val_img_db": "/img/flickr30k/",
    "test_txt_db": "/txt/itm_flickr30k_test.db",
    "test_img_db": "/img/flickr30k/",
    "model_config": "/src/config/uniter-base.json",
}
LARGE = {"checkpoint": "/pretrain/uniter-large.pt", "model_config": "/src/config/uniter-large.json"}
COCO = {
    "train_txt_dbs": ["/txt/itm_coco_train.db", "/txt/itm_coco_restval.db"],
    "train_img_dbs": ["/img/coco_train2014/", "/img/coco_val2014"],
    "val_txt_db": "/txt/itm_coco_val.db",
    "val_img_db": "/img/coco_val2014/",
    "test_txt_db": "/txt/itm_coco_test.db",
    "test_img_db": "/img/coco_val2014/",
}
PLAIN = {
    **{key: value for key, value in HARD.items() if key != "hard_neg_size"},
    "train_batch_size": 40,
    "negative_size": 1,
    "inf_minibatch_size": 40,
    "gradient_accumulation_steps": 4,
    "valid_steps": 2000,
    "num_train_steps": 20000,
    "warmup_steps": 2000,
}
PUBLISHED = {
    "itm-flickr-base-hn": HARD,
    "itm-flickr-large-hn": HARD | LARGE,
    "itm-coco-base-hn": HARD | COCO,
    "itm-coco-large-hn": HARD | COCO | LARGE | {"learning_rate": 3e-5, "full_val": False},
    "itm-flickr-base": PLAIN,
}


def written(folder: Path, values: dict[str, Any]) -> str:
    path = folder / "published.json"
    path.write_text(json.dumps(values))
    return str(path)


def comparable(recipe: Recipe) -> dict[str, Any]:
    """Without what a shipped recipe says in other words: its name, the layout, and slashes at an end."""
    values = recipe.model_dump(mode="json")
    del values["name"]
    del values["model"]["checkpoint"]["layout"]
    for data in values["data"].values():
        data["images"] = [path.rstrip("/") for path in data["images"]]
        del data["compressed"]  # published: msgpack; shipped: whichever is there
    return values


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("iais", [None, "singular", "distributed"])
def test_shipped_recipes_are_the_published_configurations(name: str, iais: str | None, tmp_path: Path) -> None:
    if iais and name == "itm-flickr-base":
        with pytest.raises(ConfigError, match="--IAIS needs streams of hard-negative pools"):
            load_any(name, iais=iais)
        return
    shipped, _ = load_any(name, iais=iais)
    translated, output = load_any(written(tmp_path, PUBLISHED[name]), iais=iais)
    assert comparable(shipped) == comparable(translated)
    assert output == HARD["output_dir"]


def test_a_published_configuration_key_by_key(tmp_path: Path) -> None:
    recipe, _ = load_any(written(tmp_path, HARD))
    assert (recipe.name, recipe.seed, recipe.steps, recipe.workers) == ("published", 42, 5000, 4)
    assert (recipe.batch, recipe.accumulate, recipe.precision) == (8, 8, "fp16")
    assert (recipe.model.config, recipe.model.dropout) == ("uniter-base", 0.1)
    assert recipe.model.checkpoint is not None and recipe.model.checkpoint.path == "/pretrain/uniter-base.pt"
    train, val = recipe.data["train"], recipe.data["val"]
    assert (train.texts, train.images) == (HARD["train_txt_dbs"], HARD["train_img_dbs"])
    assert (train.max_text, val.max_text, recipe.data["test"].max_text) == (60, -1, -1)
    assert all(
        (data.conf_th, data.max_bb, data.min_bb, data.num_bb, data.compressed) == (0.2, 100, 10, 36, False)
        for data in recipe.data.values()
    )
    optimizer = recipe.optimizer
    assert (optimizer.use, optimizer.lr, optimizer.betas) == ("published_adamw", 5e-5, (0.9, 0.98))
    assert (optimizer.weight_decay, optimizer.clip, optimizer.warmup) == (0.01, 2.0, 500)
    assert recipe.validation is not None
    assert (recipe.validation.data, recipe.validation.every, recipe.validation.gallery) == ("val", 500, None)
    assert recipe.test == "test"
    assert [stream.data.options for stream in recipe.streams] == [
        {"anchor": "image", "pool": 400},
        {"anchor": "text", "pool": 400},
    ]
    for stream in recipe.streams:
        assert stream.miner is not None and (stream.miner.use, stream.miner.options) == ("hardest", {"keep": 31})
        (loss,) = stream.losses
        assert (loss.use, loss.options, loss.weight.scale) == ("margin_ranking", {"margin": 0.2}, 1.0)


# One other value for every published key, and where it must arrive.
CHANGES: dict[str, tuple[Any, str, Any]] = {
    "compressed_db": (True, "data.val.compressed", True),
    "checkpoint": ("/pretrain/other.pt", "model.checkpoint.path", "/pretrain/other.pt"),
    "max_txt_len": (30, "data.train.max_text", 30),
    "conf_th": (0.3, "data.test.conf_th", 0.3),
    "max_bb": (50, "data.train.max_bb", 50),
    "min_bb": (5, "data.train.min_bb", 5),
    "num_bb": (20, "data.train.num_bb", 20),
    "train_batch_size": (4, "accumulate", 4),
    "negative_size": (63, "streams.0.data.pool", 64),
    "hard_neg_size": (15, "streams.1.miner.keep", 15),
    "inf_minibatch_size": (40, "validation.gallery", 40),
    "margin": (0.3, "streams.0.losses.0.margin", 0.3),
    "learning_rate": (1e-5, "optimizer.lr", 1e-5),
    "valid_steps": (100, "validation.every", 100),
    "num_train_steps": (1000, "steps", 1000),
    "optim": ("adamax", "optimizer.use", "adamax"),
    "betas": ([0.8, 0.9], "optimizer.betas", [0.8, 0.9]),
    "dropout": (0.2, "model.dropout", 0.2),
    "weight_decay": (0.1, "optimizer.weight_decay", 0.1),
    "grad_norm": (-1, "optimizer.clip", -1.0),
    "warmup_steps": (50, "optimizer.warmup", 50),
    "seed": (7, "seed", 7),
    "full_val": (False, "validation.gallery", 40),
    "fp16": (False, "precision", "fp32"),
    "n_workers": (2, "workers", 2),
    "train_txt_dbs": (["a", "b"], "data.train.texts", ["a", "b"]),
    "train_img_dbs": (["a"], "data.train.images", ["a"]),
    "val_txt_db": ("a", "data.val.texts", ["a"]),
    "val_img_db": ("b", "data.val.images", ["b"]),
    "test_txt_db": ("c", "data.test.texts", ["c"]),
    "test_img_db": ("d", "data.test.images", ["d"]),
    "model_config": ("/src/config/uniter-large.json", "model.config", "uniter-large"),
}


def test_every_published_key_is_tried() -> None:
    elsewhere = {"output_dir", "IAIS", "gradient_accumulation_steps"} | WITHOUT_MEANING
    assert CHANGES.keys() | elsewhere == DIRECT.keys() | READ | WITHOUT_MEANING
    assert HARD.keys() <= CHANGES.keys() | elsewhere


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("on_the_command_line", [False, True])
def test_every_key_arrives_and_the_command_line_wins(key: str, on_the_command_line: bool, tmp_path: Path) -> None:
    value, place, expected = CHANGES[key]
    base = (
        HARD if key not in ("inf_minibatch_size", "full_val") else {**HARD, "full_val": False, "inf_minibatch_size": 40}
    )
    flags = {key: value} if on_the_command_line else {}
    recipe, _ = load_any(written(tmp_path, base if on_the_command_line else {**base, key: value}), flags=flags)
    found: Any = recipe.model_dump(mode="json")
    for step in place.split("."):
        found = found[int(step)] if isinstance(found, list) else found[step]
    assert found == expected


def test_the_file_wins_over_the_defaults_of_the_published_script(tmp_path: Path) -> None:
    least = {key: HARD[key] for key in ("train_txt_dbs", "train_img_dbs")}
    recipe, output = load_any(written(tmp_path, least))
    assert output is None
    assert (recipe.steps, recipe.batch, recipe.accumulate, recipe.precision) == (100000, 32, 32, "fp32")
    assert (recipe.optimizer.use, recipe.optimizer.lr, recipe.optimizer.clip) == ("adam", 3e-5, 0.25)
    assert recipe.optimizer.warmup == 4000
    assert recipe.streams[0].data.options["pool"] == 512
    assert (recipe.validation, recipe.test, recipe.model.checkpoint) == (None, None, None)
    changed, _ = load_any(written(tmp_path, {**least, "warmup_steps": 10, "negative_size": 63}))
    assert (changed.optimizer.warmup, changed.streams[0].data.options["pool"]) == (10, 64)


def test_betas_may_be_words(tmp_path: Path) -> None:
    recipe, _ = load_any(written(tmp_path, HARD), flags={"betas": ["0.8", "0.95"]})
    assert recipe.optimizer.betas == (0.8, 0.95)


def test_one_database_may_stand_without_brackets(tmp_path: Path) -> None:
    recipe, _ = load_any(written(tmp_path, HARD), flags={"train_txt_dbs": "/txt/one.db"})
    assert recipe.data["train"].texts == ["/txt/one.db"]


@pytest.mark.parametrize("size", [8, 2])
@pytest.mark.parametrize("alignment", ["singular", "distributed"])
def test_the_iais_weight_is_the_published_batch_as_a_number(size: int, alignment: str, tmp_path: Path) -> None:
    source = written(tmp_path, {**HARD, "train_batch_size": size})
    # The run's own batch, changed afterwards, does not move it.
    recipe, _ = load_any(source, iais=alignment, overrides=["batch=64", "accumulate=16"])
    assert (recipe.batch, recipe.accumulate) == (64, 16)
    for stream, side in zip(recipe.streams, ("visual", "linguistic"), strict=True):
        rank, iais = stream.losses
        assert (rank.use, iais.use) == ("margin_ranking", "iais")
        assert iais.options == {"alignment": alignment, "side": side}
        assert (iais.weight.schedule, iais.weight.scale) == ("exp", float(size))


def test_iais_in_a_published_file_and_on_the_command_line(tmp_path: Path) -> None:
    source = written(tmp_path, {**HARD, "IAIS": "singular"})
    assert load_any(source)[0].streams[0].losses[1].options["alignment"] == "singular"
    assert load_any(source, iais="distributed")[0].streams[0].losses[1].options["alignment"] == "distributed"


def test_iais_replaces_the_regulariser_that_a_recipe_has(tmp_path: Path) -> None:
    values = tiny_recipe(tmp_path)
    values["streams"][0]["losses"].append({"use": "iais", "alignment": "singular", "side": "both"})
    recipe, _ = load_any(str(write_recipe(tmp_path / "r.yaml", values)), iais="distributed")
    assert [loss.use for loss in recipe.streams[0].losses] == ["margin_ranking", "iais"]
    assert recipe.streams[0].losses[1].options == {"alignment": "distributed", "side": "visual"}
    assert recipe.streams[0].losses[1].weight.scale == 4.0  # the batch of the tiny recipe


def test_iais_knows_pools_by_their_defaults() -> None:
    pools: dict[str, Any] = {"data": "train", "losses": []}
    triples: dict[str, Any] = {"data": {"use": "train", "draw": "triples"}, "losses": []}
    add_iais({"streams": [pools, triples]}, "singular")
    assert [loss["side"] for loss in pools["losses"]] == ["linguistic"]
    assert triples["losses"] == []


@pytest.mark.parametrize("streams", [None, 3, [], [3], [{"data": 3, "losses": []}], [{"data": "train"}]])
def test_iais_without_pools_is_refused(streams: Any) -> None:
    with pytest.raises(ConfigError, match="--IAIS needs streams of hard-negative pools"):
        add_iais({"streams": streams}, "singular")


def test_iais_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--IAIS 'both' is unknown; use singular or distributed"):
        load_any("itm-flickr-base-hn", iais="both")


def test_every_mistake_of_a_published_configuration_at_once() -> None:
    values = {**HARD, "negatve_size": 3, "train_batch_size": "many", "margin": None}
    del values["train_txt_dbs"], values["test_img_db"]
    with pytest.raises(ConfigError) as error:
        translate(values, where="file.json")
    assert str(error.value).splitlines() == [
        "file.json cannot be used:",
        "  negatve_size: unknown key; did you mean negative_size or hard_neg_size?",
        "  train_txt_dbs: is missing; add it",
        "  test_img_db: is missing; add it",
        "  train_batch_size: input should be a number, found 'many'",
        "  margin: input should be a number, found None",
    ]


@pytest.mark.parametrize("value", [0.9, ["a", "b"], [0.9]])
def test_betas_that_are_none(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.betas"):
        load_any(written(tmp_path, HARD), flags={"betas": value})


def test_a_recipe_takes_no_published_flags() -> None:
    with pytest.raises(ConfigError, match="unknown option --learning_rate; a recipe is changed with --set"):
        load_any("itm-flickr-base-hn", flags={"learning_rate": 1})


def test_a_model_configuration_of_ones_own_stays(tmp_path: Path) -> None:
    own = tmp_path / "uniter-base.json"
    own.write_text(json.dumps({**read_config("uniter-base"), "num_hidden_layers": 2}))
    assert parse_recipe(translate({**HARD, "model_config": str(own)})).model.config == str(own)
    elsewhere = "/nowhere/my-uniter.json"
    assert parse_recipe(translate({**HARD, "model_config": elsewhere})).model.config == elsewhere


def test_shipped_recipes_name_shipped_model_sizes() -> None:
    for name in PUBLISHED:
        recipe = load_recipe(name)
        assert isinstance(recipe.model.config, str) and recipe.model.checkpoint is not None
        assert recipe.model.checkpoint.path == f"/pretrain/{recipe.model.config}.pt"
        assert read_config(recipe.model.config)["vocab_size"] == 28996
