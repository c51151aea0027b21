"""CLIP's byte pairs, and pictures prepared for evaluation and training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossmodal.data.clip_processor import ClipProcessor
from crossmodal.data.clip_tokenizer import CONTEXT, load_clip_tokenizer
from crossmodal.data.pictures import random_box

from .harness import Case, kind

CLIP_VOCAB = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vocab" / "clip"


@kind("ce_clip", "text_tokenizer")
def byte_pairs(case: Case) -> None:
    if not CLIP_VOCAB.is_dir():
        pytest.skip(f"{CLIP_VOCAB} isn't there")
    tokenizer, sentences = load_clip_tokenizer(CLIP_VOCAB), case.config["texts"]
    recorded = case.json["scalar_outputs"]["raw_ids"]
    for number, (sentence, ids) in enumerate(zip(sentences, recorded, strict=True)):
        case.equal(f"raw_ids/{number}", tokenizer.encode(sentence), ids)
    for name in (name for name in case.arrays if name == "ids" or name.startswith("ids_ctx")):
        context = int(name.removeprefix("ids_ctx")) if name != "ids" else CONTEXT
        given = ClipProcessor(context=context, tokenizer=tokenizer).texts(sentences)
        padded = torch.zeros(len(sentences), context, dtype=torch.int64)
        padded[:, : given.input_ids.shape[1]] = given.input_ids
        case.array(name, padded)
        if name == "ids":
            case.array("eot_position", given.input_ids.argmax(dim=1))


@kind("ce_clip", "data_preprocess")
def evaluated_pictures(case: Case) -> None:
    config = case.config
    processor = ClipProcessor(config["image_size"], mean=config["mean"], std=config["std"])
    for number, described in enumerate(config["images"]):
        picture = Image.fromarray(case.arrays[f"in{number}"])
        assert picture.mode == described["mode"]
        case.array(f"out{number}", processor.pixels([picture]).values[0])


@kind("ce_clip", "data_train_crop")
def training_pictures(case: Case) -> None:
    config, picture = case.config, Image.fromarray(case.arrays["in"])
    ranges = {"crop_scale": config["scale"], "crop_ratio": config["ratio"]}
    generator = torch.Generator().manual_seed(config["torch_seed"])
    recorded = case.json["scalar_outputs"]["crop_params_i_j_h_w"]
    scale, ratio = tuple(config["scale"]), tuple(config["ratio"])
    boxes = [random_box(picture.height, picture.width, generator, scale, ratio) for _ in recorded]
    case.equal("crop_params_i_j_h_w", np.array(boxes), recorded)
    generator.manual_seed(config["torch_seed"])
    processor = ClipProcessor(config["image_size"], **ranges)
    count = len(case.arrays["out"])
    case.array("out", processor.augmented([picture] * count, [generator] * count).values)
