"""ALADIN-2.0's CLIP text tower: the pooled vector, and the states of the tokens before the last LayerNorm."""

from __future__ import annotations

import torch

from crossmodal.data.batches import Texts
from crossmodal.model.clip_text import ClipText

from .harness import Case, kind


@kind("aladin", "v2_clip_text_tower")
def clip_text_tower(case: Case) -> None:
    config, ids = case.config, case.tensor("in.ids").long()
    tower = ClipText(
        vocab_size=config["vocab"],
        width=config["width"],
        heads=config["heads"],
        layers=config["layers"],
        context=config["context_length"],
        embed_dim=config["embed_dim"],
    ).eval()
    tower.load_state_dict(case.under("w"))
    with torch.no_grad():
        pooled, states = tower(Texts(ids, torch.full((len(ids),), ids.shape[1])))
        case.array("out.global", pooled)
        case.array("out.local", states.unflatten(0, ids.shape))
        # What follows the end token is seen by none before it, and may be left out.
        lengths = ids.argmax(dim=1) + 1
        cropped, leading = tower(Texts(ids, lengths))
    case.array("out.global", cropped)
    kept = torch.arange(ids.shape[1]) < lengths[:, None]
    case.array("out.local", leading, expected=case.tensor("out.local")[kept])
