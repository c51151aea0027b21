"""Options that several commands share, and the published flags that are not our own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from typer.core import TyperCommand

from crossmodal.errors import ConfigError

log = logging.getLogger("crossmodal")


def published_flags(words: Sequence[str]) -> dict[str, Any]:
    """`--key value ...` words as a mapping: one value as itself, several as a list, none as True; the last one counts.

    Raises ConfigError for a word that belongs to no flag.
    """
    import yaml

    flags: dict[str, list[Any]] = {}
    current: list[Any] | None = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            current = flags[name] = []
            if equals:
                current.append(yaml.safe_load(value))
        elif current is None:
            raise ConfigError(f"the argument {word!r} belongs to no option; see --help")
        else:
            current.append(yaml.safe_load(word))
    return {name: True if not v else v[0] if len(v) == 1 else v for name, v in flags.items()}


def say_inert(flags: Sequence[str]) -> None:
    if flags:
        log.info("%s: accepted as published, without a meaning here", ", ".join(flags))


class TrainCommand(TyperCommand):
    """`--resume` takes no value; in the published commands of ALADIN, it takes a file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from crossmodal.train.published_aladin import NO_RESUME

        words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--resume=") else [arg])]
        for option, value in pairwise(words):
            if option == "--resume" and not value.startswith("-"):
                raise ConfigError(f"--resume {value}: {NO_RESUME}")
        return super().parse_args(ctx, args)
