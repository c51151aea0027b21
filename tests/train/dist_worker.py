"""Trains and scores the cases of `test_distributed.py` on this process's rank and writes down what came out.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.train.dist_worker LAUNCHER WORLD FEW OUTPUT
horovodrun -np 2 python -m tests.train.dist_worker LAUNCHER WORLD FEW OUTPUT

WORLD is the tiny world, FEW what `write_few` has made of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from crossmodal.data.captions import Caption
from crossmodal.data.negatives.records import CeRecord, write_records
from crossmodal.data.text_writer import write_text_db
from crossmodal.data.texts import TextDB
from crossmodal.data.tokenizers import load_tokenizer
from crossmodal.evaluate.plots import read_metrics
from crossmodal.evaluate.retrieval import score_corpus
from crossmodal.train import checkpoints
from crossmodal.train.distributed import OneProcess, connect
from crossmodal.train.optim import parameter_groups
from crossmodal.train.recipe import Recipe, parse_recipe
from crossmodal.train.trainer import Trainer

from ..data.picture_files import tokenizer, write_ce_clip, write_negclip, write_pictures
from ..recipes import tiny_recipe
from . import dual_encoder  # noqa: F401  registers the model, losses and dataset of the gathered cases
from .exchanges import exchanged
from .runs import Dying, Killed

ANCHORS = 7
GLOBAL_BATCH = 6
"""Anchors of an update over all ranks; an epoch of 7 ends with an update of a single anchor."""
STEPS = 3
LAST = 1
"""The step after which a resumed case is cut off."""

MASKED = {
    "data": {"use": "train", "draw": "masked_words", "probability": 0.3},
    "losses": [{"use": "masked_words", "weight": 0.5}, {"use": "itm"}],
}
MATCHED = {"data": {"use": "train", "draw": "masked_words", "probability": 0.3}, "losses": [{"use": "itm"}]}
SMALL_CLIP: dict[str, Any] = {
    "embed_dim": 8, "width": 16, "heads": 2, "layers": 1, "context": 32,
    "image_size": 16, "patch_size": 8, "vision_width": 16, "vision_heads": 2, "vision_layers": 1,
}  # fmt: skip
OVERLAPPED = {"gradients": "overlapped"}
STATIC = {**OVERLAPPED, "static_graph": True, "unused_parameters": False, "bucket_mb": 0.01}
SHARDED = {"gradients": "sharded"}


def _pools(anchor: str, *more: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": {"use": "train", "draw": "pools", "anchor": anchor, "pool": 6},
        "miner": {"use": "hardest", "keep": 3},
        "losses": [{"use": "margin_ranking", "tag": "rank_loss"}, *more],
    }


def _with_iais(alignment: str, text: str, image: str) -> list[dict[str, Any]]:
    def loss(side: str) -> dict[str, Any]:
        weight = {"schedule": "exp", "scale": 8.0}
        return {"use": "iais", "alignment": alignment, "side": side, "weight": weight, "tag": "self_attn_loss"}

    return [_pools("text", loss(text)), _pools("image", loss(image))]


def _gathered(*losses: str) -> list[dict[str, Any]]:
    named = [{"use": loss, "weight": 0.5 + i} for i, loss in enumerate(losses)]
    return [{"data": {"use": "train", "draw": "matched"}, "losses": named}]


def _heads(*more: dict[str, Any], **data: Any) -> list[dict[str, Any]]:
    """ALADIN's alignment head, whose scores depend on the widest item of the global batch, and what learns from it."""
    aligned = {"use": "triplet", "scores": "alignment_scores"}
    distilled = {"use": "listnet", "teacher": "alignment_scores", "student": "matching_scores"}
    return [{"data": {"use": "train", "draw": "matched", **data}, "losses": [aligned, distilled, *more]}]


def _wrong_captions(*losses: dict[str, Any], **data: Any) -> list[dict[str, Any]]:
    return [{"data": {"use": "train", "draw": "matched_negatives", **data}, "losses": list(losses)}]


@dataclass(frozen=True)
class Case:
    """What is trained, and how several ranks do it; one process does it without `distributed` and `accumulate`.

    like: the case whose outcome one process gives; taught: by a UNITER with random weights; resumed: cut off after a
    step with a checkpoint, and gone on with.
    """

    streams: list[dict[str, Any]]
    distributed: dict[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    dtype: torch.dtype = torch.float64
    model: str = "uniter"
    like: str = ""
    taught: bool = False
    resumed: bool = False

    @property
    def close(self) -> float:
        """The largest difference that is taken for none."""
        return 1e-9 if self.dtype == torch.float64 else 1e-5

    @property
    def rate(self) -> float:
        """A learning rate; Adam makes of a gradient that rounding alone has left a step of this size."""
        return 0.01 if self.dtype == torch.float64 else 0.001


SINGULAR = _with_iais("singular", "linguistic", "visual")
WEIGHED = _heads(
    {"use": "triplet_distinct_images", "scores": "matching_scores", "weight": {"learned": True}},
    {"use": "info_nce", "scores": "alignment_scores", "weight": 0.1},
    {"use": "hidden_l1"},
)
TERMS: tuple[dict[str, Any], ...] = (
    {"use": "hard_negative_itc", "mask_missing": True},
    {"use": "intra_modal_contrastive", "weight": 0.4},
    {"use": "cross_modal_rank", "upper_bound": 50.0, "weight": 0.2},
)
CE_CLIP = _wrong_captions({"use": "ce_clip", "upper_bound": 50.0, "reset_each_epoch": True})
WRONG_HEADS = _heads(
    *({**term, "logit_scale": 10.0} for term in TERMS), draw="matched_negatives", negatives="wrong.jsonl"
)
TAUGHT = _heads({"use": "listnet", "teacher": "joint.itm_scores", "student": "matching_scores", "weight": 0.5})
CASES: dict[str, Case] = {
    "margin": Case([_pools("text"), _pools("image")]),
    "iais_singular": Case(SINGULAR),
    "iais_distributed": Case(_with_iais("distributed", "linguistic", "visual")),
    "iais_both_sides": Case(_with_iais("singular", "both", "both")),
    "masked_words": Case([_pools("text"), MASKED]),
    "accumulated": Case([*SINGULAR, MASKED], accumulate=2),
    "mixed": Case([{**_pools("image"), "ratio": 1.0}, {**MASKED, "ratio": 2.0}]),
    "float32_iais": Case(SINGULAR, dtype=torch.float32),
    "gathered": Case(_gathered("test_contrastive", "test_sum_of_scores"), model="test_dual"),
    "heads": Case(_heads(), model="aladin"),
    "heads_weighed": Case(WEIGHED, model="aladin"),
    "heads_taught": Case(TAUGHT, model="aladin", taught=True),
    "heads_wrong_captions": Case(WRONG_HEADS, model="aladin"),
    "clip": Case(_gathered("clip_info_nce", "sigmoid"), model="clip"),
    "wrong_captions": Case(_wrong_captions(*TERMS), model="clip"),
    "ce_clip": Case(CE_CLIP, model="clip"),
    "negclip": Case(_wrong_captions({"use": "negclip"}, use="table", draw="hard_images"), model="clip"),
    "float32_heads": Case(_heads(), model="aladin", dtype=torch.float32),
    # The same losses once more, with gradients that go to the other ranks by another way.
    "iais_overlapped": Case(SINGULAR, OVERLAPPED, like="iais_singular"),
    "masked_words_overlapped": Case([_pools("text"), MASKED], OVERLAPPED, like="masked_words"),
    "accumulated_overlapped": Case([*SINGULAR, MASKED], OVERLAPPED, accumulate=2, like="accumulated"),
    "gathered_overlapped": Case(
        _gathered("test_contrastive", "test_sum_of_scores"), OVERLAPPED, model="test_dual", like="gathered"
    ),
    "one_stream": Case([_pools("text")]),
    "one_stream_static": Case([_pools("text")], STATIC, like="one_stream"),
    # Parameters that the last micro-step leaves out, and of which an earlier one has a gradient.
    "matched_then_ranked": Case([MATCHED, _pools("text")]),
    "matched_then_ranked_overlapped": Case(
        [MATCHED, _pools("text")], OVERLAPPED, accumulate=2, like="matched_then_ranked"
    ),
    "iais_sharded": Case(SINGULAR, SHARDED, like="iais_singular"),
    "accumulated_sharded": Case([*SINGULAR, MASKED], SHARDED, accumulate=2, like="accumulated"),
    "gathered_sharded": Case(
        _gathered("test_contrastive", "test_sum_of_scores"), SHARDED, model="test_dual", like="gathered"
    ),
    "matched_then_ranked_sharded": Case([MATCHED, _pools("text")], SHARDED, accumulate=2, like="matched_then_ranked"),
    "float32_iais_sharded": Case(SINGULAR, SHARDED, dtype=torch.float32, like="float32_iais"),
    "float32_iais_overlapped": Case(SINGULAR, OVERLAPPED, dtype=torch.float32, like="float32_iais"),
    "heads_weighed_overlapped": Case(WEIGHED, OVERLAPPED, model="aladin", like="heads_weighed"),
    "heads_weighed_cached": Case(WEIGHED, accumulate=2, model="aladin", like="heads_weighed"),
    "wrong_captions_cached": Case(_wrong_captions(*TERMS), accumulate=2, model="clip", like="wrong_captions"),
    "wrong_captions_resumed": Case(_wrong_captions(*TERMS), model="clip", like="wrong_captions", resumed=True),
    "ce_clip_overlapped": Case(CE_CLIP, OVERLAPPED, model="clip", like="ce_clip"),
    "heads_sharded": Case(_heads(), SHARDED, model="aladin", like="heads"),
    "heads_weighed_resumed": Case(WEIGHED, model="aladin", like="heads_weighed", resumed=True),
    "iais_resumed": Case(SINGULAR, like="iais_singular", resumed=True),
    "accumulated_overlapped_resumed": Case(
        [*SINGULAR, MASKED], OVERLAPPED, accumulate=2, like="accumulated", resumed=True
    ),
    "gathered_sharded_resumed": Case(
        _gathered("test_contrastive", "test_sum_of_scores"), SHARDED, model="test_dual", like="gathered", resumed=True
    ),
    "iais_sharded_resumed": Case(SINGULAR, SHARDED, like="iais_singular", resumed=True),
}
ALONE = [name for name, case in CASES.items() if not case.like]


def cases_of(launcher: str) -> list[str]:
    """The cases that ranks of this launcher can run."""
    return [name for name, case in CASES.items() if case.distributed != SHARDED or launcher == "torchrun"]


def losses_of(case: str) -> set[str]:
    return {loss["use"] for stream in CASES[case].streams for loss in stream["losses"]}


def write_few(world: Path, folder: Path) -> Path:
    """One caption each of a few of the world's training images, so few that an epoch does not end with a full update;
    wrong captions of theirs, every other one of a type missing; as many pictures with captions, wrong ones and hard
    images.
    """
    stored = TextDB(world / "texts" / "train.db")
    firsts = list({stored.image_of[id]: id for id in reversed(stored.ids)}.values())[-ANCHORS:]
    chosen = [Caption(id, stored.image_of[id], stored[id].sentence or "") for id in firsts]
    write_text_db(chosen, folder / "texts.db", load_tokenizer(stored.path))
    wrong = [
        CeRecord(c.image, c.id, c.sentence, tuple(f"{c.sentence} {kind}" for kind in "rany"), (1, n % 2, 1, 0))
        for n, c in enumerate(chosen)
    ]
    write_records(wrong, folder / "wrong.jsonl")
    names = [f"{n}.png" for n in range(ANCHORS)]
    write_pictures(folder / "pictures", names)
    write_ce_clip(folder / "records.jsonl", names)
    write_negclip(folder / "table.tsv", names)
    tokenizer().save(folder)
    return folder


def clip_values(case: Case, few: Path) -> dict[str, Any]:
    """What a recipe of CLIP has of its own: pictures, and a model with SigLIP's bias where a loss reads it."""

    def data(name: str) -> dict[str, Any]:
        return {"texts": str(few / name), "images": str(few / "pictures")}

    reads_bias = any(loss["use"] == "sigmoid" for stream in case.streams for loss in stream["losses"])
    config = {**SMALL_CLIP, **({"logit_bias": -2.0} if reads_bias else {})}
    return {
        "data": {"train": data("records.jsonl"), "table": data("table.tsv"), "val": data("records.jsonl")},
        "model": {"use": "clip", "config": config, "tokenizer": str(few / "merges.txt")},
    }


def make_recipe(name: str, world: Path, few: Path, ranks: int, teacher: Path) -> Recipe:
    """The case for so many ranks; `teacher` is the checkpoint of what teaches."""
    case = CASES[name]
    corpus = {"texts": str(few / "texts.db"), "images": str(world / "regions" / "train")}
    values = tiny_recipe(
        world,
        seed=14,  # one with which every loss matters in every step
        steps=STEPS,
        batch=GLOBAL_BATCH // ranks,
        accumulate=case.accumulate if ranks > 1 else 1,
        data=dict.fromkeys(("train", "val"), corpus),
        streams=[_in_folder(stream, few) for stream in case.streams],
        optimizer={"schedule": "constant", "lr": case.rate, "warmup": 2, "weight_decay": 0.1, "clip": 0.5},
        distributed=case.distributed,
        validation={"every": STEPS},
        save_every=LAST if case.resumed else None,
    )
    if case.model == "clip":
        return parse_recipe({**values, **clip_values(case, few)})
    # Weights spread widely, so that attention and ranking are far from uniform.
    pretraining = bool(losses_of(name) & {"masked_words", "itm"})
    sizes = {"num_hidden_layers": 1, "initializer_range": 0.2, "pretraining": pretraining}
    config = {**values["model"]["config"], **sizes}
    values["model"] = {"use": case.model, "config": config, "dropout": 0.0}
    if case.taught:
        values["teachers"] = {"joint": {"checkpoint": str(teacher)}}
    return parse_recipe(values)


def _in_folder(stream: dict[str, Any], few: Path) -> dict[str, Any]:
    """A stream with the path of the file of wrong captions that it names."""
    data = stream["data"]
    return {**stream, "data": {**data, "negatives": str(few / data["negatives"])}} if "negatives" in data else stream


def write_teacher(world: Path, few: Path, output: Path, ranks: OneProcess) -> Path:
    """A UNITER as the cases train it, before its first step."""
    if ranks.rank == 0:
        recipe = make_recipe("margin", world, few, 1, output)
        checkpoints.write(output / "teacher", Trainer(recipe, output / "of_teacher").model)
    ranks.barrier()
    return output / "teacher"


def run_case(name: str, world: Path, few: Path, output: Path, ranks: OneProcess) -> dict[str, Any]:
    """Train a case with GLOBAL_BATCH anchors an update over all ranks, then score its corpus."""
    with _default(CASES[name].dtype):
        teacher = write_teacher(world, few, output / name, ranks) if CASES[name].taught else output
        recipe = make_recipe(name, world, few, ranks.size, teacher)
        trainer: Trainer = (Dying if CASES[name].resumed else Trainer)(recipe, output / name / "run", ranks)
        with trainer.engine.gradients.weights() as model:
            initial = {key: weight.clone() for key, weight in model.state_dict().items()}
        if isinstance(trainer, Dying):
            trainer.last = LAST
            with suppress(Killed):
                trainer.train()
            trainer = Trainer(recipe, output / name / "run", ranks, resume=True)
            assert trainer.step == LAST
        trainer.train()
        with trainer.engine.gradients.weights() as model:
            scored = score_corpus(model, trainer.corpus("train"), tokens=200, ranks=ranks)
    names = {parameter: key for key, parameter in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=0.1)
    order = [names[parameter] for group in groups for parameter in group["params"]]
    stepped = {order[i] for i in trainer.engine.gradients.state()["state"] if i < len(order)}
    return {
        "initial": initial,
        "weights": model.state_dict(),
        "losses": trainer.engine.modules.state_dict(),
        "unused": [key for key in names.values() if key not in stepped],
        "logged": [
            r for r in read_metrics(output / name / "run" / "metrics.jsonl") if not r["name"].startswith("time/")
        ],
        "shares": [r for r in read_metrics(output / name / "run" / "metrics.jsonl") if r["name"].startswith("time/")],
        "scores": scored.scores,
        "metrics": scored.metrics(),
    }


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def main(launcher: str, world: Path, few: Path, output: Path) -> None:
    with connect() as ranks:
        found = {name: run_case(name, world, few, output, ranks) for name in cases_of(launcher)}
        torch.save({**found, "exchanged": exchanged(ranks)}, output / f"rank_{ranks.rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
