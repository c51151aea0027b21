"""ALADIN's backbone, its depth aggregation and the whole model, against recorded vectors."""

from __future__ import annotations

from dataclasses import fields as fields_of
from math import exp
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossmodal import losses
from crossmodal.data.batches import Batch, Regions, Texts, Vectors, length_mask
from crossmodal.model.aladin import Aladin
from crossmodal.model.aladin_config import of_published
from crossmodal.model.base import Encoded
from crossmodal.model.checkpoints import load_state
from crossmodal.model.depth import FeatureFusion, GatedDepth, MeanDepth, published_masks
from crossmodal.model.scorers import AlignmentScorer, VectorScorer
from crossmodal.model.transformer import Layer, Packing
from crossmodal.model.vinvl import DETIC_WIDTH, Rows, Vinvl, VinvlSizes

from .harness import Case, kind

CPU = torch.device("cpu")
LOG_VARIANCE = -2.3  # the constant of `loss-weights: auto`


# --- the backbone --------------------------------------------------------------------------------------------------


def vinvl(case: Case, **inputs: Any) -> Vinvl:
    known = {f.name for f in fields_of(VinvlSizes)}
    model = Vinvl(VinvlSizes(**{k: v for k, v in case.config.items() if k in known}), **inputs).eval()
    model.load_state_dict(case.under("w"))
    return model


def gradients(case: Case, module: nn.Module, prefix: str = "grad.") -> None:
    for name, parameter in module.named_parameters():
        if prefix + name in case.arrays:
            case.array(prefix + name, torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


def part(rows: Tensor, lengths: Tensor) -> Rows:
    return Rows(rows, lengths, lengths)


def words(model: Vinvl, case: Case, real: Tensor) -> Tensor:
    """The embedded text positions of the case that `real` (B,S) picks, (N,H)."""
    b, t = real.nonzero(as_tuple=True)
    embeddings = model.bert.embeddings
    if "in.input_ids" in case.arrays:
        x = case.tensor("in.input_ids")[b, t]
    else:
        vectors = case.tensor("in.input_clip")[b, t]
        of_tags = case.config["text_input"] == "clip_global"
        mapper = embeddings.clip_global_to_oscar_embeddings if of_tags else embeddings.clip_local_to_oscar_embeddings
        assert mapper is not None
        x = mapper(vectors)
    return embeddings(x, t, case.tensor("in.token_type_ids")[b, t])


@kind("aladin", "backbone", "v2_backbone")
def backbone(case: Case) -> None:
    second = case.json["kind"] == "v2_backbone"
    inputs = {"detic": case.config["img_feature_dim"] != DETIC_WIDTH, "clip_tags": 512, "clip_captions": 512}
    model = vinvl(case, **(inputs if second else {}))
    mask = case.tensor("in.attention_mask").bool()
    width = case.tensor("in.token_type_ids").shape[1]
    text, image = mask[:, :width], mask[:, width:]
    tokens = words(model, case, text)
    parts = [part(tokens, text.sum(dim=1))]
    states = model.bert(*parts, every=True)
    if image.shape[1]:
        regions = part(model.bert.embed_regions(case.tensor("in.img_feats")[image]), image.sum(dim=1))
        of_regions = model.bert(*parts, regions, every=True)
        of_words = model.bert(regions, *parts, every=True)  # the order of the parts does not matter
    else:
        of_words, of_regions = states, [states[0][:0]] * len(states)

    padded = tokens.new_zeros(len(states), *mask.shape, tokens.shape[1])
    for d, (t, r) in enumerate(zip(of_words, of_regions, strict=True)):
        wide = padded[d].clone()
        wide[:, :width][text], wide[:, width:][image] = t, r
        padded = torch.cat([padded[:d], wide[None], padded[d + 1 :]])
    case.array("out.hidden_states", padded.transpose(0, 1).transpose(1, 2), where=mask,
               expected=case.tensor("out.hidden_states").transpose(0, 1).transpose(1, 2))  # fmt: skip
    case.array("out.last_hidden", padded[-1], where=mask)
    case.array("out.pooled", model.bert.pooler(padded[-1][:, 0]))
    found = []
    for layer, x in zip(model.bert.encoder.layer, padded, strict=False):
        assert isinstance(layer, Layer)
        attention = layer.attention.inner
        found.append(attention.probabilities(attention.query(x), attention.key(x), mask))
    for recorded, ours in zip(case.tensor("out.attentions"), found, strict=True):
        case.array("out.attentions", ours.transpose(1, 2), where=mask, expected=recorded.transpose(1, 2))

    (padded[-1] * case.tensor("in.cotangent")).sum().backward()
    gradients(case, model)


@kind("aladin", "backbone_pair_classifier")
def pair_classifier(case: Case) -> None:
    """A mask type lets two of caption, tags and regions see each other: the third is a sequence of its own."""
    model = vinvl(case)
    given = case.under("in")
    n_caption, n_text, n_image = given["caption_len"], given["text_len"], given["img_len"]
    position = torch.arange(given["input_ids"].shape[1])
    in_caption = position < n_caption[:, None]
    features = given["img_feats"]
    in_tags = (position < n_text[:, None]) & ~in_caption
    parts = {
        "C": part(words(model, case, in_caption), n_caption),
        "L": part(words(model, case, in_tags), n_text - n_caption),
        "R": part(model.bert.embed_regions(features[length_mask(n_image, features.shape[1])]), n_image),
    }
    first = n_caption.cumsum(0) - n_caption
    for name in ("CLR", "CL", "CR", "LR"):
        others = [parts[letter] for letter in name.replace("C", "")] if "C" in name else []
        logits = model.classify(model.bert(*others, parts["C"])[-1][first])
        case.array(f"out.logits.{name}", logits)
        loss = F.cross_entropy(logits, given["labels"])
        case.scalar(f"loss.{name}", loss)
        if name == "CLR":
            loss.backward(retain_graph=True)
            gradients(case, model)


@kind("aladin", "depth_aggregator")
def depth_aggregator(case: Case) -> None:
    recorded, padding = case.tensor("in.x"), case.tensor("in.mask")
    cotangent, real = case.tensor("in.cotangent"), ~padding
    depth, items, width, size = recorded.shape
    gated = GatedDepth(size, dropout=0.0)
    gated.load_state_dict(case.under("w.gated"))
    lengths = torch.full((items,), width)
    if any("row 8" in quirk for quirk in case.json["quirks"]):
        masks = published_masks(real.sum(dim=1), lengths, depth)
    else:
        masks = [real.flatten()] * depth
    packings = [Packing.of(lengths, size, CPU, keys) for keys in masks]
    aggregators: dict[str, Any] = {"None": lambda states, _: states[-1], "mean": MeanDepth(), "gated": gated}
    for name, aggregate in aggregators.items():
        x = recorded.clone().requires_grad_()
        out = aggregate([layer.flatten(0, 1) for layer in x], packings).unflatten(0, (items, width))
        case.array(f"out.{name}", out, where=real)
        (out * cotangent).sum().backward()
        case.array(f"grad.x.{name}", x.grad)
    gradients(case, gated, "grad.w.gated.")
    fusion = FeatureFusion(size, dropout=0.0)
    fusion.load_state_dict(case.under("w.fusion"))
    a, b = (recorded[d].clone().requires_grad_() for d in (0, -1))
    out = fusion(a, b)
    case.array("out.fusion", out, where=real)
    (out * cotangent).sum().backward()
    case.array("grad.fusion.a", a.grad)
    case.array("grad.fusion.b", b.grad)
    gradients(case, fusion, "grad.w.fusion.")


# --- the whole model -----------------------------------------------------------------------------------------------


def aladin(case: Case, terms: list[str]) -> Aladin:
    """The recorded weights in our model, the published defects that the case names switched on."""
    values = of_published(case.config)
    values["clip"] = None  # CLIP's vectors are recorded
    if any("row 8" in quirk for quirk in case.json["quirks"]):
        values["depth_masks"] = "published"
    if "regularizehidden" in terms:
        values["padded"] = True
    if case.json["kind"] == "v2_model" and values.get("detection") != "det":
        values["detection"] = "det+fast"  # the second version always builds the mapper, which zero rows go through
    model = Aladin(values).eval()
    report = load_state(model, case.under("w"), layout="aladin")
    assert not report.new, report.new
    return model


def batch(case: Case) -> Batch:
    given = case.under("in")
    n_text, n_tags, n_image = given["cap_len"], given["tag_len"], given["img_len"]
    width = given["tag_seg"].shape[1]
    assert torch.equal(given["cap_mask"].bool(), length_mask(n_text, given["cap_mask"].shape[1]))
    assert torch.equal(given["img_mask"][:, :width].bool(), length_mask(n_tags, width))
    texts = (
        Vectors(given["cap_clip"], n_text) if "cap_clip" in given else Texts(given["cap_ids"], n_text, given["cap_seg"])
    )
    if "tag_clip" in given:
        assert torch.equal(given["tag_seg"].bool(), length_mask(n_tags, width) & (torch.arange(width) > 0))
    tags = (
        Vectors(given["tag_clip"], n_tags) if "tag_clip" in given else Texts(given["tag_ids"], n_tags, given["tag_seg"])
    )
    features = given["img_feats"]
    regions = Regions(features, features.new_zeros(*features.shape[:2], 6), n_image, tags)
    return Batch({"text": ("text", texts), "image": ("image", regions)})


def encoded(given: dict[str, Tensor], role: str) -> Encoded:
    return Encoded(given[f"{role}_lengths"], {"tokens": given[f"{role}_tokens"]}, {"embeds": given[f"{role}_embeds"]})


def scores(case: Case, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The alignment and the matching scores of the batch, (texts, images)."""
    training = case.config["training"]
    a, b = encoded(given, "text"), encoded(given, "image")
    return AlignmentScorer(training["alignment-mode"])(a, b), VectorScorer(training["measure"])(a, b)


def objective(case: Case, given: dict[str, Tensor], distil: nn.Module) -> dict[str, Tensor]:
    """The case's losses by their published names."""
    training = case.config["training"]
    alignment, matching = scores(case, given)
    hinge = losses.build("triplet", margin=training["margin"], hardest=training["max-violation"])
    names = training["loss-type"].split("-")
    if case.config.get("epoch", 0) < case.config.get("distill_epoch", 0) and len(names) > 1:
        names = [name for name in names if name != "distillation"]
    out = {}
    for name in names:
        if name == "alignment":
            out[name] = hinge(alignment)
        elif name in ("matching", "selfaggregation"):
            out[name] = hinge(matching)
        elif name == "distillation":
            out[name] = distil(alignment, matching)
        elif name == "entropy":
            out[name] = losses.build("uniformity")(given["image_embeds"], given["text_embeds"])
        else:
            assert name == "regularizehidden"
            out[name] = losses.build("hidden_l1")(given["text_hidden"], given["image_hidden"])
    return out


def total(case: Case, terms: dict[str, Tensor]) -> Tensor:
    training = case.config["training"]
    if not isinstance(training["loss-weights"], list):
        return torch.stack([0.5 * (exp(-LOG_VARIANCE) * value + LOG_VARIANCE) for value in terms.values()]).sum()
    weights = dict(zip(training["loss-type"].split("-"), training["loss-weights"], strict=True))
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


class Distillation(nn.Module):
    """The loss of a published `distillation-mode`, with the parameter that one of them has."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        mode, margin = case.config["training"]["distillation-mode"], case.config["training"]["margin"]
        name = {"mse": "score_regression", "ordinal": "ordinal_distillation", "contrastive": "contrastive_distillation"}
        self.loss = losses.build(name.get(mode, mode), **({"margin": margin} if mode == "contrastive" else {}))
        if isinstance(self.loss, nn.Module):
            self.loss.load_state_dict(case.under("w.distillation_loss"))

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        value: Tensor = self.loss(teacher, student)
        return value


@kind("aladin", "model", "v2_model")
def model(case: Case) -> None:
    names = case.config["training"]["loss-type"].split("-")
    ours, given = aladin(case, names), batch(case)
    distil = Distillation(case)
    whole = nn.ModuleDict({"img_txt_enc": ours})
    if isinstance(distil.loss, nn.Module):
        whole["distillation_loss"] = distil.loss
    want = {f"{role}_{what}" for role in ("text", "image") for what in ("tokens", "lengths", "embeds")}
    if "regularizehidden" in names:
        want |= {"text_hidden", "image_hidden"}

    fields = ours(given, want)
    case.array("out.img_vec", fields["image_embeds"])
    case.array("out.cap_vec", fields["text_embeds"])
    for name, role in (("img_set", "image"), ("cap_set", "text")):
        real = length_mask(fields[f"{role}_lengths"], case.arrays[f"out.{name}"].shape[0])
        recorded = case.tensor(f"out.{name}").transpose(0, 1)[real]
        case.array(f"out.{name}", fields[f"{role}_tokens"], expected=recorded)
    for name, matrix in zip(("align", "match"), scores(case, fields), strict=True):
        if f"out.{name}_scores" in case.arrays:
            case.array(f"out.{name}_scores", matrix.T)
    terms = objective(case, fields, distil)
    for name, value in terms.items():
        case.scalar(f"loss.{name}", value)
    loss = total(case, terms)
    case.scalar("total", loss)
    loss.backward()
    gradients(case, whole)
    outputs = case.json["outputs"]
    with_gradient = {name for name, p in whole.named_parameters() if p.grad is not None}
    if "weights_with_gradient" in outputs:
        assert with_gradient == set(outputs["weights_with_gradient"])
    if "grad_norm_all" in outputs:
        norms = [p.grad.norm() for p in whole.parameters() if p.grad is not None]
        case.scalar("grad_norm_all", torch.stack(norms).norm())
    if "trajectory_loss_and_preclip_norm" in outputs:
        trajectory(case, whole, distil, given, want)


def trajectory(case: Case, whole: nn.ModuleDict, distil: nn.Module, given: Batch, want: set[str]) -> None:
    """Steps on one batch; rounding differences grow from step to step, hence a tolerance of its own."""
    training, recorded = case.config["training"], case.json["outputs"]["trajectory_loss_and_preclip_norm"]
    parameters = [p for p in whole.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=training["lr"], betas=(0.9, 0.999), eps=1e-8)
    found = []
    for _ in recorded:
        optimizer.zero_grad()
        loss = total(case, objective(case, whole["img_txt_enc"](given, want), distil))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, training["grad-clip"])
        found.append([float(loss.detach()), float(norm)])
        optimizer.step()
    rtol = case.json["tolerance"]["trajectory_rtol"]
    np.testing.assert_allclose(found, recorded, rtol=rtol)
    for name, value in whole.named_parameters():
        if f"after.{name}" in case.arrays:
            np.testing.assert_allclose(
                value.detach(), case.arrays[f"after.{name}"], rtol=rtol, atol=training["lr"] / 10
            )
            case.checked.add(f"after.{name}")
