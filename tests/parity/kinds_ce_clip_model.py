"""CLIP's towers, its published layouts, and position tables of other grids."""

from __future__ import annotations

import torch
from torch import Tensor

from crossmodal.data.batches import Batch, Pixels, Texts
from crossmodal.losses.contrastive import clip_info_nce
from crossmodal.model.checkpoints import load_state
from crossmodal.model.clip import Clip
from crossmodal.model.clip_layouts import to_huggingface, to_open_clip
from crossmodal.model.clip_vision import resampled

from .harness import Case, kind


def model(case: Case, weights: str, layout: str) -> Clip:
    built = Clip(case.config)
    state = case.under(weights)
    report = load_state(built.to(state["logit_scale"].dtype), state, layout=layout)
    assert not report.new and not report.ignored, report
    return built


def texts(tokens: Tensor, *, cropped: bool) -> Texts:
    """Whole rows, or up to the end token, which has the largest id: what follows is seen by none before it."""
    lengths = tokens.argmax(dim=1) + 1 if cropped else torch.full((len(tokens),), tokens.shape[1])
    return Texts(tokens[:, : int(lengths.max())], lengths)


@kind("ce_clip", "model_forward")
def forward(case: Case) -> None:
    built = model(case, "weights", "open_clip").train()
    images = Pixels(case.tensor("images"))
    for cropped in (False, True):
        case.array("text_embed_raw", built.features("text", texts(case.tensor("tokens"), cropped=cropped)))
    case.array("image_embed_raw", built.features("image", images))
    batch = Batch({"text": ("text", texts(case.tensor("tokens"), cropped=True)), "image": ("image", images)})
    given = built(batch, ["image_embeds", "text_embeds", "logit_scale"])
    case.array("image_embed", given["image_embeds"])
    case.array("text_embed", given["text_embeds"])
    case.array("logit_scale_exp", given["logit_scale"])
    case.scalar("logit_scale_exp", given["logit_scale"])
    loss = clip_info_nce(given["image_embeds"], given["text_embeds"], given["logit_scale"])
    case.array("clip_loss", loss)
    case.scalar("clip_loss", loss)
    loss.backward()
    gradients = {name: p.grad for name, p in built.named_parameters() if p.grad is not None}
    recorded = [name for name in case.arrays if name.startswith("grad/")]
    assert recorded
    for name in recorded:
        case.array(name, to_open_clip(gradients)[name.removeprefix("grad/")])


@kind("ce_clip", "model_hf_keys")
def hugging_face(case: Case) -> None:
    batch = Batch({
        "text": ("text", texts(case.tensor("tokens"), cropped=True)),
        "image": ("image", Pixels(case.tensor("images"))),
    })  # fmt: skip
    for weights, layout in (("weights", "open_clip"), ("hf", "huggingface")):
        built = model(case, weights, layout).eval()
        with torch.no_grad():
            given = built(batch, ["image_embeds", "text_embeds", "logit_scale"])
            a, b = (built.encode(*batch.roles[role]) for role in ("image", "text"))
            case.array("hf_image_embeds", given["image_embeds"])
            case.array("hf_text_embeds", given["text_embeds"])
            case.array("hf_logits_per_image", given["logit_scale"] * built.scorers["cosine"](a, b))
        named = to_open_clip(built.state_dict())
        for form, state in (("weights", named), ("hf", to_huggingface(named))):
            recorded = {name: value for name, value in case.under(form).items() if not name.endswith("position_ids")}
            assert state.keys() == recorded.keys()
            for name, value in recorded.items():
                case.array(f"{form}/{name}", state[name].reshape(value.shape))


@kind("ce_clip", "model_posembed_resize")
def resized_positions(case: Case) -> None:
    height, width = case.config["new_grid"]
    case.array("new", resampled(case.tensor("old"), (height, width)))
