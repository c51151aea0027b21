"""Published UNITER and IAIS configurations (JSON) and flags, translated to a recipe: one place, one table.

Those of ALADIN have a table of their own, `published_aladin`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from crossmodal.errors import ConfigError, nearest

from .published_aladin import is_aladin, translate_aladin
from .recipe import Recipe, config_name, parse_recipe, read_config

# Published key -> our key, where the value goes over as it is.
DIRECT = {
    "num_train_steps": "steps",
    "seed": "seed",
    "n_workers": "workers",
    "dropout": "model.dropout",
    "model_config": "model.config",
    "learning_rate": "optimizer.lr",
    "betas": "optimizer.betas",
    "weight_decay": "optimizer.weight_decay",
    "grad_norm": "optimizer.clip",
    "warmup_steps": "optimizer.warmup",
    "valid_steps": "validation.every",
}
# Keys that are read below.
READ = {
    "checkpoint", "output_dir", "train_txt_dbs", "train_img_dbs", "val_txt_db", "val_img_db", "test_txt_db",
    "test_img_db", "max_txt_len", "conf_th", "max_bb", "min_bb", "num_bb", "compressed_db", "train_batch_size",
    "negative_size", "hard_neg_size", "margin", "optim", "full_val", "fp16", "inf_minibatch_size",
    "gradient_accumulation_steps", "IAIS",
}  # fmt: skip
# Keys that published files hold and that mean nothing here.
WITHOUT_MEANING = {"pin_mem", "rank", "local_rank", "n_gpu", "config", "tsa", "IAIS_TSA", "mem", "vocab_size"}

# Defaults of the published scripts (spec section 10).
DEFAULTS: dict[str, Any] = {
    "max_txt_len": 60, "conf_th": 0.2, "max_bb": 100, "min_bb": 10, "num_bb": 36, "compressed_db": False,
    "train_batch_size": 32, "negative_size": 511, "hard_neg_size": 31, "inf_minibatch_size": 512, "margin": 0.2,
    "learning_rate": 3e-5, "valid_steps": 1000, "num_train_steps": 100000, "optim": "adam", "betas": [0.9, 0.98],
    "dropout": 0.1, "weight_decay": 0.01, "grad_norm": 0.25, "warmup_steps": 4000, "fp16": False, "full_val": False,
    "n_workers": 4, "seed": 42, "gradient_accumulation_steps": 1,
}  # fmt: skip

BOXES = ("conf_th", "max_bb", "min_bb", "num_bb")
# Values that are computed with here; the recipe checks the others.
COUNTS = ("train_batch_size", "negative_size", "hard_neg_size", "inf_minibatch_size", "gradient_accumulation_steps")


def is_published(values: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of UNITER's or IAIS's rather than a recipe."""
    return "streams" not in values and bool({"train_txt_dbs", "train_batch_size", "num_train_steps"} & values.keys())


def load_any(
    source: str | Path,
    *,
    flags: Mapping[str, Any] | None = None,
    iais: str | None = None,
    overrides: Iterable[str] = (),
) -> tuple[Recipe, str | None]:
    """A recipe from a recipe file, a published configuration or a shipped name, and the published output folder.

    flags: further command-line options, which only a published configuration takes; iais: `--IAIS`, UNITER's.
    """
    values, flags = read_config(source), dict(flags or {})
    if is_aladin(values):
        if iais is not None:
            raise ConfigError(f"{source} is a configuration of ALADIN, which --IAIS does not go with; leave it out")
        translated = translate_aladin(values, flags, name=config_name(source), where=str(source))
        return parse_recipe(translated, overrides, where=str(source)), flags.get(
            "logger_name", flags.get("logger-name")
        )
    if not is_published(values):
        if flags:
            raise ConfigError(f"unknown option --{next(iter(flags))}; a recipe is changed with --set a.b=value")
        if iais is not None:
            add_iais(values, iais)
        return parse_recipe(values, overrides, where=str(source)), None
    given = {**values, **flags, **({} if iais is None else {"IAIS": iais})}
    recipe = parse_recipe(translate(given, name=Path(source).stem, where=str(source)), overrides, where=str(source))
    return recipe, given.get("output_dir")


def translate(
    values: Mapping[str, Any], *, name: str = "published", where: str = "the configuration"
) -> dict[str, Any]:
    """A published configuration as the mapping of a recipe.

    Raises ConfigError for keys that neither the published scripts nor this table know.
    """
    known = {*DIRECT, *READ, *WITHOUT_MEANING}
    wrong = [f"{key}: unknown key; {nearest(key, known)}" for key in values if key not in known]
    needed = ["train_txt_dbs", "train_img_dbs"]
    needed += [f"{split}_img_db" for split in ("val", "test") if values.get(f"{split}_txt_db")]
    wrong += [f"{key}: is missing; add it" for key in needed if not values.get(key)]
    v = {**DEFAULTS, **values}
    for key, kind in {**dict.fromkeys(COUNTS, int), "margin": float}.items():
        try:
            v[key] = kind(v[key])
        except (TypeError, ValueError):
            wrong.append(f"{key}: input should be a number, found {v[key]!r}")
    if wrong:
        raise ConfigError(f"{where} cannot be used:\n  " + "\n  ".join(wrong))
    if v.get("model_config"):
        v["model_config"] = model_config(v["model_config"])
    hard = "hard_neg_size" in values or "negative_size" not in values or v["negative_size"] > 1
    recipe: dict[str, Any] = {"name": name, "model": {}, "optimizer": {}, "validation": {}}
    for published, own in DIRECT.items():
        if published in v:
            *path, last = own.split(".")
            at = recipe
            for key in path:
                at = at[key]
            at[last] = v[published]
    if v.get("checkpoint"):
        recipe["model"]["checkpoint"] = {"path": v["checkpoint"]}
    optimizer = "published_adamw" if v["optim"] == "adamw" else v["optim"]
    recipe["optimizer"]["use"] = optimizer
    recipe["precision"] = "fp16" if v["fp16"] else "fp32"
    recipe["data"] = {"train": _data(v, v["train_txt_dbs"], v["train_img_dbs"], v["max_txt_len"])}
    for split in ("val", "test"):
        if v.get(f"{split}_txt_db"):
            recipe["data"][split] = _data(v, v[f"{split}_txt_db"], v[f"{split}_img_db"], -1)
    if "val" not in recipe["data"]:
        del recipe["validation"]
    elif not v["full_val"]:
        recipe["validation"]["gallery"] = v["inf_minibatch_size"]
    if "test" in recipe["data"]:
        recipe["test"] = "test"
    size = v["train_batch_size"]
    if hard:
        recipe |= {"batch": size, "accumulate": size, "streams": [_pools(v, "image"), _pools(v, "text")]}
    else:
        accumulate = v["gradient_accumulation_steps"]
        recipe |= {"batch": size * accumulate, "accumulate": accumulate, "streams": [_triples(v)]}
    if v.get("IAIS"):
        add_iais(recipe, str(v["IAIS"]))
    return recipe


def _data(v: Mapping[str, Any], texts: Any, images: Any, max_text: int) -> dict[str, Any]:
    boxes = {key: v[key] for key in BOXES}
    return {"texts": texts, "images": images, "max_text": max_text, "compressed": bool(v["compressed_db"]), **boxes}


def _pools(v: Mapping[str, Any], anchor: str) -> dict[str, Any]:
    return {
        "data": {"use": "train", "draw": "pools", "anchor": anchor, "pool": v["negative_size"] + 1},
        "miner": {"use": "hardest", "keep": v["hard_neg_size"]},
        "losses": [{"use": "margin_ranking", "margin": v["margin"], "tag": "rank_loss"}],
    }


def _triples(v: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "data": {"use": "train", "draw": "triples", "negatives": v["negative_size"]},
        "losses": [{"use": "margin_ranking", "margin": v["margin"], "tag": "rank_loss"}],
    }


def model_config(path: Any) -> Any:
    """Published files say /src/config/uniter-base.json; the shipped configuration of that name stands for it."""
    file = Path(str(path))
    shipped = resources.files("crossmodal.configs") / f"{file.stem}.json"
    return file.stem if shipped.is_file() and not file.is_file() else path


def add_iais(recipe: dict[str, Any], alignment: str) -> None:
    """`--IAIS`: the regulariser on every stream of hard-negative pools, in place of one that is there.

    As published (spec section 5) the visual side on image-anchored and the linguistic on text-anchored pools,
    annealed by the exp schedule, and not divided by the batch: its scale is the recipe's own batch, as a
    number that no later change of the batch or of the ranks moves. Raises ConfigError where nothing fits.
    """
    if alignment not in ("singular", "distributed"):
        raise ConfigError(f"--IAIS {alignment!r} is unknown; use singular or distributed")
    streams = recipe.get("streams")
    pools = [s for s in streams if _anchor(s)] if isinstance(streams, list) else []
    if not pools:
        raise ConfigError("--IAIS needs streams of hard-negative pools (draw: pools); this recipe has none")
    for stream in pools:
        side = "visual" if _anchor(stream) == "image" else "linguistic"
        weight = {"schedule": "exp", "scale": recipe.get("batch", 8)}
        kept = [loss for loss in stream["losses"] if not (isinstance(loss, dict) and loss.get("use") == "iais")]
        loss = {"use": "iais", "alignment": alignment, "side": side, "weight": weight, "tag": "self_attn_loss"}
        stream["losses"] = [*kept, loss]


def _anchor(stream: Any) -> str | None:
    """What the pools of a stream, not yet validated, are anchored at; None for streams of another kind."""
    if not isinstance(stream, dict) or not isinstance(stream.get("losses"), list):
        return None
    data = stream.get("data")
    if not isinstance(data, dict):
        return "text" if isinstance(data, str) else None
    return str(data.get("anchor", "text")) if data.get("draw", "pools") == "pools" else None
