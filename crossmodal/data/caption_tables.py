"""Captions read from the files in which they are published, without a text database.

COCO's and Karpathy's JSON, Flickr's token files, tables (OpenCLIP, NegCLIP) and CE-CLIP's records; the last two carry
wrong captions, which are kept by caption.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crossmodal.data.captions import Caption, read_captions, require_distinct
from crossmodal.data.negatives.records import CeRecord, read_records, read_text
from crossmodal.data.negatives.table import COLUMNS, TableRow, parse_table
from crossmodal.data.sentences import Sentences
from crossmodal.errors import ConfigError, DataError, nearest

FILES = frozenset({".csv", ".tsv", ".txt", ".token", ".json", ".jsonl", ".npy"})
"""How the files end that are read here."""

IMAGE_COLUMNS = ("filepath", "image_path", "image", "image_name")
CAPTION_COLUMNS = ("title", "caption", "comment")


@dataclass(frozen=True)
class Wrong:
    """A caption's wrong captions, of which those with `valid` 0 stand for none; `caption` is what they are wrong of."""

    caption: str
    sentences: tuple[str, ...]
    valid: tuple[int, ...]


class SentenceTexts(Sentences):
    """Captions that are sentences, as a `texts.TextSource`. Empty ones are left out.

    path: where they come from. max_len: keep the captions of at most so many words; -1 keeps all. captions_per_image:
    the first so many of every image.

    wrong: caption -> its wrong captions. hard: image -> images that are hard to tell from it. Empty where the file
    carries none. `lengths` counts words between white space; there are no special tokens (None).
    Raises DataError where there are no captions or an image has fewer than asked for, ConfigError for
    `captions_per_image` below 1.
    """

    def __init__(
        self,
        path: Path,
        captions: Iterable[Caption],
        max_len: int = -1,
        *,
        captions_per_image: int | None = None,
        wrong: Mapping[str, Wrong] | None = None,
        hard: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if captions_per_image is not None and captions_per_image < 1:
            raise ConfigError(f"captions_per_image is {captions_per_image}; it must be at least 1")
        super().__init__(path, max_len)
        self.wrong, self.hard = dict(wrong or {}), dict(hard or {})
        for caption in captions:
            of_image = self.texts_of.setdefault(caption.image, [])
            if not caption.sentence.strip() or len(of_image) == captions_per_image:
                continue
            if caption.id in self._sentences:
                raise DataError(f"{path} holds two captions with the id {caption.id!r}; caption ids must be unique")
            of_image.append(caption.id)
            self.image_of[caption.id] = caption.image
            self._sentences[caption.id] = caption.sentence
        self.texts_of = {image: ids for image, ids in self.texts_of.items() if ids}
        if not self._sentences:
            raise DataError(f"{path} holds no captions")
        few = [image for image, ids in self.texts_of.items() if len(ids) < (captions_per_image or 0)]
        if few:
            raise DataError(
                f"image {few[0]} has {len(self.texts_of[few[0]])} captions in {path}, and captions_per_image asks for "
                f"{captions_per_image}; ask for fewer, or leave it out"
            )
        self._count()


def open_captions(
    path: str | os.PathLike[str],
    max_len: int = -1,
    *,
    captions_per_image: int | None = None,
    split: str | None = None,
    separator: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> SentenceTexts:
    """The captions of a file, or of a folder of CE-CLIP's ``.npy`` files.

    split: of Karpathy's JSON, joined by a plus sign; of CE-CLIP's records the folder of COCO's images, by default
    val2014 where "val" stands in the path and else train2014. separator, image_column, caption_column: of a table with
    a header; by default a tab or else a comma, and the first of `IMAGE_COLUMNS` and `CAPTION_COLUMNS` that is there.
    Raises DataError for a file that is not of its format, ConfigError for options that do not fit it.
    """
    path = Path(path)
    content = _read(path, split, {"separator": separator, "image": image_column, "caption": caption_column})
    return SentenceTexts(
        path, content.captions, max_len, captions_per_image=captions_per_image, wrong=content.wrong, hard=content.hard
    )


def read_any_captions(path: Path, *, format: str | None = None, split: str | None = None) -> list[Caption]:
    """Every caption of a file that `open_captions` opens; `format` as of `read_captions`.

    Raises as these two do.
    """
    if format is not None:
        return read_captions(path, format=format, split=split)[0]
    captions = _read(path, split, {}).captions
    require_distinct(captions, path)
    return captions


def is_records_folder(path: Path) -> bool:
    """Whether it is a folder of CE-CLIP's ``.npy`` files."""
    return path.is_dir() and not (path / "data.mdb").exists() and next(path.glob("*.npy"), None) is not None


def wrong_of_records(records: Iterable[CeRecord]) -> dict[str, Wrong]:
    """Caption -> its wrong captions."""
    return {str(record.id): Wrong(record.caption, record.negatives, record.valid) for record in records}


@dataclass(frozen=True)
class _Content:
    captions: list[Caption]
    wrong: dict[str, Wrong] = field(default_factory=dict)
    hard: dict[str, list[str]] = field(default_factory=dict)


def _read(path: Path, split: str | None, columns: Mapping[str, str | None]) -> _Content:
    """columns: separator, image and caption, where they are asked for."""
    ending = path.suffix.lower()
    asked = {f"{name}_column" if name != "separator" else name: v for name, v in columns.items() if v is not None}
    if path.is_dir() or ending in (".npy", ".jsonl"):
        _refuse(asked, path, "records of CE-CLIP's")
        return _of_records(read_records(path), split or ("val2014" if "val" in str(path) else "train2014"))
    if ending != ".json":
        text = read_text(path)
        header = text.split("\n", 1)[0].rstrip("\r").split("\t")
        if not asked and set(COLUMNS) <= set(header):
            _refuse({"split": split}, path, "NegCLIP's table")
            return _of_negclip(parse_table(text, str(path)))
        if asked or ending == ".csv" or {"filepath", "title"} <= set(header):
            _refuse({"split": split}, path, "a table of images and captions")
            return _of_table(text, path, columns)
    _refuse(asked, path, "no table with a header")
    return _Content(read_captions(path, split=split)[0])


def _of_records(records: Sequence[CeRecord], split: str) -> _Content:
    captions = [Caption(str(record.id), record.image_file(split), record.caption) for record in records]
    return _Content(captions, wrong_of_records(records))


def _of_negclip(rows: Sequence[TableRow]) -> _Content:
    """A caption's id is the number of its row."""
    captions = [Caption(str(n), row.image, row.caption) for n, row in enumerate(rows)]
    wrong = {str(n): Wrong(row.caption, row.negatives, (1,) * len(row.negatives)) for n, row in enumerate(rows)}
    hard: dict[str, list[str]] = {}
    for row in rows:
        others = (rows[other].image for other in row.hard)
        hard.setdefault(row.image, []).extend(other for other in others if other != row.image)
    return _Content(captions, wrong, hard)


def _of_table(text: str, path: Path, columns: Mapping[str, str | None]) -> _Content:
    """A caption's id is the cell of a column ``id``, or the number of its row."""
    separator = columns.get("separator") or ("\t" if "\t" in text.split("\n", 1)[0] else ",")
    if len(separator) != 1:
        raise ConfigError(f'separator {separator!r} is not one character; write a tab as "\\t"')
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=separator != "\t")
    try:
        names = rows.fieldnames or []
        image = _column(columns.get("image"), IMAGE_COLUMNS, names, path, "image_column")
        caption = _column(columns.get("caption"), CAPTION_COLUMNS, names, path, "caption_column")
        found = []
        for number, row in enumerate(rows):
            if row[image] is None or row[caption] is None or None in row:
                raise DataError(
                    f"row {number + 1} of {path}, which ends in line {rows.line_num}, has not the {len(names)} columns "
                    f"of its header; put cells that hold {separator!r} in quotes"
                )
            found.append(Caption(row.get("id") or str(number), row[image], row[caption]))
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as a table ({error}, line {rows.line_num}); correct it") from None
    return _Content(found)


def _column(asked: str | None, known: Sequence[str], names: Sequence[str], path: Path, option: str) -> str:
    if asked is not None and asked not in names:
        raise ConfigError(f"{option} {asked!r} is no column of {path}; {nearest(asked, names)}")
    found = asked or next((name for name in known if name in names), None)
    if found is None:
        raise DataError(
            f"the header of {path} has none of the columns {', '.join(known)}, but {', '.join(names) or 'nothing'}; "
            f"name the right one as {option}"
        )
    return found


def _refuse(options: Mapping[str, str | None], path: Path, what: str) -> None:
    name = next((name for name, value in options.items() if value is not None), None)
    if name is not None:
        raise ConfigError(f"{name} does not go with {path}, which is {what}; leave it out")
