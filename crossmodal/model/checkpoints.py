"""Loading weights: own checkpoint folders, and published files by the name of their layout (DESIGN.md section 4)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmodal.errors import CheckpointError, ConfigError, nearest
from crossmodal.files import write_whole

from .aladin_files import export_aladin
from .base import Layout, Model, registered
from .checksums import check_sums, digest, read_sums
from .clip_files import export_huggingface, export_open_clip, export_openai
from .pickles import load_torch, save_torch, why_unreadable
from .scripted import is_scripted, load_scripted
from .uniter import Uniter

WEIGHTS = (
    "model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin", "model.pt"
)  # fmt: skip
_OLD_NAMES = re.compile(r"(?<=norm\.)(gamma|beta)$", re.IGNORECASE)  # of LayerNorm's tensors


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint gave: full parameter names. `str()` is the line for the log."""

    matched: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def some(names: list[str]) -> str:
            return f" ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else ""

        return (
            f"{len(self.matched)} tensors matched, {len(self.new)} newly initialised{some(self.new)}, "
            f"{len(self.ignored)} ignored{some(self.ignored)}"
        )


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Model:
    """A model from a checkpoint folder of crossmodal, in evaluation mode, its processor with it.

    A run folder stands for its `best` checkpoint, or `last` where there is none.
    Raises CheckpointError where the folder is not a checkpoint, or a file in it is damaged.
    """
    folder = find_checkpoint(Path(path))
    check_sums(folder)
    name, config = read_description(folder)
    model = registered()[name](config)
    report = load_state(model, read_state(folder), where=folder)
    if report.new:
        raise CheckpointError(
            f"{folder} lacks {len(report.new)} tensors of its model ({', '.join(report.new)}); copy or write it again"
        )
    from crossmodal.data.processors import FILE, load_processor

    if (folder / FILE).is_file():
        model.processor = load_processor(folder)
    return model.to(device).eval()


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that `path` means: itself, or `best` or `last` inside it."""
    for folder in (path, path / "best", path / "last"):
        if (folder / "model.json").is_file():
            return folder
    what = "does not exist" if not path.exists() else "holds no model.json"
    raise CheckpointError(f"{path} {what}; give a checkpoint folder, or the run folder that holds best/ or last/")


def read_description(folder: Path) -> tuple[str, dict[str, Any]]:
    """The registered name of a checkpoint folder's model, and its configuration.

    Raises CheckpointError where model.json cannot be read or names another model.
    """
    file = folder / "model.json"
    try:
        description = json.loads(file.read_text())
        name, config = str(description["model"]), dict(description["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} does not describe a model ({error!r}); copy or write it again") from None
    if name not in registered():
        raise CheckpointError(f"{file} names the model {name!r}; {nearest(name, registered())}")
    return name, config


def save(model: Model, folder: Path) -> None:
    """Write model.json, model.safetensors and the processor into an existing folder."""
    from safetensors.torch import save_file

    (folder / "model.json").write_text(json.dumps({"model": model.name, "config": model.config_dict}, indent=2))
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()},
        folder / "model.safetensors",
    )
    if model.processor is not None:
        model.processor.save(folder)


def fingerprint(path: Path) -> str:
    """The sha256, in hexadecimal, of the weights at `path`: a weights file, a checkpoint folder or a run folder.

    Taken from the folder's checksums where it has them, so that nothing large is read.
    Raises CheckpointError where there are no weights.
    """
    if path.is_dir() and not _holds_weights(path):
        path = find_checkpoint(path)
    file = weights_file(path)
    sums = read_sums(file.parent) if path.is_dir() else None
    return (sums or {}).get(file.name) or digest(file)


def weights_file(path: Path) -> Path:
    """The file of weights that `path` names or that the folder `path` holds. Raises CheckpointError without one."""
    if path.is_dir():
        for name in WEIGHTS:
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f"{path} holds no {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}; check the path")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; check the path")
    return path


def _holds_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHTS)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or torch file (`weights_only`), or of the one that a folder holds.

    Raises CheckpointError where there is none, or the file holds anything but tensors.
    """
    path = weights_file(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = load_scripted(path) if is_scripted(path) else load_torch(path)
    except Exception as error:  # torch and safetensors raise many kinds; each means: not readable as weights
        raise CheckpointError(
            f"{path} cannot be read as plain weights ({why_unreadable(path, error)}); export its state dict again"
        ) from None
    for name in ("model", "state_dict"):  # what training writes beside it is not read; numbers may be among it
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = {k: torch.tensor(v) if isinstance(v, (int, float)) else v for k, v in state[name].items()}
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no plain state dict; export the model's state dict alone")
    return dict(state)


def guess_layout(state: Mapping[str, Tensor], model: type[Model] = Uniter) -> str:
    """The published layout of the model that these keys are of. Raises CheckpointError where none fits."""
    keys = [key.removeprefix("module.") for key in state]
    for name, layout in model.layouts.items():
        if any(key.startswith(layout.marks) for key in keys):
            return name
    known = " or ".join(f"`layout: {name}`" for name in ["crossmodal", *model.layouts])
    raise CheckpointError(
        f"the layout of the checkpoint is not recognised (keys such as {next(iter(state), 'none')}); "
        f"name it with {known}"
    )


def renamed(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Published key names as ours; parallel training and old names of LayerNorm's tensors are in all of them."""
    plain = {_OLD_NAMES.sub(_new_name, key.removeprefix("module.")): value for key, value in state.items()}
    return {layout.rename(key): value for key, value in layout.convert(plain).items()}


def _new_name(old: re.Match[str]) -> str:
    return {"gamma": "weight", "beta": "bias"}[old[0].lower()]


def load_state(
    model: Model, state: Mapping[str, Tensor], *, layout: str | None = None, where: object = "the checkpoint"
) -> LoadReport:
    """Copy a state dict into the model; keys of `layout` are renamed (None: the model's own names).

    Raises CheckpointError with every key whose shape disagrees; ConfigError for a layout that the model has not.
    """
    own_names = layout in (None, "crossmodal")
    if not own_names and layout not in model.layouts:
        raise ConfigError(
            f"layout {layout!r} is unknown to {model.name}; {nearest(str(layout), ['crossmodal', *model.layouts])}"
        )
    named = dict(state) if own_names else renamed(state, model.layouts[str(layout)])
    named = dict(model.fitted(named, where))
    own = model.state_dict()
    wrong = [
        f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in named.items()
        if k in own and v.shape != own[k].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{where} has other shapes than the model in {len(wrong)} tensors: {'; '.join(wrong)}; "
            "use the model configuration that it was trained with"
        )
    matched = [k for k in named if k in own]
    model.load_state_dict({k: named[k].to(own[k].dtype) for k in matched}, strict=False)
    report = LoadReport(
        matched, [k for k in own if k not in named], [k for k in named if k not in own and k not in model.tied]
    )
    model.start_new(report.new)
    if not matched:
        raise CheckpointError(f"{where} shares no tensor with the model; check the path and the layout")
    return report


def load_weights(model: Model, path: str | os.PathLike[str], layout: str | None = None) -> LoadReport:
    """Load a checkpoint file or folder into the model; the layout is guessed where it is not named."""
    path = Path(path)
    if layout is None and is_ours(path):
        layout = "crossmodal"
    if layout == "crossmodal" and path.is_dir():
        path = find_checkpoint(path)
        check_sums(path, [weights_file(path).name])
    state = read_state(path)
    return load_state(model, state, layout=layout or guess_layout(state, type(model)), where=path)


def is_ours(path: Path) -> bool:
    """Whether a path without a named layout is taken for a folder of ours: not one that holds published weights."""
    return path.is_dir() and ((path / "model.json").is_file() or not _holds_weights(path))


def export_uniter(model: Uniter, path: Path) -> None:
    """Write the published form: `torch.save` of a CPU state dict with UNITER's keys (spec section 14)."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if model.config.pretraining:
        state |= {published: state[own] for published, own in Uniter.tied.items()}
    write_whole(path, lambda temporary: save_torch(state, temporary))


EXPORTS: dict[str, dict[str, Callable[[Any, Path], None]]] = {
    "uniter": {"uniter": export_uniter},
    "aladin": {"aladin": export_aladin},
    "clip": {"open_clip": export_open_clip, "openai": export_openai, "huggingface": export_huggingface},
}
"""Models that have published forms -> layout, the usual one first -> what writes it."""
