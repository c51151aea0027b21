"""Reading whole databases once and saying everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from crossmodal.data.region_db import Record, RegionDB, as_item, require_boxes
from crossmodal.data.texts import TextSource
from crossmodal.errors import DataError

LONGEST_TEXT = 510  # word pieces: the 512 positions of a published model less [CLS] and [SEP]

_SLACK = 2e-3  # boxes are kept as float16, which near 1 is exact to 0.0005 a number; w and h add up
_EXAMPLES = 3


@dataclass
class Report:
    """Findings by kind, each with its ids. `problems` make the check fail; `notes` are for information."""

    images: int = 0
    texts: int | None = None
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 where there are problems, else 0."""
        return int(bool(self.problems))

    def problem(self, kind: str, what: str) -> None:
        self.problems.setdefault(kind, []).append(what)

    def note(self, kind: str, what: str) -> None:
        self.notes.setdefault(kind, []).append(what)

    def __str__(self) -> str:
        texts = "" if self.texts is None else f" and {self.texts} texts"
        lines = [f"{self.images} images{texts} read"]
        for title, findings in (("problem", self.problems), ("note", self.notes)):
            for kind, found in findings.items():
                more = ", ..." if len(found) > _EXAMPLES else ""
                lines.append(f"{title}: {len(found)} {kind}: {', '.join(found[:_EXAMPLES])}{more}")
        if not self.problems:
            lines.append("no problems")
        return "\n".join(lines)


def check(texts: TextSource | None, regions: RegionDB, *, longest: int = LONGEST_TEXT) -> Report:
    """Read every image whole, and every text if given, and report what is wrong.

    Problems: values that cannot be read (of a database opened with `verify`, also those whose checksum doesn't
    match), fewer boxes than the index says, numbers that are not finite, boxes outside [0,1], texts of unknown
    images, texts longer than `longest` word pieces, texts and images that do not name each other. A note: images
    without texts (an image database commonly serves several text databases).
    """
    report = Report()
    lengths: Mapping[str, int] = {}
    try:
        lengths = regions.lengths
    except DataError as error:
        report.problem("unusable box counts", str(error))
    width = None
    for image in tqdm(regions.ids, desc="checking images", disable=None):
        report.images += 1
        try:
            record = regions.loader(image)()
            require_boxes(record, f"The record of {image} in {regions.path}")
            as_item(image, record)
        except DataError as error:
            report.problem("unreadable images", str(error))
            continue
        width = width or record["features"].shape[1]
        for kind, what in _image_findings(record, lengths.get(image), width):
            report.problem(f"images with {kind}", f"{image}{what}")
    if texts is not None:
        _check_texts(texts, longest, report)
        _check_joins(texts, regions, report)
    return report


def _image_findings(record: Record, expected: int | None, width: int) -> Iterator[tuple[str, str]]:
    """(what is wrong with an image, details) for the boxes that are used; `expected` of the index, if it has one."""
    rows = len(record["features"])
    if expected is not None and rows < expected:
        yield "fewer boxes than the index says", f" ({rows} boxes, {expected} in the index)"
    if rows == 0:
        yield "no box at all", ""
    if record["features"].shape[1] != width:
        yield "features of another width", f" ({record['features'].shape} instead of width {width})"
    for name, array in record.items():
        if array.dtype.kind == "f" and name != "norm_bb" and not np.isfinite(array[:expected]).all():
            yield f"NaN or infinite {name}", ""
    if not _inside(record["norm_bb"][:expected]):
        yield "boxes outside [0,1]", ""


def _inside(boxes: NDArray[Any]) -> bool:
    """NaN is not inside; a box whose corners are swapped has a negative width or height."""
    return bool(((boxes >= -_SLACK) & (boxes <= 1 + _SLACK)).all())


def _check_texts(texts: TextSource, longest: int, report: Report) -> None:
    report.texts = 0
    for text in tqdm(texts.ids, desc="checking texts", disable=None):
        report.texts += 1
        try:
            item: Any = texts[text]
        except DataError as error:
            report.problem("unreadable texts", str(error))
            continue
        length = max(len(item.input_ids), texts.lengths.get(text, 0))
        if length > longest:
            report.problem(f"texts over {longest} word pieces", f"{text} ({length})")
        if length == 0 and not item.sentence:
            report.problem("empty texts", text)
        if item.input_ids and text in texts.lengths and len(item.input_ids) != texts.lengths[text]:
            report.problem("texts of another length than the index says", text)


def _check_joins(texts: TextSource, regions: RegionDB, report: Report) -> None:
    missing: dict[str, None] = {}
    for text in texts.ids:
        image = texts.image_of.get(text)
        if image is None:
            report.problem("texts without an image", text)
            continue
        if image not in regions:
            missing[image] = None
        if text not in texts.texts_of.get(image, ()):
            report.problem("texts that their image does not list", f"{text} of {image}")
    for image, listed in texts.texts_of.items():
        if image not in regions:
            missing[image] = None
        for text in listed:
            if texts.image_of.get(text) != image:
                report.problem("texts listed by an image that is not theirs", f"{text} by {image}")
    named = set(texts.texts_of) | set(texts.image_of.values())
    for image in missing:
        report.problem("missing images", image)
    for image in regions.ids:
        if image not in named and image.removesuffix(".npz") not in named:
            report.note("images without texts", image)
