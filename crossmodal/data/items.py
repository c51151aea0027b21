"""Raw items as databases hand them out, before a processor turns them into a model's input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TextItem:
    """One caption.

    input_ids: word pieces without special tokens, as stored; empty where the database keeps sentences only.
    sentence:  the caption itself, or None in a published database that holds ids alone.
    tokenizer: identity of the tokenizer that made `input_ids` (a published name such as
               ``bert-base-cased``, or the fingerprint of `data/tokenizers.py`).
    """

    id: str
    input_ids: tuple[int, ...] = ()
    sentence: str | None = None
    image: str | None = None
    tokenizer: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RegionItem:
    """One image as R detected boxes, by descending confidence.

    features (R,F) float16 or float32; boxes (R,6) float32: x1, y1, x2, y2, w, h, each normalised to the
    image's width or height; confidence (R,) float32; soft_labels (R,C) or None.
    tags: the class names of all that was detected, in the detector's order, equal ones included; () where the
    database keeps none. detic: (R,) bool, which boxes are Detic's; None: they are all of the one detector.
    """

    id: str
    features: NDArray[Any]
    boxes: NDArray[np.float32]
    confidence: NDArray[np.float32] | None = None
    soft_labels: NDArray[Any] | None = None
    tags: tuple[str, ...] = ()
    detic: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.features)
