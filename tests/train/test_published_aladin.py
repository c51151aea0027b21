from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from crossmodal.errors import ConfigError
from crossmodal.model.aladin_config import AladinConfig
from crossmodal.train.published import is_published, load_any
from crossmodal.train.published_aladin import (
    FLAG_DEFAULTS,
    FLAGS,
    LOSSES,
    NO_RESUME,
    READ,
    TESTED,
    TRAINING,
    WITHOUT_MEANING,
    inert_flags,
    is_aladin,
    translate_aladin,
    translate_test,
)
from crossmodal.train.recipe import load_recipe, parse_recipe, read_config

# A current file, key for key as published.
CURRENT: dict[str, Any] = {
    "dataset": {"name": "coco"},
    "model": {
        "name": "teran", "embed-size": 768, "text-aggregation": "first", "image-aggregation": "first",
        "freeze-teran": False, "teran-layers": 0, "tern-layers": 2, "post-layers": 0, "exclude-stopwords": False,
        "shared-transformer": True, "depth-aggregation-alignment": False, "depth-aggregation-matching": False,
        "dropout": 0.1,
    },
    "training": {
        "lr": 1e-5, "grad-clip": 2.0, "max-violation": True, "loss-type": "alignment-distillation",
        "loss-weights": [1, 1], "alignment-mode": "MrSw", "distillation-mode": "listnet", "measure": "dot",
        "margin": 0.2, "bs": 32, "scheduler": "steplr", "gamma": 0.1, "step-size": 15, "warmup": None,
        "warmup-period": 1000,
    },
}  # fmt: skip
# One of configs/old, with the sections that nothing reads.
OLD: dict[str, Any] = {
    "dataset": {"name": "coco", "images-path": "data/coco/images", "data": "/media", "restval": True},
    "text-model": {"name": "bert", "pretrain": "bert-base-uncased", "word-dim": 768, "layers": 0, "dropout": 0.1},
    "image-model": {"name": "bottomup", "transformer-layers": 4, "pos-encoding": None, "feat-dim": 2048, "norm": True},
    "model": {
        "name": "teran", "embed-size": 768, "text-aggregation": "first", "image-aggregation": "first",
        "freeze-teran": True, "teran-layers": 0, "tern-layers": 2, "post-layers": 0, "exclude-stopwords": False,
        "shared-transformer": True, "depth-aggregation": "gated", "dropout": 0.1,
    },
    "training": {**CURRENT["training"], "loss-type": "distillation", "loss-weights": "auto", "step-size": 10},
}  # fmt: skip
# The command of the README.
COMMAND: dict[str, Any] = {
    "data_dir": "D/coco_ir", "img_feat_file": "F/features.tsv", "eval_model_dir": "/vinvl", "config": None,
    "logger_name": "runs/alad", "val_step": 7000, "max_seq_length": 50, "max_img_seq_length": 34,
}  # fmt: skip
del COMMAND["config"]  # our own option

ALIGNMENT = {"use": "triplet", "scores": "alignment_scores", "margin": 0.2, "hardest": True, "tag": "alignment_loss"}
MATCHING = {"use": "triplet", "scores": "matching_scores", "margin": 0.2, "hardest": True, "tag": "matching_loss"}
DISTILLED = {
    "use": "listnet", "teacher": "alignment_scores", "student": "matching_scores", "tag": "distillation_loss",
}  # fmt: skip
ONE, LATER = {"scale": 1}, {"scale": 1, "from_epoch": 0}

PUBLISHED: dict[str, tuple[list[dict[str, Any]], bool, int]] = {
    "alad-alignment-triplet": ([ALIGNMENT | {"weight": ONE}], False, 15),
    "alad-matching-triplet-e2e": ([MATCHING | {"weight": ONE}], False, 15),
    "alad-matching-triplet-finetune": ([MATCHING | {"weight": ONE}], True, 10),
    "alad-matching-distill-finetune": ([DISTILLED | {"weight": LATER}], True, 10),
    "alad-alignment-and-matching-distill": ([ALIGNMENT | {"weight": ONE}, DISTILLED | {"weight": LATER}], False, 15),
    "alad-alignment-and-matching-triplet0.1-plus-distill": (
        [ALIGNMENT | {"weight": ONE}, DISTILLED | {"weight": LATER}, MATCHING | {"weight": {"scale": 0.1}}],
        False,
        15,
    ),
}
VERSION_2 = {
    "alad-alignment-triplet_2_det_clip-labels": ("det", True, False),
    "alad-alignment-triplet_4_det+fast_clip-labels": ("det+fast", True, False),
    "alad-alignment-triplet_5_det+fast_clip-labels_clip-captions": ("det+fast", True, True),
    "experiment6_det-padded_clip-labels": ("det_padded", True, False),
    "experiment8": ("det+fast_labels", True, False),
}


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one key of `model`, `training` or of the top set."""
    section, _, name = key.rpartition(".")
    copy: dict[str, Any] = json.loads(json.dumps(values))
    (copy[section] if section else copy)[name] = value
    return copy


def translated(values: dict[str, Any] = CURRENT, **flags: Any) -> dict[str, Any]:
    return translate_aladin(values, {**COMMAND, **flags})


def at(recipe: dict[str, Any], place: str) -> Any:
    found: Any = recipe
    for step in place.split("."):
        found = found[int(step)] if isinstance(found, list) else found[step]
    return found


def refused(values: dict[str, Any] = CURRENT, **flags: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        translate_aladin(values, {**COMMAND, **flags}, where="file.yaml")
    lines = str(error.value).splitlines()
    assert lines[0] == "file.yaml cannot be used:"
    return [line.strip() for line in lines[1:]]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_configurations(name: str) -> None:
    losses, freeze, step = PUBLISHED[name]
    shipped = read_config(name)
    assert shipped.keys() == {"dataset", "model", "training"} and shipped["model"].keys() == CURRENT["model"].keys()
    recipe = translated(shipped)
    assert recipe["streams"] == [{"data": {"use": "train", "draw": "matched"}, "losses": losses}]
    assert recipe["optimizer"] == {
        "use": "adam", "lr": 1e-5, "betas": [0.9, 0.999], "weight_decay": 0, "clip": 2.0, "warmup": 0,
        "schedule": "step", "step_epochs": step, "gamma": 0.1,
    }  # fmt: skip
    expected = {"freeze": "backbone"} if freeze else {}
    assert AladinConfig.of(recipe["model"]["config"]) == AladinConfig.of(expected)
    assert (recipe["seed"], recipe["epochs"], recipe["batch"], recipe["workers"]) == (88, 20, 32, 4)
    heads = (
        ["alignment", "matching"] if ALIGNMENT["scores"] in (loss.get("scores") for loss in losses) else ["matching"]
    )
    assert recipe["validation"] == {"data": "val", "every": 7000, "scorers": heads}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_and_files_give_recipes(name: str, tmp_path: Path) -> None:
    for source in (name, f"configs/{name}.yaml"):
        recipe, output = load_any(source, flags=COMMAND, overrides=["model.config.num_hidden_layers=3"])
        assert (recipe.name, output, recipe.epochs) == (name, "runs/alad", 20)
        assert recipe.model.config["num_hidden_layers"] == 3  # type: ignore[index]
    assert not is_published(read_config(name)) and is_aladin(read_config(name))


@pytest.mark.parametrize("name", VERSION_2)
def test_configurations_of_version_2(name: str) -> None:
    detection, labels, captions = VERSION_2[name]
    values = changed(CURRENT, "detection_type", detection) | {"enable_clip_labels": labels}
    values |= {"enable_clip_captions": captions} if captions else {}
    recipe = translated(values, img_feat_file="F/detic", max_caption_seq_len=40, max_labels_seq_len=30)
    config = AladinConfig.of(recipe["model"]["config"])
    assert (config.detection, config.clip_tags, config.clip_captions) == (detection, labels, captions)
    assert {data["detections"] for data in recipe["data"].values()} == {detection}
    assert {data["images"] for data in recipe["data"].values()} == {"F/detic"}
    processor = recipe["model"]["processor"]
    assert (processor["max_text"], processor["max_tags"], processor["clip_tags"]) == (40, 30, True)
    assert processor.get("clip_captions", False) == captions


@pytest.mark.parametrize(
    ("model", "training", "expected"),
    [  # spec section 11, configs/old
        (
            {"tern-layers": 1, "freeze-teran": False},
            {"loss-type": "alignment"},
            {"depth_matching": "gated", "matching_layers": 1},
        ),
        ({}, {}, {"depth_matching": "gated", "freeze": "backbone"}),
        (
            {"depth-aggregation": "mean", "tern-layers": 1},
            {},
            {"depth_matching": "mean", "matching_layers": 1, "freeze": "backbone"},
        ),
        ({"depth-aggregation": None, "tern-layers": 4}, {}, {"matching_layers": 4, "freeze": "backbone"}),
        (
            {"depth-aggregation-alignment": "gated", "depth-aggregation-matching": None},
            {},
            {"depth_alignment": "gated", "freeze": "backbone"},
        ),
    ],
)
def test_old_configurations(model: dict[str, Any], training: dict[str, Any], expected: dict[str, Any]) -> None:
    values = OLD | {"model": OLD["model"] | model, "training": OLD["training"] | training}
    recipe = translated(values)
    assert AladinConfig.of(recipe["model"]["config"]) == AladinConfig.of(expected)
    (loss,) = recipe["streams"][0]["losses"]
    weight = {"learned": True} | ({"from_epoch": 0} if "teacher" in loss else {})
    assert loss["weight"] == weight
    assert recipe["optimizer"]["step_epochs"] == 10


CHANGES: dict[str, tuple[Any, str, Any]] = {
    "training.bs": (8, "batch", 8),
    "training.lr": (3e-6, "optimizer.lr", 3e-6),
    "training.grad-clip": (0, "optimizer.clip", -1),
    "training.gamma": (0.5, "optimizer.gamma", 0.5),
    "training.step-size": (3, "optimizer.step_epochs", 3),
    "training.scheduler": (None, "optimizer.schedule", "constant"),
    "training.warmup": ("linear", "optimizer.warmup", 1000),
    "training.max-violation": (False, "streams.0.losses.0.hardest", False),
    "training.margin": (0.3, "streams.0.losses.0.margin", 0.3),
    "training.loss-weights": ([2, 0.5], "streams.0.losses.1.weight.scale", 0.5),
    "training.alignment-mode": ("symm", "model.config.aggregation", "symm"),
    "training.measure": ("order", "model.config.measure", "order"),
    "training.distillation-mode": ("mse", "streams.0.losses.1.use", "score_regression"),
    "training.activate-distillation-after": (2, "streams.0.losses.1.weight.from_epoch", 2),
    "training.activate_distillation_after": (3, "streams.0.losses.1.weight.from_epoch", 3),
    "model.freeze-teran": (True, "model.config.freeze", "backbone"),
    "model.freeze_teran": (True, "model.config.freeze", "backbone"),
    "model.teran-layers": (2, "model.config.alignment_layers", 2),
    "model.tern-layers": (4, "model.config.matching_layers", 4),
    "model.post-layers": (1, "model.config.post_layers", 1),
    "model.shared-transformer": (False, "model.config.shared_layers", False),
    "model.depth-aggregation-alignment": ("mean", "model.config.depth_alignment", "mean"),
    "model.depth-aggregation-matching": ("gated", "model.config.depth_matching", "gated"),
    "model.dropout": (0.3, "model.config.head_dropout", 0.3),
    "detection_type": ("det", "model.config.detection", "det"),
    "detection-type": ("det", "data.val.detections", "det"),
    "enable_clip_labels": (True, "model.processor.clip_tags", True),
    "enable_clip_captions": (True, "model.config.clip_captions", True),
    "max_caption_seq_len": (20, "model.processor.max_text", 20),
    "max_labels_seq_len": (21, "model.processor.max_tags", 21),
    "backbone": ({"num_hidden_layers": 2}, "model.config.num_hidden_layers", 2),
}
FLAG_CHANGES: dict[str, tuple[Any, str, Any]] = {
    "data_dir": ("/d", "data.train.texts", "/d/train_captions.pt"),
    "data-dir": ("/d", "data.val.texts", "/d/minival_captions.pt"),
    "img_feat_file": ("/f.tsv", "data.test.images", "/f.tsv"),
    "eval_model_dir": ("/other", "model.tokenizer", "/other"),
    "load-teacher-model": ("a.pth.tar", "model.checkpoint", {"path": "a.pth.tar", "layout": "aladin"}),
    "load_teacher_model": ("a.pth.tar", "model.checkpoint.layout", "aladin"),
    "eval_img_keys_file": ("test_img_keys_1k.tsv", "data.test.image_keys", "D/coco_ir/test_img_keys_1k.tsv"),
    "max_seq_length": (60, "model.processor.max_tags", 60),
    "max_caption_seq_len": (20, "model.processor.max_text", 20),
    "max_labels_seq_len": (21, "model.processor.max_tags", 21),
    "max_img_seq_length": (70, "model.processor.max_regions", 70),
    "num_captions_per_img_train": (4, "data.train.captions_per_image", 4),
    "num_captions_per_img_val": (3, "data.val.captions_per_image", 3),
    "num_workers": (0, "workers", 0),
    "num_epochs": (3, "epochs", 3),
    "log_step": (5, "log_every", 5),
    "val_step": (9, "validation.every", 9),
    "seed": (1, "seed", 1),
    "aggregation_type": ("labels", "model.processor.aggregate_tags", True),
    "clip_vocab": ("merges.txt", "model.processor.clip_vocab", "merges.txt"),
}


def test_every_published_key_and_flag_is_tried() -> None:
    elsewhere = {"model.embed-size", "model.exclude-stopwords", "model.depth-aggregation", "training.loss-type",
                 "training.warmup-period", "model", "training"}  # fmt: skip
    known = {f"{section}.{key}".lstrip(".") for section in ("", "model", "training") for key in READ[section]}
    known |= {f"training.{key}" for key in TRAINING}
    assert known <= CHANGES.keys() | elsewhere
    assert READ["flags"] | FLAGS.keys() <= FLAG_CHANGES.keys() | {"logger_name", "resume", "att_mask_type"}


@pytest.mark.parametrize("key", CHANGES)
def test_every_key_arrives(key: str) -> None:
    value, place, expected = CHANGES[key]
    base = CURRENT
    if key in ("training.activate_distillation_after", "model.freeze_teran"):
        section, _, name = key.partition(".")
        base = CURRENT | {section: {k: v for k, v in CURRENT[section].items() if k != name.replace("_", "-")}}
    assert at(translated(changed(base, key, value)), place) == expected


@pytest.mark.parametrize("key", FLAG_CHANGES)
def test_every_flag_arrives(key: str) -> None:
    value, place, expected = FLAG_CHANGES[key]
    flags = {k: v for k, v in COMMAND.items() if k != key.replace("-", "_")} | {key: value}
    assert at(translate_aladin(CURRENT, flags), place) == expected


def test_defaults_of_the_published_scripts() -> None:
    recipe = translate_aladin(CURRENT, {"eval_model_dir": "/vinvl"})
    assert (recipe["epochs"], recipe["validation"]["every"], recipe["log_every"]) == (20, 500, 10)
    assert recipe["model"]["processor"] == {
        "max_text": 70, "max_tags": 70, "max_regions": 50, "aggregate_tags": False,
    }  # fmt: skip
    assert recipe["data"]["train"] == {
        "texts": "datasets/coco_ir/train_captions.pt", "images": "datasets/coco_ir/features.tsv", "detections": "fast",
        "captions_per_image": 5,
    }  # fmt: skip
    assert recipe["model"]["checkpoint"] == {"path": "/vinvl", "layout": "vinvl"}
    assert "test" not in recipe and "image_keys" not in recipe["data"]["test"]


def test_what_a_file_leaves_out_is_as_in_the_others() -> None:
    short = {"training": {"loss-type": "alignment"}}
    assert translated(short)["streams"] == translated(read_config("alad-alignment-triplet"))["streams"]
    assert translated(short)["optimizer"] == translated()["optimizer"]


def test_lengths_of_a_flag_go_before_those_of_a_checkpoint() -> None:
    values = changed(CURRENT, "max_caption_seq_len", 20)
    assert translated(values)["model"]["processor"]["max_text"] == 20
    assert translated(values, max_caption_seq_len=30)["model"]["processor"]["max_text"] == 30
    assert translated(values)["model"]["processor"]["max_tags"] == 50


def test_the_distillation_alone_is_not_delayed() -> None:
    values = changed(read_config("alad-matching-distill-finetune"), "training.activate_distillation_after", 2)
    assert translated(values)["streams"][0]["losses"][0]["weight"] == LATER


@pytest.mark.parametrize("weights", ["auto", "anything", None, 3])
def test_weights_that_are_no_list_are_learned(weights: Any) -> None:
    losses = translated(changed(CURRENT, "training.loss-weights", weights))["streams"][0]["losses"]
    assert [loss["weight"] for loss in losses] == [{"learned": True}, {"learned": True, "from_epoch": 0}]


@pytest.mark.parametrize(
    ("mode", "use"),
    [
        ("listnet", "listnet"),
        ("mse", "score_regression"),
        ("ordinal", "ordinal_distillation"),
        ("contrastive", "contrastive_distillation"),
    ],
)
def test_modes_of_distillation(mode: str, use: str) -> None:
    loss = translated(changed(CURRENT, "training.distillation-mode", mode))["streams"][0]["losses"][1]
    assert loss == DISTILLED | {"use": use, "weight": LATER}


def test_all_losses_by_their_published_names() -> None:
    training = CURRENT["training"] | {"loss-type": "-".join(LOSSES), "loss-weights": [1, 2, 3, 4, 5, 6]}
    values = CURRENT | {"training": training, "model": CURRENT["model"] | {"depth-aggregation-matching": "mean"}}
    losses = translated(values)["streams"][0]["losses"]
    assert [(loss["use"], loss["tag"], loss["weight"]["scale"]) for loss in losses] == [
        ("triplet", "alignment_loss", 1), ("triplet", "matching_loss", 2), ("triplet", "self_attention_loss", 3),
        ("listnet", "distillation_loss", 4), ("uniformity", "entropy-uniform-loss", 5),
        ("hidden_l1", "regularize_hidden_loss", 6),
    ]  # fmt: skip


def test_sizes_come_from_the_configuration_beside_the_backbone(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "use_img_layernorm": 0,
        "finetuning_task": "ir",
        "loss_type": "sfmx",
    }
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    values = changed(CURRENT, "model.embed-size", 48)
    config = translated(values, eval_model_dir=str(tmp_path))["model"]["config"]
    assert {k: config[k] for k in ("hidden_size", "num_hidden_layers", "use_img_layernorm")} == {
        "hidden_size": 48, "num_hidden_layers": 2, "use_img_layernorm": 0,
    }  # fmt: skip
    assert not config.keys() & {"finetuning_task", "loss_type"}
    assert refused(values) == [
        "model.embed-size: is 48, and the backbone is 768 wide; nothing projects, so make it equal"
    ]


def test_flags_without_effect_are_taken() -> None:
    inert: dict[str, Any] = dict.fromkeys(WITHOUT_MEANING["flags"], 1)
    assert translated(**inert) == translated()
    dashed: dict[str, Any] = {key.replace("_", "-"): 1 for key in inert}
    assert translated(**dashed) == translated()
    assert translated(resume="", aggregation_type="none", att_mask_type="CLR") == translated()
    values = changed(changed(CURRENT, "model.text-aggregation", "gru"), "dataset", {"anything": 1})
    assert translated(values) == translated()


def test_flags_without_effect_are_said_as_they_were_written() -> None:
    assert inert_flags({"do-train": True, "data_dir": "D", "img_feature_dim": 2054}) == [
        "--do-train",
        "--img_feature_dim",
    ]


def test_lengths_are_whole_numbers() -> None:
    assert refused(max_seq_length="fifty", max_img_seq_length=3.5) == [
        "--max_seq_length: 'fifty' is no whole number; give one",
        "--max_img_seq_length: 3.5 is no whole number; give one",
    ]


# --- flags of a test ----------------------------------------------------------------------------------------------

TEST_COMMAND: dict[str, Any] = {
    "data_dir": "D", "img_feat_file": "F/features.tsv", "eval_model_dir": "/vinvl", "max_seq_length": 50,
    "max_img_seq_length": 34, "eval_img_keys_file": "test_img_keys_1k.tsv",
}  # fmt: skip


def test_a_published_test() -> None:
    asked = translate_test(TEST_COMMAND, {}, {})
    assert asked.tokenizer == "/vinvl" and asked.keys == "test_img_keys_1k.tsv" and asked.inert == []
    assert asked.processor == {"max_text": 50, "max_tags": 50, "max_regions": 34, "aggregate_tags": False}
    assert asked.data["test"] == {
        "texts": "D/test_captions.pt", "images": "F/features.tsv", "detections": "fast", "captions_per_image": 5,
        "image_keys": "D/test_img_keys_1k.tsv",
    }  # fmt: skip
    assert asked.data["val"]["texts"] == "D/minival_captions.pt"


def test_lengths_of_a_test_as_in_training() -> None:
    published = {"max_caption_seq_len": 20, "max_labels_seq_len": 21}
    asked = translate_test({}, {"clip_tags": True, "detection": "det"}, published)
    assert asked.processor == {
        "max_text": 20, "max_tags": 21, "max_regions": 50, "clip_tags": True, "aggregate_tags": False,
    }  # fmt: skip
    assert asked.data == {} and asked.tokenizer is None
    assert translate_test({"max_caption_seq_len": 9}, {}, published).processor["max_text"] == 9
    assert translate_test({"data_dir": "D"}, {"detection": "det"}, {}).data["test"]["detections"] == "det"


def test_a_checkpoint_of_ours_has_its_lengths() -> None:
    assert translate_test({}, {}, None).processor == {}
    assert translate_test({"max_img_seq_length": 9}, {}, None).processor == {"max_regions": 9}


def test_training_flags_mean_nothing_in_a_test() -> None:
    flags = {key: 1 for key in (READ["flags"] | FLAGS.keys() | WITHOUT_MEANING["flags"]) - TESTED}
    assert translate_test(flags, {}, {}).inert == [f"--{key}" for key in flags]
    assert READ["flags"] | FLAGS.keys() >= TESTED


def test_an_unknown_flag_of_a_test() -> None:
    with pytest.raises(
        ConfigError, match=r"the flags cannot be used:\n  --eval_img_keys: unknown option; did you mean"
    ):
        translate_test({"eval_img_keys": "x"}, {}, {})


def test_tables_do_not_overlap() -> None:
    for section, read in READ.items():
        assert not read & WITHOUT_MEANING[section]
        assert not read & {"training": TRAINING, "flags": FLAGS}.get(section, {}).keys()
    assert FLAG_DEFAULTS.keys() <= READ["flags"] | FLAGS.keys()


def test_every_mistake_at_once() -> None:
    values = changed(changed(CURRENT, "model.tern-layer", 2), "training.marginn", 0.3) | {"detection_typ": "det"}
    assert refused(values, eval_model_dir="", max_seq_len=50, resume="x.pth", att_mask_type="CL") == [
        "detection_typ: unknown key; did you mean detection_type?",
        "model.tern-layer: unknown key; did you mean tern-layers or teran-layers or post-layers?",
        "training.marginn: unknown key; did you mean margin?",
        "--max_seq_len: unknown option; did you mean max_seq_length or max_labels_seq_len or max_img_seq_length?",
        "--eval_model_dir: is missing; give the folder of the VinVL checkpoint, which has the vocabulary",
        f"--resume: {NO_RESUME}",
        "--att_mask_type: 'CL' never worked for separate streams; leave it out",
    ]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "training.loss-type",
            "alignment-distilation",
            "training.loss-type: 'distilation' is no loss; did you mean distillation?",
        ),
        ("training.loss-type", "", "training.loss-type: is missing; name losses, joined by dashes, such as"),
        (
            "training.loss-type",
            "attdistillation-matching",
            "training.loss-type: 'attdistillation' is no loss; did you mean distillation?",
        ),
        (
            "training.loss-type",
            "alignment-regularizehidden",
            "training.loss-type: regularizehidden needs a depth aggregation",
        ),
        ("training.loss-weights", [1], "training.loss-weights: 1 weights for 2 losses; give one each, or auto"),
        (
            "training.distillation-mode",
            "list-net",
            "training.distillation-mode: 'list-net' is unknown; did you mean listnet?",
        ),
        ("training.scheduler", "cosine", "training.scheduler: 'cosine' is unknown; use steplr or null"),
        ("training.warmup", "exponential", "training.warmup: 'exponential' is unknown; use linear or null"),
        (
            "training.grad_clip",
            3.0,
            "training.grad_clip: is given with dashes and with underscores, and the values differ",
        ),
        (
            "model.depth-aggregation-matching",
            "transformer",
            "model.depth-aggregation is 'transformer', which never worked",
        ),
        ("model.exclude-stopwords", True, "model.exclude-stopwords is set, which never ran"),
    ],
)
def test_values_that_cannot_be_used(key: str, value: Any, said: str) -> None:
    (line,) = refused(changed(CURRENT, key, value))
    assert line.startswith(said)


def test_equal_values_in_both_spellings_are_one() -> None:
    assert translated(changed(CURRENT, "training.grad_clip", 2.0)) == translated()


def test_unknown_aggregation_of_tags() -> None:
    assert refused(aggregation_type="label") == ["--aggregation_type: 'label' is unknown; use labels, or leave it out"]


def test_a_model_that_holds_no_keys() -> None:
    with pytest.raises(ConfigError, match="file: model is 'teran'; give its keys below it"):
        translate_aladin(CURRENT | {"model": "teran"}, COMMAND, where="file")


def test_neither_iais_nor_recipes_mix_with_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="alad-alignment-triplet is a configuration of ALADIN, which --IAIS does not"):
        load_any("alad-alignment-triplet", flags=COMMAND, iais="singular")
    assert not is_aladin({"streams": [], "training": {}}) and not is_aladin({"training": 3})


def test_the_output_folder_in_both_spellings(tmp_path: Path) -> None:
    path = tmp_path / "my.config-0.1.yaml"
    path.write_text(yaml.safe_dump(CURRENT))
    flags = {k: v for k, v in COMMAND.items() if k != "logger_name"}
    assert load_any(path, flags=flags | {"logger-name": "out"})[1] == "out"
    recipe, output = load_any(path, flags=flags)
    assert (recipe.name, output) == ("my.config-0.1", None)


@pytest.mark.parametrize("corpus", ["coco", "flickr"])
def test_our_own_recipes_are_the_published_ones_in_two_stages(corpus: str) -> None:
    align, distill = (load_recipe(f"aladin-{corpus}-{stage}") for stage in ("align", "distill"))
    for recipe, published in ((align, "alad-alignment-triplet"), (distill, "alad-alignment-and-matching-distill")):
        theirs = parse_recipe(translated(read_config(published)))
        assert recipe.optimizer == theirs.optimizer
        assert (recipe.seed, recipe.epochs, recipe.batch) == (theirs.seed, theirs.epochs, theirs.batch)
        assert recipe.streams == theirs.streams
        assert recipe.data.keys() == {"train", "val", "test"} and recipe.test == "test"
    assert align.model.checkpoint is not None and align.model.checkpoint.layout == "vinvl"
    assert AladinConfig.of(align.model.config) == AladinConfig.of({})  # type: ignore[arg-type]
    assert distill.model.checkpoint is not None
    assert distill.model.checkpoint.path == f"runs/{align.name}/best"
