"""Parsing JSON that somebody else wrote."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def parse(text: str | bytes, *, unique: bool = False) -> Any:
    """The value of a JSON text. Raises ValueError, and nothing else, for what is none.

    unique: a key that stands twice in an object is an error too; `json` would keep the last alone.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        double = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {double!r} stands twice")
    return found
