"""VinVL's published captions: ``{split}_captions.pt``, and the key files that choose images and their order.

A captions file is a dictionary of ``torch.save``, image id -> list of captions or its JSON text; the images stand in
its order. A key file, such as ``test_img_keys_1k.tsv``, holds an image id a line (ALADIN, spec section 7).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from crossmodal.data.json_text import parse
from crossmodal.data.sentences import Sentences
from crossmodal.data.unpickle import unpickle_file
from crossmodal.errors import ConfigError, DataError


class VinvlTexts(Sentences):
    """The captions of a file: sentences, with the ids ``391895#0``, ``391895#1``, ... of image ``391895.npz``.

    path: the file. image_keys: a key file: these images alone, in its order. captions_per_image: the first so many
    of every image. max_len: keep the captions of at most so many words; -1 keeps all.

    The attributes are those of `texts.TextDB`, but `lengths` counts words between white space: there are no word
    pieces before the model's own tokenizer has read them. So there are no special tokens either (None).
    Raises DataError where the file is damaged, or an image has too few captions or none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_len: int = -1,
        image_keys: str | os.PathLike[str] | None = None,
        captions_per_image: int | None = None,
    ) -> None:
        if captions_per_image is not None and captions_per_image < 1:
            raise ConfigError(f"captions_per_image is {captions_per_image}; it must be at least 1")
        super().__init__(Path(path).absolute(), max_len)
        self._options = image_keys, captions_per_image
        stored = _stored(self.path)
        chosen = list(stored) if image_keys is None else _listed(Path(image_keys), stored, self.path)
        for image in chosen:
            sentences = self._captions(image, stored[image], captions_per_image)
            name = f"{image}.npz"
            ids = [f"{image}#{k}" for k in range(len(sentences))]
            self.texts_of[name] = ids
            self.image_of.update(dict.fromkeys(ids, name))
            self._sentences.update(zip(ids, sentences, strict=True))
        self._count()

    def __reduce__(self) -> tuple[Any, ...]:
        return VinvlTexts, (self.path, self.max_len, *self._options)

    def _captions(self, image: str, stored: Any, count: int | None) -> list[str]:
        where = f"the captions of image {image} in {self.path}"
        if isinstance(stored, str):
            try:
                stored = parse(stored)
            except ValueError as error:
                raise DataError(f"{where} are no JSON ({error}); download the file again") from None
        if not isinstance(stored, list) or not stored or not all(isinstance(sentence, str) for sentence in stored):
            raise DataError(f"{where} are no list of sentences; download the file again")
        if count is not None and len(stored) < count:
            raise DataError(
                f"{where} are {len(stored)}, and captions_per_image asks for {count}; ask for fewer, or leave it out"
            )
        return stored[:count]


def _stored(path: Path) -> dict[str, Any]:
    content = unpickle_file(path)
    if not isinstance(content, dict) or not all(type(image) in (int, str) for image in content):
        raise DataError(f"{path} is no dictionary of captions by image; give a file such as test_captions.pt")
    if not content:
        raise DataError(f"{path} holds no captions")
    return {str(image): captions for image, captions in content.items()}


def _listed(keys: Path, stored: dict[str, Any], path: Path) -> list[str]:
    """The image ids of a key file, each of which must have captions."""
    try:
        lines = keys.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the key file {keys} cannot be read ({error}); give a file with an image id a line") from None
    images = [line.split("\t")[0].strip() for line in lines if line.strip()]
    if not images:
        raise DataError(f"the key file {keys} holds no image id; give a file with one a line")
    if len(set(images)) < len(images):
        double = next(image for i, image in enumerate(images) if image in images[:i])
        raise DataError(f"the key file {keys} lists image {double} twice; list it once")
    missing = [image for image in images if image not in stored]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(images)} images in the key file {keys} have no captions in {path} (first: "
            f"{', '.join(missing[:3])}); give the key file of that split"
        )
    return images
