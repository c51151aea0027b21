"""The training loop: set up, train, save, validate; the same for every system (DESIGN.md section 6)."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from crossmodal.data.batches import Batch
from crossmodal.data.corpus import Corpus
from crossmodal.data.datasets import DATASETS
from crossmodal.data.samplers import GlobalOrder, Place, stable_hash
from crossmodal.errors import CheckpointError, ConfigError
from crossmodal.evaluate.job import EncodedCorpus
from crossmodal.evaluate.retrieval import fixed_gallery_recall, score_corpus
from crossmodal.model.base import check_scorers
from crossmodal.model.checkpoints import load_state, read_state
from crossmodal.model.fused import with_fused_layer_norm

from . import checkpoints
from .board import step_tags, validation_tags
from .clock import Clock
from .distributed import OneProcess
from .engine import Engine
from .gradients import exchange_flat
from .interrupts import SIGNALS, Interrupts
from .loader import StreamLoader
from .metrics import VALID, MetricsLog
from .objectives import build_objectives
from .optim import build_optimizer, parameter_groups
from .recipe import Recipe
from .run_folder import RunFolder
from .setup import build_model, open_data, plan_model
from .strikes import Strikes
from .teachers import Teachers, plan_teachers

log = logging.getLogger("crossmodal")


class Trainer:
    """Trains one recipe into a run folder (`RunFolder` says what that holds).

    At a step that is due, the step's checkpoint is written first, then the model is validated, then `best` and
    the metrics are written: whatever ends the process in between, `resume` loses no training and gives the same
    run bit for bit, also where the number of ranks has changed in between, but for what that rounds off. With
    `signals`, SIGTERM, SIGINT and SIGUSR1 to any rank end `train` on all of them, with Interrupted, when the step is
    saved.
    """

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        ranks: OneProcess | None = None,
        *,
        resume: bool = False,
        progress: bool = True,
        signals: bool = True,
    ) -> None:
        self.recipe, self.output, self.ranks, self.progress = recipe, output, ranks or OneProcess(), progress
        self.device = self.ranks.device
        self.folder = RunFolder(output, self.ranks)
        if not resume:
            self.folder.refuse_used()
        _seed(recipe.seed)
        planned = plan_model(recipe.model)
        self.objectives, modules = build_objectives(recipe, planned, plan_teachers(recipe.teachers))
        if recipe.validation:
            check_scorers(recipe.validation.scorers, planned.name, planned.scorers)
        modules.to(self.device)
        found = self.folder.latest(recipe) if resume else None
        self._corpora: dict[str, Corpus] = {}
        self.steps_per_epoch = self._steps_per_epoch()
        self.steps = recipe.steps or recipe.epochs * self.steps_per_epoch
        self.teachers = Teachers(recipe.teachers, self.ranks)
        model = build_model(recipe.model, lambda: self.corpus(recipe.streams[0].data.use))
        self.model = with_fused_layer_norm(model.to(self.device)).train()
        if found is not None:
            self._restore_weights(*found)
        self._agree_on_weights(modules)
        decay = recipe.optimizer.layer_decay
        groups = parameter_groups(
            self.model, weight_decay=recipe.optimizer.weight_decay, no_decay=recipe.optimizer.no_decay,
            factors=None if decay == 1 else self.model.learning_rate_factors(decay),
        )  # fmt: skip
        if len(modules):
            groups.append({"params": list(modules.parameters()), "weight_decay": 0.0})
        optimizer = build_optimizer(
            recipe.optimizer.use, groups, learning_rate=recipe.optimizer.lr, betas=recipe.optimizer.betas,
            eps=recipe.optimizer.eps,
        )  # fmt: skip
        self.engine = Engine(
            self.model, self.objectives, optimizer, recipe.optimizer, steps=self.steps,
            precision=recipe.precision, ranks=self.ranks, modules=modules, distributed=recipe.distributed,
            teachers=self.teachers, steps_per_epoch=self.steps_per_epoch,
        )  # fmt: skip
        self.step, self.best, skipped = 0, -1.0, 0
        self._places: dict[str, Place] = {}
        # Dropout differs between ranks; with dropout 0 nothing below draws from the global generators.
        _seed(stable_hash((recipe.seed, self.ranks.rank)) % 2**32)
        if found is not None:
            self._restore(*found)
            self.best, skipped = checkpoints.best_value(output, self.step), found[1].get("skipped", 0)
        self._logged = self.step
        self.folder.prepare(recipe)
        self.clock = Clock(self.ranks)
        self.metrics = MetricsLog(output, step=self.step, enabled=self.ranks.rank == 0)
        self.strikes = Strikes(output, recipe.max_skipped, self.ranks, step=self.step, count=skipped)
        self.interrupts = Interrupts(f"go on with {self.folder.resume_command}", enabled=signals)

    def corpus(self, name: str) -> Corpus:
        """A corpus of the recipe, opened once."""
        if name not in self._corpora:
            self._corpora[name] = open_data(self.recipe.data[name])
        return self._corpora[name]

    def _steps_per_epoch(self) -> int:
        """Updates in which the first stream comes to all its anchors once."""
        anchors = len(self.corpus(self.recipe.streams[0].data.use))
        return -(-anchors // (self.recipe.batch * self.ranks.size))

    def train(self) -> dict[str, float]:
        """Run to the last step. Returns the last validation's metrics, or nothing without validation.

        Raises Interrupted after a signal, TrainingError where too many steps were skipped.
        """
        loaders = self.loaders() if self.step < self.steps else []
        with self.interrupts:
            try:
                metrics = self._all_steps(loaders)
                self._write_last()
                self.interrupts.stop_if(self._asked())
            finally:
                for loader in loaders:
                    loader.close()
        return metrics

    def validate(self) -> dict[str, float]:
        """Metrics on the validation corpus, the mean of both directions among them; nothing without one."""
        options, tokens = self.recipe.validation, self.recipe.token_budget
        if options is None:
            return {}
        corpus = self.corpus(options.data)
        with self.engine.gradients.weights() as model:
            if options.gallery is not None:
                return fixed_gallery_recall(model, corpus, options.gallery, tokens=tokens)
            encoded = EncodedCorpus.of(model, corpus)
            found = {
                name: score_corpus(model, corpus, encoded, scorer=name, tokens=tokens, ranks=self.ranks).metrics()
                for name in options.scorers or model.scorer_names[:1]
            }
        if len(found) == 1:
            return next(iter(found.values()))
        mean = sum(metrics["r_mean"] for metrics in found.values()) / len(found)
        return {f"{name}/{k}": v for name, metrics in found.items() for k, v in metrics.items()} | {"r_mean": mean}

    def _all_steps(self, loaders: list[StreamLoader]) -> dict[str, float]:
        metrics = self._resumed_validation()
        hidden = self.ranks.rank > 0 or not self.progress
        with tqdm(total=self.steps, initial=self.step, desc=self.recipe.name, unit="step", disable=hidden) as bar:
            while self.step < self.steps:
                self._one_step(self._batches(loaders), bar)
                asked = self._asked()
                if self._due(self.recipe.save_every) or self._validation_due() or asked is not None:
                    with self.clock.paused():
                        self._save(loaders)
                self.interrupts.stop_if(asked)
                if self._validation_due():
                    metrics = self._validated()
        log.info("time of the steps: %s", self.clock)
        return metrics

    def _batches(self, loaders: list[StreamLoader]) -> list[list[Batch]]:
        drawn = drawn_stream(self.recipe, self.step)
        with self.clock.waiting():
            return [loader.next() if drawn in (None, i) else [] for i, loader in enumerate(loaders)]

    def _asked(self) -> int | None:
        """A signal to any rank, the same on every rank. What comes later waits for the next call."""
        asked = torch.tensor([self.interrupts.asked == number for number in SIGNALS])
        votes = self.ranks.all_reduce(asked).tolist()
        return next((number for number, some in zip(SIGNALS, votes, strict=True) if some), None)

    def _one_step(self, batches: list[list[Batch]], bar: tqdm[Any]) -> None:
        logged = self.engine.update(self.step, batches)
        self.step += 1
        bar.update()
        if self.engine.skipped is not None:
            self.strikes.add(self.step, self.engine.skipped)
            logged["skipped"] = self.strikes.count
        if self._due(self.recipe.log_every) or self.engine.skipped is not None:
            bar.set_postfix(loss=f"{logged['loss']:.4f}")
            board = None
            if self.recipe.model.use == "aladin":
                each = [seconds / (self.step - self._logged) for seconds in self.clock.seconds()]
                board = step_tags(self.step, self.steps_per_epoch, *each)
            self._logged = self.step
            self.metrics.write(self.step, {f"train/{k}": v for k, v in logged.items()} | self.clock.shares(), board)

    def _due(self, every: int | None) -> bool:
        return every is not None and (self.step % every == 0 or self.step == self.steps)

    def _validation_due(self) -> bool:
        return self._due(self.recipe.validation.every if self.recipe.validation else self.steps)

    def _resumed_validation(self) -> dict[str, float]:
        """The metrics at the step that was resumed: validation may have been cut off, or a finished run may go on."""
        if not self.step or not self._validation_due():
            return {}
        written = self.ranks.broadcast_object(self.metrics.validation(self.step))
        return written or self._validated()

    def _validated(self) -> dict[str, float]:
        """Validate; write the best checkpoint, then the rows by which a resumed run knows that this was done."""
        with self.interrupts.at_once(), self.clock.paused():
            metrics = self.validate()
        name = next((name for name in ("r_mean", "recall_1") if name in metrics), None)
        value = metrics[name] if name else 0.0
        if self.ranks.rank == 0 and (value > self.best or name is None):
            best = {"step": self.step, "metric": name, "value": value}
            with self.engine.gradients.weights() as model:
                checkpoints.write(self.output / "best", model, best=best)
        self.best = max(value, self.best)
        self.metrics.write(self.step, {f"{VALID}{k}": v for k, v in metrics.items()}, validation_tags(metrics))
        self.ranks.barrier()
        return metrics

    def _save(self, loaders: list[StreamLoader]) -> None:
        """Write the step's checkpoint: all that a resumed run needs."""
        states = self.ranks.gather_objects(checkpoints.random_state())
        optimizer = self.engine.gradients.state()
        places = {name: vars(loader.place) for name, loader in zip(self.recipe.stream_names(), loaders, strict=True)}
        training = {
            "step": self.step, "skipped": self.strikes.count, "optimizer": optimizer,
            "scaler": self.engine.scaler.state_dict(), "losses": self.engine.modules.state_dict(),
            "random": states, "ranks": self.ranks.size, "places": places,
        }  # fmt: skip
        with self.engine.gradients.weights() as model:
            if self.ranks.rank == 0:
                self.metrics.sync()
                checkpoints.write(self.output / "checkpoints" / f"step_{self.step}", model, training)
                checkpoints.drop_old(self.output, self.recipe.keep)
        self.ranks.barrier()

    def _write_last(self) -> None:
        last, step = self.output / "last", self.output / "checkpoints" / f"step_{self.step}"
        with self.engine.gradients.weights() as model:
            if self.ranks.rank == 0 and not checkpoints.same_weights(last, step):
                checkpoints.write(last, model)
        self.ranks.barrier()

    def _restore_weights(self, folder: Path, state: checkpoints.State) -> None:
        if state["step"] > self.steps:
            raise ConfigError(
                f"{folder} is at step {state['step']}, the recipe has {self.steps} steps; raise steps to go on"
            )
        load_state(self.model, read_state(folder), where=folder)

    def _restore(self, folder: Path, state: checkpoints.State) -> None:
        groups = self.engine.optimizer.param_groups
        kept = ("betas", "eps", "weight_decay")
        options = [{k: group[k] for k in kept} for group in groups]  # the recipe's, not the saved
        try:
            self.engine.gradients.load(state["optimizer"])
            for group, own in zip(self.engine.optimizer.param_groups, options, strict=True):
                group.update(own)
            self.engine.scaler.load_state_dict(state["scaler"])
            self.engine.modules.load_state_dict(state["losses"])
        except (ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"{folder} was trained with another optimizer, precision or losses ({' '.join(str(error).split())}); "
                "resume with the recipe of the run"
            ) from None
        self.step = state["step"]
        self._places = {name: Place(**place) for name, place in state.get("places", {}).items()}
        if state["ranks"] == self.ranks.size:
            checkpoints.set_random_state(state["random"][self.ranks.rank])
        log.info("resumed from %s at step %d of %d", folder, self.step, self.steps)

    def _agree_on_weights(self, modules: nn.ModuleList) -> None:
        """Rank 0's, should machines initialise differently; one exchange for each type."""
        if self.ranks.size == 1:
            return
        by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for tensor in (*self.model.state_dict().values(), *modules.state_dict().values()):
            by_type[tensor.dtype].append(tensor)
        for tensors in by_type.values():
            exchange_flat(tensors, self.ranks.broadcast)

    def loaders(self) -> list[StreamLoader]:
        """What hands out the batches of each stream from this step on."""
        recipe = self.recipe
        drawn = [drawn_stream(recipe, step) for step in range(self.step)]
        loaders = []
        for i, (stream, name) in enumerate(zip(recipe.streams, recipe.stream_names(), strict=True)):
            corpus, options = self.corpus(stream.data.use), stream.data.options
            make: Any = DATASETS[stream.data.draw]
            if self.objectives[i].taught:
                options["teachers"] = {t: model.processor for t, model in self.teachers.models.items()}
            anchors = make(corpus, self.model.processor, seed=recipe.seed, stream=name, **options)
            order = GlobalOrder(
                len(anchors),
                recipe.batch,
                seed=recipe.seed,
                stream=name,
                rank=self.ranks.rank,
                world=self.ranks.size,
                begin=self._places.get(name, Place()),
            )
            pin, start = self.device.type == "cuda", sum(d in (None, i) for d in drawn)
            loaders.append(
                StreamLoader(anchors, order, accumulate=recipe.accumulate, workers=recipe.workers, start=start, pin=pin)
            )
        return loaders


def drawn_stream(recipe: Recipe, step: int) -> int | None:
    """The stream that a step of a mixed recipe takes, by ratio from (seed, step); None: the step takes all."""
    weights = [s.ratio for s in recipe.streams if s.ratio is not None]
    if not weights:
        return None
    return random.Random(stable_hash((recipe.seed, "streams", step))).choices(range(len(weights)), weights)[0]


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
