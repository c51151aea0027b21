"""Teachers: trained models whose fields losses read beside those of the model that is trained.

They are frozen, in evaluation mode, neither optimised nor checkpointed, and get the same raw items through their own
processor (DESIGN.md section 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from crossmodal.data.batches import Batch
from crossmodal.model.base import Encoded, Model, inference
from crossmodal.model.checkpoints import find_checkpoint, load, read_description
from crossmodal.retrieve.scoring import score_matrix

from .distributed import OneProcess
from .recipe import TeacherSpec
from .setup import Planned, planned


def plan_teachers(specs: Mapping[str, TeacherSpec]) -> dict[str, Planned]:
    """What teachers will give. Raises CheckpointError where one is not there."""
    return {name: planned(*read_description(find_checkpoint(Path(spec.checkpoint)))) for name, spec in specs.items()}


class Teachers:
    """The teachers of a recipe by name; without any, nothing is done."""

    def __init__(self, specs: Mapping[str, TeacherSpec], ranks: OneProcess) -> None:
        self.ranks = ranks
        self.models: dict[str, Model] = {
            name: load(spec.checkpoint, ranks.device).requires_grad_(False) for name, spec in specs.items()
        }

    def fields(self, batch: Batch, names: Iterable[str]) -> dict[str, Tensor]:
        """The fields `<teacher>.<field>` over the global batch: scores (texts, images), or one row an item."""
        given: dict[str, Tensor] = {}
        for name in sorted(names):  # all ranks in the same order
            teacher, _, field = name.partition(".")
            model = self.models[teacher]
            with inference(model):
                given[name] = self._scores(model, batch, teacher, field) if field.endswith("_scores") else (
                    self._items(model, batch, teacher, field)
                )  # fmt: skip
        return given

    def _scores(self, model: Model, batch: Batch, teacher: str, field: str) -> Tensor:
        """Every text with every image; each rank scores its own texts."""
        scorer = model.scorers[field.removesuffix("_scores")]
        texts, images = (model.encode(*batch.teachers[teacher][role]) for role in batch.between)
        if batch.ghost:
            texts, images = texts[:0], images[:0]
        own = score_matrix(scorer, texts, self._gathered(images, scorer.reads)).to(batch.device)
        return self.ranks.all_gather(own)

    def _items(self, model: Model, batch: Batch, teacher: str, field: str) -> Tensor:
        roles = Batch(batch.teachers[teacher], between=batch.between)
        own = model(roles, {field})[field]
        return self.ranks.all_gather(own[:0] if batch.ghost else own)

    def _gathered(self, items: Encoded, reads: tuple[str, ...]) -> Encoded:
        """The items of all ranks, with what a scorer reads of them."""
        gather = self.ranks.all_gather
        return Encoded(
            gather(items.lengths).cpu(),
            {name: gather(rows) for name, rows in items.rows.items() if name in reads},
            {name: gather(vectors) for name, vectors in items.vectors.items() if name in reads},
        )
