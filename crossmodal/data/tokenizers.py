"""Captions to word pieces and back: one small class around a fast tokenizer, its loader and its trainer.

The rule is UNITER's: split at white space, cut each word into pieces on its own, leave out
words that give no piece, join the rest; no special tokens. `data/texts.py` stores these ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from crossmodal.data.json_text import parse
from crossmodal.errors import ConfigError, DataError
from crossmodal.files import write_whole

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_CONFIG = "tokenizer_config.json"
_LARGEST_ALPHABET = 1000
_FINGERPRINT = re.compile(r"[a-z]+-[0-9a-f]{16}")


class Tokenizer:
    """A tokenizer with BERT's special tokens: ``[CLS] [SEP] [MASK] [PAD] [UNK]``, or RoBERTa's.

    name:  what people call it, such as ``bert-base-cased``; the fingerprint where it has no name.
    cls, sep, mask, pad, unk: ids of the special tokens.

    Raises ConfigError where a special token is missing.
    """

    cls: int
    sep: int
    mask: int
    pad: int
    unk: int

    def __init__(self, backend: Backend, name: str | None = None) -> None:
        # A published tokenizer.json may cut or pad; here that is the business of the model's processor.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        for role, spellings in _ROLES.items():
            found = [i for i in map(backend.token_to_id, spellings) if i is not None]
            if not found:
                raise ConfigError(
                    f"tokenizer {name or 'without a name'} has no {spellings[0]} token, which text databases "
                    "and a joint encoder need; choose a tokenizer of the BERT or RoBERTa kind"
                )
            setattr(self, role, found[0])
        self._word_pieces = isinstance(backend.model, models.WordPiece)
        self._word = lru_cache(maxsize=1 << 16)(self._encode)
        # A fingerprint kept as a name may be outdated: the case rule can be changed while loading.
        self.name = self.identity if not name or _FINGERPRINT.fullmatch(name) else name

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_json, (self._backend.to_str(), self.name)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size})"

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def encode(self, sentence: str) -> list[int]:
        """Ids of a caption's pieces, without special tokens; empty where nothing is left of it.

        Tokenizers that aren't WordPiece mark the space before a word in the piece itself, so they read the
        sentence whole.
        """
        words = sentence.split()
        if not self._word_pieces:
            return list(self._encode(" ".join(words)))
        return [piece for word in words for piece in self._word(word)]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The pieces as written in the vocabulary; DataError for an id outside it."""
        pieces = []
        for i in ids:
            piece = self._backend.id_to_token(int(i))
            if piece is None:
                raise DataError(f"token id {i} is not in the vocabulary of {self.name} ({self.vocab_size} pieces)")
            pieces.append(piece)
        return pieces

    @property
    def vocab_size(self) -> int:
        return int(self._backend.get_vocab_size())

    @property
    def v_range(self) -> tuple[int, int]:
        """[first, end) of the ids that are ordinary pieces; UNITER takes the id of "!" for the first."""
        first = self._backend.token_to_id("!")
        if first is None:
            first = 0
            special = {token.content for token in self._backend.get_added_tokens_decoder().values()}
            while self._backend.id_to_token(first) in special:
                first += 1
        return first, self.vocab_size

    @cached_property
    def identity(self) -> str:
        """A fingerprint of everything that decides `encode`: equal for equal vocabularies and rules."""
        whole = json.loads(self._backend.to_str())
        model = whole["model"]
        kind = str(model.get("type", "model")).lower()
        if self._word_pieces:
            kept = ("unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab")
            model = {key: model[key] for key in kept}
        decides = {
            "model": model,
            "normalizer": whole["normalizer"],
            "pre_tokenizer": whole["pre_tokenizer"],
            "added": sorted((token["id"], token["content"]) for token in whole["added_tokens"]),
        }
        text = json.dumps(decides, sort_keys=True, ensure_ascii=True)
        return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def matches(self, other: str | None) -> bool:
        """Whether `other`, the fingerprint or published name that a text database carries, means this one."""
        return other is not None and (other == self.identity or _last(other) == _last(self.name))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``tokenizer.json`` and, for the name, ``tokenizer_config.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = self._backend.to_str(pretty=True)
        write_whole(folder / "tokenizer.json", lambda path: path.write_text(text, encoding="utf-8"))
        name = json.dumps({"name_or_path": self.name}, indent=2)
        write_whole(folder / _CONFIG, lambda path: path.write_text(name, encoding="utf-8"))


def load_tokenizer(spec: str | os.PathLike[str], *, lowercase: bool | None = None) -> Tokenizer:
    """A tokenizer from a folder, a ``vocab.txt``, a ``tokenizer.json`` or a Hugging Face name.

    A WordPiece vocabulary lower-cases if `lowercase` says so; else if its ``tokenizer_config.json`` does;
    else if the name of file or folder contains "uncased"; else if none of its pieces has a capital letter.
    Raises ConfigError where nothing can be loaded.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return _from_file(path / "tokenizer.json", lowercase)
        if (path / "vocab.txt").is_file():
            return _from_vocabulary(path / "vocab.txt", lowercase)
        return _from_transformers(str(path), lowercase)
    if path.is_file():
        return _from_file(path, lowercase) if path.suffix == ".json" else _from_vocabulary(path, lowercase)
    if path.suffix in {".txt", ".json"} or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(spec)):
        raise ConfigError(f"there is no tokenizer at {spec}; give a folder, a vocab.txt or a tokenizer.json")
    return _from_transformers(str(spec), lowercase)


def train_tokenizer(sentences: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """Train WordPiece on captions: ``[PAD]`` is 0, then ``[UNK] [CLS] [SEP] [MASK]``, letters, pieces.

    The same sentences in the same order give the same vocabulary on every run. Raises ConfigError where
    `vocab_size` leaves no room for one letter, and DataError where there is no text.
    """
    sentences = list(sentences)
    if vocab_size < len(SPECIALS) + 2:
        raise ConfigError(f"vocab_size {vocab_size} is too small: {len(SPECIALS)} pieces are special tokens")
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    _set_rules(backend, lowercase)
    letters = _alphabet(backend, sentences, limit=min(_LARGEST_ALPHABET, (vocab_size - len(SPECIALS)) // 2))
    if not letters:
        raise DataError("the captions hold no text to train a tokenizer on; check the caption file")
    # Left alone, the trainer numbers the "##" letters in the order of a randomly seeded hash map, and equally
    # frequent pairs are merged in the order of those numbers. Announced beforehand, their order is ours.
    inner = ["##" + letter for letter in letters]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIALS, *inner],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    backend.train_from_iterator(sentences, trainer)
    learned = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    return _word_piece(list(dict.fromkeys([*SPECIALS, *letters, *inner, *learned])), lowercase, None)


def _alphabet(backend: Backend, sentences: Sequence[str], limit: int) -> list[str]:
    """The `limit` most frequent characters after normalisation, in the order of their code points."""
    words: Counter[str] = Counter()
    for sentence in sentences:
        words.update(sentence.split())
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in "".join(backend.normalizer.normalize_str(word).split()):
            letters[letter] += count
    return sorted(sorted(letters, key=lambda letter: (-letters[letter], letter))[:limit])


def _set_rules(backend: Backend, lowercase: bool) -> None:
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _word_piece(pieces: Sequence[str], lowercase: bool, name: str | None) -> Tokenizer:
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    _set_rules(backend, lowercase)
    present = [AddedToken(token, special=True, normalized=False) for token in SPECIALS if token in vocabulary]
    backend.add_special_tokens(present)
    return Tokenizer(backend, name)


def _from_json(text: str, name: str | None) -> Tokenizer:
    return Tokenizer(Backend.from_str(text), name)


def _from_file(path: Path, lowercase: bool | None) -> Tokenizer:
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        raise ConfigError(f"{path} is not a tokenizer.json that can be read ({error})") from None
    return _recased(backend, _name_of(path), lowercase)


def _from_vocabulary(path: Path, lowercase: bool | None) -> Tokenizer:
    try:
        pieces = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a vocabulary of one piece a line ({error})") from None
    pieces = [piece.rstrip("\r") for piece in pieces]
    if pieces and not pieces[-1]:
        pieces.pop()
    if lowercase is None:
        lowercase = _settings(path).get("do_lower_case")
    if lowercase is None:
        named = "uncased" in f"{path.absolute().parent.name}/{path.name}".lower()
        words = (piece for piece in pieces if not re.fullmatch(r"\[.*\]", piece))
        lowercase = named or all(piece == piece.lower() for piece in words)
    if len(set(pieces)) < len(pieces):
        double = Counter(pieces).most_common(1)[0][0]
        raise ConfigError(f"{path} holds the piece {double!r} twice, so ids would be ambiguous; repair the file")
    return _word_piece(pieces, lowercase, _name_of(path))


def _from_transformers(spec: str, lowercase: bool | None) -> Tokenizer:
    from huggingface_hub import model_info
    from transformers import AutoTokenizer

    try:
        try:
            loaded = AutoTokenizer.from_pretrained(spec, trust_remote_code=False, local_files_only=True)
        except Exception:  # not in the cache
            if Path(spec).is_dir():
                raise ConfigError(f"folder {spec} holds neither tokenizer.json nor vocab.txt") from None
            model_info(spec, timeout=10)  # asks once, where a download would retry for most of a minute
            loaded = AutoTokenizer.from_pretrained(spec, trust_remote_code=False)
        backend = Backend.from_str(loaded.backend_tokenizer.to_str())
    except ConfigError:
        raise
    except Exception as error:  # missing files, network and format problems come as many types
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"tokenizer {spec!r} is no local file or folder and cannot be loaded from the Hugging Face hub "
            f"({reason}); give a folder, a vocab.txt or a tokenizer.json"
        ) from None
    return _recased(backend, _last(spec), lowercase)


def _recased(backend: Backend, name: str, lowercase: bool | None) -> Tokenizer:
    if lowercase is not None:
        if not isinstance(backend.normalizer, normalizers.BertNormalizer):
            raise ConfigError(f"the lower-casing of tokenizer {name} is fixed in its file; leave the option out")
        backend.normalizer.lowercase = lowercase
    return Tokenizer(backend, name)


def _settings(path: Path) -> dict[str, Any]:
    """What the ``tokenizer_config.json`` beside a file says; empty where there is none."""
    try:
        loaded = parse((path.parent / _CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path.parent / _CONFIG} is not JSON ({error}); repair or remove it") from None
    return loaded if isinstance(loaded, dict) else {}


def _name_of(path: Path) -> str:
    """The saved name, else the folder's, or the file's own where that says more than ``vocab.txt``."""
    saved = _settings(path).get("name_or_path")
    if saved:
        return _last(str(saved))
    stem = path.stem.removesuffix("vocab").rstrip("-_.")
    return stem if stem and stem != "tokenizer" else path.absolute().parent.name


def _last(name: str) -> str:
    """``google-bert/bert-base-cased`` and ``bert-base-cased`` are one tokenizer."""
    return name.rstrip("/").rsplit("/", 1)[-1]
