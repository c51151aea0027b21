"""`crossmodal evaluate`: table, results, figure, and the mistakes that people make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crossmodal.data.negatives.table import COLUMNS
from crossmodal.evaluate.suites.items import Answers
from crossmodal.evaluate.suites.metrics import Share
from crossmodal.evaluate.suites.report import Outcome, describe
from crossmodal.files import write_folder
from crossmodal.model.checkpoints import save
from tests.commands import command, refused

from .worlds import MODELS, clip, photos, write_json


@pytest.fixture
def crepe(tmp_path: Path) -> Path:
    """SugarCrepe's layout: two files, images beside them."""
    photos(tmp_path / "crepe" / "images", "000000000001.jpg", "000000000002.jpg")
    for stem, captions in (("swap_obj", ("a red dog", "a dog red")), ("replace_obj", ("two trees", "two trees"))):
        rows = {str(i): {"filename": f"00000000000{i}.jpg", "caption": captions[0], "negative_caption": captions[1]}
                for i in (1, 2)}  # fmt: skip
        write_json(tmp_path / "crepe" / f"{stem}.json", rows)
    return tmp_path / "crepe"


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_checkpoint_of_every_system(
    name: str, crepe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "best", lambda folder: save(MODELS[name](), folder))
    out = tmp_path / "out"
    words = ["--suite", "sugarcrepe", "--data", crepe, "--checkpoint", tmp_path / "best", "--output", out]
    assert command("evaluate", *words) == 0
    said = capsys.readouterr().out
    assert said.split("\n")[0].split()[:4] == ["sugarcrepe", name, "cases", "ties"]
    assert "CE-CLIP (published)" in said and "4 questions; a tie is wrong" in said
    results = json.loads((out / "results.json").read_text())
    assert results["rows"]["replace_obj"] == {"value": 0.0, "count": 2, "ties": 2}
    assert results["published"]["CE-CLIP"]["swap_obj"] == 72.8 and results["settings"]["model"] == name
    assert results["settings"]["config"] == json.loads((tmp_path / "best" / "model.json").read_text())["config"]
    assert len((out / "scores.jsonl").read_text().splitlines()) == 4
    with Image.open(out / "sugarcrepe.png") as figure:
        assert figure.format == "PNG"
    assert sorted(p.name for p in out.iterdir()) == ["results.json", "scores.jsonl", "sugarcrepe.png"]


def test_published_weights_of_clip(crepe: Path, tmp_path: Path) -> None:
    model = clip()
    write_folder(tmp_path / "best", lambda folder: save(model, folder))
    assert command("export", tmp_path / "best", "--output", tmp_path / "model.pt") == 0
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in model.config_dict.items()}
    words = [word for key, value in config.items() if value is not None
             for word in ("--set", f"model.config.{key}={json.dumps(value)}")]  # fmt: skip
    common = ["--suite", "sugarcrepe", "--data", crepe, "--output"]
    command("evaluate", *common, tmp_path / "ours", "--checkpoint", tmp_path / "best")
    merges = ["--tokenizer", tmp_path / "best" / "merges.txt"]
    assert (
        command("evaluate", *common, tmp_path / "theirs", "--checkpoint", tmp_path / "model.pt", *merges, *words) == 0
    )
    ours, theirs = ((tmp_path / name / "scores.jsonl").read_text() for name in ("ours", "theirs"))
    assert ours == theirs


def test_published_weights_of_clip_with_what_lies_beside_them(
    crepe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "best", lambda folder: save(clip(), folder))
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    assert command("export", tmp_path / "best", "--layout", "huggingface", "--output", theirs) == 0
    words = ["evaluate", "--suite", "sugarcrepe", "--data", crepe, "--checkpoint", theirs]
    monkeypatch.setattr("crossmodal.data.clip_tokenizer.find_spec", lambda name: None)  # as without open_clip
    assert "named neither by model.tokenizer nor by --tokenizer, and open_clip" in refused(capsys, *words)
    shutil.copy(tmp_path / "best" / "merges.txt", theirs)
    assert command(*words, "--output", out) == 0
    assert json.loads((out / "results.json").read_text())["settings"]["config"]["quick_gelu"] is True
    assert "write model.config.key=value" in refused(capsys, *words, "--set", "quick_gelu=false")
    exact = ["--set", "model.config.quick_gelu=false"]
    assert command(*words, "--output", out, *exact) == 0
    settings = json.loads((out / "results.json").read_text())["settings"]
    assert settings["config"]["quick_gelu"] is False and settings["set"] == exact[1:]
    assert command("export", tmp_path / "best", "--layout", "openai", "--output", theirs / "ViT.pt") == 0
    description = theirs / "config.json"
    description.write_text(description.read_text().replace('"quick_gelu"', '"gelu"'))
    said = refused(capsys, *words[:-1], theirs / "ViT.pt")
    assert "which were trained with QuickGELU, beside a configuration with the exact GELU" in said


def test_a_blind_baseline(crepe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--suite", "sugarcrepe", "--data", crepe, "--blind", "brevity", "--output", tmp_path / "out"]
    assert command(*words) == 0
    assert "blind: brevity" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"]["swap_obj"]["ties"] == 2
    (crepe / "images" / "000000000001.jpg").unlink()
    assert command(*words) == 0
    assert "\n4 questions" in capsys.readouterr().out
    assert command(*words, "--skip-missing") == 0
    assert "\n2 of 4 questions" in capsys.readouterr().out


def test_matrices_are_kept_as_arrays_and_scores_of_another_suite_go(crepe: Path, tmp_path: Path) -> None:
    photos(tmp_path / "classes", "cat/1.jpg", "cat/2.jpg", "dog/3.jpg")
    prompts = write_json(tmp_path / "prompts.json", {"classes": ["cat", "dog", "bird"], "templates": ["a {}"]})
    rows = [("", *COLUMNS), (0, "a red dog", "x/000000000001.jpg", ["a dog red"], [1]), (1, "two trees",
            "000000000002.jpg", [], [0])]  # fmt: skip
    table = tmp_path / "train_neg_clip.tsv"
    table.write_text("\n".join("\t".join(map(str, row)) for row in rows))
    write_folder(tmp_path / "best", lambda folder: save(clip(), folder))
    out = tmp_path / "out"

    def kept(suite: str, data: Path, *words: object) -> dict[str, Any]:
        where = ["--suite", suite, "--data", data, "--checkpoint", tmp_path / "best", "--output", out]
        assert command("evaluate", *where, *words) == 0
        assert (out / "scores.npz").exists() != (out / "scores.jsonl").exists()
        if not (out / "scores.npz").exists():
            return {}
        with np.load(out / "scores.npz") as stored:
            return dict(stored)

    assert not kept("sugarcrepe", crepe)
    of_classes = kept("zero_shot", prompts, "--images", tmp_path / "classes")
    assert of_classes["image_ids"].tolist() == ["cat/1.jpg", "cat/2.jpg", "dog/3.jpg"]
    assert of_classes["classes"].tolist() == ["cat", "dog", "bird"] and of_classes["scores"].shape == (3, 3)
    found = kept("retrieval", table, "--images", crepe / "images")
    assert found["text_ids"].tolist() == ["0", "1"] and found["scores"].shape == (2, 2)
    assert found["image_ids"].tolist() == ["x/000000000001.jpg", "000000000002.jpg"]
    assert not kept("sugarcrepe", crepe)


def test_mistakes(crepe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "best", lambda folder: save(clip(), folder))
    words = ["evaluate", "--suite", "sugarcrepe", "--data", crepe, "--checkpoint", tmp_path / "best"]
    assert "there is no suite 'sugar_crepe'; did you mean sugarcrepe" in refused(
        capsys, *words, "--suite", "sugar_crepe"
    )
    assert "give either --checkpoint or --blind" in refused(capsys, *words, "--blind", "brevity")
    assert "give either --checkpoint or --blind" in refused(capsys, *words[:-2])
    assert "has no option 'classes'" in refused(capsys, *words, "--classes", "CIFAR10")
    assert "leave --tokenizer, --set and databases out" in refused(capsys, *words, "--tokenizer", "x")
    assert "does not exist" in refused(capsys, *words[:-1], tmp_path / "nowhere")
    assert "holds no model.json" in refused(capsys, *words[:-1], crepe, "--tokenizer", "x")
    assert "--scorer is of a model, and --blind reads captions alone" in refused(
        capsys, *words[:-2], "--blind", "brevity", "--scorer", "cosine"
    )
    (tmp_path / "file").write_text("")
    assert "cannot be written (Not a directory)" in refused(capsys, *words, "--output", tmp_path / "file" / "out")
    zero_shot = refused(capsys, *words, "--suite", "zero_shot", "--data", write_json(tmp_path / "p" / "p.json", {}))
    assert "zero_shot takes its questions from the images; give their folder as --images" in zero_shot
    (crepe / "images" / "000000000001.jpg").unlink()
    said = refused(capsys, *words)
    assert "1 of the 2 images that sugarcrepe asks about are missing (first: 000000000001.jpg)" in said
    assert command(*words, "--skip-missing") == 0
    said = capsys.readouterr().out
    assert "2 of 4 questions; a tie is wrong" in said
    assert "missing images: 1 (000000000001.jpg); questions left out: 2" in said
    (crepe / "images" / "000000000002.jpg").write_bytes(b"no picture")
    assert "000000000002.jpg cannot be read as a picture" in refused(capsys, *words, "--skip-missing")
    assert "is no file of captions; a text database" in refused(capsys, *words, "--suite", "retrieval")
    (crepe / "swap_obj.json").write_text("{")
    assert "swap_obj.json is not JSON" in refused(capsys, *words)


def test_published_weights_of_a_region_model_need_its_databases(
    crepe: Path, exported: tuple[Path, Path], tiny_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, config = exported
    words = ["evaluate", "--suite", "sugarcrepe", "--data", crepe, "--checkpoint", weights]
    assert "which say nothing of its words and regions" in refused(capsys, *words)
    databases = ["--txt_db", tiny_world / "texts" / "test.db", "--img_db", tiny_world / "regions" / "test"]
    assert command(*words, *databases, "--set", f"model.config={config}") == 0


def test_the_table_shows_published_figures_of_the_same_rows_alone() -> None:
    rows = {"existence": Share(0.5, 4, 1), "avg (1 of 11)": Share(0.5, 4, 1), "Existence": Share(float("nan"), 0)}
    outcome = Outcome("valse", Answers(rows), "a tie is wrong", 4, shown=("existence", "avg"))
    lines = describe(outcome, "clip").split("\n")
    assert lines[0].split("  ")[0] == "valse" and "NegCLIP (published)" in lines[0]
    assert lines[2].split() == ["existence", "50.00", "4", "1", "68.7", "76.8", "78.6", "84.5"]
    assert lines[3].split() == ["avg", "(1", "of", "11)", "50.00", "4", "1"] and lines[4].split() == [
        "Existence",
        "0",
        "0",
    ]
    assert list(outcome.summary) == ["existence", "avg (1 of 11)"]
