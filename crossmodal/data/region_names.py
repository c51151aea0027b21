"""The names of UNITER's image databases, and which of them a folder and a box rule mean.

With {t} = ``th{conf_th}_max{max_bb}_min{min_bb}``:

| box rule | database folder | box counts |
| --- | --- | --- |
| conf_th >= 0 | ``feat_{t}`` | ``nbb_{t}.json`` beside it |
| conf_th >= 0, no such JSON | ``all`` (every box) | ``nbb.json`` beside it, else from the confidences |
| conf_th = -1 | ``feat_numbb{num_bb}`` | always num_bb, or ``nbb_numbb{num_bb}.json`` beside it |

The last JSON isn't a published one: it is written only where an image has fewer than num_bb boxes.
Compressed databases end in ``_compressed``; ``all_compressed`` is always counted from the confidences.
Numbers are written as Python prints them: 0.2, never 0.20.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from crossmodal.data.region_db import BoxRule
from crossmodal.errors import DataError

COMPRESSED = "_compressed"
_PATTERN = re.compile(
    r"(?:feat_th(?P<th>[^_]+)_max(?P<max>\d+)_min(?P<min>\d+)|feat_numbb(?P<num>\d+)|(?P<all>all))(?P<z>_compressed)?"
)


@dataclass(frozen=True)
class Found:
    """A database folder, the JSON of its box counts (None: fixed or to be counted), and the rule in force."""

    folder: Path
    counts: Path | None
    rule: BoxRule


def database_name(rule: BoxRule, *, compressed: bool = False) -> str:
    stem = f"feat_numbb{rule.num_bb}" if rule.fixed else f"feat_{_threshold(rule, rule.conf_th)}"
    return stem + (COMPRESSED if compressed else "")


def counts_name(rule: BoxRule) -> str:
    """The JSON of box counts that goes with a rule."""
    return f"nbb_numbb{rule.num_bb}.json" if rule.fixed else f"nbb_{_threshold(rule, rule.conf_th)}.json"


def find(path: Path, rule: BoxRule, compressed: bool | None) -> Found:
    """The database that `path` means: a database folder itself, or the folder of databases of an image set.

    A database folder's own name overrides `rule`. `compressed` None takes whichever flavour is there.
    Raises DataError, naming the databases that are there and the options that would read them.
    """
    if (path / "data.mdb").exists():
        return _named(path, rule)
    endings = ("", COMPRESSED) if compressed is None else (COMPRESSED if compressed else "",)
    stems: list[tuple[str, Path | None]] = []
    if rule.fixed:
        stems = [(f"feat_numbb{rule.num_bb}", _if_there(path / counts_name(rule)))]
    else:
        for spelling in _spellings(rule.conf_th):
            threshold = _threshold(rule, spelling)
            if (path / f"nbb_{threshold}.json").exists():
                stems.append((f"feat_{threshold}", path / f"nbb_{threshold}.json"))
        stems = stems or [("all", None)]
    for stem, counts in stems:
        for ending in endings:
            folder = path / f"{stem}{ending}"
            if (folder / "data.mdb").exists():
                return Found(folder, counts or _counts_of_all(folder), rule)
    looked_for = [stem + ending for stem, _ in stems for ending in endings]
    if stems[0][0] == "all":
        looked_for.insert(0, f"{counts_name(rule)} with {database_name(rule)}")
    raise DataError(f"{path} has no database for these options (looked for {', or '.join(looked_for)}); {_there(path)}")


def _named(folder: Path, rule: BoxRule) -> Found:
    match = _PATTERN.fullmatch(folder.resolve().name)
    if match is None:
        return Found(folder, None, rule)  # a name of the user's own: count from the confidences
    if match["num"]:
        rule = BoxRule(-1, rule.max_bb, rule.min_bb, int(match["num"]))
        return Found(folder, _if_there(folder.resolve().parent / counts_name(rule)), rule)
    if match["all"]:
        return Found(folder, _counts_of_all(folder), rule)
    rule = BoxRule(float(match["th"]), int(match["max"]), int(match["min"]), rule.num_bb)
    counts = folder.resolve().parent / f"nbb_{_threshold(rule, match['th'])}.json"
    return Found(folder, _if_there(counts), rule)


def _counts_of_all(folder: Path) -> Path | None:
    folder = folder.resolve()
    return _if_there(folder.parent / "nbb.json") if folder.name == "all" else None


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None


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
    return "databases there: " + "; ".join(f"{name} ({_options(m, path)})" for name, m in named.items()) + "."


def _options(match: re.Match[str] | None, path: Path) -> str:
    if match is None:
        return "name its folder as the path"
    flavour = f"compressed={bool(match['z'])}"
    if match["num"]:
        return f"conf_th=-1, num_bb={match['num']}, {flavour}"
    if match["all"]:
        return f"{flavour}, any conf_th >= 0 whose nbb JSON is absent"
    options = f"conf_th={match['th']}, max_bb={match['max']}, min_bb={match['min']}, {flavour}"
    counts = f"nbb_th{match['th']}_max{match['max']}_min{match['min']}.json"
    if (path / counts).exists():
        return options
    return f"{options}, but {counts} is missing beside it: name its folder as the path"
