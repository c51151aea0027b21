"""Completing masked sentences with any masked language model that `transformers` reads from a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from crossmodal.errors import CheckpointError, DataError

from .ce_clip import MASK

CANDIDATES = 5


class MaskedFill:
    """Sentences with one `MASK` -> `CANDIDATES` completed sentences of each, the likeliest first.

    A completion that is no word of its own (a piece of a word, a mark, a special token) is passed over.
    Raises CheckpointError where the folder holds no masked language model with its tokenizer.
    """

    def __init__(self, folder: Path, *, batch: int = 64, device: str | torch.device = "cpu") -> None:
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{folder} holds no masked language model ({reason}); give a folder with config.json, weights and "
                "tokenizer, such as a download of distilroberta-base"
            ) from None
        if self._tokenizer.mask_token is None:
            raise CheckpointError(f"the tokenizer of {folder} has no mask token; give a masked language model")
        self._model, self._batch = model.to(device).eval(), batch
        # Not every tokenizer knows it; RoBERTa's first two positions are none of a token's.
        self._longest = min(self._tokenizer.model_max_length, model.config.max_position_embeddings - 2)
        self._words = self._whole_words().to(device)

    def _whole_words(self) -> torch.Tensor:
        """(V,) which tokens are words of their own behind a space."""
        tokens = self._tokenizer.convert_ids_to_tokens(range(self._model.config.vocab_size))
        special = set(self._tokenizer.all_special_tokens)
        spaced = any(token is not None and token[:1] in "Ġ▁" for token in tokens)  # byte pairs mark spaces, BERT pieces
        words = []
        for token in tokens:
            behind = token is not None and token not in special and (token[:1] in "Ġ▁" if spaced else token[:2] != "##")
            words.append(behind and token.lstrip("Ġ▁").isalnum())
        return torch.tensor(words)

    def __call__(self, sentences: Sequence[str]) -> list[list[str]]:
        """Raises DataError for a sentence of which the mask does not fit the model's length."""
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        completed: dict[int, list[str]] = {}
        for start in range(0, len(order), self._batch):
            places = order[start : start + self._batch]
            for place, words in zip(places, self._words_of([sentences[i] for i in places]), strict=True):
                completed[place] = [sentences[place].replace(MASK, word, 1) for word in words]
        return [completed[i] for i in range(len(sentences))]

    @torch.inference_mode()
    def _words_of(self, sentences: Sequence[str]) -> list[list[str]]:
        masked = [sentence.replace(MASK, self._tokenizer.mask_token, 1) for sentence in sentences]
        given = self._tokenizer(
            masked, padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self._words.device)
        at = given["input_ids"] == self._tokenizer.mask_token_id
        if not at.any(dim=1).all():
            lost = sentences[int(at.any(dim=1).logical_not().nonzero()[0])]
            raise DataError(f"the caption {lost[:60]!r} is too long for the masked language model; shorten it")
        rows = torch.arange(len(at), device=at.device)
        logits = self._model(**given).logits[rows, at.int().argmax(dim=1)]  # (B,V)
        best = logits.float().masked_fill(~self._words, -torch.inf).topk(min(CANDIDATES, int(self._words.sum())))
        return [[self._tokenizer.decode([i]).strip() for i in row] for row in best.indices.tolist()]
