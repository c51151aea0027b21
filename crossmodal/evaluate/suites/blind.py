"""Baselines that never see an image: how far can a benchmark be won by its captions alone?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from crossmodal.errors import ConfigError, nearest

from .items import Picture
from .judges import mean_scores

Plausibility = Callable[[Sequence[str]], Tensor]
"""Captions -> how likely each is to be a true one, (captions,): higher is likelier."""

_ROWS = 32  # sentences that a language model reads at once


class BlindJudge:
    """The score of a pair is the caption's alone."""

    def __init__(self, plausibility: Plausibility) -> None:
        self.plausibility = plausibility

    def pairs(self, captions: Sequence[str], pictures: Sequence[Picture], pairs: Tensor) -> Tensor:
        return self.plausibility(captions)[pairs[:, 0]]

    def matrix(self, captions: Sequence[str], pictures: Sequence[Picture]) -> Tensor:
        return self.plausibility(captions)[:, None].repeat(1, len(pictures))

    def classify(self, prompts: Sequence[Sequence[str]], pictures: Sequence[Picture]) -> Tensor:
        return mean_scores(self.matrix([prompt for of_class in prompts for prompt in of_class], pictures), prompts)


def brevity(captions: Sequence[str]) -> Tensor:
    """Fewer words are likelier."""
    return torch.tensor([-float(len(caption.split())) for caption in captions])


def frequency(captions: Sequence[str]) -> Tensor:
    """The mean log-probability of a caption's words, by how often all captions together, true or not, use them."""
    words = [caption.lower().split() for caption in captions]
    counts = Counter(word for of_one in words for word in of_one)
    total = max(1, sum(counts.values()))
    logs = {word: math.log(count / total) for word, count in counts.items()}
    return torch.tensor([sum(logs[w] for w in of_one) / len(of_one) if of_one else -math.inf for of_one in words])


SIMPLE: dict[str, Plausibility] = {"brevity": brevity, "frequency": frequency}


def open_blind(name: str, device: torch.device | str = "cpu") -> BlindJudge:
    """`brevity`, `frequency`, or the folder of a causal or masked language model of `transformers`."""
    if name in SIMPLE:
        return BlindJudge(SIMPLE[name])
    if not Path(name).is_dir():
        raise ConfigError(
            f"the blind baseline {name!r} is no folder of a language model and not built in; {nearest(name, SIMPLE)}"
        )
    return BlindJudge(LanguageModel(Path(name), device))


class LanguageModel:
    """The mean log-probability of a sentence's tokens.

    Of a causal model, each given those before it; the first only where the tokenizer has a token of beginning. Of a
    masked model, each given all others, masked one at a time. Special tokens do not count.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            self.masked = any(name.endswith("ForMaskedLM") for name in config.architectures or ())
            kind: Any = AutoModelForMaskedLM if self.masked else AutoModelForCausalLM
            self.model = kind.from_pretrained(folder, local_files_only=True).to(device).eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ConfigError(f"{folder} holds no language model that transformers can load ({reason})") from None
        if self.masked and self.tokenizer.mask_token_id is None:
            raise ConfigError(f"the tokenizer of the masked language model {folder} has no mask token")

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        score = self._masked if self.masked else self._causal
        return torch.tensor(
            [x for start in range(0, len(captions), _ROWS) for x in score(captions[start : start + _ROWS])]
        )

    def _causal(self, captions: Sequence[str]) -> list[float]:
        begin = self.tokenizer.bos_token_id
        rows = [[*([] if begin is None else [begin]), *self._ids(caption)] for caption in captions]
        ids, real = self._padded(rows)
        found = F.log_softmax(self._logits(ids, real)[:, :-1].float(), dim=2)
        found = found.gather(2, ids[:, 1:, None])[:, :, 0] * real[:, 1:]
        return (found.sum(dim=1) / real[:, 1:].sum(dim=1).clamp(min=1)).tolist()

    def _masked(self, captions: Sequence[str]) -> list[float]:
        return [self._masked_one(caption) for caption in captions]

    def _masked_one(self, caption: str) -> float:
        read = self.tokenizer(caption, return_special_tokens_mask=True)
        ids = torch.tensor(read["input_ids"])
        inner = [i for i, special in enumerate(read["special_tokens_mask"]) if not special]
        total = 0.0
        for start in range(0, len(inner), _ROWS):
            places = torch.tensor(inner[start : start + _ROWS])
            rows = ids.repeat(len(places), 1)
            row = torch.arange(len(places))
            rows[row, places] = self.tokenizer.mask_token_id
            rows = rows.to(self.model.device)
            logits = self._logits(rows, torch.ones_like(rows))[row, places].float()
            total += float(F.log_softmax(logits, dim=1).cpu()[row, ids[places]].sum())
        return total / max(1, len(inner))

    def _ids(self, caption: str) -> list[int]:
        return list(self.tokenizer(caption, add_special_tokens=False)["input_ids"])

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        from crossmodal.data.processor_parts import padded

        ids, lengths = padded(rows)
        real = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return ids.to(self.model.device), real.to(self.model.device)

    def _logits(self, ids: Tensor, real: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=real).logits
