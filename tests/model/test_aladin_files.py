"""Published files of ALADIN and VinVL, written here in their form, loaded into models of either version."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crossmodal.errors import CheckpointError, ConfigError
from crossmodal.model.aladin import Aladin
from crossmodal.model.aladin_files import (
    PREFIX,
    export_aladin,
    published_config,
    read_aladin_config,
    read_vinvl_config,
)
from crossmodal.model.checkpoints import guess_layout, load, load_weights, save
from crossmodal.model.uniter import Uniter

from ..commands import command
from .aladin_inputs import CLIP, CONFIG, REGIONS, TEXTS, model, regions, texts

State = dict[str, Tensor]
SECOND: dict[str, Any] = {"clip_tags": True, "clip_captions": True, "clip": CLIP, "detection": "det+fast"}
UNUSED = {f"{PREFIX}{name}.{kind}" for name in ("img_proj", "cap_proj") for kind in ("weight", "bias")}


def small(seed: int = 0, **changes: Any) -> Aladin:
    torch.manual_seed(seed)
    return Aladin({**CONFIG, **changes}).eval()


def copied(found: torch.nn.Module) -> State:
    return {name: value.clone() for name, value in found.state_dict().items()}


def assert_same(found: State, expected: State) -> None:
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def aladin_file(path: Path, source: Aladin, *, legacy: bool = False, **content: Any) -> Path:
    """A checkpoint as the published training writes it: optimizer, options and all."""
    export_aladin(source, path)
    written = torch.load(path, weights_only=False)
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    optimizer = torch.optim.Adam([weight], lr=1e-5)
    optimizer.step()
    written |= {
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"last_epoch": 2, "_step_count": 3},
        "opt": argparse.Namespace(data_dir="coco_ir", num_epochs=20, device=torch.device("cpu")),
        "Eiters": 7000,
        **content,
    }
    torch.save(written, path, _use_new_zipfile_serialization=not legacy)
    return path


def vinvl_folder(folder: Path, source: Aladin, *, legacy: bool = False) -> Path:
    folder.mkdir()
    values = {name: getattr(source.config, name) for name in CONFIG}
    (folder / "config.json").write_text(json.dumps({**values, "img_feature_type": "frcnn", "num_labels": 2}))
    state = {
        name.removeprefix("oscar_model.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in copied(source).items()
        if name.startswith("oscar_model.")
    }
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    torch.save(argparse.Namespace(do_lower_case=True), folder / "training_args.bin")
    (folder / "vocab.txt").write_text("[PAD]\n")
    return folder


# --- ALADIN --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_a_published_file_needs_no_sizes(legacy: bool, tmp_path: Path) -> None:
    source = small(hidden_size=64, num_attention_heads=1, matching_layers=1, depth_matching="gated")
    file = aladin_file(tmp_path / "model_best_rsum.pth.tar", source, legacy=legacy)
    config = read_aladin_config(file)
    assert Aladin(config).config == source.config
    found = Aladin(config).eval()
    report = load_weights(found, file)
    assert report.new == [] and set(report.ignored) == {name.removeprefix(PREFIX) for name in UNUSED}
    assert_same(copied(found), copied(source))
    assert published_config(file) == config


def test_sizes_come_from_the_tensors_where_a_file_does_not_name_them(tmp_path: Path) -> None:
    source = small(hidden_size=128, num_attention_heads=2, use_img_layernorm=False, matching_layers=1)
    file = aladin_file(tmp_path / "a.pth.tar", source, config={"model": {"tern-layers": 1}})
    assert Aladin(read_aladin_config(file)).config == source.config
    assert "num_attention_heads" not in read_aladin_config(aladin_file(tmp_path / "b.pth.tar", small(), config={}))


def test_a_file_of_either_version_loads_into_either(tmp_path: Path) -> None:
    first, second = small(), small(**SECOND, seed=1)
    mappers = {
        *(f"oscar_model.bert.embeddings.{name}" for name in ("clip_global_to_oscar", "clip_local_to_oscar")),
        "oscar_model.bert.detic_to_oscar_img",
        "clip_model",
    }

    def beside(names: list[str]) -> bool:
        """Whether these are the second version's own tensors: all of its mappers, nothing else."""
        return all(any(name.startswith(mapper) for mapper in mappers) for name in names) and all(
            any(name.startswith(mapper) for name in names) for mapper in mappers
        )

    old = aladin_file(tmp_path / "v1.pth.tar", first)
    new = aladin_file(tmp_path / "v2.pth.tar", second)
    into_second, into_first = small(**SECOND, seed=2), small(seed=2)
    report = load_weights(into_second, old)
    assert beside(report.new)
    assert_same(copied(into_second), copied(first))
    report = load_weights(into_first, new)
    assert report.new == []
    assert beside([name for name in report.ignored if PREFIX + name not in UNUSED])
    kept = copied(second)
    assert_same(copied(into_first), {name: kept[name] for name in copied(into_first)})


def test_criteria_in_a_file_are_ignored(tmp_path: Path) -> None:
    state = torch.load(aladin_file(tmp_path / "a.pth.tar", small()), weights_only=False)["model"]
    state |= {"distillation_loss.wb": torch.zeros(2), "matching_criterion.logit_scale": torch.zeros(())}
    torch.save({"model": state}, tmp_path / "b.pth.tar")
    report = load_weights(small(seed=1), tmp_path / "b.pth.tar")
    assert {"distillation_loss.wb", "matching_criterion.logit_scale"} <= set(report.ignored)


def test_other_sizes_are_named(tmp_path: Path) -> None:
    file = aladin_file(tmp_path / "a.pth.tar", small())
    found = small(vocab_size=60, matching_layers=1, seed=1)
    before = copied(found)
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight \(50, 16\) instead of \(60, 16\)") as error:
        load_weights(found, file)
    assert "\n" not in str(error.value)
    assert_same(copied(found), before)


class Trap:
    """Would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_with_more_than_options_is_refused_by_name_and_not_run(legacy: bool, tmp_path: Path) -> None:
    opt = argparse.Namespace(trap=Trap(tmp_path / "sprung"))
    file = aladin_file(tmp_path / "a.pth.tar", small(), legacy=legacy, opt=opt)
    for read in (read_aladin_config, lambda path: load_weights(small(), path)):
        with pytest.raises(CheckpointError, match=r"a\.pth\.tar cannot be read as .*it holds getattr, which"):
            read(file)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04 cut off"])
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth.tar").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read_aladin_config(tmp_path / "a.pth.tar")


def test_the_exported_form(tmp_path: Path) -> None:
    source = small(alignment_layers=1, depth_alignment="gated")
    export_aladin(source, tmp_path / "out.pth.tar")
    content = torch.load(tmp_path / "out.pth.tar", weights_only=False)
    assert content.keys() == {"epoch", "model", "optimizer", "scheduler", "opt", "config", "Eiters"}
    assert content["model"].keys() == {PREFIX + name for name in copied(source)} | UNUSED
    for part in ("transformer_encoder_1.layers.0.self_attn.in_proj_weight", "feature_fusion.alphas.3.bias"):
        assert PREFIX + part in content["model"]
    assert content["model"][f"{PREFIX}img_proj.weight"].shape == (16, 768)


def test_the_command_exports_the_form_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "best").mkdir()
    source = small()
    save(source, tmp_path / "best")
    out = tmp_path / "out.pth.tar"
    assert command("export", tmp_path / "best", "--output", out) == 0
    assert "parameters in the layout aladin" in capsys.readouterr().out
    found = small(seed=1)
    load_weights(found, out)
    assert_same(copied(found), copied(source))
    out.unlink()
    assert command("export", tmp_path / "best", "--output", out, "--layout", "uniter") == 2
    assert "holds the model aladin, which has no uniter layout" in capsys.readouterr().err
    assert not out.exists()


# --- VinVL and others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("layout", [None, "vinvl"])
def test_a_vinvl_folder_starts_the_backbone(layout: str | None, legacy: bool, tmp_path: Path) -> None:
    source = small()
    folder = vinvl_folder(tmp_path / "vinvl", source, legacy=legacy)
    found = Aladin(read_vinvl_config(folder))
    report = load_weights(found, folder, layout)
    assert report.ignored == []
    assert report.new and all(name.startswith("final_projection_net.") for name in report.new)
    own = copied(source)
    assert_same(copied(found), {name: own[name] for name in own if name.startswith("oscar_model.")})
    assert published_config(folder) == read_vinvl_config(folder)


def test_a_folder_without_a_readable_configuration(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json (cannot be read|holds no configuration)"):
            read_vinvl_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_vinvl_config(tmp_path)
    assert published_config(tmp_path) == {}
    assert published_config(tmp_path / "nowhere.pth.tar") == {}


def test_the_text_tower_of_clip_loads_by_itself(tmp_path: Path) -> None:
    found = small(**SECOND)
    assert found.clip_model is not None
    state = {name: torch.randn_like(value) for name, value in found.clip_model.state_dict().items()}
    torch.save({**state, "visual.proj": torch.zeros(2), "logit_scale": torch.zeros(())}, tmp_path / "clip.pt")
    report = load_weights(found, tmp_path / "clip.pt")
    assert set(report.matched) == {"clip_model." + name for name in state}
    assert set(report.ignored) == {"clip_model.visual.proj", "clip_model.logit_scale"}
    assert_same(copied(found.clip_model), state)


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        ("img_txt_enc.oscar_model.bert.img_embedding.bias", "aladin"),
        ("bert.img_embedding.weight", "vinvl"),
        ("module.bert.img_embedding.weight", "vinvl"),
        ("bert.pooler.dense.weight", "bert"),
        ("embeddings.LayerNorm.gamma", "bert"),
        ("transformer.resblocks.0.ln_1.bias", "clip"),
    ],
)
def test_layouts_are_guessed_by_their_keys(key: str, layout: str) -> None:
    assert guess_layout({"other": torch.zeros(1), key: torch.zeros(1)}, Aladin) == layout


def test_layouts_of_other_models(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"keys such as uniter\.a.*`layout: aladin` or `layout: vinvl`"):
        guess_layout({"uniter.a": torch.zeros(1)}, Aladin)
    with pytest.raises(CheckpointError, match="is not recognised"):
        guess_layout({"img_txt_enc.img_proj.bias": torch.zeros(1)}, Uniter)
    with pytest.raises(ConfigError, match="layout 'uniter' is unknown to aladin"):
        load_weights(small(), aladin_file(tmp_path / "a.pth.tar", small()), "uniter")


# --- folders of our own --------------------------------------------------------------------------------------------


def test_an_own_folder_gives_the_same_scores(tmp_path: Path) -> None:
    source = model(depth_matching="gated", alignment_layers=1).float()
    save(source, tmp_path)
    found = load(tmp_path)
    assert isinstance(found, Aladin) and found.config == source.config
    captions, images = texts([4, 6]), regions([3, 5], texts([2, 3], tags=True))
    for scorer in found.scorer_names:
        ours = [m.scorers[scorer](m.encode("text", captions), m.encode("image", images)) for m in (source, found)]
        torch.testing.assert_close(ours[0], ours[1], rtol=0, atol=0)
    assert len(found.encode("text", TEXTS)) == len(found.encode("image", REGIONS)) == 4
