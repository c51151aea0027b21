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
        scores = {name: name.removesuffix("_scores") for name in objective.of_kind("scores")}
        items = set(objective.of_kind("items"))
        for scorer in scores.values():
            for role in batch.between:
                for read in self.model.scorers[scorer].reads:
                    items |= self.item_fields(f"{role}_{read}", role)
        wanted = (objective.wants - scores.keys()) | (items & self.model.fields.keys())
        fields: dict[str, Tensor] = {**batch.extras, **taught, **self.model(batch, wanted)}
        for name in sorted(items):  # all ranks in the same order
            own = fields[name][:0] if batch.ghost else fields[name]
            gathered = self.ranks.all_gather_with_gradients(own)
            fields[name] = gathered.cpu() if name.endswith("_lengths") else gathered  # they shape the computation
        for name, scorer in scores.items():
            a, b = (self.encoded(fields, role, self.model.scorers[scorer].reads) for role in batch.between)
            fields[name] = self.model.scorers[scorer](a, b)
        return [term(fields) for term in objective.terms]

    def item_fields(self, name: str, role: str) -> set[str]:
        """An item field, and for a ragged one the field that says how many rows each item has."""
        return {name, f"{role}_lengths"} if self.model.fields[name].ragged else {name}

    def encoded(self, fields: Mapping[str, Tensor], role: str, reads: tuple[str, ...]) -> Encoded:
        """The items of a role over the global batch, from their fields."""
        given = {name: fields[f"{role}_{name}"] for name in reads}
        rows = {name: field for name, field in given.items() if self.model.fields[f"{role}_{name}"].ragged}
        vectors = {name: field for name, field in given.items() if name not in rows}
        if rows:
            return Encoded(fields[f"{role}_lengths"], rows, vectors)
        return Encoded(torch.ones(len(vectors[reads[0]]), dtype=torch.int64), vectors=vectors)
