"""From captions to records of wrong captions, the same for the same seed, with a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from crossmodal.data.captions import Caption

from .ce_clip import TYPES, Fill, four_negatives
from .negclip import SLOTS, six_negatives
from .records import CeRecord, coco_image
from .report import Report
from .table import TableRow
from .tagged import Tagger


def ce_clip_records(
    captions: Sequence[Caption], tagger: Tagger, fill: Fill, *, seed: int = 0, published: bool = False
) -> tuple[list[CeRecord], Report]:
    """CE-CLIP's record of every caption, in order. published: see `four_negatives`."""
    report, records = Report(TYPES, tagger.name), []
    tagged = tagger(caption.sentence for caption in captions)
    made = four_negatives(tagged, fill, Random(seed), published=published)
    for caption, four in zip(captions, made, strict=True):
        number = int(caption.id) if caption.id.isdecimal() else caption.id
        records.append(CeRecord(coco_image(caption.image), number, four.caption, four.negatives, four.valid))
        kinds = zip(TYPES, four.negatives, four.valid, strict=True)
        report.add(four.caption, {kind: negative if there else None for kind, negative, there in kinds}, four.why)
    return records, report


def negclip_rows(captions: Sequence[Caption], tagger: Tagger, *, seed: int = 0) -> tuple[list[TableRow], Report]:
    """NegCLIP's rows, without hard images: the first caption of every image, unless it has no wrong caption."""
    first = list(_first_of_images(captions))
    report, rows, rng = Report(SLOTS, tagger.name), [], Random(seed)
    for caption, tagged in zip(first, tagger(caption.sentence for caption in first), strict=True):
        found = six_negatives(tagged, rng)
        report.add(caption.sentence, found)
        negatives = tuple(dict.fromkeys(negative for negative in found.values() if negative is not None))
        if negatives:
            rows.append(TableRow(caption.sentence, caption.image, negatives, ()))
    return rows, report


def _first_of_images(captions: Sequence[Caption]) -> Iterator[Caption]:
    seen: set[str] = set()
    for caption in captions:
        if caption.image not in seen:
            seen.add(caption.image)
            yield caption
