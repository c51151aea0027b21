"""What is no wrong caption: the caption itself in another spelling, one that is there already, no words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Refused = Literal["the same as the caption", "there already", "no word in the place of the word"]


def refused(candidate: str, caption: str, others: Iterable[str] = ()) -> Refused | None:
    """Why a candidate is not taken; None where it is."""
    bare = bare_words(candidate)
    if bare == bare_words(caption):
        return "the same as the caption"
    if any(bare == bare_words(other) for other in others):
        return "there already"
    if len(bare) < len(bare_words(caption)):
        return "no word in the place of the word"
    return None


def bare_words(sentence: str) -> list[str]:
    """The words alone: without case, spacing, and marks."""
    kept = "".join(c if c.isalnum() or c in "'-" else " " for c in sentence.casefold())
    return [word for word in kept.split() if any(c.isalnum() for c in word)]
