"""Running a suite: what it asks about must be there, then a judge scores it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossmodal.data.batches import Regions
from crossmodal.data.extractors import RegionExtractor, build_extractor
from crossmodal.data.regions import open_regions
from crossmodal.errors import ConfigError, DataError
from crossmodal.model.base import Model

from .items import Judge, Test
from .pictures import ExtractedRegions, PictureFolder, PictureSource, StoredRegions
from .registry import open_suite, reader
from .report import Outcome

log = logging.getLogger("crossmodal")


def run_suite(
    name: str, test: Test, judge: Judge, source: PictureSource | None, *, skip_missing: bool = False
) -> Outcome:
    """Ask a judge all questions whose pictures the source has; a blind judge needs no source.

    Raises DataError where pictures are missing, unless they are to be skipped: then they are listed and counted.
    """
    missing = [picture for picture in test.pictures if picture not in source] if source is not None else []
    names = list(dict.fromkeys(picture.name for picture in missing))
    whole = len({picture.name for picture in test.pictures})
    if names and (not skip_missing or len(names) == whole):
        advice = "" if len(names) == whole else ", or leave out with --skip-missing what asks about them"
        raise DataError(
            f"{len(names):,} of the {whole:,} images that {name} asks about are missing "
            f"(first: {', '.join(names[:3])}); "
            f"complete the folder or database{advice}"
        )
    kept = test.without(missing) if missing else test
    if not kept.size:
        raise DataError(f"the files of {name} hold no question; check that they are the published ones")
    left_out = test.size - kept.size
    log.info("%s: %s questions, %s images", name, f"{kept.size:,}", f"{len({p.name for p in kept.pictures}):,}")
    if names:
        log.warning("missing images: %s; questions left out: %s", f"{len(names):,}", f"{left_out:,}")
    return Outcome(name, kept.ask(judge), test.ties, kept.size, left_out, names, test.shown, test.note)


def open_test(name: str, data: Path, images: Path | None, options: Mapping[str, Any]) -> Test:
    """Read a suite; the folder of images goes to those that read it. Raises ConfigError where one is missing."""
    if "images" not in inspect.signature(reader(name)).parameters:
        return open_suite(name, data, **options)
    if images is None:
        raise ConfigError(f"{name} takes its questions from the images; give their folder as --images")
    return open_suite(name, data, images=images, **options)


def picture_source(model: Model, images: Path | None, regions: Path | None) -> PictureSource:
    """What this model reads: pictures, or regions of a database, or regions that are extracted from pictures.

    Raises ConfigError where there are neither images nor regions, and for regions that the model doesn't read.
    """
    reads_regions = model.sides["image"] is Regions
    if regions is not None:
        if not reads_regions:
            raise ConfigError(f"{model.name} reads pictures, not regions; give --images in place of --regions")
        return StoredRegions(open_regions(regions))
    if images is None:
        raise ConfigError("the images of the suite are named nowhere; give their folder as --images")
    folder = PictureFolder(images)
    return ExtractedRegions(folder, _extractor(model)) if reads_regions else folder


def _extractor(model: Model) -> RegionExtractor:
    """The one that the checkpoint names, else the built-in stand-in, in the width of the model."""
    named = model.processor.extractor
    if named is not None:
        return build_extractor(named)
    log.warning(
        "the checkpoint of %s names no region extractor: regions come from the built-in stand-in, which knows nothing "
        "of the detector that the model may have been trained with; give that detector's regions with --regions",
        model.name,
    )
    return build_extractor({"use": "grid", "feature_dim": _feature_dim(model)})


def _feature_dim(model: Model) -> int:
    """Numbers a region, without the six of its box where the model takes these with them."""
    sizes = model.processor.sizes()
    return int(sizes["img_dim"] if "img_dim" in sizes else sizes["img_feature_dim"] - 6)
