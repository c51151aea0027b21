"""The results of a suite: a table for the terminal, and results.json, scores.jsonl and a figure in a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossmodal.evaluate.plots import plot_suite, save_figure
from crossmodal.evaluate.results import savez, text_table
from crossmodal.files import write_whole

from .items import Answers
from .metrics import Share
from .published import PUBLISHED

_FORMAT = 1
_LISTED = 3  # missing images that are named on the terminal; results.json names all of them


@dataclass(frozen=True)
class Outcome:
    """What a run gave. missing: names of images that were asked about and are not there; left_out: the questions on
    them, of `asked` + `left_out` in all. ties, shown, note: those of the test.
    """

    suite: str
    answers: Answers
    ties: str
    asked: int
    left_out: int = 0
    missing: list[str] = field(default_factory=list)
    shown: tuple[str, ...] = ()
    note: str = ""

    @property
    def rows(self) -> Mapping[str, Share]:
        return self.answers.rows

    @property
    def questions(self) -> str:
        """How many were asked, and of how many."""
        of = f" of {self.asked + self.left_out:,}" if self.left_out else ""
        return f"{self.asked:,}{of} questions"

    @property
    def summary(self) -> dict[str, Share]:
        """The rows that sum it up, those that are named for being incomplete among them."""
        if not self.shown:
            return dict(self.rows)
        return {name: row for name, row in self.rows.items() if name.split(" (")[0] in self.shown}


def describe(outcome: Outcome, label: str = "score") -> str:
    """The table in percent, with the published figures of the same rows, and what was left out."""
    published = {
        name: of for name, of in PUBLISHED.get(outcome.suite, {}).items() if any(r in outcome.rows for r in of)
    }
    head = [outcome.suite, label, "cases", "ties", *(f"{name} (published)" for name in published)]
    table = [
        [name, _percent(row.value), str(row.count), str(row.ties), *(_published(of, name) for of in published.values())]
        for name, row in outcome.rows.items()
    ]
    lines = [text_table([head, *table]), f"{outcome.questions}; {outcome.ties}"]
    if outcome.note:
        lines.append(outcome.note)
    if outcome.missing:
        some = ", ".join(outcome.missing[:_LISTED]) + (", ..." if len(outcome.missing) > _LISTED else "")
        lines.append(f"missing images: {len(outcome.missing):,} ({some}); questions left out: {outcome.left_out:,}")
    return "\n".join(lines)


def save(folder: Path, outcome: Outcome, label: str, settings: Mapping[str, Any]) -> Path:
    """scores.jsonl or scores.npz, the figure, and results.json last: a folder that has it is complete."""
    published = PUBLISHED.get(outcome.suite, {})
    content = {
        "format": _FORMAT,
        "suite": outcome.suite,
        "rows": {name: {**vars(row), "value": _json(row.value)} for name, row in outcome.rows.items()},
        "summary": list(outcome.summary),
        "tie_rule": outcome.ties,
        "note": outcome.note,
        "asked": outcome.asked,
        "left_out": outcome.left_out,
        "missing": outcome.missing,
        "published": published,
        "settings": dict(settings),
    }
    for name in ("results.json", "scores.jsonl", "scores.npz"):
        (folder / name).unlink(missing_ok=True)  # of an earlier run: they must not vouch for each other
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in outcome.answers.records)
    if lines:
        write_whole(folder / "scores.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))
    if outcome.answers.arrays:
        write_whole(folder / "scores.npz", lambda path: savez(path, outcome.answers.arrays))
    values = {label: {name: row.value for name, row in outcome.summary.items()}}
    for system, figures in published.items():
        values[f"{system} (published)"] = {name: figures[name] / 100 for name in outcome.summary if name in figures}
    figure = plot_suite({name: of for name, of in values.items() if of}, title=f"{outcome.suite}, {outcome.questions}")
    save_figure(figure, folder / f"{outcome.suite}.png")
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_whole(folder / "results.json", lambda path: path.write_text(text, encoding="utf-8"))


def _published(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[name]:.1f}" if name in figures else ""


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.2f}"


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
