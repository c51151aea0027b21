"""The kinds of mistake a user can make; each message is one sentence: what, where, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CrossmodalError(Exception):
    """A user's mistake. The command line prints it without a traceback and exits with this code."""

    exit_code = 2


class ConfigError(CrossmodalError):
    """A recipe, option or name that cannot be used."""


class DataError(CrossmodalError):
    """A database, caption file or picture that cannot be read as it stands."""


class CheckpointError(CrossmodalError):
    """A checkpoint that is damaged, of another layout or of other shapes."""


class TrainingError(CrossmodalError):
    """A run that cannot go on as it stands, its losses not being finite."""


class RankLost(CrossmodalError):
    """Other ranks of a job are gone. The exit code is 75 (try again), as nothing is wrong with the job itself."""

    exit_code = 75


class DiskError(CrossmodalError):
    """A disk that has no room for what is to be written; what was there stays as it was."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names are closest to `name`, as the tail of an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known names: {', '.join(known)}"
