"""Training objectives, one family a file, and their registry."""

from . import (
    ce_clip,
    contrastive,
    cross_modal_rank,
    distillation,
    hard_negatives,
    iais,
    pretraining,
    ranking,
    token_sets,
    transport,
    triplet,
)
from .registry import WrongFields, build, get, names, register, signature
from .state import StatefulLoss

__all__ = [
    "StatefulLoss", "WrongFields", "build", "ce_clip", "contrastive", "cross_modal_rank", "distillation", "get",
    "hard_negatives",
    "iais", "names", "pretraining", "ranking", "register", "signature", "token_sets", "transport", "triplet",
]  # fmt: skip
