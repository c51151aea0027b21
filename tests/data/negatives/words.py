"""Captions, and a masked language model with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from crossmodal.data.negatives.rules import RuleTagger
from crossmodal.data.negatives.tagged import Tagged

CAPTIONS = [
    "A man in a red shirt rides a small horse near the woman.",
    "An empty kitchen with white and black appliances.",
    "Dogs sleeping.",
    "Two children are quickly eating cold pizza at tables while parents talk",
    "A child holding a flowered umbrella and petting a yak.",
]
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "cat",
    "dog",
    "car",
    "red",
    "blue",
    "runs",
    "##ing",
    ".",
    "on",
]


def tagged(caption: str) -> Tagged:
    (found,) = RuleTagger()([caption])
    return found


def masked_model(folder: Path, vocabulary: Sequence[str] = VOCABULARY, *, positions: int = 24, seed: int = 0) -> Path:
    """A tiny BERT of these words with its tokenizer."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=positions,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder
