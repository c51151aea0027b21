"""CLIP's processor: captions to byte pairs, pictures to pixels (CE-CLIP, spec sections 2.5 and 2.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from crossmodal.data.batches import Items, Pixels, Texts
from crossmodal.data.items import TextItem
from crossmodal.data.pictures import MEAN, RATIO, SCALE, STD, Range, centre_crop, normalised, open_picture, random_crop
from crossmodal.data.processor_parts import padded, read_settings, require_options, unreadable, write_settings
from crossmodal.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from crossmodal.data.clip_tokenizer import ClipTokenizer
    from crossmodal.data.corpus import Corpus

_MERGES = "merges.txt"


@dataclass(frozen=True)
class ClipProcessor:
    """Captions to ``start w_1 .. w_n end``, pictures to the middle of them, resized and normalised.

    image_size: height and width in pixels. context: tokens of a caption, the two special ones included; what is
    longer is cut and closed with the end token or, with `truncate` off, refused.
    crop_scale, crop_ratio: area and aspect of the random crops of training.
    """

    use: ClassVar[str] = "clip"

    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    context: int = 77
    truncate: bool = True
    crop_scale: Range = SCALE
    crop_ratio: Range = RATIO
    tokenizer: ClipTokenizer | None = None

    def __post_init__(self) -> None:
        size = self.image_size
        object.__setattr__(self, "image_size", (size, size) if isinstance(size, int) else tuple(size))
        for name, length in (("mean", 3), ("std", 3), ("crop_scale", 2), ("crop_ratio", 2), ("image_size", 2)):
            value = tuple(getattr(self, name))
            if len(value) != length:
                raise ConfigError(f"the processor's {name} is {list(value)}; it must have {length} numbers")
            object.__setattr__(self, name, value)
        if min(self.image_size) < 1 or self.context < 2 or min(self.std) <= 0:
            raise ConfigError(
                f"the processor's image_size is {list(self.image_size)}, context {self.context} and std "
                f"{list(self.std)}; they must be at least 1, at least 2 and above 0"
            )
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"the processor's {name} is {[low, high]}; give two numbers above 0, in this order")

    def __call__(self, side: str, raw: Sequence[Any]) -> Items:
        """`text`: captions or TextItems -> Texts; `image`: pictures, their paths or items with them -> Pixels."""
        return self.texts(raw) if side == "text" else self.pixels(raw)

    def texts(self, raw: Sequence[TextItem | str]) -> Texts:
        """(B,T) ids, T the longest of these captions. Raises DataError where there is no sentence or it is refused."""
        if self.tokenizer is None:
            raise DataError("a caption must be tokenized, but the processor holds no tokenizer; name model.tokenizer")
        sentences = [text if isinstance(text, str) else text.sentence for text in raw]
        for text, sentence in zip(raw, sentences, strict=True):
            if sentence is None:
                assert isinstance(text, TextItem)
                raise DataError(
                    f"caption {text.id!r} holds ids of another tokenizer and no sentence for CLIP to read; use a text "
                    "database with sentences"
                )
        rows = self.tokenizer.rows(map(str, sentences), context=self.context, truncate=self.truncate)
        return Texts(*padded(rows))

    def pixels(self, raw: Sequence[Any]) -> Pixels:
        """(B,3,H,W) for evaluation: centre crops. Raises DataError for what is no picture."""
        crops = [centre_crop(open_picture(item), self.image_size) for item in raw]
        return Pixels(torch.stack([normalised(crop, self.mean, self.std) for crop in crops]))

    def augmented(self, raw: Sequence[Any], generators: Sequence[torch.Generator]) -> Pixels:
        """(B,3,H,W) for training: a random crop of each picture, drawn by the generator of the same place."""
        crops = [
            random_crop(open_picture(item), self.image_size, generator, self.crop_scale, self.crop_ratio)
            for item, generator in zip(raw, generators, strict=True)
        ]
        return Pixels(torch.stack([normalised(crop, self.mean, self.std) for crop in crops]))

    def sizes(self) -> dict[str, Any]:
        words = {} if self.tokenizer is None else {"vocab_size": self.tokenizer.vocab_size}
        return {**words, "context": self.context, "image_size": self.image_size}

    def save(self, folder: Path) -> None:
        values = asdict(replace(self, tokenizer=None))
        del values["tokenizer"]
        write_settings(folder, self.use, values, None)
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    @classmethod
    def load(cls, folder: Path) -> ClipProcessor:
        """Raises CheckpointError where the folder holds no processor, a damaged one, or lacks its merges."""
        from crossmodal.data.clip_tokenizer import load_clip_tokenizer

        values = {name: value for name, value in read_settings(folder).items() if name != "use"}
        try:
            bare = cls(**values)
        except (TypeError, ValueError, ConfigError) as error:
            raise unreadable(folder, error) from None
        try:
            return replace(bare, tokenizer=load_clip_tokenizer(folder / _MERGES))
        except ConfigError as error:
            raise CheckpointError(f"the CLIP tokenizer of {folder} cannot be read ({error})") from None

    @classmethod
    def of_corpus(
        cls, corpus: Corpus, config: Mapping[str, Any], tokenizer: str | None = None, **options: Any
    ) -> ClipProcessor:
        """For a model of this configuration; nothing is taken from the corpus but merges beside its captions.

        tokenizer: CLIP's merges, as `load_clip_tokenizer` takes them. options: the fields above by name. Raises
        ConfigError for another option, and where no merges are found.
        """
        from crossmodal.data.clip_tokenizer import load_clip_tokenizer

        require_options(cls, options, "tokenizer")
        if tokenizer is None and corpus.parts:
            beside = corpus.parts[0].texts.path / _MERGES
            tokenizer = str(beside) if beside.is_file() else None
        found = {name: config[name] for name in ("image_size", "context") if config.get(name) is not None}
        return cls(**{**found, **options}, tokenizer=load_clip_tokenizer(tokenizer))
