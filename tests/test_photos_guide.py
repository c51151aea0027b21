"""docs/quickstart-photos.md, command by command, on real photos and on pictures of the built-in world."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from crossmodal.cli import run
from crossmodal.data.scenes import sample_world

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data" / "coco_photos_open"
SHORT = ["--set", "steps=4", "--set", "validation.every=4", "--set", "batch=2", "--set", "workers=0"]


def guide() -> list[list[str]]:
    """The commands of the guide, in order."""
    text = (ROOT / "docs" / "quickstart-photos.md").read_text()
    blocks = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


def follow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the guide in a folder that holds photos/ and captions.json, training for a few steps only."""
    monkeypatch.chdir(folder)
    commands = guide()
    assert [words[:3][-1] if words[1] == "data" else words[1] for words in commands] == [
        "photos", "texts", "check", "train", "test",
    ]  # fmt: skip
    for words in commands:
        assert words[0] == "crossmodal"
        assert run(words[1:] + (SHORT if words[1] == "train" else [])) == 0, " ".join(words)
    results = json.loads((folder / "runs/photos/best/test_test/results.json").read_text())
    assert 0 <= results["metrics"]["r_mean"] <= 1
    page = (folder / "runs/photos/best/test_test/report.html").read_text()
    assert page.count("data:image/") > 10


@pytest.mark.slow
def test_guide_on_pictures_of_the_built_in_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    images, annotations = [], []
    for number, described in enumerate(sample_world(3, {"train": 30, "val": 1, "test": 1})["train"]):
        picture, _ = described.observe()
        name = f"{described.scene.name}.jpg" if number % 2 else f"{described.scene.name}.png"
        Image.fromarray(picture).save(tmp_path / "photos" / name)
        images.append({"id": number, "file_name": name})
        for caption in described.captions:
            annotations.append({"id": len(annotations), "image_id": number, "caption": caption.sentence})
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    follow(tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/coco_photos_open isn't there")
def test_guide_on_coco_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").symlink_to(REAL / "images")
    (tmp_path / "captions.json").write_bytes((REAL / "captions.json").read_bytes())
    follow(tmp_path, monkeypatch)
