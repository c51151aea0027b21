"""A CLIP fine-tuned on photos with captions as a user would: wrong captions, a recipe, recall, a benchmark."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from crossmodal.data.clip_tokenizer import ClipTokenizer
from crossmodal.data.negatives.records import read_records
from crossmodal.data.scenes import sample_world

from .commands import command
from .data.negatives.words import masked_model
from .data.picture_files import write_csv

DATA = Path(__file__).parents[2] / "shared" / "data"
PHOTOS, CREPE = DATA / "coco_photos_open", DATA / "sugar_crepe" / "with_photos_open"
MERGES = DATA / "vocab" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
COUNT, STEPS = 32, 10

RECIPE = f"""
name: clip-photos
steps: {STEPS}
batch: 16
log_every: 1
model:
  use: clip
  config: {{embed_dim: 16, width: 32, heads: 2, layers: 1, image_size: 32, patch_size: 8, vision_width: 32,
            vision_heads: 2, vision_layers: 1}}
  tokenizer: MERGES
data:
  train: {{texts: captions.csv, images: photos}}
  test: {{texts: captions.json, images: photos}}
streams:
  - data: {{use: train, draw: matched_negatives, negatives: wrong.jsonl}}
    losses: [{{use: ce_clip, tag: ce_clip_loss}}]
optimizer: {{use: adamw, lr: 1.0e-3, warmup: 2}}
validation: {{data: test, every: {STEPS}}}
"""


def language_model(folder: Path, sentences: list[str]) -> Path:
    """A masked language model of random weights that knows the words of these sentences."""
    words = sorted({word for sentence in sentences for word in re.findall("[a-z]+", sentence.lower())})
    return masked_model(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words], positions=128)


def fine_tune(merges: str) -> None:
    """In a folder that holds photos/ and captions.json: the run is runs/clip."""
    content = json.loads(Path("captions.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    captions = content["annotations"]
    rows = [(str(c["id"]), names[c["image_id"]], c["caption"]) for c in captions]
    write_csv(Path("captions.csv"), [("id", "filepath", "title"), *rows])
    model = language_model(Path("bert"), [c["caption"] for c in captions])
    assert command("data", "negatives", "captions.json", "--fill", model, "--output", "wrong.jsonl") == 0
    records = read_records(Path("wrong.jsonl"))
    assert len(records) == len(captions) and any(all(record.valid) for record in records)
    Path("clip.yaml").write_text(RECIPE.replace("MERGES", merges))
    assert command("train", "--config", "clip.yaml", "--output", "runs/clip") == 0
    rows_of = [json.loads(line) for line in Path("runs/clip/metrics.jsonl").read_text().splitlines()]
    losses = [row["value"] for row in rows_of if row["name"] == "train/loss"]
    assert len(losses) == STEPS and all(map(math.isfinite, losses))


def recall_settings() -> dict[str, Any]:
    """The settings of `crossmodal test` of the run."""
    assert command("test", "--checkpoint", "runs/clip/best", "--output", "recall") == 0
    results = json.loads(Path("recall/results.json").read_text())
    assert 0 <= results["metrics"]["r_mean"] <= 1
    return dict(results["settings"])


def evaluated(suite: str, data: Path, *words: object) -> dict[str, Any]:
    common = ["--suite", suite, "--data", data, "--images", "photos", "--checkpoint", "runs/clip"]
    assert command("evaluate", *common, "--output", f"results/{suite}", *words) == 0
    with Image.open(f"results/{suite}/{suite}.png") as figure:
        assert figure.format == "PNG"
    return dict(json.loads(Path(f"results/{suite}/results.json").read_text()))


def test_pictures_of_the_built_in_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    images, annotations = [], []
    for number, described in enumerate(sample_world(3, {"train": COUNT, "val": 1, "test": 1})["train"]):
        Image.fromarray(described.observe()[0]).save(f"photos/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        for caption in described.captions:
            annotations.append({"id": len(annotations), "image_id": number, "caption": caption.sentence})
    Path("captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    ClipTokenizer([]).save(tmp_path)
    fine_tune("merges.txt")
    settings = recall_settings()
    assert settings["model"] == "clip" and settings["config"]["quick_gelu"] is True
    pairs = {
        str(n): {"filename": record.image, "caption": record.caption, "negative_caption": record.negatives[2]}
        for n, record in enumerate(read_records(Path("wrong.jsonl")))
        if record.valid[2]
    }
    Path("replace_obj.json").write_text(json.dumps(pairs))
    found = evaluated("sugarcrepe", tmp_path)
    assert (found["asked"], found["rows"]["replace_obj"]["count"]) == (len(pairs), len(pairs))
    assert found["settings"]["config"] == settings["config"]


@pytest.mark.skipif(
    not (PHOTOS.is_dir() and CREPE.is_dir() and MERGES.is_file()),
    reason="../shared/data/{coco_photos_open,sugar_crepe,vocab/clip} is not there",
)
def test_coco_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(PHOTOS / "images")
    content = json.loads((PHOTOS / "captions.json").read_text())
    content["images"] = content["images"][:COUNT]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [c for c in content["annotations"] if c["image_id"] in kept]
    Path("captions.json").write_text(json.dumps(content))
    fine_tune(str(MERGES))
    assert recall_settings()["config"]["vocab_size"] == 49408
    assert evaluated("sugarcrepe", CREPE)["asked"] == 294
    found = evaluated("retrieval", Path("captions.csv"))
    assert found["rows"]["txt_r1"]["count"] == COUNT and found["missing"] == []
