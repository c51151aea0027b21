"""Training checkpoints: the model's folder with what is needed to go on bit for bit beside it."""

from __future__ import annotations

import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossmodal.errors import CheckpointError
from crossmodal.files import write_folder
from crossmodal.model.base import Model
from crossmodal.model.checkpoints import save

STATE = "training.pt"
_STEP = re.compile(r"step_(\d+)")


def random_state() -> dict[str, Any]:
    """The state of every generator of this process, as plain containers and tensors."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def write(folder: Path, model: Model, training: dict[str, Any] | None = None) -> None:
    """Write a checkpoint folder whole: the model and, where given, the state of training."""

    def fill(temporary: Path) -> None:
        save(model, temporary)
        if training is not None:
            torch.save(training, temporary / STATE)

    write_folder(folder, fill)


def steps(run: Path) -> list[tuple[int, Path]]:
    """The step checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in (run / "checkpoints").glob("step_*") if (m := _STEP.fullmatch(p.name))]
    return sorted(found)


def drop_old(run: Path, keep: int) -> None:
    """Remove all but the latest `keep` step checkpoints."""
    import shutil

    for _, folder in steps(run)[:-keep]:
        shutil.rmtree(folder)


def read_training(run: Path) -> tuple[Path, dict[str, Any]]:
    """The latest step checkpoint of a run and its training state. Raises CheckpointError where there is none."""
    found = steps(run)
    if not found:
        raise CheckpointError(
            f"{run} holds no checkpoint to resume from (checkpoints/step_*); start again with a new output folder"
        )
    _, folder = found[-1]
    try:
        return folder, torch.load(folder / STATE, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{folder / STATE} cannot be read ({error}); remove {folder} to resume before it"
        ) from None
