"""Recorded UNITER inputs as batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossmodal.data.batches import Batch, Regions, Texts
from crossmodal.model.uniter import Uniter

from .harness import Case


def lengths(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and regions of every row, from what is recorded: counts, or the mask in either layout."""
    if "txt_lens" in given:
        return given["txt_lens"], given["num_bbs"]
    mask, width = given["attn_masks"], given["input_ids"].shape[1]
    if "gather_index" in given:
        text = (given["input_ids"] != 0).sum(dim=1).expand(len(mask))
        return text, mask.sum(dim=1) - text
    return mask[:, :width].sum(dim=1), mask[:, width:].sum(dim=1)


def batch(given: dict[str, Tensor], group: int, **extras: Tensor) -> Batch:
    """Pairs row by row; a side with one item only is shared by every row."""
    rows = len(given["attn_masks"])
    text_lengths, region_counts = lengths(given)
    n_texts, n_images = len(given["input_ids"]), len(given["img_feat"])
    texts = Texts(given["input_ids"], text_lengths[:n_texts], given.get("txt_type_ids"))
    masked = given.get("img_masks")
    regions = Regions(given["img_feat"], given["img_pos_feat"], region_counts[:n_images], masked=masked)
    row = torch.arange(rows)
    pairs = torch.stack([row if n_texts > 1 else row * 0, row if n_images > 1 else row * 0], dim=1)
    return Batch({"text": ("text", texts), "image": ("image", regions)}, pairs, group, extras=extras)


def model(case: Case, *, prefix: str = "", **config: Any) -> Uniter:
    """The recorded weights in our model, dropout 0, training mode."""
    values = {**case.config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **config}
    built = Uniter(values)
    state = {prefix + k: v for k, v in case.under("weights").items()}
    tied = {"cls.predictions.decoder.weight", "feat_regress.weight"}
    loaded = built.to(next(iter(state.values())).dtype).load_state_dict(
        {k: v for k, v in state.items() if k not in tied}, strict=False
    )
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    return built.train()


def gradients(case: Case, built: Uniter, prefix: str = "grad/") -> None:
    """Compare every recorded gradient of a parameter."""
    parameters = dict(built.named_parameters())
    for name in case.arrays:
        key = name.removeprefix(prefix)
        if name.startswith(prefix) and key in parameters:
            gradient = parameters[key].grad
            case.array(name, torch.zeros_like(parameters[key]) if gradient is None else gradient)


def padded(rows: Tensor, starts: Tensor, mask: Tensor) -> Tensor:
    """Packed rows (N,D) where the recorded mask (P,L) is 1, each pair's from `starts` (P,) on; 0 elsewhere."""
    out = rows.new_zeros(*mask.shape, rows.shape[1])
    for i, start in enumerate(starts.tolist()):
        out[i, mask[i]] = rows[start : start + int(mask[i].sum())]
    return out
