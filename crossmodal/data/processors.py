"""Processors: the only place that turns captions and region records into a model's input (DESIGN.md section 4).

A processor is saved in the checkpoint folder; datasets, evaluation, mining and `model.score` all call it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from crossmodal.data.batches import Items, Regions, Texts
from crossmodal.data.items import RegionItem, TextItem
from crossmodal.data.json_text import parse
from crossmodal.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from crossmodal.data.tokenizers import Tokenizer

FILE = "processor.json"


@dataclass(frozen=True)
class UniterProcessor:
    """Captions to ``[CLS] w_1 .. w_n [SEP]``, regions to features and 7-number boxes (spec section 3).

    `identity` names the tokenizer whose stored ids are taken as they are; without a `tokenizer` only captions
    that carry such ids can be read. `max_text` bounds the words of a caption (the position table does).
    """

    cls: int
    sep: int
    mask: int
    v_range: tuple[int, int]
    img_dim: int
    identity: str | None = None
    max_text: int = 510
    extractor: Mapping[str, Any] | None = None
    tokenizer: Tokenizer | None = None

    def __call__(self, side: str, raw: Sequence[Any]) -> Items:
        """`text`: captions or TextItems -> Texts; `image`: RegionItems (or pictures) -> Regions."""
        return self.texts(raw) if side == "text" else self.regions(raw)

    def words(self, text: TextItem | str) -> list[int]:
        """Word pieces without special tokens. Raises DataError where neither ids nor sentence can be used."""
        if isinstance(text, str):
            text = TextItem(id=text, sentence=text)
        if text.input_ids and self._made_here(text.tokenizer):
            ids = list(text.input_ids)
            if not 0 <= min(ids) <= max(ids) < self.v_range[1]:
                raise DataError(
                    f"caption {text.id} holds word pieces from {min(ids)} to {max(ids)}, the model's vocabulary ends "
                    f"before {self.v_range[1]}; use a text database of the model's own tokenizer"
                )
        elif text.sentence is None:
            raise DataError(
                f"caption {text.id} holds ids of tokenizer {text.tokenizer!r} and no sentence, but the model reads "
                f"{self.identity!r}; rebuild the text database with sentences or use the model's own tokenizer"
            )
        elif self.tokenizer is None:
            raise DataError(
                f"caption {text.id!r} must be tokenized, but the checkpoint holds no tokenizer; give the one it was "
                "trained with (a folder, vocab.txt or tokenizer.json) as model.tokenizer"
            )
        else:
            ids = self.tokenizer.encode(text.sentence)
        if not ids:
            raise DataError(f"caption {text.id!r} has no word that the tokenizer knows; leave it out")
        if len(ids) > self.max_text:
            raise DataError(
                f"caption {text.id} has {len(ids)} word pieces, the model takes {self.max_text}; "
                "filter with max_text or shorten it"
            )
        return ids

    def _made_here(self, identity: str | None) -> bool:
        if self.tokenizer is not None:
            return self.tokenizer.matches(identity)
        return self.identity is None or identity is None or identity == self.identity

    def texts(self, raw: Sequence[TextItem | str]) -> Texts:
        sequences = [[self.cls, *self.words(text), self.sep] for text in raw]
        lengths = torch.tensor([len(s) for s in sequences])
        ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = torch.tensor(sequence)
        return Texts(ids, lengths)

    def regions(self, raw: Sequence[Any]) -> Regions:
        items = [item if isinstance(item, RegionItem) else self._extract(item) for item in raw]
        for item in items:
            if item.features.shape[1] != self.img_dim:
                raise DataError(
                    f"regions of image {item.id} are {item.features.shape[1]} wide, the model takes {self.img_dim}; "
                    "use the region database that it was trained on, or one of the same detector"
                )
        lengths = torch.tensor([len(item) for item in items])
        widest = int(lengths.max())
        kind = np.result_type(*(item.features.dtype for item in items))  # databases may differ in precision
        features = np.zeros((len(items), widest, self.img_dim), kind)
        boxes = np.zeros((len(items), widest, 7), np.float32)
        for b, item in enumerate(items):
            features[b, : len(item)] = item.features
            boxes[b, : len(item), :6] = item.boxes
        boxes[:, :, 6] = boxes[:, :, 4] * boxes[:, :, 5]  # w h
        return Regions(torch.from_numpy(features), torch.from_numpy(boxes), lengths)

    def _extract(self, picture: Any) -> RegionItem:
        if self.extractor is None:
            raise DataError(
                "this model reads detected regions, not pictures, and its checkpoint names no extractor; "
                "pass an item of a region database (crossmodal.open_regions(path)[image_id])"
            )
        from crossmodal.data.extractors import build_extractor

        return build_extractor(self.extractor)(picture)

    def save(self, folder: Path) -> None:
        values = asdict(replace(self, tokenizer=None))
        del values["tokenizer"]
        (folder / FILE).write_text(json.dumps(values, indent=2))
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    @staticmethod
    def load(folder: Path) -> UniterProcessor:
        """Raises CheckpointError where the folder holds no processor, or a damaged one."""
        if not (folder / FILE).is_file():
            raise CheckpointError(f"{folder} holds no {FILE}; give the folder of a checkpoint written by crossmodal")
        tokenizer = None
        if (folder / "tokenizer.json").is_file():
            from crossmodal.data.tokenizers import load_tokenizer

            tokenizer = load_tokenizer(folder)
        try:
            values = parse((folder / FILE).read_text(encoding="utf-8"))
            low, high = map(int, values["v_range"])
            return UniterProcessor(**{**values, "v_range": (low, high)}, tokenizer=tokenizer)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{folder / FILE} cannot be read ({error}); use another checkpoint") from None
