"""Writing text databases in the layout that `data/texts.py` reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import lmdb
from tqdm import tqdm

from crossmodal.data.captions import Caption, read_captions
from crossmodal.data.environments import close
from crossmodal.data.samplers import stable_hash
from crossmodal.data.texts import encode_record
from crossmodal.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from crossmodal.disk import disk_errors, require_room
from crossmodal.errors import ConfigError, DataError
from crossmodal.files import sync, write_synced

__all__ = ["Caption", "TextWriter", "write_text_db", "write_texts"]

_PICTURES = frozenset({".jpg", ".jpeg", ".png"})
_LONGEST_KEY = 511  # bytes: LMDB's own limit
_BATCH = 1000
_FIRST_MAP = 1 << 26  # bytes; doubled whenever it is full


class TextWriter:
    """Writes a text database caption by caption; it takes its name only when the block ends well.

    ``with TextWriter(folder, tokenizer) as writer: writer.add(caption)``. `count` captions are written, and
    `empty` lists the ids of those left out because nothing of them is in the vocabulary.
    """

    def __init__(
        self, output: str | os.PathLike[str], tokenizer: Tokenizer, meta: Mapping[str, Any] | None = None
    ) -> None:
        self.output = Path(output).absolute()
        self.tokenizer = tokenizer
        self.empty: list[str] = []
        self._meta = dict(meta or {})
        self._lengths: dict[str, int] = {}
        self._image_of: dict[str, str] = {}
        self._texts_of: dict[str, list[str]] = {}
        self._waiting: list[tuple[bytes, bytes]] = []
        self._partial = self.output.with_name(self.output.name + ".partial")

    @property
    def count(self) -> int:
        return len(self._lengths)

    def __enter__(self) -> TextWriter:
        refuse_existing(self.output)
        if self._partial.exists():
            shutil.rmtree(self._partial)  # of an earlier run that was killed
        with disk_errors(self.output):
            self._partial.mkdir(parents=True)
            require_room(self._partial)
            self._env = lmdb.open(str(self._partial), map_size=_FIRST_MAP)
        return self

    def add(self, caption: Caption) -> None:
        """Store one caption; `caption.image` is the key of its image in the region database."""
        key = caption.id.encode()
        if not 0 < len(key) <= _LONGEST_KEY:
            raise DataError(f"caption id {caption.id!r} has {len(key)} bytes; an id has 1 to {_LONGEST_KEY}")
        if caption.id in self._lengths:
            raise DataError(f"two captions have the id {caption.id!r}; caption ids must be unique")
        input_ids = self.tokenizer.encode(caption.sentence)
        if not input_ids:
            self.empty.append(caption.id)
            return
        record: dict[str, Any] = {
            "id": caption.id,
            "sent": caption.sentence,
            "input_ids": input_ids,
            "img_fname": caption.image,
        }
        if caption.split is not None:
            record["split"] = caption.split
        self._lengths[caption.id] = len(input_ids)
        self._image_of[caption.id] = caption.image
        self._texts_of.setdefault(caption.image, []).append(caption.id)
        self._waiting.append((key, encode_record(record)))
        if len(self._waiting) >= _BATCH:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._env.close()
            shutil.rmtree(self._partial, ignore_errors=True)

    def _flush(self) -> None:
        while True:
            try:
                with disk_errors(self.output), self._env.begin(write=True) as transaction:
                    for key, value in self._waiting:
                        transaction.put(key, value)
                break
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
        self._waiting.clear()

    def _finish(self) -> None:
        if not self._lengths:
            raise DataError(f"not one caption to write into {self.output}; check the caption file and its images")
        self._flush()
        self._env.sync(True)
        self._env.close()
        tokenizer = self.tokenizer
        tokenizer.save(self._partial)
        meta = {
            **self._meta,
            "tokenizer": tokenizer.name,
            "toker": tokenizer.name,
            "bert": tokenizer.name,
            "fingerprint": tokenizer.identity,
            "UNK": tokenizer.unk,
            "CLS": tokenizer.cls,
            "SEP": tokenizer.sep,
            "MASK": tokenizer.mask,
            "v_range": list(tokenizer.v_range),
        }
        write_synced(self._partial / "txt2img.json", json.dumps(self._image_of))
        write_synced(self._partial / "img2txts.json", json.dumps(self._texts_of))
        write_synced(self._partial / "id2len.json", json.dumps(self._lengths))
        write_synced(self._partial / "meta.json", json.dumps(meta))
        for file in self._partial.iterdir():
            sync(file)
        sync(self._partial)
        close(self.output)  # a removed database of this name may still be open
        os.rename(self._partial, self.output)  # replaces an empty folder, refuses any other
        sync(self.output.parent)


def write_text_db(
    captions: Iterable[Caption],
    output: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    total: int | None = None,
) -> Path:
    """Write captions, whose `image` is a region key, as a text database in the same order.

    total: how many captions there are, for the progress bar.

    Raises ConfigError where `output` exists and is not an empty folder, DataError for ids that occur twice,
    captions without a piece, or none at all; then nothing is left at `output`.
    """
    with TextWriter(output, tokenizer) as writer:
        for caption in tqdm(captions, total=total, desc="captions", unit="", disable=None):
            writer.add(caption)
            if writer.empty:
                raise DataError(f"nothing of caption {caption.id!r} ({caption.sentence!r}) is left as word pieces")
    return writer.output


def write_texts(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    format: str | None = None,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    vocab_size: int = 8000,
    split: str | None = None,
    image_suffix: str | None = ".npz",
    lowercase: bool = True,
    images: str | os.PathLike[str] | None = None,
    divide: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """A caption file -> a text database, or several. What was done and left out is returned.

    format, split: see `read_captions`.
    tokenizer:     anything `load_tokenizer` takes; None trains one on these captions, of at most `vocab_size`
                   pieces, lower-casing if `lowercase` says so (a given tokenizer knows its own case).
    image_suffix:  an image's key is the stem of its file name with this; None keeps the file name.
    images:        a region database or a folder of pictures: captions whose image isn't there are left out.
    divide:        name -> share: the images are divided at random, always alike, over databases of these names
                   inside `output`; a tokenizer is trained on the captions of the first one alone.

    The report: ``output``, ``format``, ``captions``, ``images``, ``splits``, ``tokenizer``, ``vocab_size``,
    ``missing_images`` (their keys), ``without_image`` (how many captions these had), ``captionless`` (keys of
    images in `images` that no caption names) and ``empty`` (ids of captions without a word piece).
    Raises ConfigError and DataError as `read_captions`, `load_tokenizer` and `write_text_db` do; DataError
    where two images would have one key, and where no caption has its image in `images`.
    """
    refuse_existing(Path(output))
    found, format = read_captions(source, format=format, split=split)
    captions = _keyed(found, image_suffix, Path(source))
    kept, missing, captionless = captions, [], []
    if images is not None:
        present = _image_keys(Path(images), image_suffix)
        kept = [caption for caption in captions if caption.image in present]
        named = {caption.image for caption in captions}
        missing, captionless = sorted(named - present), sorted(present - named)
        if not kept:
            raise DataError(
                f"no image of {source} (such as {captions[0].image!r}) is in {images} "
                f"(such as {min(present, default='nothing')!r}); check the folder and the image suffix"
            )
    parts, whole = {Path(output): kept}, Path(output)
    if divide is not None:
        whole = whole.with_name(whole.name + ".partial")
        parts = {whole / name: part for name, part in _divided(kept, divide).items()}
    if tokenizer is None:
        sentences = [caption.sentence for caption in next(iter(parts.values()))]
        tokenizer = train_tokenizer(sentences, vocab_size, lowercase)
    elif not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(tokenizer)
    if divide is not None and whole.exists():
        shutil.rmtree(whole)  # of an earlier run that was killed
    try:
        empty = [id for folder, part in parts.items() for id in _write_part(folder, part, tokenizer, source)]
        if divide is not None:
            for name in divide:
                close(Path(output) / name)
            os.rename(whole, output)
            sync(Path(output).absolute().parent)
    finally:
        if divide is not None:
            shutil.rmtree(whole, ignore_errors=True)
    skipped = frozenset(empty)
    written = [caption for caption in kept if caption.id not in skipped]
    splits: dict[str, int] = {}
    for caption in written:
        if caption.split is not None:
            splits[caption.split] = splits.get(caption.split, 0) + 1
    return {
        "output": str(output),
        "parts": {folder.name: len(part) for folder, part in parts.items()},
        "format": format,
        "captions": len(written),
        "images": len({caption.image for caption in written}),
        "splits": splits,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "missing_images": missing,
        "without_image": len(captions) - len(kept),
        "captionless": captionless,
        "empty": empty,
    }


def _write_part(
    folder: Path, captions: list[Caption], tokenizer: Tokenizer, source: str | os.PathLike[str]
) -> list[str]:
    """The ids of captions left out because nothing of them is in the vocabulary."""
    with TextWriter(folder, tokenizer, meta={"annotation": str(source)}) as writer:
        for caption in tqdm(captions, desc=f"captions of {folder.name}", unit="", disable=None):
            writer.add(caption)
    return writer.empty


def _divided(captions: list[Caption], shares: Mapping[str, float]) -> dict[str, list[Caption]]:
    """Captions by part: images in an order that depends on their keys alone, cut at the shares."""
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(f"the shares {dict(shares)} do not divide the images; give positive ones that add up to 1")
    images = sorted({caption.image for caption in captions}, key=lambda image: stable_hash(("divide", image)))
    part_of: dict[str, str] = {}
    start, share = 0, 0.0
    for name, value in shares.items():
        share += value
        stop = round(share * len(images))
        if stop == start:
            raise DataError(f"{len(images)} images leave none for the part {name!r}; give it a larger share")
        part_of |= dict.fromkeys(images[start:stop], name)
        start = stop
    return {name: [c for c in captions if part_of[c.image] == name] for name in shares}


def _keyed(captions: list[Caption], suffix: str | None, source: Path) -> list[Caption]:
    """The same captions with region keys for images."""
    names: dict[str, str] = {}
    keyed = []
    for caption in captions:
        key = image_key(caption.image, suffix)
        other = names.setdefault(key, caption.image)
        if other != caption.image:
            raise DataError(f"images {other!r} and {caption.image!r} of {source} would both have the key {key!r}")
        keyed.append(replace(caption, image=key))
    return keyed


def image_key(name: str, suffix: str | None) -> str:
    """``val2014/COCO_1.jpg`` -> ``COCO_1.npz`` for the suffix ``.npz``; None keeps ``COCO_1.jpg``."""
    path = PurePosixPath(name)
    if not path.name:
        raise DataError(f"{name!r} is not the name of an image file")
    return path.name if suffix is None else path.stem + suffix


def _image_keys(folder: Path, suffix: str | None) -> set[str]:
    if folder.is_dir():
        pictures = [path.name for path in folder.iterdir() if path.suffix.lower() in _PICTURES]
        if pictures:
            return {image_key(name, suffix) for name in pictures}
    from crossmodal.data.regions import open_regions

    return set(open_regions(folder).ids)


def refuse_existing(output: Path) -> None:
    """ConfigError where a database at `output` would replace something."""
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists():
        raise ConfigError(f"{output} exists already; give another output or remove it first")
