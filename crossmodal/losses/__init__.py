"""Training objectives, one family a file, and their registry."""

from . import iais, pretraining, ranking, transport
from .registry import build, get, names, register, signature

__all__ = ["build", "get", "iais", "names", "pretraining", "ranking", "register", "signature", "transport"]
