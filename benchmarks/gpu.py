"""UNITER-base on one GPU: scoring and a hard-negative step in every precision, with and without torch.compile.

fp32        matrix products of float32 numbers as they are
tf32        the same with products of 10 bits of mantissa
fp16, bf16  scoring with weights of that type; training with autocast, in fp16 with a loss scaler
compiled    the parts of a layer around attention, which runs in a fused kernel as it is
matmul      the peak: products of square matrices of that precision

Captions of 8 to 22 words, images of 10 to 100 boxes, all in the GPU's memory; weights are random. A step is an
update on one pool: a caption with so many images, the hardest kept, margin ranking and IAIS. Counted are real
tokens: of a step those scored, and those trained (three times the work of a forward pass). `share` is the part of
the peak that they make; a ratio is how many times faster than fp32 without torch.compile a case is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from common import Options, Report, Seconds, median, options, ratio
from torch import Tensor

from crossmodal.data.batches import Batch, Items, Regions, Texts, length_mask
from crossmodal.model.base import Encoded, inference
from crossmodal.model.precision import HALF, in_precision
from crossmodal.model.uniter import Uniter, UniterConfig
from crossmodal.retrieve.scoring import score_matrix
from crossmodal.train.engine import Engine
from crossmodal.train.objectives import Objective, build_objectives
from crossmodal.train.optim import build_optimizer, parameter_groups
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.setup import plan_model

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
NO_GPU = "torch finds no GPU on this machine, so this benchmark has nothing to measure."


@dataclass(frozen=True)
class Shapes:
    """`captions` x `images` are scored; a pool has `pool` pairs, of which the hardest `keep` are trained."""

    config: UniterConfig = field(default_factory=UniterConfig)
    captions: int = 16
    images: int = 256
    pool: int = 400
    keep: int = 31
    matmul: int = 8192
    rounds: int = 7
    warm_up: int = 3


SMALL = UniterConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, img_dim=64)
QUICK = Shapes(SMALL, captions=4, images=16, pool=16, keep=3, matmul=256, rounds=2, warm_up=2)


def missing(precision: str, device: torch.device) -> str | None:
    """Why a device does not have a precision; None where it has it."""
    if device.type != "cuda":
        return "only GPUs have it" if precision == "tf32" else None
    major, minor = torch.cuda.get_device_capability(device)
    if precision in ("tf32", "bf16") and major < 8:
        name = torch.cuda.get_device_name(device)
        return f"it needs compute capability 8.0, and {name} has {major}.{minor}"
    return None


class Subject:
    """One precision, compiled or not: `score` fills the score matrix, `step` makes an update."""

    def __init__(self, shapes: Shapes, device: torch.device, precision: str, *, compiled: bool) -> None:
        self.shapes, self.device = shapes, device
        named = "fp32" if precision == "tf32" else precision
        self.scorer = in_precision(self._model().eval(), named)
        trained = self._model().train()
        if compiled:
            compile_layers(self.scorer)
            compile_layers(trained)
        self.engine, (objective,) = engine_of(trained, shapes, named)
        self.batch = pool_of(shapes).to(device)
        self.kept = kept_lengths(trained, objective, self.batch)
        draw = torch.Generator().manual_seed(0)
        texts, images = texts_of(shapes.captions, shapes.config, draw), images_of(shapes.images, shapes.config, draw)
        with inference(self.scorer):
            self.texts: Encoded = self.scorer.encode("text", texts.to(device))
            self.images: Encoded = self.scorer.encode("image", images.to(device))

    def _model(self) -> Uniter:
        torch.manual_seed(0)
        return Uniter(self.shapes.config).to(self.device)

    def score(self) -> Tensor:
        with inference(self.scorer):
            return score_matrix(self.scorer.scorers["itm"], self.texts, self.images)

    def step(self) -> None:
        self.engine.update(0, [[self.batch]])

    def scored(self) -> tuple[float, float]:
        """Real tokens and FLOP of `score`."""
        lengths = (self.texts.lengths[:, None] + self.images.lengths).flatten()
        return float(lengths.sum()), flop(self.shapes.config, lengths)

    def stepped(self) -> tuple[float, float]:
        """Real tokens and FLOP of `step`."""
        pool = torch.stack(self.batch.pair_lengths()).sum(dim=0)
        work = flop(self.shapes.config, pool) + 3 * flop(self.shapes.config, self.kept)
        return float(pool.sum() + self.kept.sum()), work


def compile_layers(model: torch.nn.Module) -> None:
    """In place: what every layer does to one row at a time, for any number of rows."""
    assert isinstance(model, Uniter)
    for layer in model.uniter.encoder.layer:
        for name in ("attention.output", "intermediate", "output"):
            layer.get_submodule(name).compile(dynamic=True)


def engine_of(model: Uniter, shapes: Shapes, precision: str) -> tuple[Engine, list[Objective]]:
    stream = {
        "data": {"use": "train", "draw": "pools", "anchor": "text", "pool": shapes.pool},
        "miner": {"use": "hardest", "keep": shapes.keep},
        "losses": [{"use": "margin_ranking"}, {"use": "iais", "alignment": "singular", "side": "linguistic"}],
    }
    recipe = parse_recipe(
        {
            "steps": 1000,
            "batch": 1,
            "precision": precision,
            "data": {"train": {"texts": "unread", "images": "unread"}},
            "streams": [stream],
            "optimizer": {"lr": 1e-12},  # the weights stay, and so do the pairs that are hardest
        }
    )
    objectives, _ = build_objectives(recipe, plan_model(recipe.model))
    wanted = recipe.optimizer
    groups = parameter_groups(model, weight_decay=wanted.weight_decay)
    optimizer = build_optimizer(wanted.use, groups, learning_rate=wanted.lr, betas=wanted.betas)
    return Engine(model, objectives, optimizer, wanted, steps=recipe.steps, precision=precision), objectives


def texts_of(count: int, config: UniterConfig, draw: torch.Generator) -> Texts:
    lengths = torch.randint(8, 23, (count,), generator=draw) + 2
    ids = torch.randint(1, config.vocab_size, (count, int(lengths.max())), generator=draw)
    return Texts(ids, lengths)


def images_of(count: int, config: UniterConfig, draw: torch.Generator) -> Regions:
    lengths = torch.randint(10, 101, (count,), generator=draw)
    real = length_mask(lengths, int(lengths.max()))[:, :, None]
    features = torch.randn(*real.shape[:2], config.img_dim, generator=draw).clamp(min=0) * real
    return Regions(features, torch.rand(*real.shape[:2], 7, generator=draw) * real, lengths)


def pool_of(shapes: Shapes) -> Batch:
    draw = torch.Generator().manual_seed(1)
    roles: dict[str, tuple[str, Items]] = {
        "text": ("text", texts_of(1, shapes.config, draw)),
        "image": ("image", images_of(shapes.pool, shapes.config, draw)),
    }
    pairs = torch.stack([torch.zeros(shapes.pool, dtype=torch.int64), torch.arange(shapes.pool)], dim=1)
    return Batch(roles, pairs, shapes.pool)


def kept_lengths(model: Uniter, objective: Objective, batch: Batch) -> Tensor:
    """The tokens of each pair that is trained."""
    assert objective.miner is not None
    return torch.stack(objective.miner(model, batch).pair_lengths()).sum(dim=0)


def flop(config: UniterConfig, lengths: Tensor) -> float:
    """Multiply-adds times two of scoring pairs of these lengths: of the last layer, [CLS] alone."""
    n, d, inner = lengths.double(), config.hidden_size, config.intermediate_size
    whole = n * 2 * (4 * d * d + 2 * d * inner) + 4 * n * n * d
    last = n * 2 * 2 * d * d + 2 * (2 * d * d + 2 * d * inner) + 4 * n * d
    return float(((config.num_hidden_layers - 1) * whole + last).sum())


def take_turns(cases: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, warm_up: int) -> Seconds:
    """The seconds of every case in each of `rounds` rounds, its work on the device included."""
    seconds: Seconds = {name: [] for name in cases}
    for number in range(-warm_up, rounds):
        for name, run in cases.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Table:
    """Fills a report, one precision after the other, fp32 first; `notes` has a line on each case that is left out."""

    def __init__(self, device: torch.device, shapes: Shapes, *, compiling: bool = True) -> None:
        self.device, self.shapes, self.compiling = device, shapes, compiling
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        self.report = Report(
            f"UNITER hidden {shapes.config.hidden_size}, {shapes.config.num_hidden_layers} layers on {name}; "
            f"{shapes.captions} captions x {shapes.images} images; a pool of {shapes.pool} pairs, {shapes.keep + 1} "
            f"trained; torch {torch.__version__}",
            ["ms", "tokens/s", "TFLOP/s", "share", "difference"],
            clock="wall seconds",
        )
        self.notes: list[str] = []
        self._plain: dict[str, float] = {}  # seconds in fp32, by case
        self._exact: Tensor | None = None  # scores in fp32

    def measure(self, precisions: Sequence[str] = PRECISIONS) -> None:
        for precision in precisions:
            reason = missing(precision, self.device)
            if reason is None:
                with _products(tf32=precision == "tf32"):
                    self._add(precision, self._subjects(precision))
            else:
                self.notes.append(f"{precision}: left out, {reason}")

    def _subjects(self, precision: str) -> dict[str, Subject]:
        subjects = {"": Subject(self.shapes, self.device, precision, compiled=False)}
        if self.compiling:
            try:
                compiled = Subject(self.shapes, self.device, precision, compiled=True)
                compiled.score()
                compiled.step()
                subjects[", compiled"] = compiled
            except Exception as error:  # a compiler that is missing or does not fit the GPU raises whatever it likes
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                self.notes.append(f"{precision}, compiled: left out, {reason}")
        return subjects

    def _add(self, precision: str, subjects: dict[str, Subject]) -> None:
        n, kind = self.shapes.matmul, HALF.get(precision, torch.float32)
        a, b = (torch.randn(n, n, device=self.device, dtype=kind) for _ in range(2))
        cases: dict[str, Callable[[], object]] = {"matmul": partial(torch.mm, a, b)}
        for suffix, subject in subjects.items():
            cases |= {f"scoring{suffix}": subject.score, f"step{suffix}": subject.step}
        seconds = take_turns(cases, self.shapes.rounds, self.device, self.shapes.warm_up)
        peak = 2.0 * n**3
        self._row(precision, "matmul", seconds, None, peak)
        for suffix, subject in subjects.items():
            scores = subject.score()
            self._exact = scores if self._exact is None else self._exact
            apart = f"{float((scores - self._exact).abs().max()):.1e}"
            self._row(precision, f"scoring{suffix}", seconds, *subject.scored(), peak, apart)
            self._row(precision, f"step{suffix}", seconds, *subject.stepped(), peak)

    def _row(
        self,
        precision: str,
        case: str,
        seconds: Seconds,
        tokens: float | None,
        work: float,
        peak: float | None = None,
        apart: str = "",
    ) -> None:
        taken = median(seconds, case)
        plain = self._plain.setdefault(case.partition(",")[0], taken)
        self.report.add(
            f"{precision}, {case}",
            f"{taken * 1e3:.2f}",
            "" if tokens is None else f"{tokens / taken:.0f}",
            f"{work / taken / 1e12:.2f}",
            "" if peak is None else f"{work / peak * ratio(seconds, 'matmul', case):.0%}",
            apart,
            ratio=plain / taken,
        )


@contextmanager
def _products(*, tf32: bool) -> Iterator[None]:
    """Inside, products of float32 are made in this way, and torch.compile has room for all that they call for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.compiler.reset()
    try:
        # A layer is compiled for training, mining and scoring, with autocast and without: 8 would be too few.
        with torch._dynamo.config.patch(recompile_limit=64):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def main(given: Options) -> None:
    if not torch.cuda.is_available():
        print(NO_GPU)
        if given.json:
            print("[]")
        return
    table = Table(torch.device("cuda"), QUICK if given.quick else Shapes())
    table.measure()
    for note in table.notes:
        print(note)
    table.report.print(given)


if __name__ == "__main__":
    main(options(__doc__ or ""))
