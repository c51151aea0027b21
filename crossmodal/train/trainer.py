"""The training loop: set up, train, validate, save; the same for every system (DESIGN.md section 6)."""

from __future__ import annotations

import json
import logging
import platform
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from crossmodal import __version__
from crossmodal.data.corpus import Corpus
from crossmodal.data.datasets import DATASETS
from crossmodal.data.samplers import GlobalOrder, stable_hash
from crossmodal.errors import ConfigError
from crossmodal.evaluate.retrieval import fixed_gallery_recall, score_corpus
from crossmodal.files import write_whole
from crossmodal.model.checkpoints import load_weights

from . import checkpoints
from .distributed import OneProcess
from .engine import Engine
from .loader import StreamLoader
from .metrics import MetricsLog
from .objectives import build_objectives
from .optim import build_optimizer, parameter_groups
from .recipe import Recipe
from .setup import build_model, open_data, plan_model

log = logging.getLogger("crossmodal")


class Trainer:
    """Trains one recipe into a run folder:

    recipe.yaml, versions.json, metrics.jsonl, tensorboard/, checkpoints/step_N (the last `keep`), best, last.
    """

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        ranks: OneProcess | None = None,
        *,
        resume: bool = False,
        progress: bool = True,
    ) -> None:
        self.recipe, self.output, self.ranks, self.progress = recipe, output, ranks or OneProcess(), progress
        self.device = _device(self.ranks)
        if not resume:
            self._refuse_used_output()
        _seed(recipe.seed)
        self.objectives, modules = build_objectives(recipe, plan_model(recipe.model))
        modules.to(self.device)
        self._corpora: dict[str, Corpus] = {}
        self.model = build_model(recipe.model, lambda: self.corpus(recipe.streams[0].data.use)).to(self.device).train()
        groups = parameter_groups(
            self.model, weight_decay=recipe.optimizer.weight_decay, no_decay=recipe.optimizer.no_decay
        )
        if len(modules):
            groups.append({"params": list(modules.parameters()), "weight_decay": 0.0})
        optimizer = build_optimizer(
            recipe.optimizer.use, groups, learning_rate=recipe.optimizer.lr, betas=recipe.optimizer.betas
        )
        self.engine = Engine(
            self.model, self.objectives, optimizer, recipe.optimizer, steps=recipe.steps,
            precision=recipe.precision, ranks=self.ranks, modules=modules,
        )  # fmt: skip
        self.step, self.best = 0, -1.0
        # Dropout differs between ranks; with dropout 0 nothing below draws from the global generators.
        _seed(stable_hash((recipe.seed, self.ranks.rank)) % 2**32)
        if resume:
            self._restore()
        self._prepare_output()
        self.metrics = MetricsLog(output, step=self.step, enabled=self.ranks.rank == 0)

    def corpus(self, name: str) -> Corpus:
        """A corpus of the recipe, opened once."""
        if name not in self._corpora:
            self._corpora[name] = open_data(self.recipe.data[name])
        return self._corpora[name]

    def train(self) -> dict[str, float]:
        """Run to the last step. Returns the last validation's metrics, or nothing without validation."""
        loaders = self._loaders()
        metrics: dict[str, float] = {}
        hidden = self.ranks.rank > 0 or not self.progress
        with tqdm(
            total=self.recipe.steps, initial=self.step, desc=self.recipe.name, unit="step", disable=hidden
        ) as bar:
            while self.step < self.recipe.steps:
                drawn = drawn_stream(self.recipe, self.step)
                batches = [loader.next() if drawn in (None, i) else [] for i, loader in enumerate(loaders)]
                logged = self.engine.update(self.step, batches)
                self.step += 1
                bar.update()
                if self.step % self.recipe.log_every == 0 or self.step == self.recipe.steps:
                    bar.set_postfix(loss=f"{logged['loss']:.4f}")
                    self.metrics.write(self.step, {f"train/{k}": v for k, v in logged.items()})
                if self._due():
                    metrics = self.validate()
                    self._save(metrics)
        return metrics

    def validate(self) -> dict[str, float]:
        """Metrics on the validation corpus, the mean of both directions among them."""
        options = self.recipe.validation
        if options is None:
            return {}
        corpus = self.corpus(options.data)
        if options.gallery is not None:
            metrics = fixed_gallery_recall(self.model, corpus, options.gallery, tokens=self.recipe.token_budget)
        else:
            scored = score_corpus(self.model, corpus, tokens=self.recipe.token_budget, ranks=self.ranks)
            metrics = scored.metrics()
        self.metrics.write(self.step, {f"valid/{k}": v for k, v in metrics.items()})
        return metrics

    def _loaders(self) -> list[StreamLoader]:
        recipe, pin = self.recipe, self.device.type == "cuda"
        drawn = [drawn_stream(recipe, step) for step in range(self.step)]
        loaders = []
        for i, (stream, name) in enumerate(zip(recipe.streams, recipe.stream_names(), strict=True)):
            corpus, options = self.corpus(stream.data.use), stream.data.options
            make: Any = DATASETS[stream.data.draw]
            anchors = make(corpus, self.model.processor, seed=recipe.seed, stream=name, **options)
            order = GlobalOrder(
                len(anchors),
                recipe.batch,
                seed=recipe.seed,
                stream=name,
                rank=self.ranks.rank,
                world=self.ranks.size,
            )
            start = sum(d in (None, i) for d in drawn)
            loaders.append(
                StreamLoader(anchors, order, accumulate=recipe.accumulate, workers=recipe.workers, start=start, pin=pin)
            )
        return loaders

    def _due(self) -> bool:
        every = self.recipe.validation.every if self.recipe.validation else self.recipe.steps
        return self.step % every == 0 or self.step == self.recipe.steps

    def _save(self, metrics: Mapping[str, float]) -> None:
        value = metrics.get("r_mean", metrics.get("recall_1", 0.0))
        improved = value > self.best
        self.best = max(value, self.best)
        states = self.ranks.gather_objects(checkpoints.random_state())
        if self.ranks.rank == 0:
            training = {
                "step": self.step, "best": self.best, "optimizer": self.engine.optimizer.state_dict(),
                "scaler": self.engine.scaler.state_dict(), "losses": self.engine.modules.state_dict(),
                "random": states, "ranks": self.ranks.size,
            }  # fmt: skip
            # The step's checkpoint comes last: a run that is cut off before it writes the others again.
            if improved:
                checkpoints.write(self.output / "best", self.model)
            if self.step == self.recipe.steps:
                checkpoints.write(self.output / "last", self.model)
            checkpoints.write(self.output / "checkpoints" / f"step_{self.step}", self.model, training)
            checkpoints.drop_old(self.output, self.recipe.keep)
        self.ranks.barrier()

    def _restore(self) -> None:
        folder, state = checkpoints.read_training(self.output)
        load_weights(self.model, folder, "crossmodal")
        self.engine.optimizer.load_state_dict(state["optimizer"])
        self.engine.scaler.load_state_dict(state["scaler"])
        self.engine.modules.load_state_dict(state["losses"])
        self.step, self.best = state["step"], state["best"]
        if state["ranks"] == self.ranks.size:
            checkpoints.set_random_state(state["random"][self.ranks.rank])
        log.info("resumed from %s at step %d of %d", folder, self.step, self.recipe.steps)

    def _refuse_used_output(self) -> None:
        used = self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir()))
        if self.ranks.broadcast_object(used):  # what rank 0 saw: it alone writes there
            raise ConfigError(
                f"the output folder {self.output} is not empty; choose another, or add --resume to go on with its run"
            )

    def _prepare_output(self) -> None:
        if self.ranks.rank == 0:
            self.output.mkdir(parents=True, exist_ok=True)
            recipe = yaml.safe_dump(self.recipe.model_dump(mode="json", exclude_none=True), sort_keys=False)
            write_whole(self.output / "recipe.yaml", lambda path: path.write_text(recipe))
            versions = {"crossmodal": __version__, "torch": torch.__version__, "numpy": np.__version__,
                        "python": platform.python_version(), "ranks": self.ranks.size}  # fmt: skip
            write_whole(self.output / "versions.json", lambda path: path.write_text(json.dumps(versions, indent=2)))
        self.ranks.barrier()


def drawn_stream(recipe: Recipe, step: int) -> int | None:
    """The stream that a step of a mixed recipe takes, by ratio from (seed, step); None: the step takes all."""
    weights = [s.ratio for s in recipe.streams if s.ratio is not None]
    if not weights:
        return None
    return random.Random(stable_hash((recipe.seed, "streams", step))).choices(range(len(weights)), weights)[0]


def new_run_folder(kind: str = "run") -> Path:
    """The next numbered folder under runs/."""
    root = Path("runs")
    root.mkdir(exist_ok=True)
    taken = [int(p.name.rpartition("_")[2]) for p in root.glob(f"{kind}_*") if p.name.rpartition("_")[2].isdigit()]
    return root / f"{kind}_{max(taken, default=0) + 1:03d}"


def _device(ranks: OneProcess) -> torch.device:
    return torch.device("cuda", ranks.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
