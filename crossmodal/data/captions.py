"""Caption files as people have them: COCO, Karpathy's splits, Flickr30k's token file, tab-separated text."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossmodal.data.json_text import parse
from crossmodal.errors import ConfigError, DataError, nearest


@dataclass(frozen=True)
class Caption:
    """One sentence about one image. `image` is a file name in a caption file, a region key in a database."""

    id: str
    image: str
    sentence: str
    split: str | None = None


def read_captions(
    source: str | os.PathLike[str], *, format: str | None = None, split: str | None = None
) -> tuple[list[Caption], str]:
    """All captions of a file, and the name of its format: coco, karpathy, list, flickr or tsv.

    format: one of these, or None to tell it from the content.
    split:  keep only these splits, joined by a plus sign, as in ``train+restval``.

    Raises DataError for a file that cannot be read or is not of that format, ids that occur twice, and splits
    that hold no caption; ConfigError for an unknown format, and for `split` where the file has no splits.
    """
    path = Path(source)
    if format is not None and format not in FORMATS:
        raise ConfigError(f"{format!r} is no caption format; {nearest(format, FORMATS)}")
    content = _load(path)
    format = format or _guess(content, path)
    kind, reader = FORMATS[format]
    if not isinstance(content, kind):
        raise DataError(f"{path} does not hold captions in the format {format!r}; leave the format out to detect it")
    captions = list(reader(content, path))
    if split is not None:
        captions = _of_split(captions, split, path)
    require_distinct(captions, path)
    for caption in captions:
        if not f"{caption.id}{caption.image}{caption.sentence}".isascii():
            _require_text(caption, path)
    return captions, format


def require_distinct(captions: Sequence[Caption], path: Path) -> None:
    """Raises DataError where there is no caption, or two have the same id."""
    if not captions:
        raise DataError(f"{path} holds no captions")
    ids = Counter(caption.id for caption in captions)
    double, times = ids.most_common(1)[0]
    if times > 1:
        raise DataError(f"{path} holds {times} captions with the id {double!r}; caption ids must be unique")


def _require_text(caption: Caption, path: Path) -> None:
    """JSON can spell halves of characters, which no database, tokenizer or terminal takes."""
    try:
        f"{caption.id}{caption.image}{caption.sentence}".encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(f"caption {caption.id!r} of {path} holds {half!r}, half a character; correct it") from None


class _Lines(list[str]):
    """The lines of a text file, which is no JSON."""


def _load(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from None
    except OSError as error:
        raise DataError(f"the caption file {path} cannot be read ({error.strerror}); check the path") from None
    if path.suffix.lower() != ".json":
        # Not splitlines(): captions may hold the separators of other alphabets.
        return _Lines(text.replace("\r\n", "\n").split("\n"))
    try:
        return parse(text)
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); download it again or give the right file") from None


def _guess(content: Any, path: Path) -> str:
    if isinstance(content, _Lines):
        first = next((line for line in content if line.strip()), "")
        if re.match(r"[^\t]+#\d+\t", first):
            return "flickr"
        if "\t" in first:
            return "tsv"
    elif isinstance(content, list):
        return "list"
    elif isinstance(content, dict) and "images" in content:
        return "coco" if "annotations" in content else "karpathy"
    raise DataError(
        f"the format of the caption file {path} is none of those known ({', '.join(FORMATS)}); "
        "the simplest is one line a caption: image file name, tab, sentence"
    )


def _coco(content: dict[str, Any], path: Path) -> Iterator[Caption]:
    """``images`` and ``annotations``; image after image, as ``images`` lists them."""
    by_image: dict[str, list[Caption]] = {}
    names: dict[str, str] = {}
    for n, image in enumerate(_items(content, "images", path, "the file")):
        key = _name(image, "id", path, f"images[{n}]")
        if key in names:
            raise DataError(f"two images of {path} have the id {key!r}; ids of images must be unique")
        names[key], by_image[key] = _name(image, "file_name", path, f"images[{n}]"), []
    for n, entry in enumerate(_items(content, "annotations", path, "the file")):
        where = f"annotations[{n}]"
        key = _name(entry, "image_id", path, where)
        if key not in names:
            raise DataError(f"{where} of {path} describes image_id {key}, which is not among its images")
        name = _name(entry, "id", path, where)
        by_image[key].append(Caption(name, names[key], _sentence(entry, "caption", path, where)))
    for captions in by_image.values():
        yield from captions


def _karpathy(content: dict[str, Any], path: Path) -> Iterator[Caption]:
    """``dataset_coco.json``, ``dataset_flickr30k.json``: images with their sentences and split."""
    number = 0
    for n, image in enumerate(_items(content, "images", path, "the file")):
        where = f"images[{n}]"
        name, split = _name(image, "filename", path, where), _split(image, path, where)
        for m, sentence in enumerate(_items(image, "sentences", path, where)):
            place = f"{where}.sentences[{m}]"
            raw = _sentence(sentence, "raw", path, place)
            yield Caption(_name({"sentid": number} | sentence, "sentid", path, place), name, raw, split)
            number += 1


def _list(content: list[Any], path: Path) -> Iterator[Caption]:
    """A list of ``{"image": name, "caption": sentence or sentences}``."""
    number = 0
    for n, entry in enumerate(content):
        name, split = _name(entry, "image", path, f"entry {n}"), _split(entry, path, f"entry {n}")
        sentences = _field(entry, "caption", path, f"entry {n}")
        for sentence in sentences if isinstance(sentences, list) else [sentences]:
            if not isinstance(sentence, str):
                raise DataError(f"a caption in entry {n} of {path} is {_shown(sentence)}, not a text")
            yield Caption(str(number), name, sentence, split)
            number += 1


def _flickr(content: _Lines, path: Path) -> Iterator[Caption]:
    """``1000092795.jpg#0``, tab, caption; what stands before the tab is the caption's id."""
    for number, line in _rows(content):
        name, tab, sentence = line.partition("\t")
        image, mark, _ = name.rpartition("#")
        if not tab or not mark:
            raise DataError(f"line {number} of {path} is not of the form image.jpg#0, tab, caption")
        yield Caption(name, image, sentence)


def _tsv(content: _Lines, path: Path) -> Iterator[Caption]:
    """Image, tab, caption; a header that names ``image`` and ``caption`` may add ``id`` and ``split``."""
    rows = _rows(content)
    columns = ["image", "caption"]
    first = next(rows, None)
    if first is None:
        return
    names = [cell.strip().lower() for cell in first[1].split("\t")]
    if {"image", "caption"} <= set(names):
        columns = names
    else:
        rows = _rows(content)
    for n, (number, line) in enumerate(rows):
        cells = line.split("\t", len(columns) - 1)
        if len(cells) != len(columns):
            raise DataError(f"line {number} of {path} has {len(cells)} columns instead of {', '.join(columns)}")
        row = dict(zip(columns, cells, strict=True))
        yield Caption(row.get("id", str(n)), row["image"], row["caption"], row.get("split"))


FORMATS: dict[str, tuple[type, Callable[[Any, Path], Iterator[Caption]]]] = {
    "coco": (dict, _coco),
    "karpathy": (dict, _karpathy),
    "list": (list, _list),
    "flickr": (_Lines, _flickr),
    "tsv": (_Lines, _tsv),
}


def _rows(content: _Lines) -> Iterator[tuple[int, str]]:
    return ((n, line) for n, line in enumerate(content, start=1) if line.strip())


def _of_split(captions: list[Caption], split: str, path: Path) -> list[Caption]:
    known = Counter(caption.split for caption in captions if caption.split is not None)
    if not known:
        raise ConfigError(f"{path} does not say which split its captions belong to; leave the split out")
    wanted = [name.strip() for name in split.split("+")]
    for name in wanted:
        if name not in known:
            raise DataError(f"{path} has no captions of the split {name!r}; {nearest(name, known)}")
    return [caption for caption in captions if caption.split in wanted]


def _field(record: Any, key: str, path: Path, where: str) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise DataError(f"{where} of {path} has no {key!r}; check that the file is complete and of this format")
    return record[key]


def _items(record: Any, key: str, path: Path, where: str) -> list[Any]:
    items = _field(record, key, path, where)
    if not isinstance(items, list):
        raise DataError(f"{key!r} in {where} of {path} is {_shown(items)}, not a list")
    return items


def _name(record: Any, key: str, path: Path, where: str) -> str:
    """An id or the name of a file."""
    name = _field(record, key, path, where)
    if not isinstance(name, (str, int)) or isinstance(name, bool) or name == "":
        raise DataError(f"{key!r} in {where} of {path} is {_shown(name)}, not a name")
    return str(name)


def _split(record: dict[str, Any], path: Path, where: str) -> str | None:
    split = record.get("split")
    if split is not None and not isinstance(split, str):
        raise DataError(f"'split' in {where} of {path} is {_shown(split)}, not a name")
    return split


def _sentence(record: Any, key: str, path: Path, where: str) -> str:
    sentence = _field(record, key, path, where)
    if not isinstance(sentence, str):
        raise DataError(f"{key!r} in {where} of {path} is {_shown(sentence)}, not a text")
    return sentence


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
