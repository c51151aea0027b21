"""The losses of CLIP, SigLIP, NegCLIP and CE-CLIP against recorded vectors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from crossmodal.losses.ce_clip import CeClip
from crossmodal.losses.contrastive import clip_info_nce, scaled_products, sigmoid
from crossmodal.losses.cross_modal_rank import new_thresholds
from crossmodal.losses.hard_negatives import hard_negative_itc, intra_modal_contrastive, negclip, wrong_scores

from .ce_clip_ranks import TYPES, options_of
from .harness import Case, kind


def leaf(case: Case, name: str) -> Tensor:
    return case.tensor(name).clone().requires_grad_()


def scalar_of(case: Case, name: str, dtype: torch.dtype) -> Tensor:
    return torch.tensor(case.config[name], dtype=dtype, requires_grad=True)


def gradients(case: Case, prefix: str, leaves: Mapping[str, Tensor]) -> None:
    for name, tensor in leaves.items():
        if f"{prefix}{name}" in case.arrays:
            case.array(f"{prefix}{name}", torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)


@kind("ce_clip", "loss_clip")
def loss_clip(case: Case) -> None:
    names = ("image_features", "text_features", "logit_scale")
    leaves = {name: leaf(case, name) for name in names}
    images, texts, scale = leaves.values()
    case.array("logits_per_image", scaled_products(images, texts, scale))
    case.array("logits_per_text", scaled_products(texts, images, scale))
    value = clip_info_nce(images, texts, scale)
    value.backward()
    case.array("loss", value)
    case.scalar("loss", value)
    gradients(case, "grad_", leaves)


@kind("ce_clip", "loss_siglip")
def loss_siglip(case: Case) -> None:
    recorded = case.json["scalar_outputs"]
    values = []
    for variant, loss, divide in (("A", "loss_mean_nn", "pairs"), ("B", "loss_sum_over_n", "items")):
        leaves = {name: leaf(case, name) for name in ("image_features", "text_features")}
        for name in ("logit_scale", "logit_bias"):
            leaves[name] = scalar_of(case, name, leaves["image_features"].dtype)
        value = sigmoid(*leaves.values(), divide=divide)
        value.backward()
        values.append(value)
        case.array(loss, value)
        case.scalar(loss, value)
        gradients(case, f"{variant}_grad_", leaves)
    if "ratio" in recorded:
        case.scalar("ratio", values[1] / values[0])


@kind("ce_clip", "loss_negclip")
def loss_negclip(case: Case) -> None:
    leaves = {name: leaf(case, name) for name in ("image_features", "text_features")}
    leaves["logit_scale"] = scalar_of(case, "logit_scale", leaves["image_features"].dtype)
    images, texts, scale = leaves.values()
    case.array("logits_per_image", scaled_products(images, texts, scale))
    b = case.config["b"]
    if case.config["image_negatives"]:
        own, hard, negatives, hard_negatives = texts.split(b)
        value = negclip(*images.split(b), own, hard, negatives, hard_negatives, scale)
    else:
        value = hard_negative_itc(images, *texts.split(b), torch.ones(b, 1), scale)
    value.backward()
    case.array("loss", value)
    case.scalar("loss", value)
    gradients(case, "grad_", leaves)


@kind("ce_clip", "loss_imc_forms")
def loss_imc_forms(case: Case) -> None:
    names = ("image_features", "caption_features", "negative_features")
    for form in case.config["forms"]:
        leaves = {name: leaf(case, name) for name in names}
        leaves["logit_scale"] = scalar_of(case, "logit_scale", leaves["image_features"].dtype)
        images, captions, negatives, scale = leaves.values()
        mask = torch.ones(len(captions), len(negatives) // len(captions))
        value = intra_modal_contrastive(images, captions, negatives, mask, scale, form=form)
        value.backward()
        case.array(f"{form}/loss", value)
        case.scalar(form, value)
        gradients(case, f"{form}/grad_", leaves)


@kind("ce_clip", "loss_da")
def loss_da(case: Case) -> None:
    loss = CeClip(**options_of(case.config)).to(case.tensor("step0/image_features").dtype)
    for step in range(case.config["steps"]):
        _step(case, loss, step, case.config["threshold_type"])


def _step(case: Case, loss: CeClip, step: int, rule: str) -> None:
    at = f"step{step}/"
    leaves = {name: leaf(case, at + name) for name in ("image_features", "text_features")}
    leaves["logit_scale"] = scalar_of(case, "logit_scale", leaves["image_features"].dtype)
    images, texts, scale = leaves.values()
    captions, negatives = texts[: len(images)], texts[len(images) :]
    mask = case.tensor(at + "valid_mask")
    before = loss.thresholds.clone()
    value = loss(images, captions, negatives, mask, scale)
    value.backward()
    loss.after_update()
    given = {"loss": value, "cmr_loss": loss.terms.get("cmr"), "imc_loss": loss.terms.get("imc")}
    given["threshold_out"] = loss.thresholds
    if at + "threshold_in" in case.arrays:
        recorded = case.arrays[at + "threshold_in"]
        case.array(at + "threshold_in", before if recorded.ndim else before[0])
    if at + "threshold_raw" in case.arrays:
        own = (scale * images * captions).sum(dim=1)
        raw = new_thresholds(own, wrong_scores(images, negatives, scale, TYPES), mask > 0, before, rule)
        case.array(at + "threshold_raw", raw)
    for name, ours in given.items():
        if at + name in case.arrays:
            case.array(at + name, ours)
        scalars = case.json["scalar_outputs"]["steps"][step]
        if name in scalars and case.mode("steps") != "skip":
            case.equal(f"steps/{step}/{name}", ours, np.asarray(scalars[name], dtype=float))
    gradients(case, at + "grad_", leaves)
