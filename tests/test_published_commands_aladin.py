"""The published commands of ALADIN on files in the published layout: train, test, and the second stage."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from crossmodal.evaluate.ndcg import write_relevances
from crossmodal.evaluate.plots import read_metrics
from crossmodal.model.aladin import Aladin
from crossmodal.model.aladin_files import export_aladin
from crossmodal.model.checkpoints import read_state
from crossmodal.model.pickles import load_torch

from .commands import command, refused, scores_of
from .data.vinvl_folders import write_captions, write_vinvl

WORDS = ("a", "man", "dog", "tree", "water", "near", "with", "two", "racket", "tennis", "surfboard", ".")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s")
IMAGES = {"train": range(100, 107), "minival": range(200, 204), "test": range(300, 310)}
KEYS = (305, 301, 308, 302, 309, 300)
"""The images of test_img_keys_1k.tsv, in an order of their own."""
# One layer of the published width, which the published configurations name.
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12,
    "intermediate_size": 16, "max_position_embeddings": 60, "img_feature_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``coco_ir`` (captions, key files), ``vinvl`` (features) and ``base`` (the backbone); to be read only."""
    folder = tmp_path_factory.mktemp("published")
    draw = np.random.default_rng(0)
    (folder / "coco_ir").mkdir()
    for split, images in IMAGES.items():
        captions = {i: [" ".join(draw.choice(WORDS[:-1], 4 + n)) + " ." for n in range(5)] for i in images}
        write_captions(folder / "coco_ir" / f"{split}_captions.pt", captions)
    (folder / "coco_ir" / "test_img_keys_1k.tsv").write_text("".join(f"{i}\n" for i in KEYS))
    counts = {str(i): int(draw.integers(2, 6)) for images in IMAGES.values() for i in images}
    write_vinvl(folder / "vinvl", counts)
    (folder / "base").mkdir()
    torch.manual_seed(0)
    backbone = Aladin(SIZES).state_dict()
    state = {k.removeprefix("oscar_model."): v for k, v in backbone.items() if k.startswith("oscar_model.")}
    torch.save(state, folder / "base" / "pytorch_model.bin")
    (folder / "base" / "config.json").write_text(json.dumps({**SIZES, "img_feature_type": "frcnn", "num_labels": 2}))
    (folder / "base" / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY))
    return folder


def files(folder: Path) -> list[object]:
    """The flags of the published README that name files and lengths."""
    return [
        "--data_dir", folder / "coco_ir", "--img_feat_file", folder / "vinvl" / "features.tsv",
        "--eval_model_dir", folder / "base", "--max_seq_length", 8, "--max_img_seq_length", 4,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the shipped configuration by the published command: two steps, the second of a short batch."""
    folder = tmp_path_factory.mktemp("run") / "alad"
    flags = [
        "--logger_name",
        folder,
        "--val_step",
        7000,
        "--num_epochs",
        1,
        "--log_step",
        1,
        "--num_workers",
        0,
        "--do_train",
    ]
    assert command("train", "--config", "alad-alignment-and-matching-distill", *files(published), *flags) == 0
    return folder


@pytest.fixture(scope="module")
def file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's last checkpoint in the published form."""
    path = tmp_path_factory.mktemp("file") / "model_best_rsum.pth.tar"
    assert command("export", run / "last", "--output", path) == 0
    return path


@pytest.fixture(scope="module")
def tested(published: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published test on the images of the key file."""
    folder = tmp_path_factory.mktemp("tested")
    words = [*files(published), "--eval_img_keys_file", "test_img_keys_1k.tsv", "--load_checkpoint", file]
    assert command("test", *words, "--output", folder) == 0
    return folder


def test_the_published_training(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["model"]["config"]["hidden_size"] == 768 and recipe["name"] == "alad-alignment-and-matching-distill"
    logged = {(row["step"], row["name"]) for row in read_metrics(run / "metrics.jsonl")}
    assert {(1, "train/alignment_loss"), (1, "train/distillation_loss"), (2, "valid/matching/rsum")} <= logged


def test_the_published_test(published: Path, run: Path, tested: Path, tmp_path: Path) -> None:
    words = [*files(published)[:4], "--eval_img_keys_file", "test_img_keys_1k.tsv", "--checkpoint", run / "last"]
    assert command("test", *words, "--output", tmp_path) == 0
    for head in ("alignment", "matching"):
        scores, results = scores_of(tested / head)
        assert scores.shape == (5 * len(KEYS), len(KEYS)) and results["settings"]["scorer"] == head
        assert np.array_equal(scores, scores_of(tmp_path / head)[0])
        with np.load(tested / head / "scores.npz") as stored:
            assert stored["text_ids"].tolist()[::5] == [f"{image}#0" for image in KEYS]
    data = scores_of(tested / "matching")[1]["settings"]["data"]
    assert data["captions_per_image"] == 5 and data["detections"] == "fast"


def test_it_prints_the_published_lines(
    published: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["test", "--checkpoint", run / "last", *files(published), "--output", tmp_path, "--split", "val"]
    assert command(*words, "--relevance", "rougeL") == 0
    lines = capsys.readouterr().out.splitlines()
    for start in ("Image to text: ", "Text to image: "):
        (line,) = [line for line in lines if line.startswith(start)]
        assert len(line.split(", ")) == 6 and "ndcg_rouge=0." in line
    metrics = scores_of(tmp_path / "matching")[1]["metrics"]
    assert f"Sum score: {100 * metrics['rsum']:.2f}" in lines
    recalls = ", ".join(f"{100 * metrics[f'txt_r{k}']:.2f}" for k in (1, 5, 10))
    assert f"Recall Image to text: {recalls}" in lines
    assert 0 < metrics["img_ndcg_rougeL"] <= 1 and f"image {metrics['img_ndcg_rougeL']:.4f}" in "\n".join(lines)


def test_files_may_be_named_as_databases(published: Path, file: Path, tested: Path, tmp_path: Path) -> None:
    words = ["--txt_db", published / "coco_ir" / "test_captions.pt", "--img_db", published / "vinvl" / "features.tsv"]
    keys = ["--eval_img_keys_file", "test_img_keys_1k.tsv", *files(published)[4:]]
    assert command("test", "--checkpoint", file, *words, *keys, "--output", tmp_path) == 0
    assert np.array_equal(scores_of(tmp_path / "matching")[0], scores_of(tested / "matching")[0])


def test_inert_flags_are_said_to_be_so(
    published: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["test", "--load-checkpoint", file, *files(published), "--split", "val", "--output", tmp_path]
    assert command(*words, "--config", "configs/X.yaml", "--add_od_labels", "--seed", 88, "--scorer", "matching") == 0
    assert "--config, --add_od_labels, --seed: accepted as published, without a meaning here" in capsys.readouterr().err


def test_the_second_stage(published: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--config", "configs/alad-matching-distill-finetune.yaml", *files(published), "--num_epochs", 1]
    words += ["--num_workers", 0, "--load-teacher-model", file, "--logger_name", tmp_path / "run", "--output_mode", "x"]
    assert command(*words, "--set", "validation=null") == 0
    assert "--output_mode: accepted as published, without a meaning here" in capsys.readouterr().err
    before, after = read_state(file), read_state(tmp_path / "run" / "last")
    same = {name: torch.equal(value, before[f"img_txt_enc.{name}"]) for name, value in after.items()}
    assert all(same[name] for name in same if name.startswith("oscar_model."))
    assert not same["final_projection_net.layers.0.linear1.weight"]


def test_a_cascade_of_the_two_heads(
    published: Path, file: Path, tested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["test", "--checkpoint", file, *files(published), "--eval_img_keys_file", "test_img_keys_1k.tsv"]
    assert command(*words, "--cascade", "matching:6,alignment", "--output", tmp_path) == 0
    heading, _, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["stage", "keeps", "pairs", "seconds"]
    assert [line.split()[:3] for line in lines] == [["matching", "6", "180"], ["alignment", "-", "180"]]
    stages = json.loads((tmp_path / "cascade.json").read_text())["stages"]
    for stage in stages:  # 6 of each query are all of the images and the best of the captions
        whole = scores_of(tested / stage["scorer"])[1]["metrics"]
        assert stage["metrics"]["img_r1"] == whole["img_r1"] and stage["seconds"] > 0


def test_a_cascade_is_for_one_process(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    two = SimpleNamespace(rank=0, size=2)
    monkeypatch.setattr("crossmodal.train.distributed.connect", lambda: nullcontext(two))
    said = refused(capsys, "test", "--checkpoint", file, "--cascade", "matching:2,alignment")
    assert said == "error: --cascade runs in one process, and here are 2; leave the launcher out"


def test_published_relevances(published: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relevance = tmp_path / "coco-test-spice.npy"
    write_relevances(relevance, torch.rand(50, 10, generator=torch.Generator().manual_seed(0)))
    words = ["test", "--checkpoint", file, *files(published), "--scorer", "alignment", "--relevance", relevance]
    assert command(*words, "--folds", 2, "--output", tmp_path / "out") == 0
    assert "ndcg_spice=0." in capsys.readouterr().out
    _, results = scores_of(tmp_path / "out" / "alignment")
    assert 0 < results["metrics"]["txt_ndcg_spice"] < 1 and results["settings"]["relevance"] == [str(relevance)]
    words += ["--eval_img_keys_file", "test_img_keys_1k.tsv", "--output", tmp_path / "other"]
    said = refused(capsys, *words)
    assert said.startswith(f"error: {relevance} has 2000 bytes, and 30 captions times 6 images of raw float32 have 720")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--eval_img_key", "x"], "--eval_img_key: unknown option; did you mean eval_img_keys_file"),
        (["--att_mask_type", "CL"], "--att_mask_type: 'CL' never worked for separate streams; leave it out"),
        (["--max_seq_length", "many"], "--max_seq_length: 'many' is no whole number; give one"),
        (["--split", "minival"], "--split 'minival' is no split of --data_dir; did you mean val?"),
        (["--txt_db", "a", "--img_db", "b"], "and so do --txt_db and --img_db; keep one pair"),
        (["--cascade", "matching"], "does not name stages; write SCORER:KEEP,SCORER, such as matching:20,alignment"),
        (["--cascade", "matchin:3,alignment"], "no scorer 'matchin'; did you mean matching?"),
        (["--cascade", "matching:0,alignment"], "stage 1 keeps 0 candidates; keep 1 at least"),
        (["--cascade", "matching:3,alignment", "--folds", 2], "and has no --folds; leave it out"),
        (["--relevance", "rouge"], "--relevance 'rouge' is neither rougeL nor a .npy file; give one of the two"),
        (["--set", "clamp=never"], "write model.config.key=value or data.key=value"),
        (["--set", "data.max_b=3"], "max_b: unknown key; did you mean max_bb"),
    ],
)
def test_mistakes(words: list[object], said: str, published: Path, file: Path, capsys: Any) -> None:
    assert said in refused(capsys, "test", "--load_checkpoint", file, *files(published), *words)


def test_a_checkpoint_without_its_vocabulary(published: Path, file: Path, capsys: Any) -> None:
    words = files(published)[:4]
    said = refused(capsys, "test", "--checkpoint", file, *words)
    assert said == (
        f"error: {file} holds no vocabulary; give the folder of VinVL's checkpoint, which has one, as --eval_model_dir"
    )


def test_a_key_of_the_model_is_changed(published: Path, file: Path, run: Path, tmp_path: Path) -> None:
    for name, checkpoint in (("file", file), ("run", run / "last")):
        words = ["--checkpoint", checkpoint, *files(published), "--split", "val", "--scorer", "alignment"]
        assert command("test", *words, "--output", tmp_path / name) == 0
        assert (
            command("test", *words, "--set", "model.config.aggregation=sum", "--output", tmp_path / f"{name}_sum") == 0
        )
        before, after = (scores_of(tmp_path / folder / "alignment") for folder in (name, f"{name}_sum"))
        assert not np.allclose(before[0], after[0]) and after[1]["settings"]["set"] == ["model.config.aggregation=sum"]
    assert np.array_equal(scores_of(tmp_path / "file_sum" / "alignment")[0], after[0])


def test_a_checkpoint_of_the_second_version(published: Path, tmp_path: Path, capsys: Any) -> None:
    """CLIP's text vectors, a length in the checkpoint, merges by a flag; no vocabulary of BERT's is needed."""
    (tmp_path / "merges.txt").write_text("#version: 0.2\na n</w>\nd o\n")
    clip = {"vocab_size": 520, "width": 8, "heads": 2, "layers": 1, "context": 77, "embed_dim": 6}
    sizes = SIZES | {"hidden_size": 16, "num_attention_heads": 2, "matching_layers": 1}
    torch.manual_seed(1)
    export_aladin(Aladin({**sizes, "clip_tags": True, "clip_captions": True, "clip": clip}), tmp_path / "v2.pth.tar")
    written = load_torch(tmp_path / "v2.pth.tar")
    written["config"] |= {"max_caption_seq_len": 6}
    torch.save(written, tmp_path / "v2.pth.tar")
    words = ["test", "--load_checkpoint", tmp_path / "v2.pth.tar", *files(published)[:4], "--split", "val"]
    vocabulary = ["--clip_vocab", tmp_path / "merges.txt"]
    assert command(*words, *vocabulary, "--output", tmp_path / "6") == 0
    assert command(*words, *vocabulary, "--max_caption_seq_len", 30, "--output", tmp_path / "30") == 0
    short, long = (scores_of(tmp_path / length / "alignment")[0] for length in ("6", "30"))
    assert short.shape == long.shape == (20, 4) and not np.allclose(short, long)
    assert "there are no merges of CLIP at none.txt" in refused(capsys, *words, "--clip_vocab", "none.txt")


@pytest.mark.parametrize("words", [["--resume", "checkpoint.pth.tar"], ["--resume=checkpoint.pth.tar"]])
def test_a_published_run_is_not_gone_on_with(words: list[str], published: Path, capsys: Any) -> None:
    said = refused(capsys, "train", "--config", "alad-alignment-triplet", *files(published), *words, "--seed", 1)
    assert said.startswith("error: --resume checkpoint.pth.tar: the optimizer's state of a published file is not read")
    assert "--load-teacher-model" in said
