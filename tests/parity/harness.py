"""Reading reference cases and comparing with them, as DESIGN.md section 5 ("Reference vectors") says."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(os.environ.get("CROSSMODAL_GOLDEN") or Path(__file__).parent.parent / "golden")

Handler = Callable[["Case"], None]
HANDLERS: dict[tuple[str, str], Handler] = {}


def kind(system: str, *names: str) -> Callable[[Handler], Handler]:
    """Register the function that checks every case of these kinds of one system."""

    def decorate(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[system, name] = handler
        return handler

    return decorate


@dataclass
class Case:
    """One reference case: `json` is case.json, `arrays` what arrays.npz holds, by name."""

    folder: Path
    checked: set[str] = field(default_factory=set)

    @property
    def system(self) -> str:
        return self.folder.parent.name

    @cached_property
    def json(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "case.json").read_text())
        return loaded

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        path = self.folder / "arrays.npz"
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Every array below `prefix/` or `prefix.` (systems differ), by the rest of its name."""
        starts = (prefix + "/", prefix + ".")
        return {k[len(prefix) + 1 :]: self.tensor(k) for k in self.arrays if k.startswith(starts)}

    @property
    def hyper(self) -> dict[str, Any]:
        return dict(self.json["hyper"])

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.json["config"])

    def mode(self, name: str) -> str:
        """`close` (the default), or what `compare` says for this name: finite, skip or set."""
        for pattern, mode in self.json.get("compare", {}).items():
            if fnmatch.fnmatchcase(name, pattern):
                return str(mode)
        return "close"

    def scalar(self, name: str, ours: Any) -> None:
        """Compare with a recorded number, nested names joined by a slash."""
        self.equal(name, ours, _find(_scalars(self.json), name))

    def array(self, name: str, ours: Any, where: Any = None, expected: Any = None) -> None:
        """Compare with an array; `where` (bool, leading dimensions) picks what is not padding."""
        recorded = self.arrays[name] if expected is None else _numpy(expected)
        self.equal(name, ours, recorded, where)

    def equal(self, name: str, ours: Any, recorded: Any, where: Any = None) -> None:
        self.checked.add(name)
        mode = self.mode(name)
        if mode == "skip":
            return
        ours, recorded = _numpy(ours), _numpy(recorded)
        if where is not None:
            mask = np.asarray(where).astype(bool)
            ours, recorded = ours[mask], recorded[mask]
        assert ours.shape == recorded.shape, f"{name}: shape {ours.shape}, recorded {recorded.shape}"
        if recorded.dtype.kind not in "fc" and mode != "set":
            assert np.array_equal(ours, recorded), f"{name}: {ours} instead of {recorded}"
            return
        if mode == "set":
            ours, recorded = np.sort(ours, axis=None), np.sort(recorded, axis=None)
        if mode == "finite":
            finite = np.isfinite(recorded)
            assert np.isfinite(ours).all(), f"{name}: not finite"
            ours, recorded = ours[finite], recorded[finite]
        rtol, atol = self._tolerance(name, recorded)
        np.testing.assert_allclose(ours, recorded, rtol=rtol, atol=atol, err_msg=name)

    def _tolerance(self, name: str, recorded: np.ndarray) -> tuple[float, float]:
        t = self.json["tolerance"]
        if name.startswith("grad/") and "grad_rtol" in t:
            largest = float(np.abs(recorded).max()) if recorded.size else 0.0
            return t["grad_rtol"], t["grad_atol"] * max(1.0, largest)
        if "out_rtol" in t:
            return t["out_rtol"], t["out_atol"]
        return t["rtol"], t["atol"]


def _scalars(json: dict[str, Any]) -> dict[str, Any]:
    """The recorded numbers; systems name them differently."""
    return next(json[key] for key in ("scalars", "outputs", "scalar_outputs") if json.get(key))


def _find(tree: dict[str, Any], name: str) -> Any:
    """A nested scalar by its slash-joined name; keys may hold slashes themselves."""
    if name in tree:
        return tree[name]
    for key, value in tree.items():
        if isinstance(value, dict) and name.startswith(key + "/"):
            return _find(value, name[len(key) + 1 :])
    raise KeyError(name)


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, str):
        return np.asarray(float(value))
    return np.asarray(value)


def cases() -> list[Path]:
    return sorted(p.parent for p in GOLDEN.glob("*/*/case.json"))
