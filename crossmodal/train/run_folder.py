"""A run's folder: what it must hold to begin in it or to go on in it, and what it says about the run."""

from __future__ import annotations

import json
import logging
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from crossmodal import __version__
from crossmodal.errors import CheckpointError, ConfigError, CrossmodalError
from crossmodal.files import recover_within, write_whole

from . import checkpoints
from .distributed import OneProcess
from .recipe import Recipe, load_recipe

RECIPE = "recipe.yaml"
VERSIONS = "versions.json"

log = logging.getLogger("crossmodal")


class RunFolder:
    """recipe.yaml, versions.json, metrics.jsonl, tensorboard/, checkpoints/step_N, best, last, not_finite.jsonl.

    Rank 0 alone writes there; the others learn from it.
    """

    def __init__(self, path: Path, ranks: OneProcess) -> None:
        self.path, self.ranks = path, ranks

    def begun(self) -> bool:
        """Whether a run was begun here."""
        return bool(self.ranks.broadcast_object((self.path / RECIPE).is_file()))

    def refuse_used(self) -> None:
        """Raises ConfigError where something is there already, but for what a killed start left half-written."""
        used = self.path.exists() and (not self.path.is_dir() or any(not _is_partial(p) for p in self.path.iterdir()))
        if self.ranks.broadcast_object(used):  # what rank 0 saw
            raise ConfigError(
                f"the output folder {self.path} is not empty; choose another, or add --resume to go on with its run"
            )

    def latest(self, recipe: Recipe) -> tuple[Path, checkpoints.State] | None:
        """The checkpoint to go on from and its training state; None where the run has not written one yet.

        Raises CheckpointError where there is no run, or all of its checkpoints are damaged.
        """
        found: tuple[Path, checkpoints.State] | None = None
        refused: CrossmodalError | None = None
        if self.ranks.rank == 0:
            try:
                found = self._latest(recipe)
            except CrossmodalError as error:
                refused = error
        folder, refused = self.ranks.broadcast_object((found and str(found[0]), refused))
        if refused is not None:
            raise refused
        if folder is None:
            return None
        return found or (Path(folder), checkpoints.read_training(Path(folder)))

    def _latest(self, recipe: Recipe) -> tuple[Path, checkpoints.State] | None:
        ours = (self.path / RECIPE).is_file()
        for folder in (self.path, self.path / "checkpoints"):
            if ours and folder.is_dir():
                recover_within(folder)
        found = checkpoints.latest(self.path)
        if found is None and not ours:
            raise CheckpointError(
                f"{self.path} holds no checkpoint to resume from (checkpoints/step_*); "
                "start again with a new output folder"
            )
        if found is None:
            log.warning("%s holds no checkpoint yet: starting from the beginning", self.path)
        self._compare(recipe)
        return found

    def _compare(self, recipe: Recipe) -> None:
        try:
            before = _flat(load_recipe(self.path / RECIPE).model_dump(mode="json"))
        except CrossmodalError:
            return log.warning("%s cannot be read and is not compared with this recipe", self.path / RECIPE)
        now = _flat(recipe.model_dump(mode="json"))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if "optimizer.use" in changed:
            raise ConfigError(
                f"{self.path} was trained with the optimizer {before['optimizer.use']}, whose state does not fit "
                f"{now['optimizer.use']}; resume with the same optimizer.use"
            )
        if changed:
            log.warning("going on with another recipe than before; what differs: %s", ", ".join(changed))

    def prepare(self, recipe: Recipe) -> None:
        """Write the recipe and the versions."""
        if self.ranks.rank == 0:
            self.path.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False)
            write_whole(self.path / RECIPE, lambda path: path.write_text(text))
            versions = {"crossmodal": __version__, "torch": torch.__version__, "numpy": np.__version__,
                        "python": platform.python_version(), "ranks": self.ranks.size}  # fmt: skip
            write_whole(self.path / VERSIONS, lambda path: path.write_text(json.dumps(versions, indent=2)))
        self.ranks.barrier()

    @property
    def resume_command(self) -> str:
        """What goes on with this run."""
        words = ["crossmodal", "train", "--config", str(self.path / RECIPE), "--output", str(self.path), "--resume"]
        return shlex.join(words)


def new_run_folder(kind: str = "run") -> Path:
    """The next numbered folder under runs/."""
    root = Path("runs")
    root.mkdir(exist_ok=True)
    taken = [int(p.name.rpartition("_")[2]) for p in root.glob(f"{kind}_*") if p.name.rpartition("_")[2].isdigit()]
    return root / f"{kind}_{max(taken, default=0) + 1:03d}"


def _is_partial(path: Path) -> bool:
    return path.name.startswith(f".{RECIPE}.") and path.name.endswith(".partial")


def _flat(values: Any, at: str = "") -> Mapping[str, Any]:
    """``{"a": [{"b": 1}]}`` as ``{"a.0.b": 1}``."""
    if not isinstance(values, (dict, list)):
        return {at: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    out: dict[str, Any] = {}
    for key, value in items:
        out |= _flat(value, f"{at}.{key}" if at else str(key))
    return out
