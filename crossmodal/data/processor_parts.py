"""What the processors share: word pieces of a caption, rows padded to tensors, and their files in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossmodal.data.items import RegionItem, TextItem
from crossmodal.data.json_text import parse
from crossmodal.errors import CheckpointError, ConfigError, DataError, nearest

if TYPE_CHECKING:
    from crossmodal.data.corpus import Corpus
    from crossmodal.data.tokenizers import Tokenizer

FILE = "processor.json"


def word_pieces(
    text: TextItem | str, tokenizer: Tokenizer | None, identity: str | None, v_range: tuple[int, int]
) -> list[int]:
    """Ids of a caption without special tokens: the stored ones where the model's own tokenizer made them.

    identity: the tokenizer whose stored ids are taken, where there is no `tokenizer`; None takes any.
    Raises DataError where neither ids nor sentence can be used, and where no word is left.
    """
    if isinstance(text, str):
        text = TextItem(id=text, sentence=text)
    if text.input_ids and _made_here(text.tokenizer, tokenizer, identity):
        ids = list(text.input_ids)
        if not 0 <= min(ids) <= max(ids) < v_range[1]:
            raise DataError(
                f"caption {text.id} holds word pieces from {min(ids)} to {max(ids)}, the model's vocabulary ends "
                f"before {v_range[1]}; use a text database of the model's own tokenizer"
            )
    elif text.sentence is None:
        raise DataError(
            f"caption {text.id} holds ids of tokenizer {text.tokenizer!r} and no sentence, but the model reads "
            f"{identity!r}; rebuild the text database with sentences or use the model's own tokenizer"
        )
    elif tokenizer is None:
        raise DataError(
            f"caption {text.id!r} must be tokenized, but the checkpoint holds no tokenizer; give the one it was "
            "trained with (a folder, vocab.txt or tokenizer.json) as model.tokenizer"
        )
    else:
        ids = tokenizer.encode(text.sentence)
    if not ids:
        raise DataError(f"caption {text.id!r} has no word that the tokenizer knows; leave it out")
    return ids


def _made_here(maker: str | None, tokenizer: Tokenizer | None, identity: str | None) -> bool:
    if tokenizer is not None:
        return tokenizer.matches(maker)
    return identity is None or maker is None or maker == identity


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids -> (B,T) int64 with zeros at the right, and the lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for padded_row, row in zip(ids, rows, strict=True):
        padded_row[: len(row)] = torch.tensor(row)
    return ids, lengths


def region_items(raw: Sequence[Any], extractor: Mapping[str, Any] | None) -> list[RegionItem]:
    """The items of an image side; pictures go through the extractor that a checkpoint names."""
    return [item if isinstance(item, RegionItem) else _extract(item, extractor) for item in raw]


def _extract(picture: Any, extractor: Mapping[str, Any] | None) -> RegionItem:
    if extractor is None:
        raise DataError(
            "this model reads detected regions, not pictures, and its checkpoint names no extractor; "
            "pass an item of a region database (crossmodal.open_regions(path)[image_id])"
        )
    from crossmodal.data.extractors import build_extractor

    return build_extractor(extractor)(picture)


def require_options(made: type, options: Mapping[str, Any], *without: str) -> None:
    """Raises ConfigError unless the options are fields of the dataclass `made`, other than those `without`."""
    known = [field.name for field in fields(made) if field.name not in without]
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"the model's processor has no option {unknown!r}; {nearest(unknown, known)}")


def corpus_tokenizer(corpus: Corpus, tokenizer: str | None) -> Tokenizer | None:
    """The tokenizer that is named, else the one beside the corpus's first text database, else None."""
    from crossmodal.data.tokenizers import load_tokenizer

    beside = corpus.parts[0].texts.path
    if tokenizer is not None:
        return load_tokenizer(tokenizer)
    return load_tokenizer(beside) if (beside / "tokenizer.json").is_file() else None


def write_settings(folder: Path, use: str, values: Mapping[str, Any], tokenizer: Tokenizer | None) -> None:
    (folder / FILE).write_text(json.dumps({"use": use, **values}, indent=2))
    if tokenizer is not None:
        tokenizer.save(folder)


def read_settings(folder: Path) -> dict[str, Any]:
    """What processor.json holds, `use` among it. Raises CheckpointError where it isn't there or is damaged."""
    if not (folder / FILE).is_file():
        raise CheckpointError(f"{folder} holds no {FILE}; give the folder of a checkpoint written by crossmodal")
    try:
        values = parse((folder / FILE).read_text(encoding="utf-8"))
        return {str(name): value for name, value in values.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise unreadable(folder, error) from None


def unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder / FILE} cannot be read ({error}); use another checkpoint")


def saved_tokenizer(folder: Path) -> Tokenizer | None:
    if not (folder / "tokenizer.json").is_file():
        return None
    from crossmodal.data.tokenizers import load_tokenizer

    return load_tokenizer(folder)
