"""Training checkpoints: the model's folder with what is needed to go on bit for bit beside it."""

from __future__ import annotations

import json
import logging
import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossmodal.errors import CheckpointError
from crossmodal.files import remove_folder, write_folder
from crossmodal.model.base import Model
from crossmodal.model.checkpoints import fingerprint, read_state, save
from crossmodal.model.checksums import check_sums, read_sums, write_sums
from crossmodal.model.pickles import save_torch, why_unreadable

STATE = "training.pt"
BEST = "best.json"
_KEYS = {"step", "optimizer", "scaler", "losses", "random", "ranks"}
_STEP = re.compile(r"step_(\d+)")

log = logging.getLogger("crossmodal")

State = dict[str, Any]


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


def write(folder: Path, model: Model, training: State | None = None, best: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint folder whole: the model and, where given, the state of training or what makes it the best.

    Raises DiskError where there is no room for it; what was there before stays.
    """

    def fill(temporary: Path) -> None:
        save(model, temporary)
        if training is not None:
            save_torch(training, temporary / STATE)
        if best is not None:
            (temporary / BEST).write_text(json.dumps(best))
        write_sums(temporary)

    write_folder(folder, fill)


def best_value(run: Path, step: int) -> float:
    """The metric of a run's best checkpoint up to a step; below every metric where there is none, or it is damaged.

    A best checkpoint of a later step does not count: that step is still to come, perhaps with another recipe.
    """
    try:
        check_sums(run / "best")
        best = json.loads((run / "best" / BEST).read_text())
        return float(best["value"]) if best["step"] <= step else -1.0
    except FileNotFoundError:
        return -1.0
    except (CheckpointError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be used (%s); the next validation writes it anew", run / "best", error)
        return -1.0


def same_weights(folder: Path, other: Path) -> bool:
    """Whether a folder is whole and holds the weights of another one."""
    try:
        check_sums(folder)
        return fingerprint(folder) == fingerprint(other)
    except CheckpointError:
        return False


def steps(run: Path) -> list[tuple[int, Path]]:
    """The step checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in (run / "checkpoints").glob("step_*") if (m := _STEP.fullmatch(p.name))]
    return sorted(found)


def drop_old(run: Path, keep: int) -> None:
    """Remove all but the latest `keep` step checkpoints."""
    for _, folder in steps(run)[:-keep]:
        remove_folder(folder)


def latest(run: Path) -> tuple[Path, State] | None:
    """The latest step checkpoint of a run that is whole, with its training state; None where there is none at all.

    Those after it are kept as ``step_N.damaged``, and said. Raises CheckpointError where all are damaged.
    """
    found = [folder for _, folder in reversed(steps(run))]
    reasons: list[CheckpointError] = []
    for folder in found:
        try:
            if read_sums(folder) is None:  # of another tool: what can be read is taken
                read_state(folder)
            check_sums(folder)
            state = read_training(folder)
        except CheckpointError as error:
            reasons.append(error)
            continue
        if reasons:
            _set_aside(found[: len(reasons)], folder, reasons[0])
        return folder, state
    if found:
        what = "the checkpoint" if len(found) == 1 else f"each of the {len(found)} checkpoints"
        raise CheckpointError(
            f"{what} in {run / 'checkpoints'} is damaged ({reasons[0]}); start again with a new output folder"
        )
    return None


def _set_aside(damaged: Sequence[Path], good: Path, why: CheckpointError) -> None:
    for folder in damaged:
        aside = folder.with_name(f"{folder.name}.damaged")
        remove_folder(aside)
        os.rename(folder, aside)
    names = " and ".join(folder.name for folder in damaged)
    log.warning("going on from %s, since %s cannot be used (%s) and is kept as *.damaged", good, names, why)


def read_training(folder: Path) -> State:
    """The training state in a step checkpoint. Raises CheckpointError where it cannot be used."""
    file = folder / STATE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no {STATE}, so training cannot go on from it") from None
    except Exception as error:  # torch raises many kinds; each means: not readable as data
        raise CheckpointError(f"{file} cannot be read ({why_unreadable(file, error)})") from None
    missing = _KEYS - state.keys() if isinstance(state, dict) else _KEYS
    if missing:
        raise CheckpointError(f"{file} is no training state: it lacks {', '.join(sorted(missing))}")
    return dict(state)
