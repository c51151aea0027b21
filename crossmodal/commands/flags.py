"""Options that several commands share, and the published flags that are not our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossmodal.errors import ConfigError


def published_flags(words: Sequence[str]) -> dict[str, Any]:
    """`--key value ...` words as a mapping: one value as itself, several as a list, none as True.

    Raises ConfigError for a word that belongs to no flag.
    """
    import yaml

    flags: dict[str, list[Any]] = {}
    current: list[Any] | None = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            current = flags.setdefault(name, [])
            if equals:
                current.append(yaml.safe_load(value))
        elif current is None:
            raise ConfigError(f"the argument {word!r} belongs to no option; see --help")
        else:
            current.append(yaml.safe_load(word))
    return {name: True if not v else v[0] if len(v) == 1 else v for name, v in flags.items()}
