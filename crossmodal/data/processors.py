"""Processors: the only place that turns captions and region records into a model's input (DESIGN.md section 4).

A processor is saved in the checkpoint folder; datasets, evaluation, mining and `model.score` all call it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch

from crossmodal.data.aladin_processor import AladinProcessor
from crossmodal.data.batches import Items, Regions, Texts
from crossmodal.data.clip_processor import ClipProcessor
from crossmodal.data.items import TextItem
from crossmodal.data.processor_parts import (
    FILE,
    corpus_tokenizer,
    padded,
    read_settings,
    region_items,
    require_options,
    saved_tokenizer,
    unreadable,
    word_pieces,
    write_settings,
)
from crossmodal.errors import CheckpointError, ConfigError, DataError, nearest

if TYPE_CHECKING:
    from crossmodal.data.corpus import Corpus
    from crossmodal.data.tokenizers import Tokenizer

__all__ = ["FILE", "PROCESSORS", "AladinProcessor", "ClipProcessor", "Processor", "UniterProcessor", "load_processor"]

P = TypeVar("P", bound="Processor")


class Processor(Protocol):
    """What every processor is. `use` names it in processor.json and in a recipe's model."""

    use: ClassVar[str]

    def __call__(self, side: str, raw: Sequence[Any]) -> Items:
        """`text`: captions or TextItems -> Texts; `image`: RegionItems or pictures -> Regions or Pixels."""

    def sizes(self) -> Mapping[str, Any]:
        """What it tells the model's config."""

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls: type[P], folder: Path) -> P: ...

    @classmethod
    def of_corpus(
        cls: type[P], corpus: Corpus, config: Mapping[str, Any], tokenizer: str | None = None, **options: Any
    ) -> P:
        """A processor for the databases of a corpus; `config` is the model's, as far as it is known."""


@dataclass(frozen=True)
class UniterProcessor:
    """Captions to ``[CLS] w_1 .. w_n [SEP]``, regions to features and 7-number boxes (spec section 3).

    `identity` names the tokenizer whose stored ids are taken as they are; without a `tokenizer` only captions
    that carry such ids can be read. `max_text` bounds the words of a caption (the position table does).
    """

    use: ClassVar[str] = "uniter"

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
        ids = word_pieces(text, self.tokenizer, self.identity, self.v_range)
        if len(ids) > self.max_text:
            name = repr(text[:60]) if isinstance(text, str) else text.id
            raise DataError(
                f"caption {name} has {len(ids)} word pieces, the model takes {self.max_text}; shorten it, or leave it "
                "out (max_text of a recipe's data does)"
            )
        return ids

    def texts(self, raw: Sequence[TextItem | str]) -> Texts:
        return Texts(*padded([[self.cls, *self.words(text), self.sep] for text in raw]))

    def regions(self, raw: Sequence[Any]) -> Regions:
        items = region_items(raw, self.extractor)
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

    def sizes(self) -> dict[str, int]:
        vocabulary = self.tokenizer.vocab_size if self.tokenizer else self.v_range[1]
        return {"vocab_size": vocabulary, "img_dim": self.img_dim}

    def save(self, folder: Path) -> None:
        values = asdict(replace(self, tokenizer=None))
        del values["tokenizer"]
        write_settings(folder, self.use, values, self.tokenizer)

    @classmethod
    def load(cls, folder: Path) -> UniterProcessor:
        """Raises CheckpointError where the folder holds no processor, or a damaged one."""
        values = {name: value for name, value in read_settings(folder).items() if name != "use"}
        tokenizer = saved_tokenizer(folder)
        try:
            low, high = map(int, values["v_range"])
            return cls(**{**values, "v_range": (low, high)}, tokenizer=tokenizer)
        except (ValueError, LookupError, TypeError) as error:
            raise unreadable(folder, error) from None

    @classmethod
    def of_corpus(
        cls, corpus: Corpus, config: Mapping[str, Any], tokenizer: str | None = None, **options: Any
    ) -> UniterProcessor:
        """For the databases of a corpus: their special tokens, tokenizer and feature width.

        options: the fields above by name, in place of what the corpus says. Raises ConfigError for another option,
        and where the captions are sentences alone and no tokenizer is named.
        """
        require_options(cls, options, "tokenizer")
        part, chosen = corpus.parts[0], corpus_tokenizer(corpus, tokenizer)
        if chosen is None and part.texts.cls is None:
            raise ConfigError(
                f"the captions of {part.texts.path} are sentences without word pieces; name the model's tokenizer "
                "(a folder, vocab.txt or tokenizer.json) as model.tokenizer"
            )
        made: Any = chosen or part.texts
        found = {
            "img_dim": int(config.get("img_dim", part.regions.feature_dim)),
            "max_text": int(config.get("max_position_embeddings", 512)) - 2,
            "identity": chosen.identity if chosen else part.texts.tokenizer,
            **{name: getattr(made, name) for name in ("cls", "sep", "mask", "v_range")},
        }
        return cls(**{**found, **options}, tokenizer=chosen)


PROCESSORS: dict[str, type[Processor]] = {
    "uniter": UniterProcessor,
    "aladin": AladinProcessor,
    "clip": ClipProcessor,
}


def load_processor(folder: Path) -> Processor:
    """The processor of a checkpoint folder. Raises CheckpointError where it holds none, or a damaged one."""
    use = read_settings(folder).get("use", "uniter")
    if use not in PROCESSORS:
        raise CheckpointError(f"{folder / FILE} names the processor {use!r}; {nearest(str(use), PROCESSORS)}")
    return PROCESSORS[use].load(folder)
