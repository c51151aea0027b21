"""Retrieval metrics: the correct and the published count, the lists of ten, the bounds under ties."""

from __future__ import annotations

import numpy as np
import torch

from crossmodal.evaluate.positives import image_columns
from crossmodal.evaluate.ranks import Ranks, ranks, ranks_from_lists
from crossmodal.evaluate.recall import NAMES, recall

from .harness import Case, kind

TIE_BOUNDS = {"best": "optimistic", "worst": "pessimistic"}


@kind("uniter_iais", "itm_eval")
def itm_eval(case: Case) -> None:
    scores = case.tensor("in/score_matrix")
    image_of = image_columns(case.json["txt_ids"], case.json["img_ids"], case.json["txt2img"])
    found = {rule: ranks(scores, image_of, ties=rule) for rule in ("optimistic", "average", "pessimistic")}
    _scalars(case, found["average"])
    _lists(case, scores, image_of, found["average"])
    for recorded, rule in TIE_BOUNDS.items():
        for side in ("image", "text"):
            name = f"out/{side}_rank_{recorded}"
            if name in case.arrays:
                case.array(name, getattr(found[rule], side).long())
        for name in case.json["scalars"].get("tie_bounds", {}).get(recorded, {}):
            case.scalar(f"tie_bounds/{recorded}/{name}", recall(found[rule])[name])
    for name, rule in (("optimistic", "optimistic"), ("pessimistic", "pessimistic")):
        if f"image_retrieval_{name}" in case.json["scalars"]:
            ours = [recall(found[rule])[f"img_r{k}"] for k in (1, 5, 10)]
            case.scalar(f"image_retrieval_{name}", ours)


def _scalars(case: Case, average: Ranks) -> None:
    """Both counts. Where ties make the recorded order arbitrary, `compare` says skip for these scalars."""
    correct = recall(average)
    published = recall(average, reference_count=True)
    for name in NAMES:
        case.scalar(f"correct/{name}", correct[name])
        case.scalar(f"reference/{name}", published[name])


def _lists(case: Case, scores: torch.Tensor, image_of: torch.Tensor, average: Ranks) -> None:
    """The lists of ten, and the ranks that the recorded lists give, which any tie rule must enclose."""
    case.array("out/top10_images_per_text", scores.topk(10, dim=1).indices)
    case.array("out/top10_texts_per_image", scores.topk(10, dim=0).indices)
    images = case.arrays["out/top10_images_per_text"].tolist()
    texts = case.arrays["out/top10_texts_per_image"].T.tolist()
    listed = ranks_from_lists(images, texts, image_of)
    case.checked.add("ranks of the recorded lists")
    for side in ("image", "text"):
        ours = getattr(listed, side).numpy()
        best, worst = (getattr(average.under(rule), side).numpy() for rule in ("optimistic", "pessimistic"))
        inside = np.isfinite(ours)
        assert (best[inside] <= ours[inside]).all() and (ours[inside] <= worst[inside]).all(), side
        assert (worst[~inside] >= 10).all(), side
    recorded = recall(listed)
    for name in NAMES:
        case.equal(f"lists/{name}", recorded[name], case.json["scalars"]["correct"][name])
    published = recall(listed, reference_count=True)
    for name in NAMES:
        case.equal(f"lists/published/{name}", published[name], case.json["scalars"]["reference"][name])
