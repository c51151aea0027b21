"""What captions that are plain sentences share, wherever they are read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossmodal.data.items import TextItem
from crossmodal.errors import DataError


class Sentences:
    """A `texts.TextSource` without word pieces, and so without special tokens (None).

    A subclass fills `texts_of`, `image_of` and the sentences by caption, then calls `_count`. `lengths` counts words
    between white space: there are no word pieces before the model's own tokenizer has read them.
    """

    cls = sep = mask = v_range = tokenizer = None

    def __init__(self, path: Path, max_len: int) -> None:
        self.path, self.max_len = path, max_len
        self.meta: dict[str, Any] = {}
        self.texts_of: dict[str, list[str]] = {}
        self.image_of: dict[str, str] = {}
        self._sentences: dict[str, str] = {}

    def _count(self) -> None:
        self.lengths = {id: len(sentence.split()) for id, sentence in self._sentences.items()}
        self.ids = [id for id, length in self.lengths.items() if self.max_len == -1 or length <= self.max_len]
        self.images = list(self.texts_of)
        self._kept = frozenset(self.ids)

    def __repr__(self) -> str:
        counts = f"{len(self)} of {len(self.lengths)} captions, {len(self.images)} images"
        return f"{type(self).__name__}({str(self.path)!r}, {counts})"

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: object) -> bool:
        return id in self._kept

    def __getitem__(self, id: str) -> TextItem:
        """The caption of this id, kept or not by `max_len`."""
        if id not in self._sentences:
            raise DataError(f"{self.path} holds no caption {id!r}; it holds {len(self.lengths)} such as {self.ids[:2]}")
        return TextItem(id=id, sentence=self._sentences[id], image=self.image_of[id])
