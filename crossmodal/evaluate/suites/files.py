"""Reading the published files: each mistake in them is named with its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossmodal.data.json_text import parse
from crossmodal.errors import DataError


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"{path} cannot be read ({reason}); check the path") from None


def read_json(path: Path) -> Any:
    """Raises DataError where the file isn't there or is damaged."""
    return _parsed(read_text(path), str(path))


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, record) of a JSON object of objects, a list of objects, or a file of one object a line."""
    if path.suffix == ".jsonl":
        lines = [line for line in read_text(path).split("\n") if line.strip()]
        content: Any = [_parsed(line, f"line {n} of {path}") for n, line in enumerate(lines, start=1)]
    else:
        content = read_json(path)
    if not isinstance(content, (dict, list)):
        raise DataError(f"{path} holds neither a list nor an object of records; download it again")
    for key, record in content.items() if isinstance(content, dict) else enumerate(content):
        if not isinstance(record, dict):
            raise DataError(f"record {key} of {path} is {str(record)[:60]!r}, not an object; download it again")
        yield str(key), record


def text(record: dict[str, Any], name: str, key: str, path: Path) -> str:
    """A field that holds a text."""
    return str(_typed(record, name, key, path, str, "a text"))


def number(record: dict[str, Any], name: str, key: str, path: Path) -> float:
    return float(_typed(record, name, key, path, (int, float), "a number"))


def texts(record: dict[str, Any], name: str, key: str, path: Path) -> list[str]:
    """A field that holds a list of texts, one at least."""
    found = _typed(record, name, key, path, list, "a list of texts")
    if not found or not all(isinstance(part, str) for part in found):
        raise DataError(f"{name!r} of record {key} of {path} is not a list of texts; download the file again")
    return list(found)


def files_of(folder: Path, stems: tuple[str, ...], what: str) -> dict[str, Path]:
    """Those of the files ``<stem>.json`` that a folder holds; a file stands for itself. One at least is there."""
    if folder.is_file():
        return {folder.stem: folder}
    found = {stem: folder / f"{stem}.json" for stem in stems if (folder / f"{stem}.json").is_file()}
    if not found:
        raise DataError(f"{folder} holds no file of {what}, such as {stems[0]}.json; check the path")
    return found


def _typed(record: dict[str, Any], name: str, key: str, path: Path, kind: Any, words: str) -> Any:
    if name not in record:
        raise DataError(f"record {key} of {path} has no {name!r}; check that the file is the published one")
    if not isinstance(record[name], kind) or isinstance(record[name], bool):
        raise DataError(f"{name!r} of record {key} of {path} is {str(record[name])[:60]!r}, not {words}")
    return record[name]


def _parsed(content: str, where: str) -> Any:
    try:
        return parse(content)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); download it again") from None
