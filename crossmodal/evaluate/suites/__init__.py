"""Published benchmarks of composition, retrieval and classification, for every model and for blind baselines."""

from . import aro, classification, orders, retrieval, sugarcrepe, valse, vl_checklist, winoground
from .registry import names, open_suite, suite

__all__ = [
    "aro", "classification", "names", "open_suite", "orders", "retrieval", "sugarcrepe", "suite", "valse",
    "vl_checklist", "winoground",
]  # fmt: skip
