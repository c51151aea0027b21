"""What the tests of suites share: pictures, files in the published layouts, a judge that is told the scores, models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crossmodal.data.aladin_processor import AladinProcessor
from crossmodal.data.clip_processor import ClipProcessor
from crossmodal.data.clip_tokenizer import ClipTokenizer
from crossmodal.data.processors import UniterProcessor
from crossmodal.data.tokenizers import train_tokenizer
from crossmodal.evaluate.suites.items import Picture
from crossmodal.model.aladin import Aladin
from crossmodal.model.base import Model
from crossmodal.model.clip import Clip
from crossmodal.model.uniter import Uniter

SHARED = Path(__file__).parents[4] / "shared" / "data"
SENTENCES = ["a red dog near a blue car", "a blue dog near a red car", "a black cat on a chair", "two trees"]
WIDTH = 12
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def photos(folder: Path, *names: str, size: tuple[int, int] = (40, 30)) -> Path:
    """Random pictures of these names below a folder."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path, format="PNG")
    return folder


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@dataclass
class Told:
    """A judge that is told how well a caption and a picture match, and counts what it is asked."""

    score: Callable[[str, Picture], float]
    asked: list[int] = field(default_factory=list)

    def pairs(self, captions: Sequence[str], pictures: Sequence[Picture], pairs: Tensor) -> Tensor:
        assert len(set(captions)) == len(captions) and len(set(pictures)) == len(pictures)
        assert len(set(map(tuple, pairs.tolist()))) == len(pairs)
        self.asked.append(len(pairs))
        return torch.tensor([self.score(captions[c], pictures[p]) for c, p in pairs.tolist()])

    def matrix(self, captions: Sequence[str], pictures: Sequence[Picture]) -> Tensor:
        return torch.tensor([[self.score(caption, picture) for picture in pictures] for caption in captions])

    def classify(self, prompts: Sequence[Sequence[str]], pictures: Sequence[Picture]) -> Tensor:
        return torch.tensor([[self.score(of_class[0], picture) for of_class in prompts] for picture in pictures])


def uniter(**options: Any) -> Model:
    torch.manual_seed(0)
    words = train_tokenizer(SENTENCES, 60)
    model = Uniter({**TINY, "vocab_size": words.vocab_size, "img_dim": WIDTH, "max_position_embeddings": 40})
    chosen = {"extractor": {"use": "grid", "feature_dim": WIDTH, "grids": [1, 2], "crops": 1}, **options}
    model.processor = UniterProcessor(
        words.cls, words.sep, words.mask, words.v_range, WIDTH, tokenizer=words, **chosen
    )  # fmt: skip
    return model.eval()


def aladin() -> Model:
    torch.manual_seed(0)
    words = train_tokenizer(SENTENCES, 60)
    width = WIDTH + 6
    model = Aladin({**TINY, "vocab_size": words.vocab_size, "img_feature_dim": width, "max_position_embeddings": 60})
    extractor = {"use": "grid", "feature_dim": WIDTH, "grids": [1, 2], "crops": 1}
    model.processor = AladinProcessor(img_feature_dim=width, extractor=extractor, tokenizer=words)
    return model.eval()


def clip() -> Model:
    torch.manual_seed(0)
    words = ClipTokenizer([])
    model = Clip({
        "embed_dim": 8, "vocab_size": words.vocab_size, "context": 77, "width": 16, "heads": 2, "layers": 1,
        "image_size": 16, "patch_size": 8, "vision_width": 16, "vision_heads": 2, "vision_layers": 1,
    })  # fmt: skip
    model.processor = ClipProcessor(image_size=(16, 16), tokenizer=words)
    return model.eval()


MODELS: dict[str, Callable[[], Model]] = {"uniter": uniter, "aladin": aladin, "clip": clip}
