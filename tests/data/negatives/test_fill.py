"""Masked language models, here a tiny BERT with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossmodal.data.negatives.fill import CANDIDATES, MaskedFill
from crossmodal.errors import CheckpointError, DataError

from .words import VOCABULARY, masked_model

WORDS = {word for word in VOCABULARY if word.isalpha()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_model(tmp_path_factory.mktemp("lm") / "bert")


def test_completions_are_whole_words_best_first(folder: Path) -> None:
    from transformers import AutoTokenizer, BertForMaskedLM

    (found,) = MaskedFill(folder)(["a Red <mask> runs."])
    words = [sentence.removeprefix("a Red ").removesuffix(" runs.") for sentence in found]
    assert len(words) == CANDIDATES and set(words) <= WORDS
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = BertForMaskedLM.from_pretrained(folder)(**tokenizer("a red [MASK] runs.", return_tensors="pt")).logits
    order = [VOCABULARY[i] for i in logits[0, 3].argsort(descending=True).tolist() if VOCABULARY[i] in WORDS]
    assert words == order[:CANDIDATES]


def test_sentences_come_back_in_order_whatever_the_batch(folder: Path) -> None:
    sentences = ["a <mask> on a red car on a dog", "<mask>", "a <mask> runs", "the cat <mask>", "a <mask>"]
    assert MaskedFill(folder, batch=2)(sentences) == [MaskedFill(folder)([s])[0] for s in sentences]
    assert MaskedFill(folder)([]) == []


def test_a_mask_behind_the_models_length_is_said(folder: Path) -> None:
    fill = MaskedFill(folder)
    assert fill._tokenizer.model_max_length > 10**6  # it is the model that knows
    with pytest.raises(DataError, match="too long for the masked language model"):
        fill(["a cat " * 300 + "<mask>"])
    assert len(fill(["<mask> " + "a cat " * 300])[0]) == CANDIDATES


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no masked language model .*distilroberta-base"):
        MaskedFill(tmp_path)
