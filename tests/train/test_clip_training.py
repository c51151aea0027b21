"""CLIP by the same two commands as every other model: pictures, wrong captions, hard images, crops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossmodal.model.checkpoints import load
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.trainer import Trainer

from ..commands import command, refused
from ..data.picture_files import (
    ce_record,
    sample_files,
    tokenizer,
    write_ce_clip,
    write_coco,
    write_negclip,
    write_pictures,
    write_tar,
)
from ..recipes import write_recipe
from .runs import assert_same, rows_of, train

COUNT = 12
NAMES = [f"{n}.png" for n in range(COUNT)]
MODEL: dict[str, Any] = {
    "embed_dim": 8, "width": 16, "heads": 2, "layers": 1, "context": 32,
    "image_size": 16, "patch_size": 8, "vision_width": 16, "vision_heads": 2, "vision_layers": 1,
}  # fmt: skip

PLAIN: dict[str, Any] = {
    "data": {"use": "train", "draw": "matched"},
    "losses": [{"use": "clip_info_nce", "tag": "itc"}],
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("captions.json", PLAIN),
    "ce_clip": (
        "records.jsonl",
        {"data": {"use": "train", "draw": "matched_negatives"}, "losses": [{"use": "ce_clip", "tag": "ce_clip"}]},
    ),
    "three terms": (
        "records.jsonl",
        {
            "data": {"use": "train", "draw": "matched_negatives"},
            "losses": [
                {"use": "hard_negative_itc", "mask_missing": True},
                {"use": "cross_modal_rank", "weight": 0.2},
                {"use": "intra_modal_contrastive", "weight": 0.4},
            ],
        },
    ),
    "text-only negclip": (
        "table.tsv",
        {"data": {"use": "train", "draw": "matched_negatives", "count": 1}, "losses": [{"use": "hard_negative_itc"}]},
    ),
    "negclip": ("table.tsv", {"data": {"use": "train", "draw": "hard_images"}, "losses": [{"use": "negclip"}]}),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip_world")
    write_pictures(folder / "images", NAMES)
    write_coco(folder / "captions.json", NAMES)
    write_ce_clip(folder / "records.jsonl", NAMES)
    write_ce_clip(folder / "records", NAMES)
    write_negclip(folder / "table.tsv", NAMES)
    write_tar(folder / "0.tar", sample_files(range(COUNT)))
    tokenizer().save(folder)
    return folder


def clip_recipe(
    world: Path, texts: str = "captions.json", stream: dict[str, Any] = PLAIN, **changes: Any
) -> dict[str, Any]:
    data = {"texts": str(world / texts), "images": str(world / "images")}
    return {
        "name": "clip",
        "steps": 2,
        "batch": 4,
        "model": {"use": "clip", "config": MODEL, "tokenizer": str(world / "merges.txt")},
        "data": {"train": data, "test": {**data, "texts": str(world / "captions.json")}},
        "streams": [stream],
        "optimizer": {"use": "adamw", "lr": 1.0e-3, "warmup": 1},
        "validation": {"data": "test", "every": 2},
        "log_every": 1,
        **changes,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_losses_trains_and_is_tested(world: Path, tmp_path: Path, family: str, capsys: Any) -> None:
    source = write_recipe(tmp_path / "r.yaml", clip_recipe(world, *FAMILIES[family], test="test"))
    assert command("train", "--config", source, "--output", tmp_path / "run") == 0
    logged = [row["value"] for row in rows_of(tmp_path / "run") if row["name"] == "train/loss"]
    assert len(logged) == 2 and all(0 < value < 20 for value in logged)
    found = json.loads((tmp_path / "run" / "last" / "test_test" / "results.json").read_text())
    capsys.readouterr()
    assert command("test", "--checkpoint", tmp_path / "run" / "last", "--output", tmp_path / "again") == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert "image retrieval R1: " in capsys.readouterr().out
    assert again["metrics"] == found["metrics"] and 0 <= again["metrics"]["r_mean"] <= 1
    assert load(tmp_path / "run").processor.use == "clip"


@pytest.mark.parametrize("texts", ["records", "0.tar"])
def test_folders_of_records_and_tars_train_too(world: Path, tmp_path: Path, texts: str) -> None:
    values = clip_recipe(world, texts, validation=None)
    if texts == "0.tar":
        values["data"]["train"]["images"] = str(world / texts)
    else:
        values["streams"] = [FAMILIES["ce_clip"][1]]
    trainer = train(values, tmp_path / "run")
    assert trainer.step == 2


def test_workers_and_a_resumed_run_see_the_same_crops_and_wrong_captions(world: Path, tmp_path: Path) -> None:
    family = FAMILIES["negclip"]
    options: dict[str, Any] = {"validation": None, "optimizer": {"lr": 1e-3, "schedule": "constant"}}
    whole = train(clip_recipe(world, *family, **options, steps=4), tmp_path / "whole")
    train(clip_recipe(world, *family, **options, workers=2), tmp_path / "run")
    again = train(clip_recipe(world, *family, **options, steps=4, workers=1), tmp_path / "run", resume=True)
    assert again.step == 4
    assert_same(dict(again.model.state_dict()), dict(whole.model.state_dict()))


def test_parts_of_a_batch_are_the_batch(world: Path, tmp_path: Path) -> None:
    """Gradient caching with wrong captions, K rows an item: the same losses before and after an update."""
    losses = []
    for parts in (1, 3):
        train(clip_recipe(world, *FAMILIES["three terms"], accumulate=parts, validation=None), tmp_path / str(parts))
        losses.append([row["value"] for row in rows_of(tmp_path / str(parts)) if row["name"] == "train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_thresholds_are_saved_with_the_run(world: Path, tmp_path: Path) -> None:
    trainer = train(clip_recipe(world, *FAMILIES["ce_clip"], validation=None), tmp_path / "run")
    (loss,) = trainer.engine.modules
    again = Trainer(
        parse_recipe(clip_recipe(world, *FAMILIES["ce_clip"], validation=None)), tmp_path / "run", resume=True
    )
    assert_same(dict(again.engine.modules[0].state_dict()), dict(loss.state_dict()))


def test_the_log_holds_the_terms_of_ce_clip_and_its_thresholds(world: Path, tmp_path: Path) -> None:
    trainer = train(clip_recipe(world, *FAMILIES["ce_clip"], validation=None, steps=1), tmp_path / "run")
    logged = {row["name"].removeprefix("train/ce_clip"): row["value"] for row in rows_of(tmp_path / "run")}
    whole = logged["/itc"] + 0.2 * logged["/cmr"] + 0.2 * logged["/imc"]
    assert logged[""] == pytest.approx(whole, rel=1e-5)
    (loss,) = trainer.engine.modules
    assert [logged[f"/threshold_{k}"] for k in range(4)] == loss.state_dict()["thresholds"].tolist()


def test_a_configuration_in_the_words_of_open_clip(world: Path, tmp_path: Path) -> None:
    values = clip_recipe(world, validation=None, steps=1)
    theirs = {
        "embed_dim": 8,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
        "text_cfg": {"context_length": 32, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "model.json").write_text(json.dumps(theirs))
    values["model"]["config"] = str(tmp_path / "model.json")
    found = train(values, tmp_path / "run").model.config_dict
    assert found == load(tmp_path / "run").config_dict and found["vision_heads"] == found["heads"] == 2
    assert {name: found[name] for name in MODEL if name != "image_size"} == {
        name: value for name, value in MODEL.items() if name != "image_size"
    }


def test_other_captions_and_pictures_are_named_on_the_command_line(world: Path, tmp_path: Path, capsys: Any) -> None:
    train(clip_recipe(world, validation=None), tmp_path / "run")
    images = [{"filename": f"0/{NAMES[n]}", "split": split, "sentences": [{"raw": "a thing"}]}
              for n, split in enumerate(("train", "test", "test"))]  # fmt: skip
    (world / "karpathy.json").write_text(json.dumps({"images": images}))
    named = ["--txt_db", world / "karpathy.json", "--img_db", world / "images", "--set", "data.split=test"]
    assert command("test", "--checkpoint", tmp_path / "run", *named, "--output", tmp_path / "found") == 0
    assert "image retrieval R1: 50.00" in capsys.readouterr().out  # of two pictures with equal captions: a tie


def said(capsys: Any, values: dict[str, Any], folder: Path) -> str:
    """What training by a mistaken recipe says: one sentence."""
    source = write_recipe(folder / "r.yaml", values)
    text = refused(capsys, "train", "--config", source, "--output", folder / "run")
    assert len(text.splitlines()) == 1
    return text


def test_captions_whose_image_is_missing(world: Path, tmp_path: Path, capsys: Any) -> None:
    write_coco(world / "more.json", [*NAMES, "none.png"])
    text = said(capsys, clip_recipe(world, "more.json"), tmp_path)
    assert "1 of 13 images named by the captions in" in text and "(first: none.png)" in text


def test_wrong_captions_of_others(world: Path, tmp_path: Path, capsys: Any) -> None:
    from crossmodal.data.negatives.records import write_records

    file = write_records([ce_record(999, 0)], tmp_path / "others.jsonl")
    stream = {**FAMILIES["ce_clip"][1], "data": {"use": "train", "draw": "matched_negatives", "negatives": str(file)}}
    text = said(capsys, clip_recipe(world, "captions.json", stream), tmp_path)
    assert "none of the 24 captions of" in text and "there '999'" in text


def test_a_loss_on_a_role_that_the_data_has_not(world: Path, tmp_path: Path, capsys: Any) -> None:
    stream = {"data": {"use": "train", "draw": "matched"}, "losses": [{"use": "hard_negative_itc"}]}
    source = write_recipe(tmp_path / "r.yaml", clip_recipe(world, "captions.json", stream))
    text = refused(capsys, "train", "--config", source, "--output", tmp_path / "run")
    assert "needs the field 'negative_text_embeds', which neither clip nor this stream's data" in text
    assert "clip_info_nce" in text and "negclip" not in text.partition("losses that can be fed here:")[2]


def test_another_number_of_wrong_captions_than_the_loss_has_thresholds(
    world: Path, tmp_path: Path, capsys: Any
) -> None:
    stream = {**FAMILIES["ce_clip"][1], "losses": [{"use": "ce_clip", "types": 3}]}
    text = said(capsys, clip_recipe(world, FAMILIES["ce_clip"][0], stream), tmp_path)
    assert "the loss 0_matched_negatives/ce_clip cannot be computed" in text and "set types" in text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_does_not_decode(world: Path, tmp_path: Path, capsys: Any, workers: int) -> None:
    images = write_pictures(tmp_path / "images", NAMES)
    (images / "7.png").write_bytes(b"no picture")
    values = clip_recipe(world, validation=None, steps=6, workers=workers)
    values["data"]["train"]["images"] = str(images)
    assert "images/7.png cannot be read as a picture" in said(capsys, values, tmp_path)


@pytest.mark.parametrize("name", ["clip-coco", "ce-clip-coco", "negclip-coco"])
def test_the_shipped_recipes_fit_the_model_and_its_losses(name: str) -> None:
    from crossmodal.train.objectives import build_objectives
    from crossmodal.train.recipe import load_recipe
    from crossmodal.train.setup import plan_model

    recipe = load_recipe(name, ["model.checkpoint=null"])
    (objective,), _ = build_objectives(recipe, plan_model(recipe.model))
    assert objective.terms[0].whole
