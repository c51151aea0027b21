"""CLIP's published layouts: written and read here, and read by `transformers`; files of training; activations."""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from crossmodal.errors import CheckpointError, ConfigError
from crossmodal.model.checkpoints import EXPORTS, guess_layout, load, load_weights, read_state, save
from crossmodal.model.clip import Clip
from crossmodal.model.clip_files import export_huggingface, export_open_clip, export_openai, published_config
from crossmodal.model.clip_layouts import LAYOUTS, to_huggingface, to_open_clip
from crossmodal.model.clip_vision import resampled

from ..commands import command, refused
from .clip_inputs import BATCH, PIXELS, TEXTS, clip

State = dict[str, Tensor]
WRITTEN = {"open_clip": "model.pt", "openai": "ViT.pt", "huggingface": "folder"}


def copied(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def scores(model: Clip) -> Tensor:
    with torch.no_grad():
        a, b = (model.encode(*BATCH.roles[role]) for role in ("image", "text"))
        return model.logit_scale.exp() * model.scorers["cosine"](a, b)


def their_scores(model: CLIPModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=TEXTS.input_ids, pixel_values=PIXELS.values).logits_per_image
    return logits


def written(model: Clip, layout: str, folder: Path) -> Path:
    path = folder / WRITTEN[layout]
    EXPORTS["clip"][layout](model, path)
    return path


@pytest.mark.parametrize("layout", WRITTEN)
@pytest.mark.parametrize("named", [True, False])
def test_written_and_read_again(layout: str, named: bool, tmp_path: Path) -> None:
    path, other = written(clip(), layout, tmp_path), clip(seed=1)
    assert guess_layout(read_state(path), Clip) == layout
    report = load_weights(other, path, layout if named else None)
    assert (report.new, report.ignored) == ([], [])
    assert_same(copied(other), copied(clip()))


@pytest.mark.parametrize(
    ("layout", "quick"), [(layout, q) for layout in WRITTEN for q in (True, False) if q or layout != "openai"]
)
def test_the_scores_are_those_of_transformers(layout: str, quick: bool, tmp_path: Path) -> None:
    source = clip(quick_gelu=quick)
    export_huggingface(source, tmp_path / "theirs")
    theirs = CLIPModel.from_pretrained(tmp_path / "theirs").eval()
    path, ours = written(source, layout, tmp_path), clip(seed=1, quick_gelu=quick)
    load_weights(ours, path)
    expected = their_scores(theirs)
    torch.testing.assert_close(scores(ours), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quick", [True, False])
def test_weights_of_transformers(quick: bool, tmp_path: Path) -> None:
    """Weights that `transformers` drew and wrote, and the configuration beside them."""
    export_huggingface(clip(quick_gelu=quick), tmp_path / "config")
    torch.manual_seed(3)
    theirs = CLIPModel(CLIPConfig.from_pretrained(tmp_path / "config")).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    said = published_config(tmp_path / "theirs")
    assert said["quick_gelu"] is quick and said["heads"] == 4 and said["vision_heads"] == 3
    ours = Clip(said).eval()
    report = load_weights(ours, tmp_path / "theirs")
    assert (report.new, report.ignored) == ([], [])
    expected = their_scores(theirs)
    torch.testing.assert_close(scores(ours), expected, rtol=1e-5, atol=1e-5)


def test_the_two_published_names_of_every_tensor() -> None:
    names = to_open_clip(copied(clip(layer_scale=0.1)))
    assert names["transformer.resblocks.2.ls_1.gamma"].shape == (16,)
    state = to_open_clip(copied(clip()))
    assert {"positional_embedding", "token_embedding.weight", "ln_final.bias", "visual.proj"} <= state.keys()
    theirs = to_huggingface(state)
    assert torch.equal(theirs["visual_projection.weight"], state["visual.proj"].T)
    q, k, v = state["visual.transformer.resblocks.1.attn.in_proj_weight"].chunk(3)
    for letter, part in zip("qkv", (q, k, v), strict=True):
        assert torch.equal(theirs[f"vision_model.encoder.layers.1.self_attn.{letter}_proj.weight"], part)
    theirs["text_model.embeddings.position_ids"] = torch.arange(9)[None]  # old files hold it
    theirs["logit_scale"] = theirs["logit_scale"][None]
    assert_same(dict(LAYOUTS["huggingface"].convert(theirs)), state)


@pytest.mark.parametrize("nested", [True, False])
def test_a_file_of_training(nested: bool, tmp_path: Path) -> None:
    """CE-CLIP's and NegCLIP's: options, optimizer, half precision, the prefix of parallel training, other numbers."""
    own = copied(clip(layer_scale=0.2, vision_layer_scale=0.1))
    state: dict[str, Any] = {"module." + k: v.half() for k, v in (own if nested else to_open_clip(own)).items()}
    state |= {"module.input_resolution": torch.tensor(12), "module.context_length": torch.tensor(9), "steps": 7}
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    content = {
        "epoch": 5, "name": "ce_clip", "state_dict": state, "optimizer": optimizer.state_dict(),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0}, "args": argparse.Namespace(lr=5e-6, model="ViT-B-32"),
    }  # fmt: skip
    torch.save(content, tmp_path / "epoch_5.pt")
    said = published_config(tmp_path / "epoch_5.pt")
    assert said["quick_gelu"] is True  # OpenAI's numbers among the weights
    model = Clip({**said, "heads": 4, "vision_heads": 3})
    report = load_weights(model, tmp_path / "epoch_5.pt")
    assert (report.new, report.ignored) == ([], ["steps"])
    assert_same(copied(model), {name: value.half().float() for name, value in own.items()})


def test_sizes_are_those_of_the_tensors(tmp_path: Path) -> None:
    source = clip(mlp_width=40, vision_mlp_width=50, vision_layer_scale=0.1, logit_bias=-10.0)
    export_open_clip(source, tmp_path / "model.pt")
    said = published_config(tmp_path / "model.pt")
    assert "quick_gelu" not in said and "heads" not in said  # not to be seen
    built = Clip({**said, "heads": 4, "vision_heads": 3})
    load_weights(built, tmp_path / "model.pt")
    assert_same(copied(built), copied(source))


class Archive(nn.Module):
    """What OpenAI's archives hold, as far as loading goes."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, value in state.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            if value.is_floating_point():
                module.register_parameter(last, nn.Parameter(value))
            else:
                module.register_buffer(last, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_an_archive_of_openai(tmp_path: Path) -> None:
    export_openai(clip(), tmp_path / "plain.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        scripted = torch.jit.script(Archive({k: v.half() if v.is_floating_point() else v
                                             for k, v in read_state(tmp_path / "plain.pt").items()}))  # fmt: skip
        torch.jit.save(scripted, str(tmp_path / "ViT.pt"))
    said = published_config(tmp_path / "ViT.pt")
    assert said["quick_gelu"] is True and said["image_size"] == 12
    model = clip(seed=1)
    report = load_weights(model, tmp_path / "ViT.pt")
    assert (report.new, report.ignored) == ([], [])
    assert_same(copied(model), {name: value.half().float() for name, value in copied(clip()).items()})


def test_another_grid_of_patches(tmp_path: Path) -> None:
    source = clip()
    export_open_clip(source, tmp_path / "model.pt")
    wide = clip(seed=1, image_size=(16, 20))
    load_weights(wide, tmp_path / "model.pt")
    table = source.visual.positional_embedding.detach()
    torch.testing.assert_close(wide.visual.positional_embedding.detach(), resampled(table, (4, 5)))
    save(source, _folder(tmp_path / "own"))
    load_weights(wide, tmp_path / "own")
    torch.testing.assert_close(wide.visual.positional_embedding.detach(), resampled(table, (4, 5)))


def test_weights_of_other_sizes(tmp_path: Path) -> None:
    export_open_clip(clip(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"text\.positional_embedding \(9, 16\) instead of \(8, 16\)"):
        load_weights(clip(context=8), tmp_path / "model.pt")


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_an_own_checkpoint(tmp_path: Path) -> None:
    save(clip(image_size=(8, 16)), _folder(tmp_path / "own"))
    model = load(tmp_path / "own")
    assert isinstance(model, Clip) and model.config == clip(image_size=(8, 16)).config
    assert_same(copied(model), copied(clip(image_size=(8, 16))))


def _open_clip_folder(folder: Path, model: Clip, **config: Any) -> Path:
    folder.mkdir()
    save_file(to_open_clip(copied(model)), folder / "open_clip_model.safetensors")
    values = {
        "embed_dim": 6, **config,
        "vision_cfg": {"image_size": 12, "layers": 2, "width": 24, "patch_size": 4, "head_width": 8},
        "text_cfg": {"context_length": 9, "vocab_size": 30, "width": 16, "heads": 4, "layers": 3},
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": values, "preprocess_cfg": {"mean": [0.5]}}))
    return folder


@pytest.mark.parametrize("quick", [True, False])
def test_a_folder_of_open_clip(quick: bool, tmp_path: Path) -> None:
    folder = _open_clip_folder(tmp_path / "hub", clip(), **({"quick_gelu": True} if quick else {}))
    said = published_config(folder)
    assert Clip(said).config == clip(quick_gelu=quick).config
    report = load_weights(Clip(said), folder)
    assert (report.new, report.ignored) == ([], [])


def test_another_activation_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = _open_clip_folder(tmp_path / "hub", clip())
    export_openai(clip(), tmp_path / "ViT.pt")
    caplog.set_level(logging.WARNING, "crossmodal")
    load_weights(clip(quick_gelu=False), folder)
    load_weights(clip(), tmp_path / "ViT.pt")
    assert not caplog.records
    load_weights(clip(), folder)
    load_weights(clip(quick_gelu=False), tmp_path / "ViT.pt")
    assert [record.getMessage().split(" was trained with ", 1)[1] for record in caplog.records] == [
        "the exact GELU, but the model is told to use QuickGELU (quick_gelu: true): its scores will differ",
        "QuickGELU, but the model is told to use the exact GELU (quick_gelu: false): its scores will differ",
    ]


def test_an_unknown_activation_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export_open_clip(clip(), tmp_path / "model.pt")
    save(clip(), _folder(tmp_path / "own"))
    caplog.set_level(logging.INFO, "crossmodal")
    load_weights(clip(), tmp_path / "own")
    assert not caplog.records
    load_weights(clip(), tmp_path / "model.pt")
    assert caplog.records[0].getMessage().endswith("does not say its activation; the model uses QuickGELU")


def test_a_checkpoint_that_contradicts_itself(tmp_path: Path) -> None:
    folder = _open_clip_folder(tmp_path / "hub", clip())
    (folder / "open_clip_model.safetensors").unlink()
    export_openai(clip(), folder / "model.pt")
    for call in (lambda: published_config(folder), lambda: load_weights(clip(), folder)):
        with pytest.raises(CheckpointError, match="OpenAI's weights, which were trained with QuickGELU, beside"):
            call()


@pytest.mark.parametrize("text", ["{", json.dumps({"vision_config": {}, "text_config": {"hidden_act": "relu"}})])
def test_a_description_that_cannot_be_used(text: str, tmp_path: Path) -> None:
    export_huggingface(clip(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read \("):
        published_config(tmp_path)


def test_what_a_layout_cannot_express(tmp_path: Path) -> None:
    for changes, why in (
        ({"layer_scale": 0.1}, "has not layer_scale, which the model uses; export it as open_clip"),
        ({"global_pool": True, "logit_bias": 0.0}, "has not global_pool and logit_bias, which"),
        ({"image_size": (8, 12)}, "has not an image_size of 8 x 12"),
    ):
        for export in (export_openai, export_huggingface):
            with pytest.raises(ConfigError, match=why):
                export(clip(**changes), tmp_path / "out")
    with pytest.raises(ConfigError, match="OpenAI's code has QuickGELU alone"):
        export_openai(clip(quick_gelu=False), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_export_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(clip(), _folder(tmp_path / "own"))
    for layout in ("open_clip", "openai", "huggingface"):
        assert command("export", tmp_path / "own", "--output", tmp_path / layout, "--layout", layout) == 0
        other = clip(seed=1)
        load_weights(other, tmp_path / layout)
        assert_same(copied(other), copied(clip()))
    assert command("export", tmp_path / "own", "--output", tmp_path / "default.pt") == 0
    assert guess_layout(read_state(tmp_path / "default.pt"), Clip) == "open_clip"
    assert "in the layout open_clip" in capsys.readouterr().out
    said = refused(capsys, "export", tmp_path / "own", "--output", tmp_path / "x.pt", "--layout", "uniter")
    assert "holds the model clip, which has no uniter layout" in said


def test_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"is not recognised .* `layout: openai` or `layout: huggingface` or"):
        published_config(tmp_path / "model.pt")
