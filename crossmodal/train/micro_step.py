"""Forward of one micro-batch: the fields that a stream's losses read, gathered where they see the global batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crossmodal.data.batches import Batch
from crossmodal.model.base import Encoded, Model

from .distributed import OneProcess
from .objectives import Objective

Value = tuple[Tensor, int | None]
"""A loss's value, and its own count of units where it gives one."""


class MicroStep(nn.Module):
    """The model and the losses that have parameters or state, as one module: what is trained.

    Which fields are gathered, their kind alone says (DESIGN.md section 4): item fields with gradients, and the
    scores over the global batch from what their scorer reads; group fields stay on their rank.
    """

    def __init__(self, model: Model, losses: nn.ModuleList, ranks: OneProcess) -> None:
        super().__init__()
        self.model, self.losses, self.ranks = model, losses, ranks

    def forward(self, batch: Batch, objective: Objective) -> list[Value]:
        """The value of each of the objective's losses."""
        scores = {name: name.removesuffix("_scores") for name in objective.of_kind("scores")}
        read = {
            name: [f"{role}_{read}" for role in batch.between for read in self.model.scorers[scorer].reads]
            for name, scorer in scores.items()
        }
        wanted = (objective.wants - scores.keys()).union(*read.values())
        fields: dict[str, Tensor] = {**batch.extras, **self.model(batch, wanted)}
        for name in sorted(objective.of_kind("items").union(*read.values())):  # all ranks in the same order
            own = fields[name][:0] if batch.ghost else fields[name]
            fields[name] = self.ranks.all_gather_with_gradients(own)
        for name, scorer in scores.items():
            a, b = (_encoded(fields, role, self.model.scorers[scorer].reads) for role in batch.between)
            fields[name] = self.model.scorers[scorer](a, b)
        return [term(fields) for term in objective.terms]


def _encoded(fields: Mapping[str, Tensor], role: str, reads: tuple[str, ...]) -> Encoded:
    vectors = {name: fields[f"{role}_{name}"] for name in reads}
    return Encoded(torch.ones(len(vectors[reads[0]]), dtype=torch.int64), vectors=vectors)
