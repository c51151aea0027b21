"""CLIP's processor: captions, pictures, and its files in a checkpoint."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from crossmodal.data.clip_processor import ClipProcessor
from crossmodal.data.clip_tokenizer import ClipTokenizer, load_clip_tokenizer
from crossmodal.data.items import TextItem
from crossmodal.data.pictures import centre_crop, normalised, random_crop
from crossmodal.data.processors import PROCESSORS, load_processor
from crossmodal.errors import CheckpointError, ConfigError, DataError
from crossmodal.model.clip import Clip

TOKENIZER = ClipTokenizer([("c", "a"), ("ca", "t</w>")])
START, END = TOKENIZER.start, TOKENIZER.end


def processor(**changes: Any) -> ClipProcessor:
    return ClipProcessor(**{"image_size": 16, "context": 8, "tokenizer": TOKENIZER, **changes})


def picture(seed: int = 0, size: tuple[int, int] = (24, 20)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_captions() -> None:
    cat = TOKENIZER.encode("cat")
    assert len(cat) == 1
    given = processor().texts(["cat", TextItem("7", sentence="CAT cat"), ""])
    assert given.input_ids.tolist() == [[START, *cat, END, 0], [START, *cat, *cat, END], [START, END, 0, 0]]
    assert given.lengths.tolist() == [3, 4, 2]


def test_long_captions_are_cut_or_refused() -> None:
    given = processor().texts(["cat " * 20, "cat"])
    assert given.input_ids.shape == (2, 8) and given.lengths.tolist() == [8, 3]
    assert given.input_ids[0, -1] == END
    with pytest.raises(DataError, match="has 22 ids, and 8 fit; shorten it"):
        processor(truncate=False)("text", ["cat " * 20])


def test_captions_that_cannot_be_read() -> None:
    with pytest.raises(DataError, match="caption '7' holds ids of another tokenizer and no sentence"):
        processor()("text", [TextItem("7", (5, 6))])
    with pytest.raises(DataError, match=r"holds no tokenizer; name model\.tokenizer"):
        processor(tokenizer=None)("text", ["cat"])


def test_pictures(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    given = processor().pixels([picture(0), tmp_path / "a.png", SimpleNamespace(picture=picture(2))])
    expected = torch.stack([normalised(centre_crop(picture(i), (16, 16))) for i in range(3)])
    assert given.values.shape == (3, 3, 16, 16) and torch.equal(given.values, expected)
    other = processor(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], image_size=[16, 8]).pixels([picture()])
    assert other.values.shape == (1, 3, 16, 8) and other.values.abs().max() <= 1
    with pytest.raises(DataError, match="cannot be read as a picture"):
        processor()("image", [picture(), tmp_path / "nowhere.png"])


def test_crops_of_training_depend_on_their_generator_alone() -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (3, 4)]

    given = processor(crop_scale=(0.2, 0.5))
    found = given.augmented([picture(0), picture(1)], generators()).values
    expected = [normalised(random_crop(picture(i), (16, 16), g, (0.2, 0.5))) for i, g in enumerate(generators())]
    assert torch.equal(found, torch.stack(expected))
    alone = given.augmented([picture(1)], generators()[1:]).values
    assert torch.equal(alone[0], found[1])


def test_saved_and_loaded(tmp_path: Path) -> None:
    saved = processor(image_size=(16, 32), truncate=False, crop_ratio=(0.5, 2))
    saved.save(tmp_path)
    assert json.loads((tmp_path / "processor.json").read_text())["use"] == "clip"
    for loaded in (load_processor(tmp_path), pickle.loads(pickle.dumps(saved))):
        assert isinstance(loaded, ClipProcessor)
        assert {**vars(loaded), "tokenizer": None} == {**vars(saved), "tokenizer": None}
        assert torch.equal(loaded.texts(["a cat"]).input_ids, saved.texts(["a cat"]).input_ids)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"the CLIP tokenizer of .* cannot be read"):
        load_processor(tmp_path)


@pytest.mark.parametrize("values", [{"context": "many"}, {"std": [1, 1]}, {"colour": 3}, {"image_size": None}])
def test_a_damaged_file(values: dict[str, Any], tmp_path: Path) -> None:
    processor().save(tmp_path)
    file = tmp_path / "processor.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    with pytest.raises(CheckpointError, match=r"processor\.json cannot be read \("):
        load_processor(tmp_path)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"image_size": 0}, "image_size is \\[0, 0\\]"),
        ({"context": 1}, "context 1"),
        ({"std": (1, 1, 0)}, "std \\[1, 1, 0\\]"),
        ({"mean": (0.5,)}, "mean is \\[0.5\\]; it must have 3 numbers"),
        ({"crop_scale": (1.0, 0.5)}, "crop_scale is \\[1.0, 0.5\\]; give two numbers above 0, in this order"),
        ({"crop_ratio": (0, 1)}, "crop_ratio is \\[0, 1\\]"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        processor(**options)


def corpus(folder: Path) -> Any:
    return SimpleNamespace(parts=[SimpleNamespace(texts=SimpleNamespace(path=folder))])


def test_it_is_made_for_the_model(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "texts")
    made = PROCESSORS["clip"].of_corpus(corpus(tmp_path / "texts"), {"image_size": 32, "context": 20})
    assert isinstance(made, ClipProcessor)
    assert made.sizes() == {"vocab_size": END + 1, "context": 20, "image_size": (32, 32)}
    named = ClipProcessor.of_corpus(corpus(tmp_path), {}, str(tmp_path / "texts"), truncate=False)
    assert (named.image_size, named.context, named.truncate) == ((224, 224), 77, False)
    assert load_clip_tokenizer(tmp_path / "texts").vocab_size == named.sizes()["vocab_size"]
    with pytest.raises(ConfigError, match="processor has no option 'trunc'"):
        ClipProcessor.of_corpus(corpus(tmp_path), {}, trunc=False)
    with pytest.raises(ConfigError, match="there are no merges of CLIP at"):
        ClipProcessor.of_corpus(corpus(tmp_path), {}, str(tmp_path / "nowhere.txt"))


def test_a_model_scores_raw_items() -> None:
    torch.manual_seed(0)
    made = processor()
    sizes = {"width": 16, "layers": 1, "vision_width": 16, "vision_layers": 1, "patch_size": 8, "embed_dim": 4}
    model = Clip({**made.sizes(), **sizes}).eval()
    model.processor = made
    score = model.score("a cat", picture())
    with torch.no_grad():
        a = model.encode("text", made("text", ["a cat"])).vectors["embeds"]
        b = model.encode("image", made("image", [picture()])).vectors["embeds"]
    assert score == pytest.approx(float(a[0] @ b[0])) and -1 <= score <= 1
