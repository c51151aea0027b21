"""A corpus of random regions and captions that is written in a moment, and recipes that train on it in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from crossmodal.data.captions import Caption
from crossmodal.data.region_writer import write_region_db
from crossmodal.data.text_writer import write_text_db
from crossmodal.data.tokenizers import train_tokenizer
from crossmodal.train.recipe import Recipe, parse_recipe

WORDS = "red blue green ball cube ring left right above below small large the of and".split()
WIDTH = 8
PER_IMAGE = 5


def write_corpus(folder: Path, *, images: int = 5, seed: int = 0) -> dict[str, Any]:
    """`images` images of 3 to 9 regions with five captions each, of 2 to 8 words: the `data` of a recipe."""
    generator = np.random.default_rng(seed)

    def records() -> Iterator[tuple[str, dict[str, Any]]]:
        for v in range(images):
            rows = int(generator.integers(3, 10))
            features = generator.normal(size=(rows, WIDTH)).astype(np.float16)
            boxes = generator.random((rows, 6)).astype(np.float16)
            yield f"{v}.npz", {"features": features, "norm_bb": boxes, "conf": np.ones((rows, 1), np.float16)}

    captions = [
        Caption(f"{v}_{c}", " ".join(generator.choice(WORDS, size=generator.integers(2, 9))), f"{v}.npz")
        for v in range(images)
        for c in range(PER_IMAGE)
    ]
    write_region_db(records(), folder / "regions", min_bb=2)
    texts = write_text_db(captions, folder / "texts", train_tokenizer(WORDS, 100))
    return {"texts": str(texts), "images": str(folder / "regions"), "min_bb": 2}


def pools(anchor: str, *losses: dict[str, Any], pool: int = 4, keep: int | None = 2, **stream: Any) -> dict[str, Any]:
    """A stream of pools that trains the `keep` hardest, or all of them, with these losses or margin ranking."""
    data = {"use": "train", "draw": "pools", "anchor": anchor, "pool": pool}
    miner = {} if keep is None else {"miner": {"use": "hardest", "keep": keep}}
    return {"data": data, "losses": list(losses or [{"use": "margin_ranking"}]), **miner, **stream}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A UNITER of two narrow layers; weights spread wide enough that attention and ranking are not uniform."""
    return {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
        "img_label_dim": 5,
        **changes,
    }


def recipe(data: dict[str, Any], *streams: dict[str, Any], **changes: Any) -> Recipe:
    """A recipe on the corpus `data` for training and validation: by default hard pools both ways, dropout 0."""
    values: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "steps": 6,
        "batch": 6,
        "log_every": 1,
        "model": {"config": tiny_config(), "dropout": 0.0},
        "data": {"train": data, "val": data},
        "streams": list(streams or [pools("text"), pools("image")]),
        "optimizer": {"lr": 0.01, "warmup": 2, "weight_decay": 0.1, "clip": 1.0},
        **changes,
    }
    return parse_recipe(values)
