"""report.html of one evaluated checkpoint: what `crossmodal test --report` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from crossmodal.data.corpus import Corpus
from crossmodal.model.base import Model

from .examples import Pictures, example_attention, example_images, example_queries, pictures_in
from .plots import plot_recall
from .recall import KS
from .report import Shown, Table, write_report
from .run import Evaluation


def recall_table(arms: dict[str, Evaluation], title: str = "Recall against chance") -> Table:
    """R@1, 5, 10 both ways of every arm in percent, chance last."""
    columns = ["", *(f"{word} R@{k}" for word in ("text", "image") for k in KS), "mean"]
    names = [f"{side}_r{k}" for side in ("txt", "img") for k in KS] + ["r_mean"]
    rows = [[arm, *(f"{100 * found.metrics[n]:.1f}" for n in names)] for arm, found in arms.items()]
    expected = next(iter(arms.values())).chance
    if expected:
        rows.append(["chance", *(f"{100 * expected[n]:.2f}" for n in names)])
    note = "Text R@K: the query is an image. Image R@K: the query is a caption. In percent."
    return Table(title, columns, rows, note)


def report_retrieval(
    folder: Path, found: Mapping[str, Evaluation], model: Model, corpus: Corpus, pictures: Pictures | None = None
) -> Path:
    """Recall of every scorer, example queries of the first one and attention in ``folder/report.html``."""
    pictures = pictures or pictures_in()
    shown = next(iter(found.values()))
    bars = plot_recall(
        {name: of_one.metrics for name, of_one in found.items()},
        intervals={name: of_one.intervals for name, of_one in found.items()} if shown.intervals else None,
        chance=shown.chance or None,
    )
    queries = example_queries(shown.scored, corpus, shown.ranks.image, pictures)
    return write_report(
        folder / "report.html",
        title="Retrieval report",
        intro=f"{len(shown.scored.text_ids)} captions, {len(shown.scored.image_ids)} images.",
        tables=[recall_table(dict(found))],
        figures=[Shown("Recall", bars, "bars of recall at 1, 5 and 10 in both directions")],
        queries=[*queries, *example_images(shown.scored, corpus, shown.ranks.text, pictures)],
        attention=example_attention(model, corpus, pictures),
    )
