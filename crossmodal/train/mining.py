"""Miners: score a pool without gradients and with dropout off, keep what is worth training on (Batch -> Batch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol

import torch

from crossmodal.data.batches import Batch
from crossmodal.errors import ConfigError
from crossmodal.model.base import Model, inference
from crossmodal.retrieve.scoring import TOKENS, score_pairs


class Miner(Protocol):
    """`adds` names the fields that a mined batch carries beside the roles."""

    adds: frozenset[str]

    def __call__(self, model: Model, batch: Batch) -> Batch: ...


class Hardest:
    """Keep the positive and the `keep` best-scored negatives of every pool (UNITER, spec section 5).

    `published_defect="no_index"` trains on the kept pairs as the published IAIS code does for image anchors
    without the regulariser (spec section 15, row 3): padding is read as text and the last regions are lost.
    """

    adds = frozenset({"matched"})

    def __init__(
        self,
        *,
        keep: int = 31,
        scorer: str = "itm",
        tokens: int = TOKENS,
        published_defect: Literal["no_index"] | None = None,
    ) -> None:
        self.keep, self.scorer, self.tokens, self.published_defect = keep, scorer, tokens, published_defect

    def __call__(self, model: Model, batch: Batch) -> Batch:
        """A batch of G pools (pairs in groups, the positive first) -> groups of 1 + keep pairs."""
        assert batch.pairs is not None
        if batch.group - 1 < self.keep:
            raise ConfigError(
                f"the miner keeps {self.keep} negatives but a pool has {batch.group - 1}; "
                "lower keep or raise the stream's pool"
            )
        scores = self.score(model, batch)  # (G, pool)
        hard = scores[:, 1:].topk(self.keep, dim=1).indices.cpu() + 1
        chosen = torch.cat([torch.zeros(len(hard), 1, dtype=torch.int64), hard], dim=1)  # (G, 1+keep)
        rows = chosen + torch.arange(len(hard))[:, None] * batch.group
        if self.published_defect is None:
            return batch.keep(rows)
        kept = batch.keep(rows, trim=False)
        return with_index(kept, _without_gaps(kept))

    def score(self, model: Model, batch: Batch) -> torch.Tensor:
        """Scores (G, pool) of every pair, without gradients."""
        assert batch.pairs is not None
        with inference(model):
            if "joint_index" in batch.extras:
                return model(batch, {"rank_scores"})["rank_scores"]
            a, b = (model.encode(*batch.roles[role]) for role in batch.between)
            return score_pairs(model.scorers[self.scorer], a, b, batch.pairs, tokens=self.tokens).view(-1, batch.group)


MINERS: dict[str, Callable[..., Miner]] = {"hardest": Hardest}


def with_index(batch: Batch, index: torch.Tensor) -> Batch:
    """The batch with an explicit index into concat(padded text, padded regions), (P,L), -1 for none."""
    return replace(batch, extras={**batch.extras, "joint_index": index})


def _without_gaps(batch: Batch) -> torch.Tensor:
    """The first (text + regions) columns of each pair's padded concatenation, (P,L)."""
    lengths = torch.stack(batch.pair_lengths()).sum(dim=0)
    position = torch.arange(int(lengths.max()))
    return torch.where(position < lengths[:, None], position, -1)
