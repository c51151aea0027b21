"""CE-CLIP's benchmarks: how scores become the published figures (spec section 6)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from crossmodal.evaluate.ranks import ranks
from crossmodal.evaluate.recall import recall
from crossmodal.evaluate.suites import aro, sugarcrepe, vl_checklist
from crossmodal.evaluate.suites.items import places
from crossmodal.evaluate.suites.metrics import (
    Share,
    choose,
    index_ranks,
    mean,
    means,
    paired_metrics,
    two_class,
    winoground,
)
from crossmodal.evaluate.zero_shot import classifier, classify

from .harness import Case, kind


def numbers_of(categories: list[str]) -> dict[str, list[int]]:
    return {name: [i for i, c in enumerate(categories) if c == name] for name in places(categories)}


def listed(case: Case, name: str, label: str, rows: Mapping[str, Share]) -> None:
    """Compare with a list of {label, Accuracy, Count}."""
    recorded = case.json["scalar_outputs"][name]
    assert list(rows) == [row[label] for row in recorded]
    case.equal(f"{name}/Accuracy", [row.value for row in rows.values()], [row["Accuracy"] for row in recorded])
    case.equal(f"{name}/Count", [row.count for row in rows.values()], [row["Count"] for row in recorded])


@kind("ce_clip", "metric_aro_relation")
def aro_relation(case: Case) -> None:
    relations_of, symmetric = numbers_of(case.config["relation_names"]), case.config["symmetric_relations"]
    verdicts = choose(case.tensor("scores")[:, 0], 1)
    *relations, kept, whole = aro.relation_rows(verdicts, relations_of, symmetric).items()
    listed(case, "per_relation", "Relation", dict(relations))
    case.scalar("macro_accuracy", kept[1].value)
    case.scalar("macro_accuracy_without_removal", whole[1].value)


@kind("ce_clip", "metric_aro_attribution")
def aro_attribution(case: Case) -> None:
    verdicts = choose(case.tensor("scores")[:, 0], 1)
    *pairs, macro = aro.attribution_rows(verdicts, numbers_of(["_".join(a) for a in case.config["attributes"]])).items()
    listed(case, "per_pair", "Attributes", dict(pairs))
    case.scalar("macro_accuracy", macro[1].value)


@kind("ce_clip", "metric_aro_order")
def aro_order(case: Case) -> None:
    case.scalar("Precision@1", choose(case.tensor("scores")[:, 0], 0, tie_wins=True).share().value)


@kind("ce_clip", "metric_sugarcrepe")
def sugarcrepe_cases(case: Case) -> None:
    recorded = case.json["scalar_outputs"]
    rows = {name: choose(case.tensor(name), 0).share() for name in recorded["categories"]}
    groups = means(rows, sugarcrepe.GROUPS)
    for name, row in rows.items():
        case.scalar(f"categories/{name}", row.value)
    for name in recorded["group_means"]:
        case.scalar(f"group_means/{name}", groups[name].value)


@kind("ce_clip", "metric_valse")
def valse_cases(case: Case) -> None:
    rows = {}
    for name in case.config["instruments"]:
        given = case.under(name.replace(" ", "_"))
        valid = given["votes"] >= 2
        image, caption, foil = (F.normalize(given[x][valid], dim=1) for x in ("image", "caption", "foil"))
        rows[name] = choose(torch.stack([(image * caption).sum(dim=1), (image * foil).sum(dim=1)], dim=1), 0).share()
        case.scalar(f"dual_encoder_pairwise_percent/{name}", 100 * rows[name].value)
        official(case, name, given["itm_logits"][valid])
    case.scalar("dual_encoder_avg_over_11_instruments", 100 * mean(rows.values()).value)
    for name, row in means(rows, case.config["categories"]).items():
        case.scalar(f"dual_encoder_category_means/{name}", 100 * row.value)


def official(case: Case, name: str, logits: Tensor) -> None:
    found = two_class(logits)
    for figure, recorded in case.json["scalar_outputs"]["official_two_class"][name].items():
        ours = found["acc"].count if figure == "count" else 100 * found[figure].value
        case.equal(f"official_two_class/{name}/{figure}", ours, recorded)


@kind("ce_clip", "metric_vlchecklist")
def vlchecklist_cases(case: Case) -> None:
    scores = case.tensor("scores")
    case.scalar("total_acc_all", vl_checklist.accuracy(choose(scores, 0)).value)
    first = scores[: case.config["max_num"] // 2]
    case.scalar("total_acc_with_max_num", vl_checklist.accuracy(choose(first, 0)).value)


@kind("ce_clip", "metric_winoground")
def winoground_cases(case: Case) -> None:
    for name, share in winoground(case.tensor("scores")).items():
        case.scalar(name, share.value)


@kind("ce_clip", "metric_retrieval")
def retrieval_cases(case: Case) -> None:
    found = recall(ranks(case.tensor("scores").T, case.tensor("caption_image")))
    for side, name in (("img", "ImagePrec"), ("txt", "TextPrec")):
        for k in (1, 5):
            case.scalar(f"{name}@{k}", found[f"{side}_r{k}"])


@kind("ce_clip", "metric_clip_val")
def clip_val_cases(case: Case) -> None:
    for name, prefix in (("reference", ""), ("openclip_with_duplicates", "dup_")):
        scores = case.tensor(f"{prefix}image_features") @ case.tensor(f"{prefix}text_features").T
        for metric, value in paired_metrics(scores).items():
            case.scalar(f"{name}/{metric}", value)
        right = torch.arange(len(scores))
        for way, matrix in (("i2t", scores), ("t2i", scores.T)):
            if f"{prefix}rank_{way}" in case.arrays:
                case.array(f"{prefix}rank_{way}", index_ranks(matrix, right))


@kind("ce_clip", "metric_zeroshot")
def zero_shot_cases(case: Case) -> None:
    weights = classifier(case.tensor("prompt_embeddings"))
    logits = classify(case.tensor("image_embeddings"), weights)
    case.array("classifier", weights)
    case.array("logits", logits)
    rank = index_ranks(logits, case.tensor("labels"))
    found = {f"top{k}": float((rank < k).double().mean()) for k in (1, 5)}
    for name, value in found.items():
        case.scalar(name, value)
