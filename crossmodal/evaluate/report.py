"""The report: one HTML file with tables, curves, example queries and attention maps, and nothing outside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from crossmodal import __version__
from crossmodal.errors import DataError
from crossmodal.files import write_whole

from .plots import png

ImageLike = Figure | Image.Image | np.ndarray | bytes | str | Path
_HEADINGS = {
    "tables": "Results",
    "figures": "Figures",
    "queries": "Example queries",
    "attention": "Where words look",
}
_LARGEST = 480  # longest side of an embedded picture, in pixels
_LOSSLESS = 256  # pictures up to this side stay PNG


@dataclass(frozen=True)
class Table:
    """A table: the first cell of each row names it, the others are figures, already formatted."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """A figure with its heading; `alt` says in words what it shows."""

    title: str
    image: ImageLike
    alt: str
    note: str = ""


@dataclass(frozen=True)
class Hit:
    """One retrieved item, a picture or a caption: is it right, and its score."""

    right: bool
    image: ImageLike | None = None
    text: str = ""
    score: float | None = None


@dataclass(frozen=True)
class Query:
    """One example query, a caption or a picture, with what was retrieved, best first.

    rank: where its best right item stands, counted from 0, also when that is beyond the hits shown.
    """

    hits: Sequence[Hit]
    text: str = ""
    image: ImageLike | None = None
    rank: float | None = None


def write_report(
    path: str | Path,
    *,
    title: str,
    tables: Sequence[Table] = (),
    figures: Sequence[Shown] = (),
    queries: Sequence[Query] = (),
    attention: Sequence[Shown] = (),
    intro: str = "",
) -> Path:
    """Write a self-contained HTML page; it needs no network, no script and no other file.

    intro: a paragraph under the title. Images may be matplotlib figures, PIL images, (H,W,3) uint8 arrays, PNG
    bytes or paths of picture files; pictures are embedded at 480 pixels at most. Empty parts are left out.
    """
    parts = {
        "tables": tables,
        "figures": [_figure(shown) for shown in figures],
        "queries": [_query(query) for query in queries],
        "attention": [_figure(shown) for shown in attention],
    }
    environment = Environment(
        loader=PackageLoader("crossmodal.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        intro=intro,
        parts=parts,
        sections=[(name, _HEADINGS[name]) for name, content in parts.items() if content],
        version=__version__,
    )
    return write_whole(Path(path), lambda temporary: temporary.write_text(page, encoding="utf-8"))


def data_uri(image: ImageLike) -> str:
    """The image as a data URI: figures and small pictures as PNG, larger pictures shrunk, as JPEG."""
    if isinstance(image, Figure):
        return _uri(png(image), "png")
    if isinstance(image, bytes):
        return _uri(image, "png")
    picture = _picture(image).convert("RGB")
    lossless = max(picture.size) <= _LOSSLESS
    picture.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="JPEG", quality=85)
    return _uri(buffer.getvalue(), "png" if lossless else "jpeg")


def _picture(image: Image.Image | np.ndarray | str | Path) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    try:
        return Image.open(image)
    except OSError as error:
        raise DataError(f"{image} can't be read as a picture for the report: {error}") from error


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _figure(shown: Shown) -> dict[str, str]:
    return {"title": shown.title, "uri": data_uri(shown.image), "alt": shown.alt, "note": shown.note}


def _query(query: Query) -> dict[str, object]:
    hits = [
        {
            "right": hit.right,
            "uri": "" if hit.image is None else data_uri(hit.image),
            "text": hit.text,
            "score": "" if hit.score is None else f"{hit.score:.3g}",
        }
        for hit in query.hits
    ]
    uri = "" if query.image is None else data_uri(query.image)
    return {"text": query.text, "uri": uri, "hits": hits, "verdict": _verdict(query)}


def _verdict(query: Query) -> str:
    if any(hit.right for hit in query.hits[:1]):
        return "right at first place"
    if query.rank is not None:
        return f"right item at place {query.rank + 1:g}"
    place = next((i for i, hit in enumerate(query.hits, 1) if hit.right), None)
    return f"right item at place {place}" if place else f"not among the first {len(query.hits)}"
