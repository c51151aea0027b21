"""One rank of the cases that several processes recorded: its losses, thresholds and gradients, written down.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.parity.ce_clip_ranks OUTPUT CASE...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmodal.losses.ce_clip import CeClip
from crossmodal.model.clip import Clip
from crossmodal.train.distributed import OneProcess, connect
from crossmodal.train.micro_step import MicroStep
from crossmodal.train.objectives import build_objectives
from crossmodal.train.recipe import parse_recipe

from .harness import Case

TYPES = 4
SMALL = {"embed_dim": 8, "width": 8, "layers": 1, "context": 4, "vocab_size": 8, "vision_width": 8,
         "vision_layers": 1, "image_size": 8, "patch_size": 8}  # fmt: skip

Found = dict[str, Tensor]


def loss_of(config: dict[str, Any]) -> dict[str, Any]:
    """The loss of a case as a recipe names it; without weights of the terms, plain InfoNCE."""
    return {"use": "ce_clip", **options_of(config)} if "cmr_loss" in config else {"use": "clip_info_nce"}


def options_of(config: dict[str, Any]) -> dict[str, Any]:
    """Those of `ce_clip`."""
    fixed = {"fixed_threshold": config["fixed_threshold"]} if config.get("fixed_threshold") is not None else {}
    return {
        "cmr_weight": config["cmr_weight"] if config["cmr_loss"] else 0.0,
        "imc_weight": config["imc_weight"] if config["imc_loss"] else 0.0,
        "hard_negatives": config["hardnegative"],
        "form": config["imc_form"],
        "threshold": config["threshold_type"],
        "upper_bound": config["upper_bound"],
        **fixed,
    }


def micro_step(config: dict[str, Any], ranks: OneProcess, dtype: torch.dtype) -> tuple[MicroStep, Any]:
    """The loss of a case as the engine calls it. The model computes nothing here: features are given."""
    recipe = parse_recipe({
        "steps": 1, "model": {"use": "clip"}, "data": {"train": {"texts": "unused", "images": "unused"}},
        "streams": [{"data": {"use": "train", "draw": "matched_negatives"}, "losses": [loss_of(config)]}],
    })  # fmt: skip
    model = Clip(SMALL)
    objectives, modules = build_objectives(recipe, model)
    return MicroStep(model, modules.to(dtype), ranks), objectives[0]


def run_case(case: Case, ranks: OneProcess) -> Found:
    """What this rank finds, as `step<t>/<name>`; one step has no prefix where the case has none."""
    config, found = case.config, {}
    steps = [f"step{step}/" for step in range(config["steps"])] if "steps" in config else [""]
    dtype = case.tensor(f"{steps[0]}rank0/image_features").dtype
    micro, objective = micro_step(config, ranks, dtype)
    for at in steps:
        leaves = {
            name: case.tensor(f"{at}rank{ranks.rank}/{name}").clone().requires_grad_()
            for name in ("image_features", "text_features")
        }
        leaves["logit_scale"] = torch.tensor(config["logit_scale"], dtype=dtype, requires_grad=True)
        images, texts, scale = leaves.values()
        fields = {"image_embeds": images, "text_embeds": texts[: len(images)], "logit_scale": scale}
        if "cmr_loss" in config:
            fields["negative_text_embeds"] = texts[len(images) :]
            fields["negative_mask"] = case.tensor(f"{at}rank{ranks.rank}/valid_mask")
        (value,) = micro.values(fields, objective, ("text", "image"))
        value.value.backward()
        found[at + "loss"] = value.value.detach()
        found |= {f"{at}grad_{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        for loss in micro.losses:
            assert isinstance(loss, CeClip)
            loss.after_update()
            found[at + "threshold_out"] = loss.thresholds.clone()
            found |= {f"{at}{name}_loss": term for name, term in loss.terms.items() if name != "itc"}
    return found


def main(output: Path, folders: list[Path]) -> None:
    with connect() as ranks:
        found = {str(folder): run_case(Case(folder), ranks) for folder in folders}
        torch.save(found, output / f"rank_{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
