"""CLIP's byte-pair tokenizer: captions to ids, from the published file of merges."""

from __future__ import annotations

import gzip
import html
import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import regex
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from crossmodal.data.json_text import parse
from crossmodal.errors import ConfigError, DataError
from crossmodal.files import write_whole

CONTEXT = 77

_END_OF_WORD = "</w>"
_MERGES = 49408 - 2 - 512  # the published file goes on; CLIP was trained with so many
_FILES = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt", "tokenizer.json")
_HEADER = "#version: 0.2"
_HOW = "give the file bpe_simple_vocab_16e6.txt.gz, a folder with merges.txt, or a hub name"

_WORD = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
# Neither ftfy nor the reading of entities changes anything in a text of these characters.
_PLAIN = re.compile(r"[ -%'-~\t\n\r]*")


def _alphabet() -> list[str]:
    """A visible character for every byte: itself where it is visible in Latin-1, else one from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    table = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


_BYTES = _alphabet()


class ClipTokenizer:
    """Byte-pair encoding of cleaned, lower-cased text (CE-CLIP, spec section 2.6).

    The ids are those of the 256 bytes, in the order of their visible characters; of the same at the end of a
    word; of the merges in their order; `start` and `end` (49406 and 49407 with the published merges).

    merges: the pairs of pieces that are joined, the most frequent first.
    """

    def __init__(self, merges: Iterable[tuple[str, str]]) -> None:
        self._merges = list(merges)
        symbols = sorted(_BYTES)
        pieces = [*symbols, *(symbol + _END_OF_WORD for symbol in symbols), *map("".join, self._merges)]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        if len(vocabulary) < len(pieces):
            double = next(piece for i, piece in enumerate(pieces) if vocabulary[piece] != i)
            raise ConfigError(f"the merges make the piece {double!r} twice, so ids would be ambiguous; {_HOW}")
        try:
            self._pairs = models.BPE(vocabulary, self._merges, end_of_word_suffix=_END_OF_WORD)
        except Exception as error:  # the Rust side raises plain Exception
            raise ConfigError(f"the merges do not build on each other ({error}); {_HOW}") from None
        self.start, self.end, self.context = len(pieces), len(pieces) + 1, CONTEXT
        self._special = {"<start_of_text>": self.start, "<end_of_text>": self.end}
        self._word = lru_cache(maxsize=1 << 16)(self._encode)

    def __reduce__(self) -> tuple[Any, ...]:
        return ClipTokenizer, (self._merges,)

    def __repr__(self) -> str:
        return f"ClipTokenizer(vocab_size={self.vocab_size})"

    @property
    def vocab_size(self) -> int:
        return self.end + 1

    def _encode(self, word: str) -> tuple[int, ...]:
        if word in self._special:
            return (self._special[word],)
        return tuple(piece.id for piece in self._pairs.tokenize(_visible(word)))

    def encode(self, text: str) -> list[int]:
        """Ids without start and end. ConfigError for text that ftfy may have to repair, where it isn't installed."""
        return [i for word in _WORD.findall(clean(text)) for i in self._word(word)]

    def rows(self, texts: Iterable[str], *, context: int = CONTEXT, truncate: bool = True) -> list[list[int]]:
        """Start, ids and end of each text, not padded (CLIP pads with 0 on the right).

        A longer row is cut to `context`, its last id being `end`; without `truncate` it is a DataError.
        """
        rows = []
        for text in texts:
            row = [self.start, *self.encode(text), self.end]
            if len(row) > context:
                if not truncate:
                    raise DataError(f"{text!r} has {len(row)} ids, and {context} fit; shorten it, or let it be cut")
                row = [*row[: context - 1], self.end]
            rows.append(row)
        return rows

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``merges.txt``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join([_HEADER, *map(" ".join, self._merges)]) + "\n"
        write_whole(folder / _FILES[0], lambda path: path.write_text(text, encoding="utf-8"))


def train_merges(sentences: Iterable[str], count: int) -> ClipTokenizer:
    """A tokenizer of at most `count` merges, those that joined most pairs in these sentences first.

    The same sentences give the same merges on every run. For small closed vocabularies: CLIP's own are published.
    """
    symbols = sorted(_BYTES)
    # Announced beforehand, the pieces have an order of their own: the trainer's is that of a randomly seeded hash map.
    pieces = [*symbols, *(symbol + _END_OF_WORD for symbol in symbols)]
    backend = Backend(models.BPE(end_of_word_suffix=_END_OF_WORD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(pieces) + count,
        special_tokens=pieces,
        initial_alphabet=[],
        end_of_word_suffix=_END_OF_WORD,
        show_progress=False,
    )
    words = (" ".join(map(_visible, _WORD.findall(clean(sentence)))) for sentence in sentences)
    backend.train_from_iterator(words, trainer)
    return ClipTokenizer(tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"])


def _visible(word: str) -> str:
    return "".join(_BYTES[byte] for byte in word.encode())


def clean(text: str) -> str:
    """Repair broken Unicode, read HTML entities (twice), make all white space single blanks, lower-case."""
    if not _PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(_repaired(text)))
    return " ".join(text.split()).lower()


def _repaired(text: str) -> str:
    try:
        import ftfy
    except ImportError:
        raise ConfigError(
            f"CLIP's tokenizer needs ftfy for text that is not plain ASCII, such as {text!r}; "
            "install it with pip install ftfy"
        ) from None
    return ftfy.fix_text(text)


def load_clip_tokenizer(source: str | os.PathLike[str] | None = None) -> ClipTokenizer:
    """The tokenizer from a file of merges (also compressed), a folder, a Hugging Face name or an installed open_clip.

    None: the file that the package open_clip brings. Raises ConfigError where nothing can be loaded.
    """
    if source is None:
        source = _installed()
    path = Path(source).expanduser()
    if path.is_dir():
        found = merges_in(path)
        if found is None:
            raise ConfigError(f"folder {path} holds none of {', '.join(_FILES)}; {_HOW}")
        path = found
    elif not path.is_file():
        if path.suffix in {".txt", ".gz", ".json"} or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(source)):
            raise ConfigError(f"there are no merges of CLIP at {source}; {_HOW}")
        path = _from_hub(str(source))
    return ClipTokenizer(_read_json(path) if path.suffix == ".json" else _read_merges(path))


def merges_in(folder: Path) -> Path | None:
    """The file of merges in a folder, as CLIP's and Hugging Face's folders hold one."""
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def _installed() -> Path:
    spec = find_spec("open_clip")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / "bpe_simple_vocab_16e6.txt.gz"
        if file.is_file():
            return file
    raise ConfigError(
        "CLIP's merges are named neither by model.tokenizer nor by --tokenizer, and open_clip, which brings them, is "
        f"not installed; {_HOW}"
    )


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download, model_info

    try:
        try:
            return Path(hf_hub_download(name, "merges.txt", local_files_only=True))
        except Exception:  # not in the cache
            model_info(name, timeout=10)  # asks once, where a download would retry for most of a minute
            return Path(hf_hub_download(name, "merges.txt"))
    except Exception as error:  # missing files, network and format problems come as many types
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"{name!r} is no local file or folder, and merges.txt cannot be loaded from the Hugging Face hub "
            f"({reason}); {_HOW}"
        ) from None


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """One pair a line, after one line that is no pair."""
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{path} is no file of merges that can be read ({error}); {_HOW}") from None
    return _pairs([line.split() for line in lines[1:] if line.strip()], path)


def _read_json(path: Path) -> list[tuple[str, str]]:
    try:
        model = parse(path.read_text(encoding="utf-8"))["model"]
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        if model["end_of_word_suffix"] != _END_OF_WORD:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is no tokenizer.json of CLIP's byte pairs; {_HOW}") from None
    return _pairs(merges, path)


def _pairs(found: Sequence[Sequence[str]], path: Path) -> list[tuple[str, str]]:
    for number, pair in enumerate(found[:_MERGES], start=1):
        if len(pair) != 2:
            raise ConfigError(f"merge {number} of {path} is {' '.join(pair)!r}, not two pieces; {_HOW}")
    return [(pair[0], pair[1]) for pair in found[:_MERGES]]
