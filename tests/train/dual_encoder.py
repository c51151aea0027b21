"""A dual encoder with losses over the global batch: the smallest thing with item and score fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossmodal import losses
from crossmodal.data import batches
from crossmodal.data.batches import Batch, Regions, Texts, length_mask
from crossmodal.losses.registry import Groups, Items, Scores
from crossmodal.model.base import Encoded, Field, Model, Scorer, register


class Cosine:
    reads = ("embeds",)
    cost = 1.0

    def __call__(self, a: Encoded, b: Encoded, pairs: Tensor | None = None) -> Tensor:
        scores = a.vectors["embeds"] @ b.vectors["embeds"].T
        return scores if pairs is None else scores[pairs[:, 0], pairs[:, 1]]


@register("test_dual")
class Dual(Model):
    sides: ClassVar[Mapping[str, type[Any]]] = {"text": Texts, "image": Regions}
    scorer_names: ClassVar[tuple[str, ...]] = ("cosine",)
    all_fields: ClassVar[Mapping[str, str]] = {
        "text_embeds": "a caption's unit vector",
        "image_embeds": "an image's unit vector",
        "cosine_scores": "their cosines",
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.text = nn.Embedding(config["vocab_size"], 8)
        self.image = nn.Linear(config["img_dim"], 8)
        self.unused = nn.Linear(2, 2)
        self.fields = self.fields_of(config)

    @classmethod
    def fields_of(cls, config: Mapping[str, Any]) -> Mapping[str, Field]:
        return {k: Field("scores" if k == "cosine_scores" else "items", doc) for k, doc in cls.all_fields.items()}

    @property
    def scorers(self) -> Mapping[str, Scorer]:
        return {"cosine": Cosine()}

    @property
    def config_dict(self) -> dict[str, Any]:
        return self.config

    def encode(self, side: str, items: batches.Items) -> Encoded:
        assert isinstance(items, (Texts, Regions))
        tokens = self.text(items.input_ids) if isinstance(items, Texts) else self.image(items.features.to(self.dtype))
        mask = length_mask(items.lengths, tokens.shape[1])[:, :, None]
        embeds = F.normalize((tokens.tanh() * mask).sum(dim=1), dim=1)
        return Encoded(torch.ones(len(items), dtype=torch.int64), vectors={"embeds": embeds})

    def forward(self, batch: Batch, want: Iterable[str]) -> dict[str, Tensor]:
        return {name: self.encode(*batch.roles[name.split("_")[0]]).vectors["embeds"] for name in want}

    @property
    def dtype(self) -> torch.dtype:
        return self.image.weight.dtype


@losses.register("test_contrastive")
class Contrastive(nn.Module):
    """Symmetric InfoNCE with a learnt scale: a loss over the global batch that has a parameter."""

    def __init__(self, *, scale: float = 3.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, text_embeds: Items, image_embeds: Items) -> Tensor:
        logits = self.scale * text_embeds @ image_embeds.T
        truth = torch.arange(len(logits))
        return F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)


@losses.register("test_sum_of_scores")
def sum_of_scores(cosine_scores: Scores) -> Tensor:
    """Hinge over all pairs, a sum and no mean: what it is worth grows with the batch."""
    return (0.2 + cosine_scores - cosine_scores.diagonal()[:, None]).relu().sum()


@losses.register("test_of_groups")
def of_groups(matched: Groups) -> Tensor:
    """A loss that does not see the global batch."""
    return matched.double().mean()
