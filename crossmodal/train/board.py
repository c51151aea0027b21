"""The TensorBoard scalars of ALADIN under their published tags (spec section 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping

_RECALLS = {"r1": "txt_r1", "r5": "txt_r5", "r10": "txt_r10", "r1i": "img_r1", "r5i": "img_r5", "r10i": "img_r10"}


def step_tags(step: int, steps_per_epoch: int, seconds: float, data: float) -> dict[str, float]:
    """Beside a step's losses and rate: seconds it took and data was waited for; `step` counts within the epoch."""
    epoch, within = divmod(step - 1, steps_per_epoch)
    return {"epoch": epoch, "step": within, "batch_time": seconds, "data_time": data, "Eit": step}


def validation_tags(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of the metrics `<scorer>/<name>` of both heads, recalls in percent: r1 with image queries, r1i with captions.

    The published `meanr` of the alignment head is the caption queries' mean rank; here it is the image queries', and
    the other is `meanri`.
    """
    tags: dict[str, float] = {}
    for head in ("matching", "alignment"):
        if f"{head}/rsum" not in metrics:
            continue
        own = {name.removeprefix(f"{head}/"): value for name, value in metrics.items() if name.startswith(f"{head}/")}
        tags |= {f"{head}/{tag}": 100 * own[name] for tag, name in _RECALLS.items()}
        if head == "matching":
            tags["matching/rsum"] = 100 * own["rsum"]
            continue
        tags["rsum"] = 100 * own["rsum"]
        for end, side in (("", "txt"), ("i", "img")):
            tags[f"alignment/medr{end}"] = math.floor(own[f"{side}_median_rank"])
            tags[f"alignment/meanr{end}"] = own[f"{side}_mean_rank"]
    return tags
