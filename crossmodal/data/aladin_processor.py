"""ALADIN's processor: captions, and images as tags and regions (ALADIN, spec sections 3 and 12)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from crossmodal.data.batches import Items, Regions, Texts
from crossmodal.data.items import RegionItem, TextItem
from crossmodal.data.processor_parts import (
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
from crossmodal.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from crossmodal.data.clip_tokenizer import ClipTokenizer
    from crossmodal.data.corpus import Corpus
    from crossmodal.data.tokenizers import Tokenizer

DETIC = 1024
"""Width of a Detic feature; VinVL's are 2048 wide."""

_LONGEST_CAPTION = 100  # CLIP ids of a caption's words; more are refused, as published
_FIRST_SENTENCE = "start of the sequence"
_TOKENIZERS = ("tokenizer", "clip_tokenizer")


@dataclass(frozen=True)
class AladinProcessor:
    """Captions to ``[CLS] w_1 .. w_n [SEP]``; images to tags ``[UNK] t_1 .. t_m [SEP]`` and regions with their boxes.

    img_feature_dim: numbers a region, the six of its box among them. max_text, max_tags: tokens of a caption and of
    the tags, special ones included; more are cut off on the right. max_regions: the first so many are used.
    clip_tags, clip_captions: CLIP's byte pairs in place of word pieces, a sentence for every word of the tags.
    aggregate_tags: one sentence for equal words of them.
    Without `tokenizer` (or, with CLIP's, `clip_tokenizer`) nothing can be tokenized: a DataError.
    """

    use: ClassVar[str] = "aladin"

    img_feature_dim: int = 2054
    max_text: int = 50
    max_tags: int = 50
    max_regions: int = 34
    clip_tags: bool = False
    clip_captions: bool = False
    aggregate_tags: bool = False
    extractor: Mapping[str, Any] | None = None
    tokenizer: Tokenizer | None = None
    clip_tokenizer: ClipTokenizer | None = None

    def __post_init__(self) -> None:
        smallest = {"img_feature_dim": 7, "max_text": 3, "max_tags": 2, "max_regions": 1}
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise ConfigError(f"the processor's {name} is {getattr(self, name)}; it must be at least {least}")
        if self.aggregate_tags and not self.clip_tags:
            raise ConfigError("the processor's aggregate_tags needs clip_tags: only their sentences can be merged")

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # without what is cached

    def __call__(self, side: str, raw: Sequence[Any]) -> Items:
        """`text`: captions or TextItems -> Texts; `image`: RegionItems (or pictures) -> Regions with tags."""
        return self.texts(raw) if side == "text" else self.regions(raw)

    def texts(self, raw: Sequence[TextItem | str]) -> Texts:
        """(B,T) ids, T at most `max_text`: word pieces between [CLS] and [SEP], or CLIP's."""
        return Texts(*padded([self._clip_caption(text) if self.clip_captions else self._caption(text) for text in raw]))

    def regions(self, raw: Sequence[Any]) -> Regions:
        """features (B,R,img_feature_dim), boxes (B,R,6), R at most `max_regions`; tags as `texts_of_tags` says."""
        items = region_items(raw, self.extractor)
        lengths = torch.tensor([min(len(item), self.max_regions) for item in items])
        features = np.zeros((len(items), int(lengths.max()), self.img_feature_dim), np.float32)
        boxes = np.zeros((*features.shape[:2], 6), np.float32)
        for b, (item, length) in enumerate(zip(items, lengths.tolist(), strict=True)):
            features[b, :length] = self._rows(item, length)
            boxes[b, :length] = item.boxes[:length]
        tags = self._tags([" ".join(item.tags) for item in items])
        return Regions(torch.from_numpy(features), torch.from_numpy(boxes), lengths, tags)

    def _rows(self, item: RegionItem, length: int) -> NDArray[np.float32]:
        """(length, img_feature_dim): features and box; a Detic row has its box behind 1024 features, then zeros."""
        features, boxes = item.features[:length], item.boxes[:length]
        detic = np.zeros(length, bool) if item.detic is None else item.detic[:length]
        width = features.shape[1] + 6
        fits = width >= DETIC + 6 <= self.img_feature_dim if detic.all() else width == self.img_feature_dim
        if not fits:
            raise DataError(
                f"regions of image {item.id} are {width} wide with their boxes, the model takes "
                f"{self.img_feature_dim}; use the region database that it was trained on, or one of the same detector"
            )
        rows = np.zeros((length, self.img_feature_dim), np.float32)
        rows[~detic, :width] = np.concatenate([features, boxes], axis=1)[~detic]
        if detic.any():
            rows[detic, :DETIC] = features[detic, :DETIC]
            rows[detic, DETIC : DETIC + 6] = boxes[detic][:, [0, 1, 2, 3, 5, 4]]  # height before width
        return rows

    def _caption(self, text: TextItem | str) -> list[int]:
        tokenizer = _require(self.tokenizer, "a caption", "model.tokenizer")
        ids = word_pieces(text, tokenizer, None, tokenizer.v_range)
        return [tokenizer.cls, *ids[: self.max_text - 2], tokenizer.sep]

    def _clip_caption(self, text: TextItem | str) -> list[int]:
        """As published: the words that may fit, cut to CLIP's context, which keeps the end; then to `max_text`.

        Ids of 0 (CLIP's byte "!") aren't counted.
        """
        tokenizer = _require(self.clip_tokenizer, "a caption", "clip_vocab")
        sentence = text if isinstance(text, str) else text.sentence
        if not (sentence or "").strip():
            raise DataError(
                f"caption {text if isinstance(text, str) else text.id!r} has no sentence for CLIP to read; "
                "use a text database with sentences, or leave it out"
            )
        words = " ".join((sentence or "").split()[: self.max_text - 2])
        (row,) = tokenizer.rows([words], context=_LONGEST_CAPTION, truncate=False)
        if len(row) >= tokenizer.context:
            row = [*row[: tokenizer.context - 1], tokenizer.end]
        return row[: min(sum(i != 0 for i in row), self.max_text)]

    def _tags(self, tags: Sequence[str]) -> Texts:
        """Tags, joined by blanks -> (B,T) ids and segments (0 for [UNK], 1), or as many rows of CLIP's as sentences."""
        rows = [self._read_tags(joined) for joined in tags]
        if self.clip_tags:
            ids, lengths = padded([sentence for sentences in rows for sentence in sentences])
            return Texts(ids, lengths, counts=torch.tensor([len(sentences) for sentences in rows]))
        ids, lengths = padded([sentences[0] for sentences in rows])
        position = torch.arange(ids.shape[1])
        return Texts(ids, lengths, type_ids=((position > 0) & (position < lengths[:, None])).long())

    @cached_property
    def _read_tags(self) -> Callable[[str], list[list[int]]]:
        """`_tag_rows`, its answers kept: an image's tags are asked for with each of its captions, epoch after epoch."""
        return lru_cache(maxsize=1 << 14)(self._tag_rows)

    def _tag_rows(self, joined: str) -> list[list[int]]:
        if self.clip_tags:
            return _require(self.clip_tokenizer, "a tag", "clip_vocab").rows(self.tag_sentences(joined.split()))
        tokenizer = _require(self.tokenizer, "a tag", "model.tokenizer")
        pieces = tokenizer.encode(joined)[: self.max_tags - 2]
        return [[tokenizer.unk, *pieces, tokenizer.sep]]  # [UNK] where [CLS] was meant: checkpoints are trained so

    def tag_sentences(self, words: Sequence[str]) -> list[str]:
        """What CLIP reads of an image's tags: a first sentence, then one a word, `max_tags` in all.

        Equal words, aggregated, are one sentence in the place of the first: "a photo of two dogs".
        """
        counted = Counter(words).items() if self.aggregate_tags else [(word, 1) for word in words]
        sentences = [f"a photo of {_counted(word, count)}" for word, count in list(counted)[: self.max_tags - 1]]
        return [_FIRST_SENTENCE, *(s.replace("_", " ").replace("(", "").replace(")", "") for s in sentences)]

    def sizes(self) -> dict[str, int]:
        words = {} if self.tokenizer is None else {"vocab_size": self.tokenizer.vocab_size}
        return {**words, "img_feature_dim": self.img_feature_dim}

    def save(self, folder: Path) -> None:
        bare = asdict(replace(self, tokenizer=None, clip_tokenizer=None))
        values = {name: value for name, value in bare.items() if name not in _TOKENIZERS}
        write_settings(folder, self.use, values, self.tokenizer)
        if self.clip_tokenizer is not None:
            self.clip_tokenizer.save(folder)

    @classmethod
    def load(cls, folder: Path) -> AladinProcessor:
        """Raises CheckpointError where the folder holds no processor, a damaged one, or lacks a tokenizer's file."""
        values = {name: value for name, value in read_settings(folder).items() if name != "use"}
        tokenizer = saved_tokenizer(folder)
        try:
            bare = cls(**values, tokenizer=tokenizer)
        except (TypeError, ConfigError) as error:
            raise unreadable(folder, error) from None
        if tokenizer is None and not (bare.clip_tags and bare.clip_captions):
            raise CheckpointError(f"{folder} lacks the tokenizer.json of its processor; copy or write it again")
        if not (bare.clip_tags or bare.clip_captions):
            return bare
        from crossmodal.data.clip_tokenizer import load_clip_tokenizer

        try:
            return replace(bare, clip_tokenizer=load_clip_tokenizer(folder / "merges.txt"))
        except ConfigError as error:
            raise CheckpointError(f"the CLIP tokenizer of {folder} cannot be read ({error})") from None

    @classmethod
    def of_corpus(
        cls,
        corpus: Corpus,
        config: Mapping[str, Any],
        tokenizer: str | None = None,
        *,
        clip_vocab: str | None = None,
        **options: Any,
    ) -> AladinProcessor:
        """For the databases of a corpus; the width of a region is that of `config`, else of the first region.

        clip_vocab: CLIP's merges, as `load_clip_tokenizer` takes them. options: the fields above by name.
        Raises ConfigError for another option, and where a tokenizer is needed that is named nowhere.
        """
        require_options(cls, options, *_TOKENIZERS)
        width = config.get("img_feature_dim") or corpus.parts[0].regions.feature_dim + 6
        made = cls(**{"img_feature_dim": int(width), **options})
        chosen = corpus_tokenizer(corpus, tokenizer)
        if chosen is None and not (made.clip_tags and made.clip_captions):
            raise ConfigError(
                "ALADIN tokenizes tags and captions, and no tokenizer is named; give a folder, vocab.txt or "
                "tokenizer.json (such as the checkpoint folder of VinVL) as model.tokenizer"
            )
        if not (made.clip_tags or made.clip_captions):
            return replace(made, tokenizer=chosen)
        from crossmodal.data.clip_tokenizer import load_clip_tokenizer

        return replace(made, tokenizer=chosen, clip_tokenizer=load_clip_tokenizer(clip_vocab))


def _require(tokenizer: Any, what: str, option: str) -> Any:
    if tokenizer is None:
        raise DataError(f"{what} must be tokenized, but the processor holds no tokenizer for it; name one as {option}")
    return tokenizer


def _counted(word: str, count: int) -> str:
    """``a dog``, ``two dogs``, ... ``ten dogs``, ``many dogs``; of ``ball_(sports)`` the ``ball`` is made plural."""
    if count == 1:
        return f"a {word}"
    english = _english()
    name, mark, rest = word.partition("_") if "(" in word else (word, "", "")
    amount = english.number_to_words(count) if count <= 10 else "many"
    return f"{amount} {english.plural(name)}{mark}{rest}"


@lru_cache(maxsize=1)
def _english() -> Any:
    try:
        import inflect
    except ImportError:
        raise ConfigError(
            "aggregate_tags writes plurals, which the package inflect makes; install it with pip install inflect"
        ) from None
    return inflect.engine()
