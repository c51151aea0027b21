"""Forward of one micro-batch: the fields that a stream's losses read, gathered where they see the global batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crossmodal.data.batches import Batch
from crossmodal.model.base import Encoded, Model

from .distributed import OneProcess
from .objectives import Objective, Value


class MicroStep(nn.Module):
    """The model and the losses that have parameters or state, as one module: what is trained.

    Which fields are gathered, their kind alone says (DESIGN.md section 4): item fields with gradients, and the
    scores over the global batch from what their scorer reads; group fields stay on their rank.
    """

    def __init__(self, model: Model, losses: nn.ModuleList, ranks: OneProcess) -> None:
        super().__init__()
        self.model, self.losses, self.ranks = model, losses, ranks

    def forward(self, batch: Batch, objective: Objective, taught: Mapping[str, Tensor]) -> list[Value]:
        """The value of each of the objective's losses; `taught` are the fields that teachers gave."""
        return self.values({**self.own_fields(batch, objective), **taught}, objective, batch.between)

    def own_fields(self, batch: Batch, objective: Objective) -> dict[str, Tensor]:
        """This rank's fields that the losses read, or that the scores which they read are computed from."""
        items = self.items(objective, batch.between)
        wanted = {name for name in objective.wants | items if name in self.model.fields} - objective.of_kind("scores")
        fields = {**batch.extras, **self.model(batch, wanted)}
        return {name: field[:0] if batch.ghost and name in items else field for name, field in fields.items()}

    def values(self, fields: dict[str, Tensor], objective: Objective, between: tuple[str, str]) -> list[Value]:
        """The losses of this rank's fields, those of items gathered over ranks."""
        for name in sorted(self.items(objective, between)):  # all ranks in the same order
            gathered = self.ranks.all_gather_with_gradients(fields[name])
            fields[name] = gathered.cpu() if name.endswith("_lengths") else gathered  # they shape the computation
        for name in objective.of_kind("scores"):
            scorer = self.model.scorers[name.removesuffix("_scores")]
            a, b = (self.encoded(fields, role, scorer.reads) for role in between)
            fields[name] = scorer(a, b)
        return [term(fields) for term in objective.terms]

    def items(self, objective: Objective, between: tuple[str, str]) -> set[str]:
        """The item fields that the losses and the scorers read; for a ragged one also how many rows each item has."""
        found = set(objective.of_kind("items"))
        for name in objective.of_kind("scores"):
            for read in self.model.scorers[name.removesuffix("_scores")].reads:
                for role in between:
                    ragged = self.model.fields[f"{role}_{read}"].ragged
                    found |= {f"{role}_{read}", f"{role}_lengths"} if ragged else {f"{role}_{read}"}
        return found

    def encoded(self, fields: Mapping[str, Tensor], role: str, reads: tuple[str, ...]) -> Encoded:
        """The items of a role over the global batch, from their fields."""
        given = {name: fields[f"{role}_{name}"] for name in reads}
        rows = {name: field for name, field in given.items() if self.model.fields[f"{role}_{name}"].ragged}
        vectors = {name: field for name, field in given.items() if name not in rows}
        if rows:
            return Encoded(fields[f"{role}_lengths"], rows, vectors)
        return Encoded(torch.ones(len(vectors[reads[0]]), dtype=torch.int64), vectors=vectors)
