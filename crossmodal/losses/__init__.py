"""Training objectives, one family a file, and their registry."""

from . import contrastive, distillation, iais, pretraining, ranking, token_sets, transport, triplet
from .registry import build, get, names, register, signature

__all__ = [
    "build", "contrastive", "distillation", "get", "iais", "names", "pretraining", "ranking", "register", "signature",
    "token_sets", "transport", "triplet",
]  # fmt: skip
