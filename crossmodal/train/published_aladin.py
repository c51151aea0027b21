"""Published ALADIN and ALADIN-2.0 configurations (YAML) and flags, translated to a recipe: one place, one table.

The model's own keys are read by `model/aladin_config.py`, which also reads them from published checkpoints.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from crossmodal.errors import ConfigError, nearest
from crossmodal.model.aladin_config import of_published
from crossmodal.model.vinvl import VinvlSizes

from .recipe import read_config

# Published key of `training` -> our key, where the value goes over as it is.
TRAINING = {
    "bs": "batch",
    "lr": "optimizer.lr",
    "gamma": "optimizer.gamma",
    "step-size": "optimizer.step_epochs",
}
# Flag -> our key, the same.
FLAGS = {
    "seed": "seed",
    "num_workers": "workers",
    "num_epochs": "epochs",
    "log_step": "log_every",
    "val_step": "validation.every",
    "eval_model_dir": "model.tokenizer",
}
# Keys and flags that are read below, or in `of_published`.
READ = {
    "model": {
        "embed-size", "freeze-teran", "teran-layers", "tern-layers", "post-layers", "exclude-stopwords",
        "shared-transformer", "depth-aggregation", "depth-aggregation-alignment", "depth-aggregation-matching",
        "dropout",
    },
    "training": {
        "grad-clip", "max-violation", "loss-type", "loss-weights", "alignment-mode", "distillation-mode",
        "activate-distillation-after", "measure", "margin", "scheduler", "warmup", "warmup-period",
    },
    "": {
        "model", "training", "detection_type", "enable_clip_labels", "enable_clip_captions", "max_caption_seq_len",
        "max_labels_seq_len", "backbone",
    },
    "flags": {
        "data_dir", "img_feat_file", "logger_name", "max_seq_length", "max_caption_seq_len", "max_labels_seq_len",
        "max_img_seq_length", "num_captions_per_img_train", "num_captions_per_img_val", "resume", "load-teacher-model",
        "eval_img_keys_file", "att_mask_type", "aggregation_type", "clip_vocab",
    },
}  # fmt: skip
# The flags that a test reads; the others of the tables say how training goes.
TESTED = {
    "data_dir", "img_feat_file", "eval_model_dir", "eval_img_keys_file", "max_seq_length", "max_caption_seq_len",
    "max_labels_seq_len", "max_img_seq_length", "num_captions_per_img_val", "att_mask_type", "aggregation_type",
    "clip_vocab",
}  # fmt: skip
COUNTS = (
    "max_seq_length", "max_caption_seq_len", "max_labels_seq_len", "max_img_seq_length", "num_captions_per_img_train",
    "num_captions_per_img_val",
)  # fmt: skip
# Keys and flags that published files and commands hold and that mean nothing here (spec sections 9 and 11).
WITHOUT_MEANING = {
    "model": {"name", "text-aggregation", "image-aggregation"},
    "training": set[str](),
    "": {"dataset", "text-model", "image-model"},
    "flags": {
        "add_od_labels", "do_lower_case", "od_label_type", "use_img_layernorm", "img_layer_norm_eps",
        "img_feature_type", "reinitialize-scheduler", "load_checkpoint", "model_name_or_path", "output_dir",
        "loss_type", "config_name", "tokenizer_name", "do_train", "do_test", "do_eval", "test_split",
        "eval_caption_index_file", "cross_image_eval", "drop_out", "img_feature_dim", "per_gpu_train_batch_size",
        "per_gpu_eval_batch_size", "output_mode", "num_labels", "gradient_accumulation_steps", "learning_rate",
        "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "scheduler", "max_steps",
        "num_train_epochs", "logging_steps", "save_steps", "evaluate_during_training", "no_cuda", "test_step",
        "config",
    },
}  # fmt: skip

# What all current files say (spec section 11), for keys that one leaves out.
DEFAULTS: dict[str, Any] = {
    "bs": 32, "lr": 1e-5, "gamma": 0.1, "step-size": 15, "grad-clip": 2.0, "max-violation": True, "margin": 0.2,
    "distillation-mode": "listnet", "activate-distillation-after": 0, "scheduler": "steplr", "warmup": None,
    "warmup-period": 1000,
}  # fmt: skip
# Defaults of the published scripts (spec section 9).
FLAG_DEFAULTS: dict[str, Any] = {
    "data_dir": "datasets/coco_ir", "img_feat_file": "datasets/coco_ir/features.tsv", "seed": 88, "num_workers": 4,
    "num_epochs": 20, "log_step": 10, "val_step": 500, "max_seq_length": 70, "max_img_seq_length": 50,
    "num_captions_per_img_train": 5, "num_captions_per_img_val": 5, "att_mask_type": "CLR", "aggregation_type": None,
}  # fmt: skip

NO_RESUME = (
    "the optimizer's state of a published file is not read, so its run is not gone on with; give the file as "
    "--load-teacher-model, which takes its weights"
)

DISTILLATION = {
    "listnet": "listnet",
    "mse": "score_regression",
    "ordinal": "ordinal_distillation",
    "contrastive": "contrastive_distillation",
}
# Losses by their published name, as far as no other key has a say in them.
LOSSES: dict[str, dict[str, Any]] = {
    "alignment": {"use": "triplet", "scores": "alignment_scores", "tag": "alignment_loss"},
    "matching": {"use": "triplet", "scores": "matching_scores", "tag": "matching_loss"},
    "selfaggregation": {"use": "triplet", "scores": "matching_scores", "tag": "self_attention_loss"},
    "distillation": {"teacher": "alignment_scores", "student": "matching_scores", "tag": "distillation_loss"},
    "entropy": {"use": "uniformity", "tag": "entropy-uniform-loss"},
    "regularizehidden": {"use": "hidden_l1", "tag": "regularize_hidden_loss"},
}


def is_aladin(values: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of ALADIN's rather than a recipe."""
    return "streams" not in values and isinstance(values.get("training"), Mapping)


def translate_aladin(
    values: Mapping[str, Any],
    flags: Mapping[str, Any] | None = None,
    *,
    name: str = "published",
    where: str = "the configuration",
) -> dict[str, Any]:
    """A published configuration and the published flags as the mapping of a recipe.

    Keys and flags may be written with dashes or underscores. Raises ConfigError for those that neither the published
    scripts nor this table know, and for what the published code itself cannot run.
    """
    wrong: list[str] = []
    top = _known("", values, wrong)
    if not isinstance(top.get("model", {}), Mapping):
        raise ConfigError(f"{where}: model is {top['model']!r}; give its keys below it, as in configs/alad-*.yaml")
    model = _known("model", top.get("model", {}), wrong)
    training = DEFAULTS | _known("training", top.get("training") or {}, wrong)
    given = _known("flags", flags or {}, wrong)
    f = FLAG_DEFAULTS | given
    losses = _losses(model, training, wrong)
    _check_flags(f, wrong)
    if training["scheduler"] not in ("steplr", None):
        wrong.append(f"training.scheduler: {training['scheduler']!r} is unknown; use steplr or null")
    if training["warmup"] not in ("linear", None):
        wrong.append(f"training.warmup: {training['warmup']!r} is unknown; use linear or null")
    config = _model_config({**top, "model": model, "training": training}, f.get("eval_model_dir"), wrong)
    if wrong:
        raise ConfigError(f"{where} cannot be used:\n  " + "\n  ".join(wrong))
    teacher = f.get("load-teacher-model")
    recipe: dict[str, Any] = {
        "name": name,
        "model": {
            "use": "aladin",
            "config": config,
            "checkpoint": {"path": teacher, "layout": "aladin"}
            if teacher
            else {"path": f["eval_model_dir"], "layout": "vinvl"},
            "processor": _processor(top, f, config),
        },
        "data": _data(f, config.get("detection", "fast")),
        "streams": [{"data": {"use": "train", "draw": "matched"}, "losses": losses}],
        "optimizer": {
            "use": "adam",
            "betas": [0.9, 0.999],
            "weight_decay": 0,
            "clip": training["grad-clip"] or -1,
            "warmup": training["warmup-period"] if training["warmup"] else 0,
            "schedule": "step" if training["scheduler"] else "constant",
        },
        # The matching head is always measured; with an alignment loss the best checkpoint is that of both heads.
        "validation": {"data": "val", "scorers": ["alignment"] * ("alignment" in _names(training)) + ["matching"]},
    }
    for source, table in ((training, TRAINING), (f, FLAGS)):
        for published, own in table.items():
            *path, last = own.split(".")
            at = recipe
            for key in path:
                at = at[key]
            at[last] = source[published]
    return recipe


def _known(section: str, values: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
    """The values under the published spellings of their keys; unknown keys are noted."""
    also = {"training": TRAINING, "flags": FLAGS}.get(section, {})
    spelling = {_dashed(key): key for key in (*READ[section], *WITHOUT_MEANING[section], *also)}
    where = f"{section}." if section in ("model", "training") else ""
    out: dict[str, Any] = {}
    for key, value in values.items():
        shown = f"--{key}" if section == "flags" else f"{where}{key}"
        own = spelling.get(_dashed(str(key)))
        if own is None:
            wrong.append(f"{shown}: unknown {'option' if section == 'flags' else 'key'}; "
                         f"{nearest(str(key), spelling.values())}")  # fmt: skip
        elif own in out and out[own] != value:
            wrong.append(f"{shown}: is given with dashes and with underscores, and the values differ; keep one")
        else:
            out[own] = value
    return out


def _dashed(key: str) -> str:
    return key.replace("_", "-")


def _names(training: Mapping[str, Any]) -> list[str]:
    return str(training.get("loss-type", "")).split("-")


def _losses(model: Mapping[str, Any], training: Mapping[str, Any], wrong: list[str]) -> list[dict[str, Any]]:
    """The losses of `loss-type`, weighed by `loss-weights`: numbers in the same order, or anything else for learned.

    The distillation of several losses waits for the epoch `activate-distillation-after`, which the published code
    ignores where it is spelt as in the published files.
    """
    names = _names(training)
    if not training.get("loss-type"):
        wrong.append("training.loss-type: is missing; name losses, joined by dashes, such as alignment-distillation")
        return []
    wrong += [f"training.loss-type: {n!r} is no loss; {nearest(n, LOSSES)}" for n in names if n not in LOSSES]
    weights = training.get("loss-weights", [1] * len(names))
    if isinstance(weights, list) and len(weights) != len(names):
        wrong.append(f"training.loss-weights: {len(weights)} weights for {len(names)} losses; give one each, or auto")
    mode = training["distillation-mode"]
    if mode not in DISTILLATION:
        wrong.append(f"training.distillation-mode: {mode!r} is unknown; {nearest(str(mode), DISTILLATION)}")
    aggregated = [key for key in model if key.startswith("depth-aggregation") and model[key]]
    if "regularizehidden" in names and not aggregated:
        wrong.append("training.loss-type: regularizehidden needs a depth aggregation; set one in model")
    if wrong:
        return []
    losses = []
    for i, name in enumerate(names):
        loss = dict(LOSSES[name])
        if loss.get("use") == "triplet":
            loss |= {"margin": training["margin"], "hardest": training["max-violation"]}
        loss["weight"] = {"scale": weights[i]} if isinstance(weights, list) else {"learned": True}
        if name == "distillation":
            loss["use"] = DISTILLATION[mode]
            loss["weight"]["from_epoch"] = training["activate-distillation-after"] if len(names) > 1 else 0
        losses.append(loss)
    return losses


def _check_flags(f: Mapping[str, Any], wrong: list[str]) -> None:
    if not f.get("eval_model_dir"):
        wrong.append("--eval_model_dir: is missing; give the folder of the VinVL checkpoint, which has the vocabulary")
    if f.get("resume"):
        wrong.append(f"--resume: {NO_RESUME}")
    _check_reading(f, wrong)


def _check_reading(f: Mapping[str, Any], wrong: list[str]) -> None:
    wrong += [f"--{key}: {f[key]!r} is no whole number; give one" for key in COUNTS if type(f.get(key, 0)) is not int]
    if f["att_mask_type"] != "CLR":
        wrong.append(f"--att_mask_type: {f['att_mask_type']!r} never worked for separate streams; leave it out")
    if f["aggregation_type"] not in ("labels", "none", None):
        wrong.append(f"--aggregation_type: {f['aggregation_type']!r} is unknown; use labels, or leave it out")


def _model_config(published: Mapping[str, Any], folder: Any, wrong: list[str]) -> dict[str, Any]:
    """AladinConfig's keys; the backbone's sizes from the config.json of its checkpoint, where that is at hand."""
    file = Path(str(folder)) / "config.json"
    sizes = read_config(file) if folder and file.is_file() else {}
    try:
        config = {k: sizes[k] for k in (size.name for size in fields(VinvlSizes)) if k in sizes}
        config |= of_published(published)
    except ConfigError as error:
        wrong.append(str(error))
        return {}
    width, hidden = published["model"].get("embed-size"), config.get("hidden_size", VinvlSizes.hidden_size)
    if width not in (None, hidden):
        wrong.append(
            f"model.embed-size: is {width}, and the backbone is {hidden} wide; nothing projects, so make it equal"
        )
    return config


def _processor(top: Mapping[str, Any], f: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Lengths: the flag of a stream, else the key of a published checkpoint's configuration, else the common flag."""
    options = {
        ours: f.get(theirs, top.get(theirs, f.get("max_seq_length")))
        for ours, theirs in (("max_text", "max_caption_seq_len"), ("max_tags", "max_labels_seq_len"))
    }
    options |= {"max_regions": f.get("max_img_seq_length"), "clip_vocab": f.get("clip_vocab")}
    options |= {key: config.get(key) for key in ("clip_tags", "clip_captions")}
    if "aggregation_type" in f:
        options["aggregate_tags"] = f["aggregation_type"] == "labels"
    return {name: value for name, value in options.items() if value is not None}


def _data(f: Mapping[str, Any], detection: str) -> dict[str, dict[str, Any]]:
    """Validation is on the first images of `minival`, in file order; the key file is for the test split alone."""
    folder = Path(str(f["data_dir"]))
    files = {"train": "train", "val": "minival", "test": "test"}
    data: dict[str, dict[str, Any]] = {
        split: {
            "texts": str(folder / f"{file}_captions.pt"),
            "images": f["img_feat_file"],
            "detections": detection,
            "captions_per_image": f[f"num_captions_per_img_{'train' if split == 'train' else 'val'}"],
        }
        for split, file in files.items()
    }
    if f.get("eval_img_keys_file"):
        data["test"]["image_keys"] = str(folder / f["eval_img_keys_file"])
    return data


@dataclass(frozen=True)
class PublishedTest:
    """What the flags of a published test command say.

    data: the corpus of each split, where flags name the data. keys, captions: the key file and the captions an image
    that are asked for. processor: options. inert: the flags that are taken and have no effect.
    """

    tokenizer: str | None
    processor: dict[str, Any]
    data: dict[str, dict[str, Any]]
    keys: str | None
    captions: int | None
    inert: list[str]


def translate_test(
    flags: Mapping[str, Any], config: Mapping[str, Any], published: Mapping[str, Any] | None
) -> PublishedTest:
    """The published flags of a test (spec section 9).

    config: of the checkpoint, as keys of AladinConfig. published: what a published checkpoint holds as its `config`;
    its lengths, then the defaults of the published scripts, stand where no flag does. None: a checkpoint of ours,
    which has them in its processor. Raises ConfigError for flags that neither of the published repositories knows.
    """
    wrong: list[str] = []
    given = _known("flags", flags, wrong)
    f = FLAG_DEFAULTS | given
    _check_reading(f, wrong)
    if wrong:
        raise ConfigError("the flags cannot be used:\n  " + "\n  ".join(wrong))
    named = given.keys() & {"data_dir", "img_feat_file"}
    data = _data(f, config.get("detection", "fast")) if named else {}
    return PublishedTest(
        tokenizer=given.get("eval_model_dir") or None,
        processor=_processor({}, given, {}) if published is None else _processor(published, f, config),
        data=data,
        keys=given.get("eval_img_keys_file") or None,
        captions=given.get("num_captions_per_img_val"),
        inert=[f"--{name}" for name in flags if not _means(name, TESTED)],
    )


def inert_flags(flags: Mapping[str, Any]) -> list[str]:
    """The flags among these, as they were written, that are taken in training and have no effect."""
    return [f"--{name}" for name in flags if _means(name, WITHOUT_MEANING["flags"])]


def _means(name: str, flags: Collection[str]) -> bool:
    return _dashed(name) in map(_dashed, flags)
