"""Figures: training curves, recall bars, accuracy by kind of edit, word-to-region attention.

Every function returns a matplotlib figure that `save_figure` writes as a PNG and the report embeds. Colours
are the Okabe-Ito palette, told apart by colour-blind readers; runs differ by line style or hatching as well.
No pyplot: nothing global is touched and no window is needed.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from PIL import Image

from crossmodal.errors import DataError
from crossmodal.files import write_whole

from .bootstrap import Intervals
from .recall import KS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", "--", "-.", ":")
_HATCHES = ("", "///", "...", "xxx")
_INK, _FAINT = "#333333", "#D9D9D9"
_SMOOTH_FROM = 60  # points from which a running mean is drawn over the raw curve
_ACROSS = 4  # attention panels side by side
_AXES = (5, 24)  # rows that a radar is drawn of

Row = Mapping[str, Any]
Picture = Image.Image | np.ndarray


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`: {"step", "name", "value"}; a last line cut short is left out."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise DataError(f"{path} line {number} is not JSON: {line[:60]!r}; remove it") from error
    return rows


def plot_curves(runs: Mapping[str, Sequence[Row]], names: Sequence[str], *, title: str = "") -> Figure:
    """Curves over the training steps, one panel a metric name, one line a run.

    runs: label -> rows {"step", "name", "value"} of its metrics.jsonl. Long curves show the values faintly
    and their running mean on top. Values that aren't finite are left out.
    """
    across = min(2, len(names)) or 1
    down = math.ceil(len(names) / across) or 1
    figure = _figure(4.0 * across, 2.9 * down, title)
    axes: list[Axes] = [figure.add_subplot(down, across, i + 1) for i in range(len(names))]
    for name, ax in zip(names, axes, strict=True):
        for i, (label, rows) in enumerate(runs.items()):
            points = sorted((r["step"], r["value"]) for r in rows if r["name"] == name and np.isfinite(r["value"]))
            if points:
                _curve(ax, np.asarray(points, dtype=float), label, i)
        _bare(ax, name)
        ax.set_xlabel("step")
        if not ax.lines:
            _say(ax, "no values")
    _legend(figure, _handles(*axes))
    return figure


def plot_recall(
    runs: Mapping[str, Mapping[str, float]],
    *,
    intervals: Mapping[str, Intervals] | None = None,
    chance: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Bars of R@1, 5, 10 both ways, one colour a run, with intervals and the level of chance.

    runs: label -> metrics of `recall`; intervals: label -> intervals of `bootstrap`; chance: see `chance`.
    """
    groups = [(f"{side}_r{k}", f"{word} R@{k}") for side, word in (("txt", "text"), ("img", "image")) for k in KS]
    figure = _figure(7.6, 3.6, title)
    ax = figure.add_subplot()
    values = {label: [metrics[name] for name, _ in groups] for label, metrics in runs.items()}
    bounds = {label: [known[name] for name, _ in groups] for label, known in (intervals or {}).items()}
    _bars(ax, [words for _, words in groups], values, bounds, [chance[n] for n, _ in groups] if chance else None)
    _legend(figure, _handles(ax))
    return figure


def plot_edits(
    runs: Mapping[str, Mapping[str, float]], *, chance: float = 0.5, title: str = "accuracy by kind of edit"
) -> Figure:
    """Bars of accuracy by kind of edit: how often the true caption scored above the edited one.

    runs: label -> kind of edit -> share between 0 and 1.
    """
    kinds = list(dict.fromkeys(kind for accuracy in runs.values() for kind in accuracy))
    figure = _figure(max(4.0, 1.6 * len(kinds) + 1), 3.6, title)
    ax = figure.add_subplot()
    values = {label: [accuracy.get(k, math.nan) for k in kinds] for label, accuracy in runs.items()}
    _bars(ax, [k.replace("_", "\n") for k in kinds], values, {}, [chance] * len(kinds))
    _legend(figure, _handles(ax))
    return figure


def plot_suite(runs: Mapping[str, Mapping[str, float]], *, title: str = "") -> Figure:
    """The rows of a suite: a radar of five rows or more, bars of fewer and of very many.

    runs: label -> row -> share between 0 and 1. A run's line is broken where it has no value.
    """
    rows = list(dict.fromkeys(row for of_run in runs.values() for row in of_run))
    if not _AXES[0] <= len(rows) <= _AXES[1]:
        figure = _figure(max(4.0, 1.6 * len(rows) + 1), 3.6, title)
        bars = figure.add_subplot()
        values = {label: [of_run.get(row, math.nan) for row in rows] for label, of_run in runs.items()}
        _bars(bars, [row.replace("_", "\n") for row in rows], values, {}, None)
        _legend(figure, _handles(bars))
        return figure
    angles = np.linspace(0, 2 * np.pi, len(rows), endpoint=False)
    figure = _figure(9.2, 6.4, title)
    ax: Any = figure.add_subplot(projection="polar")
    for i, (label, of_run) in enumerate(runs.items()):
        radii = 100 * np.asarray([of_run.get(row, math.nan) for row in rows])
        colour, line = COLOURS[i % len(COLOURS)], _LINES[i % len(_LINES)]
        around, closed = np.append(angles, 2 * np.pi), np.append(radii, radii[0])
        ax.plot(
            around, closed, color=colour, linestyle=line, linewidth=1.8, marker="o", markersize=4, label=label,
            clip_on=False,
        )  # fmt: skip
    ax.set_theta_zero_location("N")
    ax.set_theta_direction(-1)
    ax.set_xticks(angles, [row.replace("_", " ") for row in rows])
    for label, side in zip(ax.get_xticklabels(), np.sin(angles), strict=True):
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    ax.set_ylim(0, 100)
    ax.set_yticks(range(0, 101, 20))
    ax.set_rlabel_position(180 / len(rows))  # between two rows
    ax.tick_params(axis="x", pad=4)
    ax.tick_params(colors=_INK, labelsize=9)
    ax.grid(color=_FAINT, linewidth=0.7)
    _legend(figure, _handles(ax))
    return figure


def plot_cost(points: Mapping[str, tuple[float, float]], *, title: str = "") -> Figure:
    """How good against how dear, one point a way of searching: label -> (milliseconds a query, mean R@1).

    The costs are drawn on a logarithmic scale, the recall in percent.
    """
    figure = _figure(6.4, 4.0, title)
    ax = figure.add_subplot()
    for i, (label, (cost, found)) in enumerate(points.items()):
        ax.plot(cost, 100 * found, "o", color=COLOURS[i % len(COLOURS)], markersize=8, label=label)
    _bare(ax)
    ax.set_xscale("log")
    ax.set_xlabel("scoring, milliseconds a query", color=_INK)
    ax.set_ylabel("mean R@1, %", color=_INK)
    ax.set_ylim(0, 104)
    _legend(figure, _handles(ax))
    return figure


def draw_attention(
    picture: Picture, boxes: ArrayLike, words: Sequence[str], weights: ArrayLike, *, strongest: int = 2
) -> Figure:
    """Word-to-region attention drawn on the picture: one panel a word.

    picture: an image or (H,W,3) array; boxes (R,4) x1, y1, x2, y2 as shares of width and height; weights
    (words, R), each row that word's attention over the regions. What a word doesn't attend to is veiled, its
    `strongest` regions are outlined, and the panel's heading gives the share of the first.
    """
    pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    place, share = np.asarray(boxes, dtype=float), np.asarray(weights, dtype=float)
    if share.shape != (len(words), len(place)) or place.shape[1:] != (4,):
        raise DataError(
            f"attention {share.shape} for {len(words)} words and boxes {place.shape}: "
            "give weights (words, R) and boxes (R,4)"
        )
    height, width = pixels.shape[:2]
    across = min(_ACROSS, len(words)) or 1
    down = math.ceil(len(words) / across) or 1
    side = 2.0
    figure = _figure(side * across, (side * height / width + 0.35) * down, "")
    corners = place * [width, height, width, height]
    for i, word in enumerate(words):
        ax = figure.add_subplot(down, across, i + 1)
        ax.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest" if width < 200 else "auto")
        ax.imshow(_veil(corners, share[i], height, width), extent=(0, width, height, 0), interpolation="nearest")
        order = share[i].argsort()[::-1][:strongest]
        for rank, region in reversed(list(enumerate(order))):
            x1, y1, x2, y2 = corners[region]
            for colour, line in (("white", 4.0), (COLOURS[1] if rank == 0 else COLOURS[0], 2.0)):
                ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=line - 0.7 * rank))
        ax.set_title(f"{word}  {100 * share[i].max(initial=0):.0f}%", fontsize=10, color=_INK)
        ax.set_xlim(0, width)
        ax.set_ylim(height, 0)
        ax.set_axis_off()
    return figure


def png(figure: Figure, *, dpi: int = 144) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write the figure as a PNG file."""
    return write_whole(Path(path), lambda temporary: temporary.write_bytes(png(figure)))


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12, color=_INK)
    return figure


def _bare(ax: Axes, title: str = "") -> None:
    ax.set_title(title, fontsize=10, color=_INK, loc="left")
    ax.grid(axis="y", color=_FAINT, linewidth=0.7)
    ax.set_axisbelow(True)
    for edge in ("top", "right"):
        ax.spines[edge].set_visible(False)
    ax.tick_params(colors=_INK, labelsize=9)


def _say(ax: Axes, words: str) -> None:
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color=_INK)
    ax.set_xticks([])
    ax.set_yticks([])


def _handles(*axes: Axes) -> dict[str, Any]:
    """Legend entries by label, each label once, chance at the end."""
    pairs = [pair for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    return {label: handle for handle, label in sorted(pairs, key=lambda pair: pair[1] == "chance")}


def _legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    if handles:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=4,
            frameon=False,
            fontsize=9,
        )


def _curve(ax: Axes, points: np.ndarray, label: str, i: int) -> None:
    colour, line = COLOURS[i % len(COLOURS)], _LINES[i % len(_LINES)]
    steps, values = points[:, 0], points[:, 1]
    if len(points) >= _SMOOTH_FROM:
        ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        window = len(points) // 20
        total = np.concatenate([[0.0], values.cumsum()])
        values = (total[window:] - total[:-window]) / window
        steps = steps[window // 2 :][: len(values)]  # each mean stands in the middle of its window
    marker = "o" if len(points) < 12 else ""
    ax.plot(steps, values, color=colour, linestyle=line, linewidth=1.8, marker=marker, markersize=4, label=label)


def _bars(
    ax: Axes,
    groups: Sequence[str],
    values: Mapping[str, Sequence[float]],
    bounds: Mapping[str, Sequence[tuple[float, float]]],
    chance: Sequence[float] | None,
) -> None:
    """Grouped bars in percent: label -> one value a group; whiskers, and dashes at the level of chance."""
    width = 0.8 / max(1, len(values))
    centres = np.arange(len(groups))
    for i, (label, shares) in enumerate(values.items()):
        x = centres + (i - (len(values) - 1) / 2) * width
        heights = 100 * np.asarray(shares)
        ax.bar(
            x, heights, width * 0.94, label=label, color=COLOURS[i % len(COLOURS)], edgecolor="white",
            linewidth=0, hatch=_HATCHES[i % len(_HATCHES)],
        )  # fmt: skip
        tops = heights
        if label in bounds:
            low, high = (100 * np.asarray(bounds[label])).T
            around = np.maximum(0, [heights - low, high - heights])
            ax.errorbar(x, heights, yerr=around, fmt="none", ecolor=_INK, elinewidth=1.2, capsize=3)
            tops = np.maximum(heights, high)
        for place, top, height in zip(x, tops, heights, strict=True):
            if np.isfinite(height):
                ax.annotate(
                    f"{height:.0f}", (place, top), xytext=(0, 2), textcoords="offset points", ha="center",
                    fontsize=8, color=_INK,
                )  # fmt: skip
    if chance is not None:
        ax.hlines(
            100 * np.asarray(chance), centres - 0.45, centres + 0.45, colors="black", linestyles=(0, (3, 2)),
            linewidth=1.4, label="chance",
        )  # fmt: skip
    _bare(ax)
    ax.set_xticks(centres, list(groups))
    ax.set_ylim(0, 108)
    ax.set_yticks(range(0, 101, 20))
    ax.set_ylabel("%", rotation=0, color=_INK)


def _veil(corners: np.ndarray, share: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H,W,4) white that hides what isn't attended to: each pixel as clear as its most attended region."""
    clear = np.zeros((height, width))
    strongest = share.max(initial=0) or 1.0
    for (x1, y1, x2, y2), weight in zip(corners, share, strict=True):
        rows = slice(max(0, math.floor(y1)), max(0, math.ceil(y2)))
        columns = slice(max(0, math.floor(x1)), max(0, math.ceil(x2)))
        np.maximum(clear[rows, columns], weight / strongest, out=clear[rows, columns])
    veil = np.ones((height, width, 4))
    veil[..., 3] = 0.78 * (1 - clear)
    return veil
