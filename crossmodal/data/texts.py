"""Reading text databases: UNITER's published layout, which ours keep.

A folder holds an LMDB of caption id -> LZ4 frame of a msgpack map, with `input_ids` (no special tokens),
`img_fname` and free fields, among them the sentence; and four JSON files: ``meta.json``, ``id2len.json``,
``txt2img.json`` and ``img2txts.json``, whose orders are the orders of captions and images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import lmdb
import lz4.frame
import msgpack

from crossmodal.data.environments import environment
from crossmodal.data.items import TextItem
from crossmodal.data.json_text import parse
from crossmodal.errors import ConfigError, DataError

LARGEST = 1 << 20
"""Bytes that the record of a caption may unpack to: thousands of times what a sentence has."""

INDEXES = ("meta.json", "id2len.json", "txt2img.json", "img2txts.json")
_MOST_PIECES = 1 << 16
_SENTENCE = ("sent", "sentence", "raw", "caption")


class TextSource(Protocol):
    """What every source of captions is, with the attributes of `TextDB`.

    Where there are no word pieces, `lengths` counts words, and the special tokens are None.
    """

    @property
    def path(self) -> Path: ...
    @property
    def max_len(self) -> int: ...
    @property
    def meta(self) -> Mapping[str, Any]: ...
    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def lengths(self) -> Mapping[str, int]: ...
    @property
    def images(self) -> Sequence[str]: ...
    @property
    def image_of(self) -> Mapping[str, str]: ...
    @property
    def texts_of(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def cls(self) -> int | None: ...
    @property
    def sep(self) -> int | None: ...
    @property
    def mask(self) -> int | None: ...
    @property
    def v_range(self) -> tuple[int, int] | None: ...
    @property
    def tokenizer(self) -> str | None: ...
    def __len__(self) -> int: ...
    def __contains__(self, id: object) -> bool: ...
    def __getitem__(self, id: str) -> TextItem: ...


def open_texts(
    path: str | os.PathLike[str],
    max_len: int = -1,
    *,
    image_keys: str | os.PathLike[str] | None = None,
    captions_per_image: int | None = None,
    **options: Any,
) -> TextSource:
    """A text database; captions as they are published, in files (`caption_tables.open_captions`) or tars
    (`tars.TarTexts`); or those of VinVL's in a file such as ``test_captions.pt`` (`vinvl_texts.VinvlTexts`).

    image_keys: of VinVL's file: a key file that chooses images and their order. captions_per_image: how many captions
    an image has, but in a text database. options: `split` and those of tables, as `caption_tables.open_captions` takes
    them. Raises ConfigError where an option is given that is not for this source.
    """
    from crossmodal.data.caption_tables import FILES, is_records_folder, open_captions
    from crossmodal.data.tars import TarTexts, is_tars

    path = Path(path)
    if is_tars(path):
        _refuse({"image_keys": image_keys, **options}, path, "tars")
        return TarTexts(path, max_len, captions_per_image=captions_per_image)
    if path.suffix.lower() in FILES or is_records_folder(path):
        _refuse({"image_keys": image_keys}, path, "a file of captions")
        return open_captions(path, max_len, captions_per_image=captions_per_image, **options)
    if path.is_file() or path.suffix == ".pt":
        from crossmodal.data.vinvl_texts import VinvlTexts

        _refuse(options, path, "VinVL's caption file")
        return VinvlTexts(path, max_len, image_keys, captions_per_image)
    _refuse({"image_keys": image_keys, "captions_per_image": captions_per_image, **options}, path, "a text database")
    return TextDB(path, max_len)


_MEANT_FOR = {
    "image_keys": "VinVL's caption files",
    "captions_per_image": "files of captions",
    "split": "Karpathy's JSON",
}


def _refuse(options: Mapping[str, Any], path: Path, what: str) -> None:
    for name, value in options.items():
        if value is not None:
            meant = _MEANT_FOR.get(name, "tables of captions")
            raise ConfigError(f"{name} is for {meant}, and {path} is {what}; leave it out")


class TextDB:
    """A text database, read-only and picklable.

    path:    the folder.
    max_len: keep the captions of at most so many word pieces (special tokens not counted); -1 keeps all.

    ids:       the captions kept, in the order of ``id2len.json``; what `len` counts and `in` asks.
    lengths:   word pieces of every stored caption, kept or not.
    images:    every image, in the order of ``img2txts.json``.
    image_of, texts_of: caption -> image and image -> captions, of everything stored, kept or not.
    meta:      ``meta.json``; from it `cls`, `sep`, `mask` and `v_range`, and
    tokenizer: the fingerprint or published name of what made the ids, None where the database doesn't say.

    Raises DataError where files are missing or do not belong together; reading a record raises it with the
    record's key.
    """

    def __init__(self, path: str | os.PathLike[str], max_len: int = -1) -> None:
        self.path = Path(path).absolute()
        self.max_len = max_len
        self._require_files()
        environment(self.path)  # a damaged one is reported here, where its path was given
        self.meta: dict[str, Any] = self._index("meta.json")
        self.lengths: dict[str, int] = self._index("id2len.json")
        self.image_of: dict[str, str] = self._index("txt2img.json")
        self.texts_of: dict[str, list[str]] = self._index("img2txts.json")
        self._require_kinds()
        self._require_joins()
        self.ids = [i for i, length in self.lengths.items() if max_len == -1 or length <= max_len]
        self.images = list(self.texts_of)
        self._kept = frozenset(self.ids)
        self.cls, self.sep, self.mask, *v_range = self._numbers()
        self.v_range: tuple[int, int] = (v_range[0], v_range[1])
        names = (self.meta.get(key) for key in ("fingerprint", "bert", "tokenizer", "toker"))
        self.tokenizer: str | None = next((name for name in names if name and isinstance(name, str)), None)

    def __reduce__(self) -> tuple[Any, ...]:
        return TextDB, (self.path, self.max_len)

    def __repr__(self) -> str:
        counts = f"{len(self)} of {len(self.lengths)} captions, {len(self.images)} images"
        return f"TextDB({str(self.path)!r}, {counts})"

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: object) -> bool:
        return id in self._kept

    def __getitem__(self, id: str) -> TextItem:
        """The caption of this id, kept or not by `max_len`."""
        record = self.record(id)
        extra = {key: value for key, value in record.items() if key not in ("input_ids", "img_fname", "id")}
        sentence = next((extra.pop(key) for key in _SENTENCE if isinstance(extra.get(key), str)), None)
        if record.get("input_ids") is None and sentence is None:
            raise DataError(f"caption {id!r} in {self.path} holds neither word pieces nor a sentence; {_AGAIN}")
        pieces = record.get("input_ids") or ()
        if not isinstance(pieces, (list, tuple)) or not all(type(piece) is int for piece in pieces):
            raise DataError(f"the word pieces of caption {id!r} in {self.path} are not integers; {_AGAIN}")
        if pieces and not 0 <= min(pieces) <= max(pieces) < self.v_range[1]:
            raise DataError(
                f"caption {id!r} in {self.path} holds word pieces from {min(pieces)} to {max(pieces)}, and the "
                f"vocabulary ends before {self.v_range[1]}; {_AGAIN}"
            )
        return TextItem(
            id=id,
            input_ids=tuple(pieces),
            sentence=sentence,
            image=self.image_of.get(id),
            tokenizer=self.tokenizer,
            extra=extra,
        )

    def record(self, id: str) -> dict[str, Any]:
        """The stored fields of a caption, as they are."""
        try:
            with environment(self.path).begin() as transaction:
                value = transaction.get(id.encode())
        except (lmdb.Error, UnicodeEncodeError) as error:
            raise DataError(f"caption {id!r} cannot be looked up in {self.path} ({error}); {_AGAIN}") from None
        if value is None:
            raise DataError(f"caption {id!r} is not in {self.path / 'data.mdb'}; {_AGAIN}")
        try:
            record = decode_record(value)
        except Exception as error:  # lz4 and msgpack raise types of their own, of several bases
            raise DataError(f"caption {id!r} in {self.path} cannot be read ({error}); {_AGAIN}") from None
        return record

    def _require_files(self) -> None:
        if not self.path.is_dir():
            raise DataError(f"there is no text database at {self.path}; check the path")
        missing = [name for name in (*INDEXES, "data.mdb") if not (self.path / name).is_file()]
        if missing:
            raise DataError(
                f"{self.path} is not a whole text database: {', '.join(missing)} missing; "
                "copy it again, or build one with `crossmodal data texts`"
            )

    def _index(self, name: str) -> dict[str, Any]:
        try:
            loaded = parse((self.path / name).read_text(encoding="utf-8"), unique=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / name} cannot be read as JSON ({error}); {_AGAIN}") from None
        if not isinstance(loaded, dict):
            raise DataError(f"{self.path / name} holds no JSON object; {_AGAIN}")
        return loaded

    def _require_kinds(self) -> None:
        """Every index maps ids to what it should."""
        kinds: dict[str, tuple[dict[str, Any], Callable[[Any], bool], str]] = {
            "id2len.json": (self.lengths, lambda value: type(value) is int and value >= 0, "a length"),
            "txt2img.json": (self.image_of, lambda value: isinstance(value, str), "the name of an image"),
            "img2txts.json": (self.texts_of, _are_names, "a list of captions, each once"),
        }
        for name, (index, fits, what) in kinds.items():
            wrong = next((key for key, value in index.items() if not fits(value)), None)
            if wrong is not None:
                found = repr(index[wrong])
                shown = found if len(found) <= 60 else f"{found[:60]}..."
                raise DataError(f"{self.path / name} gives {wrong!r} {shown} instead of {what}; {_AGAIN}")

    def _numbers(self) -> list[int]:
        """CLS, SEP, MASK and the two ends of v_range."""
        found = [self.meta.get(key) for key in ("CLS", "SEP", "MASK")]
        ends = self.meta.get("v_range")
        found += ends if isinstance(ends, list) and len(ends) == 2 else [None]
        numbers = [number for number in found if type(number) is int]
        if len(numbers) != 5 or min(numbers) < 0 or not numbers[3] < numbers[4] > max(numbers[:3]):
            raise DataError(
                f"{self.path / 'meta.json'} lacks one of CLS, SEP, MASK and v_range, or they are not ids below the end "
                f"of v_range; {_AGAIN}"
            )
        return numbers

    def _require_joins(self) -> None:
        """Every caption has an image, and is listed under it."""
        imageless = [i for i in self.lengths if i not in self.image_of]
        if imageless:
            raise self._unjoined(imageless, "id2len.json", "have no image in txt2img.json")
        listed = {(i, image) for image, ids in self.texts_of.items() for i in ids}
        unlisted = [i for i in self.lengths if (i, self.image_of[i]) not in listed]
        if unlisted:
            raise self._unjoined(unlisted, "id2len.json", "are not listed under their image in img2txts.json")
        strangers = [i for i, image in listed if self.image_of.get(i) != image]
        if strangers:
            raise self._unjoined(sorted(strangers), "img2txts.json", "have another image or none in txt2img.json")

    def _unjoined(self, ids: Iterable[str], file: str, what: str) -> DataError:
        ids = list(ids)
        shown = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
        return DataError(f"{len(ids)} captions of {self.path / file} {what} ({shown}); {_AGAIN}")


def _are_names(ids: object) -> bool:
    return isinstance(ids, list) and all(isinstance(i, str) for i in ids) and len(set(ids)) == len(ids)


def decode_record(value: bytes) -> dict[str, Any]:
    """An LZ4 frame of a msgpack map -> the map. Whatever lz4 and msgpack raise passes through."""
    frame = lz4.frame.LZ4FrameDecompressor()
    packed = frame.decompress(value, max_length=LARGEST)
    if not frame.eof:
        raise ValueError(f"its frame is truncated, or unpacks to more than {LARGEST} bytes")
    if frame.unused_data:
        raise ValueError(f"{len(frame.unused_data)} bytes follow its frame")
    # Lists and maps are allocated as long as they are said to be, one inside another.
    record = msgpack.unpackb(packed, raw=False, max_array_len=_MOST_PIECES, max_map_len=_MOST_PIECES)
    if not isinstance(record, dict):
        raise ValueError(f"a record is {type(record).__name__} instead of a map")
    return record


def encode_record(record: dict[str, Any]) -> bytes:
    """What `decode_record` reads: the published layout, with the checksum that its frames may have."""
    return bytes(lz4.frame.compress(msgpack.packb(record, use_bin_type=True), content_checksum=True))


_AGAIN = "copy or build the database again"
