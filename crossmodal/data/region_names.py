"""The names of image databases, UNITER's and ours, and which of them a folder and a box rule mean.

With {t} = ``th{conf_th}_max{max_bb}_min{min_bb}``:

| box rule | database folder | box counts |
| --- | --- | --- |
| conf_th >= 0 | ``feat_{t}`` | ``nbb_{t}.json`` beside it |
| conf_th >= 0, no such JSON | ``all`` (every box) | ``nbb.json`` beside it, else from the confidences |
| conf_th = -1 | ``feat_numbb{num_bb}`` | always num_bb, or ``nbb_numbb{num_bb}.json`` beside it |

The last JSON isn't a published one: it is written only where an image has fewer than num_bb boxes.
The flavour is told by the ending: none for msgpack, ``_compressed`` for npz, ``_raw`` for ours; all flavours of a
database share one JSON, but ``all_compressed`` is always counted from the confidences.
Numbers are written as Python prints them: 0.2, never 0.20. What ends in ``.partial`` is being written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossmodal.data.region_db import BoxRule
from crossmodal.errors import ConfigError, DataError

ENDINGS = {"raw": "_raw", "msgpack": "", "npz": "_compressed"}
"""Flavour -> how its databases' names end; the first that is there is read where none is asked for."""
PARTIAL = ".partial"

_PATTERN = re.compile(
    r"(?:feat_th(?P<th>[^_]+)_max(?P<max>\d+)_min(?P<min>\d+)|feat_numbb(?P<num>\d+)|(?P<all>all))"
    r"(?P<ending>_compressed|_raw)?"
)
_READ_WITH = {"_raw": "compressed unset", None: "compressed=False", "_compressed": "compressed=True"}


@dataclass(frozen=True)
class Found:
    """A database folder, the JSON of its box counts (None: fixed or to be counted), and the rule in force."""

    folder: Path
    counts: Path | None
    rule: BoxRule


def database_name(rule: BoxRule, flavour: str = "msgpack") -> str:
    """Raises ConfigError for a flavour that isn't one."""
    stem = f"feat_numbb{rule.num_bb}" if rule.fixed else f"feat_{_threshold(rule, rule.conf_th)}"
    return stem + ending(flavour)


def ending(flavour: str) -> str:
    """Raises ConfigError for a flavour that isn't one."""
    if flavour not in ENDINGS:
        raise ConfigError(f"{flavour!r} is no flavour of image databases; choose one of {', '.join(ENDINGS)}.")
    return ENDINGS[flavour]


def stem(database: str) -> str:
    """The name of a database without the ending of its flavour."""
    return database.removesuffix(ENDINGS["npz"]).removesuffix(ENDINGS["raw"])


def flavours(compressed: bool | None) -> Sequence[str]:
    """The flavours that the published option `compressed` allows, in the order in which they are looked for."""
    if compressed is None:
        return tuple(ENDINGS)
    return ("npz",) if compressed else ("msgpack", "raw")


def counts_name(rule: BoxRule) -> str:
    """The JSON of box counts that goes with a rule."""
    return f"nbb_numbb{rule.num_bb}.json" if rule.fixed else f"nbb_{_threshold(rule, rule.conf_th)}.json"


def find(path: Path, rule: BoxRule, allowed: Sequence[str]) -> Found:
    """The database that `path` means: a database folder itself, or the folder of databases of an image set.

    A database folder's own name overrides `rule` and `allowed`; of an image set, the first of the `allowed`
    flavours that is there is taken. Raises DataError, naming the databases that are there and the options that
    would read them.
    """
    if path.name.endswith(PARTIAL):
        raise DataError(f"{path} is half-built; repeat the command that was writing it, which continues it.")
    if (path / "data.mdb").exists():
        return _named(path, rule)
    endings = [ending(flavour) for flavour in allowed]
    stems: list[tuple[str, Path | None]] = []
    if rule.fixed:
        stems = [(f"feat_numbb{rule.num_bb}", _if_there(path / counts_name(rule)))]
    else:
        for spelling in _spellings(rule.conf_th):
            threshold = _threshold(rule, spelling)
            if (path / f"nbb_{threshold}.json").exists():
                stems.append((f"feat_{threshold}", path / f"nbb_{threshold}.json"))
        stems = stems or [("all", None)]
    for name, counts in stems:
        for suffix in endings:
            folder = path / f"{name}{suffix}"
            if (folder / "data.mdb").exists():
                return Found(folder, counts or _if_there(counts_path(folder.resolve(), rule)), rule)
    looked_for = [name + suffix for name, _ in stems for suffix in endings]
    if stems[0][0] == "all":
        looked_for.insert(0, f"{counts_name(rule)} with {database_name(rule)}{endings[0]}")
    raise DataError(f"{path} has no database for these options (looked for {', or '.join(looked_for)}); {_there(path)}")


def counts_path(folder: Path, rule: BoxRule) -> Path | None:
    """Where the JSON of box counts of a database folder stands, if there is one; None where none is read."""
    match = _PATTERN.fullmatch(folder.name)
    if match is None or folder.name == "all_compressed":
        return None
    if match["all"]:
        return folder.parent / "nbb.json"
    return folder.parent / (counts_name(rule) if match["num"] else f"nbb_{_threshold(rule, match['th'])}.json")


def _named(folder: Path, rule: BoxRule) -> Found:
    folder = folder.resolve()
    match = _PATTERN.fullmatch(folder.name)
    if match and match["num"]:
        rule = BoxRule(-1, rule.max_bb, rule.min_bb, int(match["num"]))
    elif match and match["th"]:
        rule = BoxRule(float(match["th"]), int(match["max"]), int(match["min"]), rule.num_bb)
    return Found(folder, _if_there(counts_path(folder, rule)), rule)


def _if_there(path: Path | None) -> Path | None:
    return path if path is not None and path.exists() else None


def _threshold(rule: BoxRule, conf_th: float | str) -> str:
    return f"th{conf_th}_max{rule.max_bb}_min{rule.min_bb}"


def _spellings(conf_th: float) -> list[str]:
    """0.0 on a command line is 0 in many a JSON file, and both found their way into names."""
    whole = float(conf_th).is_integer()
    return list(dict.fromkeys([str(conf_th), str(float(conf_th)), *([str(int(conf_th))] if whole else [])]))


def _there(path: Path) -> str:
    if not path.is_dir():
        return "the folder does not exist; check the path."
    named = {p.parent.name: _PATTERN.fullmatch(p.parent.name) for p in sorted(path.glob("*/data.mdb"))}
    if not named:
        return "it holds no LMDB folder at all; check the path."
    return "databases there: " + "; ".join(f"{name} ({_options(name, m, path)})" for name, m in named.items()) + "."


def _options(name: str, match: re.Match[str] | None, path: Path) -> str:
    if match is None:
        return "half-built" if name.endswith(PARTIAL) else "name its folder as the path"
    flavour = _READ_WITH[match["ending"]]
    if match["num"]:
        return f"conf_th=-1, num_bb={match['num']}, {flavour}"
    if match["all"]:
        return f"{flavour}, any conf_th >= 0 whose nbb JSON is absent"
    options = f"conf_th={match['th']}, max_bb={match['max']}, min_bb={match['min']}, {flavour}"
    counts = f"nbb_th{match['th']}_max{match['max']}_min{match['min']}.json"
    if (path / counts).exists():
        return options
    return f"{options}, but {counts} is missing beside it: name its folder as the path"
