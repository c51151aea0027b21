"""Published figures in percent, by suite, system and row, to stand beside ours (CE-CLIP, spec section 1).

Read in the tables of the CE-CLIP repository, all of ViT-B/32. The order sets are in none of them: those figures are
from independent runs of ARO's code that its users report, and are marked so.
"""

from __future__ import annotations

from collections.abc import Sequence

_SYSTEMS = ("CLIP", "NegCLIP", "CE-CLIP", "CE-CLIP+")
_INDEPENDENT = ("CLIP, independent run", "NegCLIP, independent run")

Figures = dict[str, dict[str, float]]


def _table(rows: dict[str, Sequence[float]], systems: Sequence[str] = _SYSTEMS) -> Figures:
    """Row -> the figure of each system, turned round."""
    return {system: {row: figures[i] for row, figures in rows.items()} for i, system in enumerate(systems)}


PUBLISHED: dict[str, Figures] = {
    "aro_relation": _table({"macro accuracy": (59.3, 80.2, 83.0, 83.6)}),
    "aro_attribution": _table({"macro accuracy": (62.9, 70.5, 76.4, 77.1)}),
    "aro_coco_order": _table({"Precision@1": (47.4, 86.8)}, _INDEPENDENT),
    "aro_flickr_order": _table({"Precision@1": (58.8, 89.7)}, _INDEPENDENT),
    "sugarcrepe": _table({
        "replace_obj": (90.9, 92.7, 93.1, 93.8),
        "replace_att": (80.0, 85.9, 88.8, 90.8),
        "replace_rel": (69.2, 76.5, 79.0, 83.2),
        "swap_obj": (61.4, 75.2, 72.8, 76.8),
        "swap_att": (64.0, 75.4, 77.0, 79.3),
        "add_obj": (77.2, 88.8, 92.4, 93.8),
        "add_att": (68.2, 82.8, 93.4, 94.9),
        "replace": (80.2, 85.0, 87.0, 89.3),
        "swap": (62.7, 75.3, 74.9, 78.0),
        "add": (72.7, 85.8, 92.9, 94.4),
    }),
    "valse": _table({
        "existence": (68.7, 76.8, 78.6, 84.5),
        "plurals": (57.1, 71.7, 77.7, 79.2),
        "Counting": (61.0, 65.0, 64.4, 67.8),
        "relations": (65.4, 72.9, 74.4, 76.4),
        "action-replacement": (77.8, 81.6, 81.2, 83.4),
        "actant-swap": (71.8, 84.7, 88.6, 89.4),
        "coreference-standard": (54.1, 58.6, 54.7, 56.7),
        "coreference-hard": (51.0, 53.8, 54.8, 57.8),
        "foil-it": (89.8, 91.9, 93.7, 94.7),
        "avg": (65.3, 71.6, 72.5, 76.7),
    }),
    "vl_checklist": _table({
        "Attribute/action": (70.5, 72.1, 75.6, 78.5),
        "Attribute/color": (69.4, 75.7, 72.7, 83.5),
        "Attribute/material": (69.5, 78.1, 79.7, 85.2),
        "Attribute/size": (60.7, 61.3, 65.3, 65.8),
        "Attribute/state": (67.0, 67.3, 69.8, 70.8),
        "Object/Location": (80.2, 84.4, 84.8, 86.7),
        "Object/Size": (79.7, 83.8, 84.5, 85.9),
        "Relation/action": (72.2, 80.7, 78.5, 81.0),
        "Relation/spatial": (53.8, 57.1, 65.0, 68.4),
        "Attribute": (67.4, 70.9, 72.6, 76.7),
        "Object": (80.0, 84.1, 84.6, 86.3),
        "Relation": (63.0, 68.9, 71.8, 74.7),
        "avg": (69.2, 73.4, 75.1, 78.4),
    }),
}  # fmt: skip
