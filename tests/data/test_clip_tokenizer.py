from __future__ import annotations

import gzip
import html
import json
import pickle
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmodal.data import clip_tokenizer
from crossmodal.data.clip_tokenizer import ClipTokenizer, clean, load_clip_tokenizer
from crossmodal.errors import ConfigError, DataError

REAL = Path(__file__).parents[3] / "shared" / "data" / "vocab" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
HEADER = '"bpe_simple_vocab_16e6.txt#version: 0.2'


def byte_symbols() -> dict[int, str]:
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {b: chr(b) for b in visible}, 0
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + extra)
            extra += 1
    return table


def learned_merges(words: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair merges of a few words, by joining the most frequent pair again and again."""
    split = [[byte_symbols()[b] for b in word.encode()] for word in words]
    pieces = [[*symbols[:-1], symbols[-1] + "</w>"] for symbols in split]
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        pairs = Counter(pair for word in pieces for pair in pairwise(word))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        pieces = [join(word, best) for word in pieces]
    return merges


def join(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


WORDS = ["sitting", "sitting", "kitten", "on", "couch", "catch", "the", "this", "other", "dogs", "café", "你好", "..."]
MERGES = learned_merges(WORDS, 30)


def naive(text: str, merges: Sequence[tuple[str, str]]) -> list[int]:
    """The published code in its own order of steps, on text that needs no repair."""
    text = html.unescape(html.unescape(text)).strip()
    text = regex.sub(r"\s+", " ", text).strip().lower()
    table = byte_symbols()
    symbols = [table[b] for b in (*range(33, 127), *range(161, 173), *range(174, 256))]
    symbols += [symbol for symbol in table.values() if symbol not in symbols]
    vocabulary = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in merges)]
    special = {"<start_of_text>": len(vocabulary), "<end_of_text>": len(vocabulary) + 1}
    rank = {pair: i for i, pair in enumerate(merges)}
    pattern = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    ids: list[int] = []
    for found in regex.findall(pattern, text, regex.IGNORECASE):
        if found in special:
            ids.append(special[found])
            continue
        word = [table[b] for b in found.encode()]
        word[-1] += "</w>"
        while known := [pair for pair in pairwise(word) if pair in rank]:
            word = join(word, min(known, key=rank.__getitem__))
        ids += [vocabulary.index(piece) for piece in word]
    return ids


@pytest.fixture(autouse=True)
def no_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    """ftfy is there, and finds nothing to repair."""
    fake = ModuleType("ftfy")
    fake.fix_text = lambda text: text  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ftfy", fake)


def merges_file(folder: Path, name: str = "merges.txt", merges: Sequence[tuple[str, str]] = MERGES) -> Path:
    text = "\n".join([HEADER, *map(" ".join, merges)]) + "\n"
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


TOKENIZER = ClipTokenizer(MERGES)
PIECES = st.sampled_from(
    [
        *WORDS,
        " ",
        "\n",
        "\u2003",
        "'s",
        "'LL",
        "12",
        "½",
        "&amp;",
        "&lt;3",
        "!",
        "_",
        "e\u0301",
        "İ",
        "😀",
        "<end_of_text>",
    ]
)


@settings(max_examples=300)
@given(st.one_of(st.lists(PIECES).map("".join), st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn"]))))
def test_ids_are_those_of_the_published_code(text: str) -> None:
    assert TOKENIZER.encode(text) == naive(text, MERGES)


@given(st.text("abcdefghijklmnopqrstuvwxyz'., &;<>#\t\n\r0123", max_size=60))
def test_plain_text_and_entities(text: str) -> None:
    assert TOKENIZER.encode(text) == naive(text, MERGES)


@pytest.mark.skipif(not REAL.is_file(), reason="../shared/data/vocab/clip is not there")
def test_published_merges() -> None:
    tokenizer = load_clip_tokenizer(REAL)
    assert (tokenizer.vocab_size, tokenizer.start, tokenizer.end) == (49408, 49406, 49407)
    assert tokenizer.encode("A cat sitting on a couch.") == [320, 2368, 4919, 525, 320, 12724, 269]
    assert tokenizer.encode("It's the man's dog; they're 12") == [
        *(585, 568, 518, 786, 568, 1929, 282, 889, 982, 272, 273)
    ]
    assert tokenizer.rows(["start of the sequence"]) == [[49406, 1572, 539, 518, 18833, 49407]]


def test_ids_of_bytes_merges_and_specials() -> None:
    assert (TOKENIZER.start, TOKENIZER.end, TOKENIZER.vocab_size) == (542, 543, 544)
    assert TOKENIZER.encode("! z") == [256, 256 + ord("z") - 33]
    assert TOKENIZER.encode("!!") == [0, 256]
    assert TOKENIZER.encode("") == TOKENIZER.encode(" \n ") == []
    assert TOKENIZER.encode("<start_of_text>x<END_OF_TEXT>") == [542, 256 + ord("x") - 33, 543]


def test_rows_are_cut_and_end_with_the_end() -> None:
    rows = TOKENIZER.rows(["z" * 3, "", "z z z z z z"], context=5)
    z, last = ord("z") - 33, 256 + ord("z") - 33
    assert rows == [[542, z, z, last, 543], [542, 543], [542, last, last, last, 543]]
    assert len(TOKENIZER.rows(["z " * 200])[0]) == 77
    with pytest.raises(DataError, match=r"'z z z z' has 6 ids, and 5 fit; shorten it"):
        TOKENIZER.rows(["z z z", "z z z z"], context=5, truncate=False)


def test_cleaning() -> None:
    assert clean("  Tom &amp;amp; JERRY \n\t run ") == "tom & jerry run"


def test_repair_is_asked_of_ftfy_for_other_text(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("ftfy")
    fake.fix_text = lambda text: text.replace("Ã¶", "ö")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ftfy", fake)
    assert clean("SchÃ¶n") == "schön"


def test_without_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert clean("Plain text, it's 5 < 7.") == "plain text, it's 5 < 7."
    for text in ("café", "a &amp; b", "a\x1b[0m", "\x0b"):
        with pytest.raises(ConfigError, match=r"needs ftfy for text that is not plain ASCII, .*pip install ftfy"):
            TOKENIZER.encode(text)


@pytest.mark.parametrize("name", ["merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt", "any.gz"])
def test_files_and_folders(name: str, tmp_path: Path) -> None:
    path = merges_file(tmp_path, name)
    for source in (path, str(path)) if name == "any.gz" else (path, tmp_path):
        tokenizer = load_clip_tokenizer(source)
        assert tokenizer.encode("sitting") == TOKENIZER.encode("sitting") and tokenizer.end == TOKENIZER.end


@pytest.mark.parametrize("pairs", [[list(pair) for pair in MERGES], [" ".join(pair) for pair in MERGES]])
def test_a_fast_tokenizer_of_the_hub(pairs: list[object], tmp_path: Path) -> None:
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "merges": pairs}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    assert load_clip_tokenizer(tmp_path).encode("kitten") == TOKENIZER.encode("kitten")


def test_what_was_saved_is_the_same_tokenizer(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "new" / "folder")
    for again in (load_clip_tokenizer(tmp_path / "new" / "folder"), pickle.loads(pickle.dumps(TOKENIZER))):
        assert [again.encode(word) for word in WORDS] == [TOKENIZER.encode(word) for word in WORDS]
        assert repr(again) == "ClipTokenizer(vocab_size=544)"


def test_an_installed_open_clip_is_found_and_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"named neither by model\.tokenizer nor by --tokenizer, and open_clip"):
        load_clip_tokenizer(None)
    merges_file(tmp_path / "open_clip", "bpe_simple_vocab_16e6.txt.gz")
    assert load_clip_tokenizer().encode("dogs") == TOKENIZER.encode("dogs")
    assert "open_clip" not in sys.modules


def test_no_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(clip_tokenizer, "find_spec", none)
    with pytest.raises(ConfigError, match="open_clip, which brings them, is not installed"):
        load_clip_tokenizer()


def test_the_hub_is_asked_once_where_nothing_is_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, asked = merges_file(tmp_path), []

    def download(name: str, file: str, local_files_only: bool = False) -> str:
        asked.append((name, file, local_files_only))
        if local_files_only:
            raise OSError("not cached")
        return str(path)

    def info(name: str, timeout: float) -> None:
        if name == "openai/none":
            raise OSError("no such model\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.model_info", info)
    assert load_clip_tokenizer("openai/clip-vit-base-patch32").end == TOKENIZER.end
    assert [local for _, _, local in asked] == [True, False]
    with pytest.raises(ConfigError, match=r"'openai/none' is no local .* hub \(no such model\); give the file bpe"):
        load_clip_tokenizer("openai/none")


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there are no merges of CLIP at .*absent\.txt; give the file"):
        load_clip_tokenizer(tmp_path / "absent.txt")
    with pytest.raises(ConfigError, match=r"folder .* holds none of merges\.txt, bpe_simple"):
        load_clip_tokenizer(tmp_path)
    whole = merges_file(tmp_path, "whole.gz").read_bytes()
    damaged = {
        "broken.gz": whole[:-20],
        "plain.gz": b"i n\n",
        "bytes.txt": b"head\n\xff \xff",
        "three.txt": b"head\na b\na b c\n",
        "twice.txt": b"head\na b\na b\n",
        "strange.txt": b"head\nab c\n",
        "words.json": json.dumps({"model": {"type": "WordPiece", "vocab": {}}}).encode(),
        "gpt2.json": json.dumps({"model": {"merges": ["a b"], "end_of_word_suffix": None}}).encode(),
        "list.json": b"[]",
        "half.json": b"{",
    }
    expected = {
        "three": "merge 2 of .* is 'a b c', not two pieces; give the file",
        "twice": "the merges make the piece 'ab' twice",
        "strange": "the merges do not build on each other",
        **dict.fromkeys(
            ("words", "gpt2", "list", "half"), r"is no tokenizer\.json of CLIP's byte pairs; give the file"
        ),
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            ConfigError, match=expected.get(name.split(".")[0], "is no file of merges that can be read")
        ):
            load_clip_tokenizer(tmp_path / name)
