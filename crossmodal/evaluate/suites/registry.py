"""The registry of suites: what reads the published files of a benchmark, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from crossmodal.errors import ConfigError, DataError, nearest

from .items import Test

R = TypeVar("R", bound=Callable[..., Test])

_SUITES: dict[str, Callable[..., Test]] = {}


def suite(name: str) -> Callable[[R], R]:
    """Add a reader: a function of the path of the published files and of keyword-only options."""

    def decorate(reader: R) -> R:
        if name in _SUITES:
            raise ValueError(f"suite {name!r} is registered twice")
        _SUITES[name] = reader
        return reader

    return decorate


def names() -> list[str]:
    return sorted(_SUITES)


def reader(name: str) -> Callable[..., Test]:
    """Raises ConfigError with the near names."""
    if name not in _SUITES:
        raise ConfigError(f"there is no suite {name!r}; {nearest(name, _SUITES)}")
    return _SUITES[name]


def open_suite(name: str, data: Path, **options: Any) -> Test:
    """Read the published files of a suite.

    Raises ConfigError for an unknown suite or option, DataError for files that aren't there or are damaged.
    """
    read = reader(name)
    known = [p.name for p in inspect.signature(read).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = next((option for option in options if option not in known), None)
    if unknown is not None:
        raise ConfigError(
            f"the suite {name} has no option {unknown!r}; {nearest(unknown, known) if known else 'it has none'}"
        )
    if not data.exists():
        raise DataError(f"the files of {name} are not at {data}; check the path")
    return read(data, **options)
