"""ALADIN's score matrices and the losses on them, on sets and on vectors, against recorded vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossmodal.losses.contrastive import InfoNCE
from crossmodal.losses.distillation import (
    ScoreRegression,
    contrastive_distillation,
    listnet,
    ordinal_distillation,
)
from crossmodal.losses.token_sets import attention_distillation, permutation_matching
from crossmodal.losses.triplet import triplet
from crossmodal.model.alignment import alignment_scores
from crossmodal.model.base import Encoded
from crossmodal.model.scorers import MEASURES, VectorScorer

from .harness import Case, kind

DTYPES = {"": torch.float32, "64": torch.float64}


def leaf(recorded: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A copy that collects a gradient of its own."""
    return recorded.to(dtype, copy=True).requires_grad_()


def packed(padded: Tensor, lengths: Tensor) -> Tensor:
    """(B,L,E), (B,) -> (N,E)"""
    return torch.cat([x[: int(n)] for x, n in zip(padded, lengths, strict=True)])


def scores(images: Tensor, image_lengths: Tensor, texts: Tensor, text_lengths: Tensor, aggregation: Any) -> Tensor:
    """(images, texts), as recorded, of padded sets."""
    widths = texts.shape[1], images.shape[1]
    rows = packed(texts, text_lengths), packed(images, image_lengths)
    options = {"aggregation": aggregation, "widths": widths}
    return alignment_scores(rows[0], text_lengths, rows[1], image_lengths, **options).T


@kind("aladin", "align_scores")
def align_scores(case: Case) -> None:
    given = case.under("in")
    for bits, dtype in DTYPES.items():
        sets = given["im_set"].to(dtype), given["im_len"], given["s_seq"].to(dtype), given["s_len"]
        for aggregation in case.config["aggregations"]:
            ours = scores(*sets, aggregation)
            for name in ("scores", "scores_zero"):
                if f"out{bits}.{name}.{aggregation}" in case.arrays:
                    case.array(f"out{bits}.{name}.{aggregation}", ours)


@kind("aladin", "align_triplet")
def align_triplet(case: Case) -> None:
    given = case.under("in")
    for aggregation in case.config["aggregations"]:
        for hardest in case.config["max_violation"]:
            mode = f"{aggregation}.mv{int(hardest)}"
            for bits, dtype in DTYPES.items():
                images, texts = leaf(given["im_set"], dtype), leaf(given["s_seq"], dtype)
                matrix = scores(images, given["im_len"], texts, given["s_len"], aggregation)
                loss = triplet(matrix.T, margin=case.config["margin"], hardest=hardest)
                case.scalar(f"loss{bits}.{mode}", loss)
                loss.backward()
                for name, tensor in (("im_set", images), ("s_seq", texts)):
                    assert tensor.grad is not None and tensor.grad.isfinite().all()
                    for prefix in ("grad", "grad_safe"):
                        if f"{prefix}.{name}.{mode}" in case.arrays:
                            case.array(f"{prefix}.{name}.{mode}", tensor.grad)


@kind("aladin", "match_triplet")
def match_triplet(case: Case) -> None:
    given = case.under("in")
    for measure in MEASURES:
        names = ("im", "s") if measure == "dot" else ("im_raw", "s_raw")
        for hardest in (True, False):
            mode = f"{measure}.mv{int(hardest)}"
            for bits, dtype in DTYPES.items():
                vectors = [given[name].abs() if measure == "order" else given[name] for name in names]
                images, texts = (leaf(v, dtype) for v in vectors)
                one = torch.ones(len(images), dtype=torch.int64)
                encoded = [Encoded(one, vectors={"embeds": x}) for x in (texts, images)]
                matrix = VectorScorer(measure)(*encoded)
                if f"out{bits}.scores.{measure}" in case.arrays:
                    case.array(f"out{bits}.scores.{measure}", matrix.T)
                loss = triplet(matrix, margin=case.config["margin"], hardest=hardest)
                case.scalar(f"loss{bits}.{mode}", loss)
                loss.backward()
                for name, tensor in (("im", images), ("s", texts)):
                    recorded = f"grad{bits}.{name}.{mode}"
                    if recorded in case.arrays:
                        case.array(recorded, tensor.grad)


@kind("aladin", "distill")
def distill(case: Case) -> None:
    config, given = case.config, case.under("in")
    ordinal = {k: config[k] for k in ("margin", "threshold", "stride")}
    net = {"scale": config["listnet_temperature"], "epsilon": config["listnet_eps"]}
    for bits, dtype in DTYPES.items():
        regression = ScoreRegression().to(dtype)
        with torch.no_grad():
            regression.wb.copy_(case.tensor("w.wb.mse"))
        modes = {
            "mse": regression,
            "ordinal": lambda t, s: ordinal_distillation(t, s, **ordinal),
            "contrastive": lambda t, s: contrastive_distillation(t, s, margin=config["margin"]),
            "listnet": lambda t, s: listnet(t, s, **net),
        }
        for mode, loss in modes.items():
            teacher, student = leaf(given["teacher"], dtype), leaf(given["student"], dtype)
            value = loss(teacher.T, student.T)
            case.scalar(f"loss{bits}.{mode}", value)
            value.backward()
            assert teacher.grad is None and torch.equal(teacher, given["teacher"].to(dtype))
            for name, gradient in (("student", student.grad), ("wb", regression.wb.grad)):
                if f"grad{bits}.{name}.{mode}" in case.arrays:
                    case.array(f"grad{bits}.{name}.{mode}", gradient)


@kind("aladin", "misc_losses")
def misc_losses(case: Case) -> None:
    given = case.under("in")
    images, texts = leaf(given["im_set"]), leaf(given["s_seq"])
    rows = packed(texts, given["s_len"]), given["s_len"], packed(images, given["im_len"]), given["im_len"]
    value = attention_distillation(*rows, given["teacher_att"].transpose(0, 1))
    case.scalar("attention_distillation", value)
    value.backward()
    case.array("grad.im_set", images.grad)
    case.array("grad.s_seq", texts.grad)

    sets = leaf(given["perm_a"]), leaf(given["perm_b"])
    lengths = [torch.full((len(x),), x.shape[1]) for x in sets]
    value = permutation_matching(sets[0].flatten(0, 1), lengths[0], sets[1].flatten(0, 1), lengths[1])
    case.scalar("perm_inv", value)
    value.backward()
    case.array("grad.perm_a", sets[0].grad)
    case.array("grad.perm_b", sets[1].grad)

    images, texts, criterion = leaf(given["ce_im"]), leaf(given["ce_s"]), InfoNCE(log_scale=0.0)
    value = criterion(texts @ images.T)
    case.scalar("cross_entropy", value)
    value.backward()
    case.array("grad.ce_im", images.grad)
    case.array("grad.ce_s", texts.grad)
    assert criterion.logit_scale.grad is not None
    case.array("grad.ce_temperature", criterion.logit_scale.grad.reshape(1))


@kind("aladin", "v2_infonce")
def v2_infonce(case: Case) -> None:
    criterion = InfoNCE()
    with torch.no_grad():
        criterion.logit_scale.copy_(case.tensor("w.logit_scale"))
    matrix = leaf(case.tensor("in.scores"))
    value = criterion(matrix.T)
    case.scalar("loss", value)
    value.backward()
    case.array("grad.scores", matrix.grad)
    case.array("grad.logit_scale", criterion.logit_scale.grad)
