"""Detector rows as LXMERT published them: TSV -> UNITER database -> a forward pass, real and generated."""

from __future__ import annotations

import base64
import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from crossmodal.cli import run
from crossmodal.data.processors import UniterProcessor
from crossmodal.data.regions import open_regions
from crossmodal.model.base import inference
from crossmodal.model.uniter import Uniter

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "bua_features" / "train2014_obj36.tsv"


def forward(tsv: Path, folder: Path) -> None:
    """Convert, then score one caption against every image of the file."""
    options = ["--conf-th", "-1", "--num-bb", "36"]
    assert run(["data", "regions", str(tsv), "--output", str(folder / "img"), *options]) == 0
    db, source = (open_regions(path, conf_th=-1, num_bb=36) for path in (folder / "img", tsv))
    assert sorted(db.ids) == sorted(source.ids) and db.feature_dim == source.feature_dim
    for key in db.ids:
        assert len(db[key]) == 36
        np.testing.assert_allclose(db[key].features, source[key].features, rtol=1e-3, atol=1e-3)  # stored as float16
        np.testing.assert_allclose(db[key].boxes, source[key].boxes, atol=1e-3)
    model = Uniter({"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "intermediate_size": 64, "img_dim": db.feature_dim})  # fmt: skip
    processor = UniterProcessor(cls=101, sep=102, mask=103, v_range=(106, 120), img_dim=db.feature_dim)
    from crossmodal.data.items import TextItem

    with inference(model):
        a = model.encode("text", processor("text", [TextItem("c", input_ids=(107, 110, 115))]))
        b = model.encode("image", processor("image", [db[key] for key in db.ids]))
        scores = model.scorers["itm"](a, b)
    assert scores.shape == (1, len(db)) and torch.isfinite(scores).all()


def test_generated_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with (tmp_path / "rows.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        for number in range(3):
            corners = np.sort(rng.uniform(0, 1, (36, 2, 2)), axis=1) * (640, 480)
            boxes = corners.reshape(36, 4).astype(np.float32)
            features = rng.gamma(0.5, 1, (36, 64)).astype(np.float32)
            confidence = np.sort(rng.uniform(0.2, 1, 36)).astype(np.float32)[::-1].copy()
            labels = rng.integers(0, 400, 36)
            fields = [labels, confidence, labels, confidence]
            coded = [base64.b64encode(x.tobytes()).decode() for x in (*fields, boxes, features)]
            writer.writerow([f"image_{number}", 480, 640, *coded[:4], 36, *coded[4:]])
    forward(tmp_path / "rows.tsv", tmp_path)


@pytest.mark.skipif(not REAL.is_file(), reason="../shared/data/bua_features isn't there")
def test_real_rows(tmp_path: Path) -> None:
    forward(REAL, tmp_path)
