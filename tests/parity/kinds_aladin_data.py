"""Published data of ALADIN on disk against what the reference makes of it: rows, tags, captions, merged detections."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crossmodal.data.aladin_processor import DETIC, AladinProcessor
from crossmodal.data.batches import Regions, Texts, length_mask
from crossmodal.data.detections import MergedRegions
from crossmodal.data.detic import read_shelved, shelve_of
from crossmodal.data.items import RegionItem, TextItem
from crossmodal.data.region_db import RegionDB, as_item
from crossmodal.data.regions import open_regions
from crossmodal.data.texts import TextSource, open_texts
from crossmodal.data.tokenizers import load_tokenizer
from crossmodal.data.tsv_lines import line_starts, read_line
from crossmodal.data.vinvl_predictions import index_predictions, read_predictions
from crossmodal.data.vinvl_regions import bare

from .harness import Case, kind

VINVL = 2054
CLIP_VOCAB = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vocab" / "clip"


@kind("aladin", "data_tsv")
def published_folder(case: Case) -> None:
    config, files = case.config, case.folder / "files"
    processor = AladinProcessor(
        VINVL,
        max_text=config["max_seq_length"],
        max_tags=config["max_seq_length"],
        max_regions=config["max_img_seq_length"],
        tokenizer=load_tokenizer(files / "vocab.txt", lowercase=config["do_lower_case"]),
    )
    features = files / "features" / "features.tsv"
    regions = open_regions(features)
    for name in (name for name, value in case.json["outputs"].items() if isinstance(value, dict)):
        split, keys = _split(name, config)
        texts = open_texts(
            files / "coco_ir" / f"{split}_captions.pt",
            image_keys=None if keys is None else files / "coco_ir" / keys,
            captions_per_image=config["num_captions_per_img"],
        )
        captions, images = _items(case, name, texts, regions)
        if not config["add_od_labels"]:
            images = [replace(image, tags=()) for image in images]
        _same(case, name, "pair_label", [int(c.image == i.id) for c, i in zip(captions, images, strict=True)])
        _compare(case, name, captions, images, processor)
    starts = line_starts(features)
    case.equal("lineidx", starts, case.json["outputs"]["lineidx"])
    rows = [read_line(features, start) for start in starts.tolist()]
    ours = [[row[0].decode(), int(row[1]), len(row[-1])] for row in rows]
    assert ours == case.json["outputs"]["tsv_rows"]


def _split(name: str, config: dict[str, Any]) -> tuple[str, str | None]:
    """The split whose captions are read, and the key file that restricts it, if any."""
    found = re.fullmatch(r"(\w+) split restricted by (\S+)", config.get(f"split {name}", ""))
    return (found[1], found[2]) if found else (name, None)


@kind("aladin", "v2_data")
def detections_and_clip(case: Case) -> None:
    from crossmodal.data.clip_tokenizer import load_clip_tokenizer

    if not CLIP_VOCAB.is_dir():
        pytest.skip(f"{CLIP_VOCAB} isn't there")
    config, files = case.config, case.folder / "files"
    features = files / "features"
    plain = AladinProcessor(
        VINVL,
        max_text=config["max_caption_seq_len"],
        max_tags=config["max_labels_seq_len"],
        max_regions=config["max_img_seq_length"],
        tokenizer=load_tokenizer(files / "vocab.txt", lowercase=True),
        clip_tokenizer=load_clip_tokenizer(CLIP_VOCAB),
    )
    (captions_file,) = (files / "coco_ir").glob("*_captions.pt")
    texts = open_texts(captions_file, captions_per_image=5)
    for name, expected in case.json["outputs"].items():
        detector = expected["detection_type"]
        processor = replace(
            plain,
            img_feature_dim=DETIC + 6 if detector == "det" else VINVL,
            clip_tags=expected["clip_labels"],
            clip_captions=expected["clip_captions"],
            aggregate_tags=expected["aggregation_type"] == "labels",
        )
        # The quirk of the recorded features: indices of one order into the matrix of another.
        regions = open_regions(features, kind=detector, published=True).over(texts.images)
        captions, images = _items(case, name, texts, regions)
        assert [list(image.tags) for image in images] == expected["classes"]
        merged = regions.merged if isinstance(regions, MergedRegions) else {}
        chosen = {bare(image.id): merged[bare(image.id)].order.tolist() for image in images} if merged else {}
        assert chosen == expected["box_order"]
        for image, boxes in zip(images, expected["boxes"], strict=True):
            assert _pixels(features, bare(image.id), detector, chosen).tolist() == boxes
        _compare(case, name, captions, images, processor)


def _pixels(folder: Path, image: str, detector: str, chosen: dict[str, list[int]]) -> np.ndarray:
    """(R,4) float32, the boxes of an image as the detectors give them, in the order in which they are used."""
    predictions, rects = folder / "predictions.tsv", []
    if detector not in ("det", "det_padded"):
        rects.append(read_predictions(predictions, index_predictions(predictions)[image], image).rects)
    if detector != "fast":
        rects.append(read_shelved(shelve_of(folder), image)[0].rects)
    boxes = np.concatenate([part for part in rects if part is not None])
    return boxes[chosen[image]] if chosen else boxes


def _items(case: Case, name: str, texts: TextSource, regions: RegionDB) -> tuple[list[TextItem], list[RegionItem]]:
    """The recorded items of a split: captions, and all rows of their images (whose numbers are random, not boxes)."""
    expected = case.json["outputs"][name]
    if "len" in expected:
        _same(case, name, "len", len(texts))
    _same(case, name, "img_keys", [int(bare(image)) for image in texts.images])
    captions = [texts[texts.ids[index]] for index in expected["indices"]]
    assert [caption.sentence for caption in captions] == expected["captions"]
    images = [as_item(key, regions.record(key)) for key in (str(caption.image) for caption in captions)]
    assert [" ".join(image.tags) for image in images] == expected["od_labels"]
    return captions, images


def _compare(
    case: Case, name: str, captions: Sequence[TextItem], images: Sequence[RegionItem], processor: AladinProcessor
) -> None:
    """The collated batch of a split or variant, its padding left out."""
    texts, regions = processor("text", captions), processor("image", images)
    assert isinstance(texts, Texts) and isinstance(regions, Regions) and isinstance(regions.tags, Texts)
    recorded = case.under(f"out.{name}")
    _same(case, name, "feature_shapes", [[len(image), processor.img_feature_dim] for image in images])
    count = regions.tags.lengths if regions.tags.counts is None else regions.tags.counts
    for field, lengths in (("cap_len", texts.lengths), ("tag_len", count), ("img_len", regions.lengths)):
        _same(case, name, field, lengths.tolist())
    heard = length_mask(texts.lengths, recorded["cap_ids"].shape[1])
    case.array(f"out.{name}.cap_ids", _wide(texts.input_ids, heard), where=heard)
    case.array(f"out.{name}.cap_mask", heard.long())
    case.array(f"out.{name}.cap_seg", torch.zeros_like(heard).long())
    width = recorded["tag_ids"].shape[1]
    named, seen = length_mask(count, width), length_mask(regions.lengths, processor.max_regions)
    case.array(f"out.{name}.img_mask", torch.cat([named, seen], dim=1).long())
    case.array(f"out.{name}.tag_seg", (named & (torch.arange(width) > 0)).long())
    case.array(f"out.{name}.img_feats", _wide(regions.features, seen), where=seen)
    if regions.tags.counts is None:
        assert regions.tags.type_ids is not None
        case.array(f"out.{name}.tag_seg", _wide(regions.tags.type_ids, named), where=named)
        case.array(f"out.{name}.tag_ids", _wide(regions.tags.input_ids, named), where=named)
    else:
        ids = torch.zeros_like(recorded["tag_ids"])
        ids[named] = _padded(regions.tags.input_ids, ids.shape[2])
        case.array(f"out.{name}.tag_ids", ids)


def _wide(rows: Tensor, mask: Tensor) -> Tensor:
    """(B,T,...) with zeros up to the width of the mask."""
    padded = rows.new_zeros(*mask.shape, *rows.shape[2:])
    padded[:, : rows.shape[1]] = rows
    return padded


def _padded(rows: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]))


def _same(case: Case, name: str, field: str, ours: Any) -> None:
    case.equal(f"{name}/{field}", ours, case.json["outputs"][name][field])
