"""Baselines that see captions alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from crossmodal.errors import ConfigError
from crossmodal.evaluate.suites import open_suite
from crossmodal.evaluate.suites.blind import BlindJudge, LanguageModel, brevity, frequency, open_blind
from crossmodal.evaluate.suites.items import Picture
from crossmodal.evaluate.suites.runner import run_suite

from .worlds import SENTENCES, write_json


def test_simple_baselines() -> None:
    assert brevity(["a b", "a", ""]).tolist() == [-2.0, -1.0, 0.0]
    found = frequency(["a b", "A a"]).tolist()  # a: 3 of 4, b: 1 of 4
    assert found == pytest.approx([(math.log(3 / 4) + math.log(1 / 4)) / 2, math.log(3 / 4)])


def test_a_blind_judge_needs_no_image(tmp_path: Path) -> None:
    write_json(tmp_path / "add_obj.json", {"0": {"filename": "1.jpg", "caption": "a", "negative_caption": "a b"}})
    outcome = run_suite("sugarcrepe", open_suite("sugarcrepe", tmp_path), open_blind("brevity"), None)
    assert outcome.rows["add_obj"].value == 1.0
    judge, pictures = BlindJudge(brevity), [Picture("1"), Picture("2")]
    assert judge.matrix(["a", "a b"], pictures).tolist() == [[-1.0, -1.0], [-2.0, -2.0]]
    assert judge.classify([["a", "a b"], ["a"]], pictures).tolist() == [[-1.5, -1.0], [-1.5, -1.0]]


def test_what_is_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'brevit' is no folder of a language model and not built in; did you mean"):
        open_blind("brevit")
    with pytest.raises(ConfigError, match="holds no language model that transformers can load"):
        open_blind(str(tmp_path))


def language_model(folder: Path, masked: bool) -> Path:
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer, GPT2Config, GPT2LMHeadModel

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for s in SENTENCES for w in s.split()})]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), bos_token=None if masked else "[CLS]")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model: Any
    if masked:
        sizes: Any = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model = BertForMaskedLM(BertConfig(vocab_size=len(words), initializer_range=1.0, **sizes))
    else:
        config = GPT2Config(vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, initializer_range=1.0)
        model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    return folder


def test_a_causal_model_reads_from_left_to_right(tmp_path: Path) -> None:
    model = LanguageModel(language_model(tmp_path / "lm", masked=False))
    assert not model.masked
    for sentence, score in zip(SENTENCES, model(SENTENCES).tolist(), strict=True):
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(sentence, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            logs = F.log_softmax(model.model(torch.tensor([ids])).logits[0], dim=1)
        assert score == pytest.approx(
            sum(float(logs[i - 1, ids[i]]) for i in range(1, len(ids))) / (len(ids) - 1), abs=1e-4
        )


def test_a_masked_model_guesses_each_word_from_all_others(tmp_path: Path) -> None:
    model = LanguageModel(language_model(tmp_path / "lm", masked=True))
    assert model.masked
    tokenizer = model.tokenizer
    for sentence, score in zip(SENTENCES, model(SENTENCES).tolist(), strict=True):
        inner = tokenizer(sentence, add_special_tokens=False)["input_ids"]
        total = 0.0
        for place in range(len(inner)):
            ids = [tokenizer.cls_token_id, *inner, tokenizer.sep_token_id]
            ids[place + 1] = tokenizer.mask_token_id
            with torch.no_grad():
                logs = F.log_softmax(model.model(torch.tensor([ids])).logits[0, place + 1], dim=0)
            total += float(logs[inner[place]])
        assert score == pytest.approx(total / len(inner), abs=1e-4)
