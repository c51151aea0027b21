"""UNITER-base scoring captions against 400 images, beside the published protocol and a padded BERT.

Images of 10 to 100 boxes (uniform) lie in a UNITER database; captions have 8 to 22 words; weights are random.
published  one caption against all images in one mini-batch, padded to the widest; records decoded again for
           each caption; attention, GELU and last layer as in the published code
bert       transformers' BertModel with fused attention on the same padded batches, sides embedded beforehand
crossmodal images read and embedded once (their share of that is counted), packed pairs
int8       the same with dynamic quantisation
matmul     the peak: 2048 x 2048 x 2048 products; the share of it spent on real tokens is crossmodal's ratio
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from common import Options, Report, Seconds, median, options, peak_memory, ratio, take_turns
from padded_uniter import Published, bert_scores, padded_bert
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from crossmodal.data.batches import Regions, Texts
from crossmodal.data.environments import environment
from crossmodal.data.processors import UniterProcessor
from crossmodal.data.region_writer import write_region_db
from crossmodal.data.regions import RegionDB, open_regions
from crossmodal.model.base import Encoded
from crossmodal.model.precision import int8
from crossmodal.model.uniter import Uniter, UniterConfig
from crossmodal.retrieve.scoring import encode_all, score_matrix

CAPTIONS, IMAGES, MATMUL = 2, 400, 2048
SMALL = UniterConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, img_dim=64)


def write_images(folder: Path, count: int, width: int) -> RegionDB:
    draw = np.random.default_rng(0)

    def record(boxes: int) -> dict[str, np.ndarray]:
        corners = np.sort(draw.uniform(0, 1, (boxes, 4)).astype(np.float32), axis=1)
        return {
            "norm_bb": np.concatenate([corners, corners[:, 2:] - corners[:, :2]], axis=1),
            "features": np.maximum(draw.normal(size=(boxes, width)), 0).astype(np.float32),
            "conf": np.ones((boxes, 1), np.float32),
            "soft_labels": np.zeros((boxes, 1601), np.float32),
        }

    records = ((f"{i}.npz", record(int(draw.integers(10, 101)))) for i in range(count))
    return open_regions(write_region_db(records, folder))


class Bench:
    """The databases, the models and one function a case; `at` is the caption whose turn it is."""

    def __init__(self, folder: Path, config: UniterConfig, images: int, captions: int) -> None:
        torch.manual_seed(0)
        self.model = Uniter(config).eval()
        self.int8 = int8(self.model)
        self.published, self.bert = Published(self.model), padded_bert(self.model)
        self.db = write_images(folder, images, config.img_dim)
        self.keys = sorted(self.db.ids, key=lambda key: self.db.lengths[key])
        lengths = torch.randint(8, 23, (captions,)) + 2
        self.captions = [Texts(torch.randint(1, config.vocab_size, (1, int(n))), n[None]) for n in lengths]
        self.processor = UniterProcessor(101, 102, 103, (106, config.vocab_size), config.img_dim)
        self.at = 0
        self.scores: dict[str, list[Tensor]] = {}
        self.texts = encode_all(self.model, "text", self.captions)
        self.images = self.encode_images()
        rows = self.images.rows["tokens"].split(self.images.lengths.tolist())
        self.padded = pad_sequence(list(rows), batch_first=True)

    def encode_images(self) -> Encoded:
        parts = [self.keys[i : i + 64] for i in range(0, len(self.keys), 64)]
        return encode_all(self.model, "image", (self.processor("image", [self.db[k] for k in part]) for part in parts))

    def run_published(self) -> None:
        decoded = [self._decode(key) for key in self.keys]
        features, boxes = ([pair[i] for pair in decoded] for i in range(2))
        lengths = torch.tensor([len(f) for f in features])
        regions = Regions(pad_sequence(features, batch_first=True), pad_sequence(boxes, batch_first=True), lengths)
        self._keep("published", self.published(self.captions[self.at], regions))

    def _decode(self, key: str) -> tuple[Tensor, Tensor]:
        """A whole record through msgpack's own unpacker, as float32 tensors."""
        with environment(self.db.path).begin() as txn:
            record = msgpack.unpackb(txn.get(key.encode()), raw=False, object_hook=_array)
        box = torch.from_numpy(record["norm_bb"]).float()
        return torch.from_numpy(record["features"]).float(), torch.cat([box, box[:, 4:5] * box[:, 5:]], dim=1)

    def run_bert(self) -> None:
        text = self.texts[self.at : self.at + 1].rows["tokens"]
        self._keep("bert", bert_scores(self.bert, self.model, text, self.padded, self.images.lengths))

    def run_crossmodal(self) -> None:
        self._keep("crossmodal", self._score(self.model, self.images))

    def run_int8(self) -> None:
        self._keep("int8", self._score(self.int8, self.images))

    def run_half(self) -> None:
        self._score(self.model, self.images[torch.arange(0, len(self.images), 2)])

    def _score(self, model: Any, images: Encoded) -> Tensor:
        return score_matrix(model.scorers["itm"], self.texts[self.at : self.at + 1], images)[0]

    def _keep(self, case: str, scores: Tensor) -> None:
        self.scores.setdefault(case, []).append(scores)

    def flop(self) -> float:
        """Multiply-adds times two on real tokens, of one pair list: [CLS] alone in the last layer."""
        c = self.model.config
        d, inner, layers = c.hidden_size, c.intermediate_size, c.num_hidden_layers
        total = 0.0
        for n in (self.texts.lengths[:, None] + self.images.lengths).flatten().tolist():
            whole = n * 2 * (4 * d * d + 2 * d * inner) + 4 * n * n * d
            last = n * 2 * 2 * d * d + 2 * (2 * d * d + 2 * d * inner) + 4 * n * d
            total += (layers - 1) * whole + last
        return total / len(self.captions)


def _array(value: dict[Any, Any]) -> Any:
    if b"nd" not in value:
        return value
    return np.frombuffer(value[b"data"], value[b"type"]).reshape(value[b"shape"]).copy()


def measure(bench: Bench, size: int) -> tuple[Seconds, dict[str, float]]:
    a, b = torch.randn(size, size), torch.randn(size, size)

    def matmul() -> None:
        for _ in range(8):
            a @ b

    cases = {
        "published": bench.run_published, "bert": bench.run_bert, "crossmodal": bench.run_crossmodal,
        "int8": bench.run_int8, "half": bench.run_half, "matmul": matmul,
    }  # fmt: skip
    memory = {name: peak_memory(run) for name, run in cases.items()}  # and the warm-up
    seconds: Seconds = {name: [] for name in cases}
    for caption in range(len(bench.captions)):
        bench.at = caption
        for name, values in take_turns(cases, 1, warm_up=False).items():
            seconds[name] += values
    share = median(take_turns({"encode": bench.encode_images}, 1), "encode") / len(bench.captions)
    for name in ("crossmodal", "int8"):
        seconds[name] = [s + share for s in seconds[name]]
    return seconds, memory


def main(given: Options) -> None:
    config = SMALL if given.quick else UniterConfig()
    images, captions, size = (24, 2, 128) if given.quick else (IMAGES, CAPTIONS, MATMUL)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        bench = Bench(Path(folder), config, images, captions)
        seconds, memory = measure(bench, size)
    pairs = len(bench.images)
    report = Report(
        f"UNITER hidden {config.hidden_size}, {config.num_hidden_layers} layers; {captions} captions of 8 to 22 words "
        f"x {pairs} images of 10 to 100 boxes; float32",
        ["pairs/s", "GFLOP/s, real tokens", "peak MB", "largest difference"],
    )
    peak = 8 * 2 * size**3
    shares = [bench.flop() / peak * m / s for m, s in zip(seconds["matmul"], seconds["crossmodal"], strict=True)]
    ours = torch.stack(bench.scores["crossmodal"])
    for name in ("published", "bert", "crossmodal", "int8"):
        time = median(seconds, name)
        apart = float((torch.stack(bench.scores[name]) - ours).abs().max())
        report.add(
            name, f"{pairs / time:.2f}", f"{bench.flop() / time / 1e9:.1f}", f"{memory[name]:.0f}", f"{apart:.1e}"
        )
    report.add("matmul", "", f"{peak / median(seconds, 'matmul') / 1e9:.1f}", f"{memory['matmul']:.0f}", "")
    blank = ["", "", "", ""]
    report.add("published / crossmodal", *blank, ratio=ratio(seconds, "published", "crossmodal"), target=1.8)
    report.add("bert / crossmodal", *blank, ratio=ratio(seconds, "bert", "crossmodal"), target=1.5)
    report.add("published / int8", *blank, ratio=ratio(seconds, "published", "int8"), target=3.0)
    report.add("share of the matmul peak on real tokens", *blank, ratio=float(np.median(shares)), target=0.75)
    report.add("time when pairs double", *blank, ratio=ratio(seconds, "crossmodal", "half"))
    largest = max(float((torch.stack(bench.scores[n]) - ours).abs().max()) for n in ("published", "bert"))
    report.add("scores equal to 1e-4", *blank, ratio=1e-4 / max(largest, 1e-12), target=1.0)
    report.print(given)


if __name__ == "__main__":
    main(options(__doc__ or ""))
