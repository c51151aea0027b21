"""NegCLIP's table of wrong captions and hard images (CE-CLIP, spec 4.3): tab-separated, lists as Python writes them."""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from crossmodal.errors import DataError
from crossmodal.files import write_whole

from .records import read_text

COLUMNS = ("title", "filepath", "neg_caption", "neg_image")


@dataclass(frozen=True)
class TableRow:
    """A caption and its image, wrong captions, and the rows of images that are hard to tell from its own."""

    caption: str
    image: str
    negatives: tuple[str, ...]
    hard: tuple[int, ...]


@dataclass(frozen=True)
class Pick:
    """What an epoch takes of a row: a wrong caption, a hard image's row, and a wrong caption of that row."""

    negative: str
    hard: int
    hard_negative: str


class NegclipTable(Sequence[TableRow]):
    """The rows, which name each other by their numbers."""

    def __init__(self, rows: Sequence[TableRow], where: str = "the table") -> None:
        self._rows, self._where = list(rows), where
        for number, row in enumerate(self._rows):
            if any(not 0 <= other < len(self._rows) or other == number for other in row.hard):
                raise DataError(
                    f"row {number} of {where} names the hard images {list(row.hard)}, which must be other rows of "
                    f"the {len(self._rows)} there are; do not cut or sort the file"
                )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        return self._rows[row]

    def pick(self, row: int, rng: Random) -> Pick:
        """Drawn in the published order. Raises DataError where the row, or the one it meets, has nothing to draw."""
        own = self._rows[row]
        if not own.hard or not own.negatives:
            raise DataError(f"row {row} of {self._where} has no hard images or no wrong captions; make the table anew")
        negative, hard = rng.choice(own.negatives), rng.choice(own.hard)
        if not self._rows[hard].negatives:
            raise DataError(f"row {hard} of {self._where} has no wrong captions; make the table anew")
        return Pick(negative, hard, rng.choice(self._rows[hard].negatives))


def read_table(path: Path) -> NegclipTable:
    """Raises DataError where the file is not such a table."""
    return parse_table(read_text(path), str(path))


def parse_table(text: str, where: str = "the table") -> NegclipTable:
    """A table's text; `where` is what errors call it."""
    rows = csv.DictReader(io.StringIO(text), delimiter="\t")
    lacking = [column for column in COLUMNS if column not in (rows.fieldnames or [])]
    if lacking:
        raise DataError(f"{where} has no column {', '.join(lacking)}; it must have {', '.join(COLUMNS)}, tab-separated")
    return NegclipTable([_row(row, f"row {number} of {where}") for number, row in enumerate(rows)], where)


def write_table(table: Sequence[TableRow], path: Path) -> Path:
    """As published. Complete or not there."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, delimiter="\t", lineterminator="\n")
            rows.writerow(["", *COLUMNS])
            for number, row in enumerate(table):
                rows.writerow([number, row.caption, row.image, list(row.negatives), list(row.hard)])

    return write_whole(path, write)


def _row(row: dict[str, Any], where: str) -> TableRow:
    cells = [row[column] for column in COLUMNS]
    if any(cell is None for cell in cells):
        raise DataError(f"{where} has too few columns; copy the file again")
    return TableRow(cells[0], cells[1], tuple(_literal(cells[2], str, where)), tuple(_literal(cells[3], int, where)))


def _literal(cell: str, kind: type, where: str) -> Iterator[Any]:
    try:
        values = ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        values = None
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise DataError(f"{where} holds {cell[:60]!r} in place of a list of {kind.__name__} as Python writes it")
    yield from values


def with_hard_images(rows: Sequence[TableRow], hard: Sequence[Sequence[int]]) -> list[TableRow]:
    """The rows, each with the numbers of those whose images are hard to tell from its own."""
    return [replace(row, hard=tuple(others)) for row, others in zip(rows, hard, strict=True)]
