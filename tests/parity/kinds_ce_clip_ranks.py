"""CLIP's and CE-CLIP's losses over several processes against recorded vectors: real ranks under torchrun."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from crossmodal.train.distributed import OneProcess

from ..launchers import run, torchrun
from .ce_clip_ranks import Found, micro_step
from .harness import Case, cases, kind

KINDS = ("dist_clip", "dist_da")
SETTING = "local0_gwg1"
"""local_loss off, gather_with_grad on: what the engine does."""
SHORT = {"loss": "loss", "cmr": "cmr_loss", "imc": "imc_loss", "th": "threshold_out"}


@cache
def launched(world: int) -> dict[str, list[Found]]:
    """What each rank found, of every case with so many ranks: one launch for all of them."""
    of_world = [case for folder in cases() if _is_ours(case := Case(folder)) and case.config["world_size"] == world]
    folders = [str(case.folder) for case in of_world]
    with tempfile.TemporaryDirectory() as output:
        done = run([*torchrun(world), "-m", "tests.parity.ce_clip_ranks", output, *folders])
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        ranks = [torch.load(Path(output) / f"rank_{rank}.pt", weights_only=True) for rank in range(world)]
    return {folder: [rank[folder] for rank in ranks] for folder in folders}


def _is_ours(case: Case) -> bool:
    return case.system == "ce_clip" and case.json["kind"] in KINDS


def compare(case: Case, prefix: str, found: Found) -> None:
    """Every array below `prefix` with what is found under the rest of its name."""
    recorded = [name for name in case.arrays if name.startswith(prefix)]
    assert recorded, f"{prefix} holds nothing"
    for name in recorded:
        case.array(name, found[name.removeprefix(prefix)])


def compare_steps(case: Case, ranks: list[Found]) -> None:
    """Arrays and numbers of every rank and step."""
    steps: list[list[dict[str, Any]]] = case.json["scalar_outputs"][SETTING]
    for rank, found in enumerate(ranks):
        for step in range(case.config["steps"]):
            at = f"step{step}/"
            own = {name.removeprefix(at): value for name, value in found.items() if name.startswith(at)}
            compare(case, f"{SETTING}/{at}rank{rank}/", own)
            for name, recorded in steps[rank][step].items():
                if recorded is not None:
                    case.equal(f"{SETTING}/{rank}/{step}/{name}", own[SHORT[name]], recorded)


@kind("ce_clip", *KINDS)
def ranks(case: Case) -> None:
    found = launched(case.config["world_size"])[str(case.folder)]
    if "steps" in case.config:
        compare_steps(case, found)
    else:
        for rank, own in enumerate(found):
            compare(case, f"{SETTING}/rank{rank}/", own)
        case.scalar(SETTING, [own["loss"] for own in found])
        compare(case, "global/", of_one_process(case))
        _spread(case, found)


def of_one_process(case: Case) -> Found:
    """The loss of all ranks' rows, and its gradients."""
    world = case.config["world_size"]
    leaves = {
        name: torch.cat([case.tensor(f"rank{rank}/{name}") for rank in range(world)]).requires_grad_()
        for name in ("image_features", "text_features")
    }
    dtype = leaves["image_features"].dtype
    leaves["logit_scale"] = torch.tensor(case.config["logit_scale"], dtype=dtype, requires_grad=True)
    micro, objective = micro_step(case.config, OneProcess(), dtype)
    given = dict(zip(("image_embeds", "text_embeds", "logit_scale"), leaves.values(), strict=True))
    (value,) = micro.values(given, objective, ("text", "image"))
    value.value.backward()
    gradients = {f"grad_{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"loss": value.value.detach(), **gradients}


def _spread(case: Case, found: list[Found]) -> None:
    """Averaging over ranks, as data-parallel training does, gives the gradients of one process."""
    for name in ("grad_image_features", "grad_text_features"):
        rows = torch.cat([own[name] for own in found]) / len(found)
        case.array(f"global/{name}", rows)
