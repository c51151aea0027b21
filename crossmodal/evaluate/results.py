"""Evaluation results on disk and on the terminal.

A results folder holds three files, none of them a pickle:

    scores.npz     scores (texts, images) float32, text_ids, image_ids, key
    ranks.npz      image_ranks (texts,) and text_ranks (images,) float64, image_ties, text_ties int64
    results.json   format, metrics, intervals, chance, tie rule, sizes, key and the settings of the run

The key, where there is one, is a hash of everything that the scores were made from: of the same key, the same scores.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossmodal.errors import DataError
from crossmodal.files import write_whole

from .bootstrap import Intervals
from .ranks import Ranks
from .recall import KS

_FORMAT = 1
_UNREADABLE = (OSError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Results:
    """What `load_results` reads: everything that was saved, ids in the order of the matrix."""

    scores: Tensor
    text_ids: list[str]
    image_ids: list[str]
    ranks: Ranks
    metrics: dict[str, float]
    settings: dict[str, Any]
    intervals: Intervals
    chance: dict[str, float]


def save_results(
    folder: str | Path,
    scores: Tensor | np.ndarray,
    text_ids: Sequence[str],
    image_ids: Sequence[str],
    ranks: Ranks,
    metrics: Mapping[str, float],
    settings: Mapping[str, Any],
    *,
    intervals: Intervals | None = None,
    chance: Mapping[str, float] | None = None,
    key: str | None = None,
) -> Path:
    """Write the scores (A,B), the ranks and the metrics into `folder`; `settings` must be fit for JSON.

    results.json is written last: a folder that has it is complete. Raises DataError where the ids don't fit
    the matrix.
    """
    folder = Path(folder)
    shape = (len(text_ids), len(image_ids))
    if tuple(scores.shape) != shape or (len(ranks.image), len(ranks.text)) != shape:
        raise DataError(
            f"results for {folder}: scores {tuple(scores.shape)}, ranks of {len(ranks.image)} captions and "
            f"{len(ranks.text)} images, ids {shape}: give one id for each row and each column"
        )
    matrix = scores.detach().float().cpu().numpy() if isinstance(scores, Tensor) else scores
    # Number and string arrays only, which numpy writes without pickle.
    matrices: dict[str, Any] = {
        "scores": matrix.astype(np.float32, copy=False),
        "text_ids": np.array(text_ids, dtype=str),
        "image_ids": np.array(image_ids, dtype=str),
    }
    if key is not None:
        matrices["key"] = np.array(key)
    per_query: dict[str, Any] = {
        "image_ranks": ranks.image.numpy(),
        "text_ranks": ranks.text.numpy(),
        "image_ties": ranks.image_ties.numpy(),
        "text_ties": ranks.text_ties.numpy(),
    }
    summary = {
        "format": _FORMAT,
        "metrics": dict(metrics),
        "intervals": {name: list(bounds) for name, bounds in (intervals or {}).items()},
        "chance": dict(chance or {}),
        "ties": ranks.ties,
        "texts": shape[0],
        "images": shape[1],
        "key": key,
        "settings": dict(settings),
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "results.json").unlink(missing_ok=True)  # of an earlier run: it must not vouch for these scores
    write_whole(folder / "scores.npz", lambda temporary: savez(temporary, matrices))
    write_whole(folder / "ranks.npz", lambda temporary: savez(temporary, per_query))
    write_whole(folder / "results.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return folder


def savez(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to a file of exactly this name."""
    with path.open("wb") as file:  # given a path, numpy would add an ending to the temporary name
        np.savez(file, **arrays)


def stored_scores(folder: Path, key: str) -> Tensor | None:
    """The scores (A,B) in a results folder, complete or not, if they are whole and were saved under this key."""
    try:
        with np.load(folder / "scores.npz", allow_pickle=False) as file:
            return torch.from_numpy(file["scores"]) if str(file["key"]) == key else None
    except _UNREADABLE:
        return None


def stored_key(folder: Path) -> str | None:
    """The key of the results in a folder; None where there are none, or none is named."""
    try:
        return json.loads((folder / "results.json").read_text(encoding="utf-8")).get("key")
    except _UNREADABLE:
        return None


def load_results(folder: str | Path) -> Results:
    """Read what `save_results` wrote. Raises DataError for a folder that isn't complete, or mixes two evaluations."""
    folder = Path(folder)
    try:
        summary = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        with np.load(folder / "scores.npz", allow_pickle=False) as file:
            scores = torch.from_numpy(file["scores"])
            text_ids, image_ids = file["text_ids"].tolist(), file["image_ids"].tolist()
            key = str(file["key"]) if "key" in file else None
        with np.load(folder / "ranks.npz", allow_pickle=False) as file:
            ranked = Ranks(
                image=torch.from_numpy(file["image_ranks"]),
                text=torch.from_numpy(file["text_ranks"]),
                image_ties=torch.from_numpy(file["image_ties"]),
                text_ties=torch.from_numpy(file["text_ties"]),
                ties=summary["ties"],
            )
        shapes = {(len(text_ids), len(image_ids)), (len(ranked.image), len(ranked.text)), tuple(scores.shape)}
        if key != summary.get("key") or shapes != {(summary["texts"], summary["images"])}:
            raise DataError(
                f"the files in {folder} belong to different evaluations: run the test again, into a folder of its own"
            )
        return Results(
            scores=scores,
            text_ids=text_ids,
            image_ids=image_ids,
            ranks=ranked,
            metrics=summary["metrics"],
            settings=summary["settings"],
            intervals={name: (low, high) for name, (low, high) in summary["intervals"].items()},
            chance=summary["chance"],
        )
    except _UNREADABLE as error:
        raise DataError(f"{folder} holds no complete results ({error}): run the test again") from error


def published_lines(metrics: Mapping[str, float], model: str = "uniter", scorer: str | None = None) -> str:
    """The lines that the published code of this model prints for this scorer; of other models, UNITER's.

    UNITER: percentages with two decimals. ALADIN (its spec section 8): the recalls of the matching head and their
    sum, or the alignment head's recalls, median and mean rank, and NDCG, which it prints as 0.
    """
    if model != "aladin":
        directions = (("image", "img"), ("text", "txt"))
        percents = [(word, k, 100 * metrics[f"{side}_r{k}"]) for word, side in directions for k in KS]
        return "\n".join(f"{word} retrieval R{k}: {percent:.2f}" for word, k, percent in percents)
    lines = []
    for words, side in (("Image to text", "txt"), ("Text to image", "img")):
        recalls = [100 * metrics[f"{side}_r{k}"] for k in KS]
        if scorer != "alignment":
            lines.append(f"Recall {words}: {', '.join(f'{r:.2f}' for r in recalls)}")
            continue
        of_ranks = [math.floor(metrics[f"{side}_median_rank"]), metrics[f"{side}_mean_rank"]]
        numbers = [f"{value:.1f}" for value in (*recalls, *of_ranks)]
        numbers += [f"ndcg_{name}={metrics[key]:.4f}" for key, name in _ndcg(metrics, side).items()]
        lines.append(f"{words}: {', '.join(numbers)}")
    total = "Alignment head rsum" if scorer == "alignment" else "Sum score"
    return "\n".join([*lines, f"{total}: {100 * metrics['rsum']:.2f}"])


def _ndcg(metrics: Mapping[str, float], side: str) -> dict[str, str]:
    """The metrics of NDCG in a direction, and what the published code calls their relevances."""
    start = f"{side}_ndcg_"
    return {key: key.removeprefix(start).replace("rougeL", "rouge") for key in metrics if key.startswith(start)}


def results_table(
    metrics: Mapping[str, float],
    *,
    chance: Mapping[str, float] | None = None,
    intervals: Intervals | None = None,
) -> str:
    """A plain-text table of both directions, in percent, with intervals and chance where they are given."""
    columns = ["retrieval", *(f"R@{k}" for k in KS), "mean", "median rank", "queries tied"]
    rows = [columns]
    for words, side in (("image (caption query)", "img"), ("text (image query)", "txt")):
        names = [f"{side}_r{k}" for k in KS] + [f"{side}_r_mean"]
        tail = [_number(metrics, f"{side}_median_rank", ".1f"), _number(metrics, f"{side}_ties", ".0f")]
        rows.append([words, *(f"{100 * metrics[n]:.2f}" for n in names), *tail])
        if intervals:
            rows.append(["  interval", *(_percents(intervals[n]) for n in names), "", ""])
        if chance:
            rows.append(["  chance", *(f"{100 * chance[n]:.2f}" for n in names), "", ""])
    total = f"mean of both directions: {100 * metrics['r_mean']:.2f}"
    if "rsum" in metrics:
        total += f"   rsum: {100 * metrics['rsum']:.2f}"
    for key in metrics:
        if key.startswith("img_ndcg_"):
            name = key.removeprefix("img_ndcg_")
            total += f"\nNDCG@25 by {name}: image {metrics[key]:.4f}   text {metrics[f'txt_ndcg_{name}']:.4f}"
    return f"{text_table(rows)}\n{total}"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned text, the first row ruled off as a heading; numbers stand at the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    rule = "  ".join("-" * w for w in widths)
    return "\n".join(line.rstrip() for line in (lines[0], rule, *lines[1:]))


def _percents(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.1f}-{100 * bounds[1]:.1f}"


def _number(metrics: Mapping[str, float], name: str, form: str) -> str:
    return format(metrics[name], form) if name in metrics else ""
