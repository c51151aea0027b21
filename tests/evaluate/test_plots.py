"""Figures: they render, show what they were given, and refuse what doesn't fit."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from crossmodal.errors import DataError
from crossmodal.evaluate.plots import (
    draw_attention,
    plot_curves,
    plot_edits,
    plot_recall,
    plot_suite,
    png,
    read_metrics,
    save_figure,
)
from crossmodal.evaluate.recall import NAMES


def _pixels(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(figure, dpi=72))).convert("RGB"))


def _rows(name: str, count: int, scale: float = 1.0) -> list[dict[str, object]]:
    return [{"step": s, "name": name, "value": scale / (1 + s)} for s in range(count)]


def _texts(figure: Figure) -> set[str]:
    return {t.get_text() for ax in figure.axes for t in [ax.title, *ax.texts]} | {
        ax.get_title(loc="left") for ax in figure.axes
    }


def test_curves_have_a_panel_a_name_and_a_line_a_run() -> None:
    runs = {"iais": _rows("loss", 200) + _rows("valid/r_mean", 3), "plain": _rows("loss", 200, 2.0)}
    runs["plain"].append({"step": 7, "name": "loss", "value": math.nan})
    figure = plot_curves(runs, ["loss", "valid/r_mean", "absent"])
    loss, valid, absent = figure.axes
    assert len(loss.lines) == 4  # faint values and running mean of both runs
    assert len(valid.lines) == 1 and not absent.lines
    assert {"loss", "valid/r_mean", "absent", "no values"} <= _texts(figure)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["iais", "plain"]
    mean = loss.lines[1]
    x, y = np.asarray(mean.get_xdata()), np.asarray(mean.get_ydata())
    values = 1 / (1 + np.arange(200))
    at = int(np.argmax(x == 100))
    assert y[at] == pytest.approx(values[95:105].mean())
    assert _pixels(figure).std() > 5


def test_recall_bars_show_values_intervals_and_chance() -> None:
    metrics = {name: 0.1 * i for i, name in enumerate(NAMES)}
    intervals = {name: (max(0.0, v - 0.05), v + 0.05) for name, v in metrics.items()}
    figure = plot_recall({"a": metrics, "b": metrics}, intervals={"a": intervals}, chance=metrics, title="t")
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_xticklabels()][:2] == ["text R@1", "text R@5"]
    assert [p.get_height() for p in ax.patches][:3] == pytest.approx([0, 10, 20])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b", "chance"]
    assert _pixels(figure).std() > 5


def test_edit_bars_leave_a_gap_for_a_kind_without_value() -> None:
    figure = plot_edits({"a": {"replaced_kind": 0.9, "swapped_colours": 0.5}, "b": {"replaced_kind": 0.8}})
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["replaced\nkind", "swapped\ncolours"]
    assert {"90", "50", "80"} == _texts(figure) - {""}
    assert _pixels(figure).std() > 5


def test_a_suite_is_a_radar_of_five_rows_or_more_and_bars_of_others() -> None:
    ours = {"swap_obj": 0.5, "swap_att": 0.25, "add": 1.0, "b": 0.125, "c": 0}
    figure = plot_suite({"ours": ours, "CLIP (published)": {"add": 0.7}})
    (ax,) = figure.axes
    assert ax.name == "polar"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["swap obj", "swap att", "add", "b", "c"]
    assert np.asarray(ax.lines[0].get_ydata()).tolist() == [50, 25, 100, 12.5, 0, 50]  # closed
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ours", "CLIP (published)"]
    assert _pixels(figure).std() > 5
    for rows in (1, 4, 30):
        (bars,) = plot_suite({"ours": {f"row {i}": 0.5 for i in range(rows)}}).axes
        assert bars.name != "polar" and len(bars.patches) == rows


def test_attention_shows_the_region_that_a_word_looks_at() -> None:
    picture = Image.new("RGB", (40, 30), (200, 0, 0))
    boxes = [[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]
    figure = draw_attention(picture, boxes, ["left", "right"], [[0.9, 0.1], [0.0, 1.0]], strongest=1)
    assert {"left  90%", "right  100%"} <= _texts(figure)
    for ax, clear in zip(figure.axes, ([0.0, 0.78 * 8 / 9], [0.78, 0.0]), strict=True):
        veil = np.asarray(ax.images[1].get_array())[..., 3]
        assert [veil[15, 10], veil[15, 30]] == pytest.approx(clear)
    assert _pixels(figure).std() > 5


@pytest.mark.parametrize("words", [0, 1, 9])
def test_attention_of_any_number_of_words_on_an_array(words: int) -> None:
    weights = np.full((words, 3), 1 / 3)
    figure = draw_attention(np.zeros((8, 9, 3), np.uint8), np.zeros((3, 4)), ["w"] * words, weights)
    assert len(figure.axes) == words
    _pixels(figure)


def test_attention_that_does_not_fit() -> None:
    with pytest.raises(DataError, match="words, R"):
        draw_attention(Image.new("RGB", (4, 4)), np.zeros((3, 4)), ["a"], np.zeros((1, 2)))


def test_save_figure_writes_a_png(tmp_path: Path) -> None:
    path = save_figure(plot_edits({"a": {"k": 0.5}}), tmp_path / "plots" / "edits.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 300
    assert list(path.parent.iterdir()) == [path]


def test_metrics_file_with_a_cut_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "name": "loss", "value": 0.5}, {"step": 2, "name": "loss", "value": 0.4}]
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + '\n{"step": 3, "na')
    assert read_metrics(path) == rows
    path.write_text("\n".join([lines[0], "oops", lines[1]]))
    with pytest.raises(DataError, match="line 2"):
        read_metrics(path)
