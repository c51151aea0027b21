"""Image databases written by the published converter, and what the published reader returns."""

from __future__ import annotations

import numpy as np

from crossmodal.data.regions import open_regions

from .harness import Case, kind


@kind("uniter_iais", "image_lmdb")
def image_lmdb(case: Case) -> None:
    for variant, recorded in case.json["variants"].items():
        folder, options = case.folder / "img_db" / variant, dict(recorded["open_with"])
        db = open_regions(folder, compressed=options.pop("compress"), **options)
        name = f"variants/{variant}"
        case.equal(f"{name}/keys_entry", db.ids, recorded["keys_entry"])
        assert set(recorded["name2nbb"]) <= set(db.ids)
        for image, boxes in recorded["name2nbb"].items():
            case.equal(f"{name}/name2nbb/{image}", db.lengths[image], boxes)
        files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        case.equal(f"{name}/files", files, sorted(recorded["files"]))
        for image, shape in recorded.get("soft_labels_shape", {}).items():
            case.equal(f"{name}/soft_labels_shape/{image}", db.record(image)["soft_labels"].shape, shape)
    for array in case.arrays:
        _, variant, image, field = array.split("/", 3)
        options = dict(case.json["variants"][variant]["open_with"])
        db = open_regions(case.folder / "img_db" / variant, compressed=options.pop("compress"), **options)
        item, full = db[image], db.record(image)
        boxes = item.boxes
        ours = {
            "features": lambda item=item: item.features,
            "norm_bb": lambda boxes=boxes: boxes,
            "pos7": lambda boxes=boxes: np.concatenate([boxes, boxes[:, 4:5] * boxes[:, 5:6]], axis=1),
            "conf": lambda full=full: full["conf"].astype(np.float32),
            "soft_labels_nonzero": lambda full=full: np.argwhere(full["soft_labels"]),
        }
        case.array(array, ours[field]())
