"""A recipe that trains in a second on the corpus of the `tiny_world` fixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def tiny_recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """The mapping of a recipe on the corpus in `folder`; `changes` replace keys, mappings key by key.

    ``tiny_recipe(tiny_world, steps=2, model={"dropout": 0.0})``
    """
    recipe: dict[str, Any] = {
        "name": "tiny",
        "seed": 1,
        "steps": 4,
        "batch": 4,
        "accumulate": 2,
        "model": {
            "config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "max_position_embeddings": 32,
            },
            "dropout": 0.1,
        },
        "data": {
            split: {"texts": str(folder / "texts" / f"{split}.db"), "images": str(folder / "regions" / split)}
            for split in ("train", "val", "test")
        },
        "streams": [_pools("image"), _pools("text")],
        "optimizer": {"lr": 1e-3, "warmup": 1},
        "validation": {"every": 2},
        "log_every": 1,
    }
    return _changed(recipe, changes)


def _changed(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        merged = isinstance(value, dict) and isinstance(recipe.get(key), dict)
        recipe[key] = {**recipe[key], **value} if merged else value
    return recipe


def aladin_recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """ALADIN with both of its heads on the same corpus, the second distilled from the first."""
    model = tiny_recipe(folder)["model"] | {"use": "aladin"}
    losses = [
        {"use": "triplet", "scores": "alignment_scores", "tag": "alignment_loss"},
        {"use": "listnet", "teacher": "alignment_scores", "student": "matching_scores", "tag": "distillation_loss"},
    ]
    values = {
        "model": model | {"config": model["config"] | {"head_dropout": 0.0}},
        "accumulate": 1,
        "streams": [{"data": {"use": "train", "draw": "matched"}, "losses": losses}],
        "validation": {"every": 2, "scorers": ["alignment", "matching"]},
    }
    return _changed(tiny_recipe(folder, **values), changes)


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """The recipe as a YAML file."""
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def _pools(anchor: str) -> dict[str, Any]:
    return {
        "data": {"use": "train", "draw": "pools", "anchor": anchor, "pool": 6},
        "miner": {"use": "hardest", "keep": 3},
        "losses": [{"use": "margin_ranking", "margin": 0.2, "tag": "rank_loss"}],
    }
