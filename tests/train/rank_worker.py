"""``crossmodal train`` on one rank, which writes down what its batches held and its weights at the end.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.train.rank_worker NOTES --config ...

NOTES/rank_R.jsonl gets a row {"epoch", "ids"} a micro-batch, NOTES/rank_R.pt the weights and the number of skipped
updates, however training ends. Recipes may draw from the dataset `test_faulty`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from crossmodal.cli import run
from crossmodal.data.batches import Batch
from crossmodal.data.datasets import DATASETS, MaskedWords
from crossmodal.train import trainer
from crossmodal.train.loader import StreamLoader


class Faulty(MaskedWords):
    """Matched pairs, some of which are no good.

    deadly: a caption; the process that reads its batch is killed, as the system does where memory runs out.
    spoilt: captions whose batches hold numbers that are not finite.
    """

    def __init__(self, *arguments: Any, deadly: str = "", spoilt: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.deadly, self.spoilt = deadly, spoilt

    def batch(self, anchors: Sequence[int], epoch: int) -> Batch:
        ids = [self.id_of(anchor) for anchor in anchors]
        if self.deadly in ids:
            os.kill(os.getpid(), signal.SIGKILL)
        batch = super().batch(anchors, epoch)
        if not set(ids).isdisjoint(self.spoilt):
            batch.roles["image"][1].features.fill_(torch.nan)  # type: ignore[union-attr]
        return batch


class Noted(StreamLoader):
    notes: Path

    def next(self) -> list[Batch]:
        epoch, batches = self.place.epoch, super().next()
        with (self.notes / f"rank_{self.order.rank}.jsonl").open("a") as file:
            for batch in (batch for batch in batches if not batch.ghost):
                file.write(json.dumps({"epoch": epoch, "ids": batch.ids["text"]}) + "\n")
        return batches


class Watched(trainer.Trainer):
    def train(self) -> dict[str, float]:
        try:
            return super().train()
        finally:
            state = {"weights": self.model.state_dict(), "skipped": self.strikes.count}
            torch.save(state, Noted.notes / f"rank_{self.ranks.rank}.pt")


if __name__ == "__main__":
    DATASETS["test_faulty"] = Faulty
    Noted.notes = Path(sys.argv[1])
    trainer.StreamLoader = Noted  # type: ignore[misc]
    trainer.Trainer = Watched  # type: ignore[misc]
    sys.exit(run(["train", *sys.argv[2:]]))
