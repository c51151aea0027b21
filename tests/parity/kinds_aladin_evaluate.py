"""ALADIN's evaluation: ranks and recalls of both heads, the 1K folds, NDCG and the relevances of ROUGE-L."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crossmodal.evaluate.folds import run_protocol
from crossmodal.evaluate.ndcg import ndcg
from crossmodal.evaluate.ranks import Ranks, ranks
from crossmodal.evaluate.recall import recall
from crossmodal.evaluate.rouge import References, rouge_l, tokens
from crossmodal.model.alignment import alignment_scores
from crossmodal.retrieve.product import Product

from .harness import Case, kind

CAPTIONS = 5  # of each image, one image after the other


def image_of(images: int) -> Tensor:
    return torch.arange(CAPTIONS * images) // CAPTIONS


def rows(items: Tensor, lengths: Tensor) -> Tensor:
    """Padded items (B,S,E) as packed rows."""
    return items[torch.arange(items.shape[1]) < lengths[:, None]]


@kind("aladin", "eval_heads")
def eval_heads(case: Case) -> None:
    images, texts = case.tensor("in.img_sets"), case.tensor("in.cap_sets")
    image_lengths, text_lengths = case.tensor("in.img_len").long(), case.tensor("in.cap_len").long()
    width = case.config["pad_to"]
    alignment = alignment_scores(
        *(rows(texts, text_lengths), text_lengths, rows(images, image_lengths), image_lengths),
        aggregation=case.config["aggregation"],
        widths=(width, width),
    )
    case.array("out.align_scores", alignment.T)
    queries = case.config["npts"] or len(images)
    found = {"align": alignment, "dot": texts[:, 0] @ images[:, 0].T}
    for head, scores in found.items():
        ranked = ranks(scores, image_of(len(images)), ties="optimistic")
        asked = replace(
            ranked,
            image=ranked.image[: CAPTIONS * queries],
            image_ties=ranked.image_ties[: CAPTIONS * queries],
            text=ranked.text[:queries],
            text_ties=ranked.text_ties[:queries],
        )
        case.array(f"out.{head}_i2t_rank", asked.text.long())
        case.array(f"out.{head}_t2i_rank", asked.image.long())
        case.array(f"out.{head}_i2t_top1", scores.argmax(dim=0)[:queries])
        for direction, values in one_way_each(asked).items():
            for name, value in values.items():
                case.scalar(f"{head}.{direction}/{name}", value)
        if head == "align":
            case.scalar("align.rsum", 100 * recall(asked)["rsum"])
            if "out.align_t2i_top50" in case.arrays:
                best = scores[: CAPTIONS * queries].topk(case.arrays["out.align_t2i_top50"].shape[1], dim=1)
                case.array("out.align_t2i_top50", best.indices)
                if "out.align_t2i_top50_scores" in case.arrays:
                    case.array("out.align_t2i_top50_scores", best.values)
        else:
            for name, value in published(recall(ranked)).items():
                case.scalar(f"compute_recall(matching head)/{name}", value)


def one_way_each(ranked: Ranks) -> dict[str, dict[str, float]]:
    metrics = recall(ranked)
    return {
        direction: {
            **{f"r{k}": 100 * metrics[f"{side}_r{k}"] for k in (1, 5, 10)},
            "medr": metrics[f"{side}_median_rank"] // 1,
            "meanr": metrics[f"{side}_mean_rank"],
        }
        for direction, side in (("i2t", "txt"), ("t2i", "img"))
    }


def published(metrics: dict[str, float]) -> dict[str, float]:
    """In percent under the names of `compute_recall`."""
    names = {"r1": "txt_r1", "r5": "txt_r5", "r10": "txt_r10", "r1i": "img_r1", "r5i": "img_r5", "r10i": "img_r10"}
    return {name: 100 * metrics[ours] for name, ours in {**names, "rsum": "rsum"}.items()}


@kind("aladin", "recall_folds")
def recall_folds(case: Case) -> None:
    images, texts = case.tensor("in.img"), case.tensor("in.cap")
    recorded = case.json["outputs"]
    folds = len(recorded["per_fold"])
    size = len(images) // folds
    found = run_protocol(Product(texts, images), image_of(len(images)), folds=folds, ties="optimistic")
    near(case, "mean_over_folds", found.metrics, recorded["mean_over_folds"])
    for fold in range(folds):
        near(case, f"per_fold/{fold}", found.folds[fold], recorded["per_fold"][fold])
        scores = texts[CAPTIONS * size * fold :][: CAPTIONS * size].double() @ images[size * fold :][:size].double().T
        right = scores.gather(1, image_of(size)[:, None]).squeeze(1)
        best = right.view(size, CAPTIONS).amax(dim=1)
        close(case, f"out.fold{fold}_t2i_rank", found.ranks[fold].image, scores, right)
        close(case, f"out.fold{fold}_i2t_rank", found.ranks[fold].text, scores.T, best)


def near(case: Case, name: str, metrics: dict[str, float], recorded: dict[str, Any]) -> None:
    case.checked.add(name)
    ours, atol = published(metrics), case.json["tolerance"]["metrics_atol"]
    assert {key: ours[key] for key in recorded} == {key: approximately(v, atol, key) for key, v in recorded.items()}


def approximately(value: float, atol: float, key: str) -> Any:
    return pytest.approx(value, rel=0, abs=atol * (6 if key == "rsum" else 1))


def close(case: Case, name: str, ours: Tensor, scores: Tensor, right: Tensor) -> None:
    """Ranks may differ by the number of scores that agree with the right one to 1e-6; `right` is one of them."""
    if name not in case.arrays:
        return
    case.checked.add(name)
    equal = ((scores - right[:, None]).abs() <= 1e-6).sum(dim=1) - 1
    assert ((ours - case.tensor(name)).abs() <= equal).all(), name


@kind("aladin", "ndcg")
def ndcg_cases(case: Case) -> None:
    kinds = [case.tensor("in.relevance_rougeL"), case.tensor("in.relevance_spice")]
    order_image, order_sentence = case.tensor("in.rank_image"), case.tensor("in.rank_sentence")
    size, rank = case.config["npts"], case.config["rank"]
    image, sentence = [], []
    for fold in range(case.config["folds"]):
        columns, captions = slice(size * fold, size * (fold + 1)), slice(5 * size * fold, 5 * size * (fold + 1))
        here = [relevance[captions, columns] for relevance in kinds]
        image.append(torch.stack([ndcg(r, order_image[fold], rank=rank) for r in here], dim=1))
        sentence.append(torch.stack([ndcg(r.T, order_sentence[fold], rank=rank) for r in here], dim=1))
    case.array("out.ndcg_image", torch.stack(image))
    case.array("out.ndcg_sentence", torch.stack(sentence))


@kind("aladin", "rouge_l")
def rouge_l_cases(case: Case) -> None:
    beta, scores = case.config["beta"], []
    for number, row in enumerate(case.json["outputs"]["rows"]):
        candidate, references = row["candidate"], row["references"]
        scores.append(rouge_l(candidate, references, beta=beta))
        case.equal(f"rows/{number}/score", scores[-1], row["score"])
        case.equal(f"rows/{number}/lcs", References(references).common(tokens(candidate)), row["lcs"])
    case.array("out.score", np.array(scores))
