from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from crossmodal.data.tokenizers import SPECIALS, Tokenizer, load_tokenizer, train_tokenizer
from crossmodal.errors import ConfigError, DataError

REAL = Path(__file__).parents[3] / "shared" / "data" / "vocab" / "bert-base-uncased"

SENTENCES = [
    "A red cube is left of two small blue spheres.",
    "Two blue spheres stand behind a large cube!",
    "The small red cone is on top of the cube.",
    "A café of cones, cubes and spheres",
] * 3


def vocabulary(folder: Path, name: str, words: list[str]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*SPECIALS, "!", "##s", *words]) + "\n", encoding="utf-8")
    return path


def test_uniter_rule(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabulary(tmp_path, "vocab.txt", ["dog", "cat", "run"]))
    # The zero-width joiner is cleaned away and gives no piece; unknown words give [UNK]; marks stand alone.
    assert tokenizer.tokens(tokenizer.encode(" Dogs\u2003cat!\t\u200d runs zebra ")) == [
        *("dog", "##s", "cat", "!", "run", "##s", "[UNK]")
    ]
    assert tokenizer.encode("\u200d") == tokenizer.encode("  ") == []
    assert (tokenizer.pad, tokenizer.unk, tokenizer.cls, tokenizer.sep, tokenizer.mask) == (0, 1, 2, 3, 4)
    assert tokenizer.v_range == (5, 10) and tokenizer.vocab_size == 10


def test_each_word_is_cut_on_its_own() -> None:
    tokenizer = train_tokenizer(SENTENCES, 80)
    for sentence in SENTENCES:
        naive = [i for word in sentence.split() for i in tokenizer.encode(word)]
        assert tokenizer.encode(sentence) == naive


@pytest.mark.parametrize(
    ("name", "words", "lowercase", "lowers"),
    [
        ("bert-base-uncased/vocab.txt", ["Dog", "dog"], None, True),
        ("bert-base-uncased-vocab.txt", ["Dog", "dog"], None, True),
        ("bert-base-cased/vocab.txt", ["Dog", "dog"], None, False),
        ("plain/vocab.txt", ["dog"], None, True),
        ("plain/vocab.txt", ["dog"], False, False),
        ("bert-base-cased/vocab.txt", ["Dog", "dog"], True, True),
    ],
)
def test_case(tmp_path: Path, name: str, words: list[str], lowercase: bool | None, lowers: bool) -> None:
    tokenizer = load_tokenizer(vocabulary(tmp_path, name, words), lowercase=lowercase)
    assert tokenizer.tokens(tokenizer.encode("Dog")) == (
        ["dog"] if lowers else ["Dog"] if "Dog" in words else ["[UNK]"]
    )


def test_case_from_the_settings_beside_a_vocabulary(tmp_path: Path) -> None:
    path = vocabulary(tmp_path, "x/vocab.txt", ["dog"])
    (path.parent / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert load_tokenizer(path.parent).encode("Dog") == [1]


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    first = load_tokenizer(vocabulary(tmp_path, "bert-base-cased/vocab.txt", ["Dog", "dog"]).parent)
    first.save(tmp_path / "saved")
    for spec in (tmp_path / "saved", tmp_path / "saved" / "tokenizer.json"):
        again = load_tokenizer(spec)
        assert (again.identity, again.name) == (first.identity, "bert-base-cased")
        assert again.encode("Dogs dog") == first.encode("Dogs dog")
    assert not list((tmp_path / "saved").glob("*.partial"))
    assert pickle.loads(pickle.dumps(first)).identity == first.identity


def test_identity_follows_vocabulary_and_case(tmp_path: Path) -> None:
    one = load_tokenizer(vocabulary(tmp_path, "bert-base-cased/vocab.txt", ["Dog", "dog"]))
    same = load_tokenizer(vocabulary(tmp_path, "other/vocab.txt", ["Dog", "dog"]))
    more = load_tokenizer(vocabulary(tmp_path, "more/vocab.txt", ["Dog", "dog", "cat"]))
    lower = load_tokenizer(tmp_path / "other" / "vocab.txt", lowercase=True)
    assert one.identity == same.identity and one.identity.startswith("wordpiece-")
    assert len({one.identity, more.identity, lower.identity}) == 3
    assert one.matches(same.identity) and one.matches("bert-base-cased")
    assert one.matches("google-bert/bert-base-cased")
    assert not one.matches(more.identity) and not one.matches(None) and not same.matches("bert-base-cased")


def test_changed_case_drops_the_old_fingerprint_as_name(tmp_path: Path) -> None:
    trained = train_tokenizer(SENTENCES, 80)
    trained.save(tmp_path)
    cased = load_tokenizer(tmp_path, lowercase=False)
    assert cased.name == cased.identity != trained.identity
    assert not cased.matches(trained.identity)


def test_training(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(SENTENCES, 100)
    assert tokenizer.tokens(range(5)) == list(SPECIALS)
    assert tokenizer.vocab_size <= 100 and tokenizer.name == tokenizer.identity
    assert tokenizer.unk not in [i for sentence in SENTENCES for i in tokenizer.encode(sentence)]
    assert tokenizer.encode("RED CUBE") == tokenizer.encode("red cube")
    cased = train_tokenizer(SENTENCES, 100, lowercase=False)
    assert cased.encode("A") != cased.encode("a")


def test_training_keeps_the_most_frequent_letters_of_a_large_alphabet() -> None:
    rare = "".join(chr(0x4E00 + i) for i in range(300))
    tokenizer = train_tokenizer(["ab ab ba " * 10 + rare], 25)
    assert tokenizer.vocab_size <= 25
    assert tokenizer.unk not in tokenizer.encode("abba")
    assert tokenizer.encode(rare[-1]) == [tokenizer.unk]


def test_training_is_the_same_in_every_process() -> None:
    # The hash maps inside the trainer are seeded anew in each process.
    code = (
        "import sys, json; from crossmodal.data.tokenizers import train_tokenizer;"
        "print(train_tokenizer(json.load(sys.stdin), 120).identity)"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(SENTENCES),
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        ).stdout.strip()
        for _ in range(3)
    }
    assert runs == {train_tokenizer(SENTENCES, 120).identity}


def test_training_on_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(["  "], 100)
    with pytest.raises(ConfigError, match="vocab_size 6"):
        train_tokenizer(SENTENCES, 6)


def test_other_kinds_read_the_sentence_whole(tmp_path: Path) -> None:
    pieces = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "a", "b", "\u0120", "\u0120a", "\u0120b"]
    backend = Backend(
        models.BPE({p: i for i, p in enumerate(pieces)}, [("\u0120", "a"), ("\u0120", "b")], unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(pieces[:5])
    backend.enable_truncation(2)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.tokens(tokenizer.encode("a  b a")) == ["a", "\u0120b", "\u0120a"]
    assert tokenizer.identity.startswith("bpe-")
    assert (tokenizer.cls, tokenizer.sep, tokenizer.pad, tokenizer.mask) == (0, 1, 2, 4)
    assert tokenizer.v_range == (5, 10)
    with pytest.raises(ConfigError, match="lower-casing"):
        load_tokenizer(tmp_path, lowercase=True)


def test_a_tokenizer_without_special_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[PAD\]"):
        Tokenizer(Backend(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")))


def test_unknown_ids_are_refused() -> None:
    with pytest.raises(DataError, match="token id 9999"):
        train_tokenizer(SENTENCES, 80).tokens([9999])


@pytest.mark.parametrize("spec", ["no/such/folder", "nothing.txt", "./nothing", "nothing/vocab.txt"])
def test_missing_files(spec: str) -> None:
    with pytest.raises(ConfigError, match="there is no tokenizer at"):
        load_tokenizer(spec)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"not a tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="neither"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(ConfigError, match="twice"):
        load_tokenizer(vocabulary(tmp_path, "double/vocab.txt", ["dog", "dog"]))


def test_hub_without_network(tmp_path: Path) -> None:
    code = (
        "from crossmodal.data.tokenizers import load_tokenizer; from crossmodal.errors import ConfigError\n"
        "try: load_tokenizer('nobody/no-such-tokenizer')\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert "'nobody/no-such-tokenizer' is no local file or folder" in done.stdout, done.stderr


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/vocab/bert-base-uncased is not there")
def test_published_vocabulary() -> None:
    tokenizer = load_tokenizer(REAL)
    assert (tokenizer.name, tokenizer.vocab_size) == ("bert-base-uncased", 30522)
    ids = (tokenizer.pad, tokenizer.unk, tokenizer.cls, tokenizer.sep, tokenizer.mask)
    assert ids == (0, 100, 101, 102, 103) and tokenizer.v_range == (999, 30522)
    assert tokenizer.tokens(tokenizer.encode("Two skateboarders' Café.")) == [
        *("two", "skate", "##board", "##ers", "'", "cafe", ".")
    ]
