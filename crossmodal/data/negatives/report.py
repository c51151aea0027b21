"""What was made of a set of captions: how many of each type, why not more, and samples to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SAMPLES = 3
"""Shown of each type: the first ones."""


class Report:
    """Counts as captions are added; `str` is what the command prints."""

    def __init__(self, types: Sequence[str], tagger: str) -> None:
        self.types, self.tagger, self.captions = list(types), tagger, 0
        self.made: Counter[str] = Counter()
        self.refused: dict[str, Counter[str]] = {kind: Counter() for kind in types}
        self.samples: dict[str, list[tuple[str, str]]] = {kind: [] for kind in types}

    def add(self, caption: str, negatives: Mapping[str, str | None], why: Mapping[str, str] | None = None) -> None:
        """A caption with its wrong captions by type, and why some that were made are not among them."""
        self.captions += 1
        for kind, reason in (why or {}).items():
            self.refused[kind][reason] += 1
        for kind, negative in negatives.items():
            if negative is not None:
                self.made[kind] += 1
                if len(self.samples[kind]) < SAMPLES:
                    self.samples[kind].append((caption, negative))

    def as_dict(self) -> dict[str, Any]:
        types = {
            kind: {"made": self.made[kind], "refused": dict(self.refused[kind]), "samples": self.samples[kind]}
            for kind in self.types
        }
        return {"captions": self.captions, "tagger": self.tagger, "types": types}

    def __str__(self) -> str:
        lines = [f"{self.captions} captions, tagged by {self.tagger}"]
        for kind in self.types:
            made, refused = self.made[kind], self.refused[kind]
            share = made / self.captions if self.captions else 0.0
            reasons = ", ".join(f"{count} refused: {reason}" for reason, count in refused.most_common())
            absent = self.captions - made - refused.total()
            lines.append(f"  {kind}: {made} made ({share:.1%}), {absent} without" + (f", {reasons}" if reasons else ""))
            lines += [f"      {caption} -> {negative}" for caption, negative in self.samples[kind]]
        return "\n".join(lines)
