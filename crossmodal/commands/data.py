"""``crossmodal data``: build, convert and check databases of texts and regions."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .negatives import negatives

app = typer.Typer(no_args_is_help=True, help="Build, convert and check databases of texts and regions.")
app.command()(negatives)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")]
ConfTh = Annotated[float, typer.Option(help="Use boxes above this confidence; -1: always --num-bb.")]
MaxBB = Annotated[int, typer.Option("--max-bb", help="At most so many boxes an image.")]
MinBB = Annotated[int, typer.Option("--min-bb", help="At least so many boxes an image.")]
NumBB = Annotated[int, typer.Option("--num-bb", help="Boxes an image with --conf-th -1.")]
Workers = Annotated[int, typer.Option(help="Worker processes.")]
_OWN = "Default: the source database's own, else"


class Flavour(str, Enum):
    """How an image database packs the arrays of an image."""

    raw = "raw"
    msgpack = "msgpack"
    npz = "npz"


Flavoured = Annotated[Flavour, typer.Option(help="msgpack or npz: UNITER's two; raw: read without decoding.")]


class Target(str, Enum):
    """What `regions` writes: a flavour of image databases, or VinVL's layout."""

    raw = "raw"
    msgpack = "msgpack"
    npz = "npz"
    vinvl = "vinvl"


class RegionFormat(str, Enum):
    """What `regions` reads."""

    tsv = "tsv"
    npz = "npz"
    hdf5 = "hdf5"
    lmdb = "lmdb"
    vinvl = "vinvl"
    det = "det"
    det_fast = "det+fast"
    det_fast_labels = "det+fast_labels"


@app.command()
def regions(
    source: Annotated[
        Path, typer.Argument(help="A .tsv, a folder of .npz, an .h5, a VinVL folder, or an image database.")
    ],
    output: Output,
    from_: Annotated[RegionFormat | None, typer.Option("--from", help="Format; guessed if absent.")] = None,
    flavour: Annotated[
        Target,
        typer.Option(help="msgpack or npz: UNITER's two; raw: read without decoding; vinvl: VinVL's folder of TSVs."),
    ] = Target.msgpack,
    float16: Annotated[
        bool | None,
        typer.Option(help="Store float32 as float16; by default where dumps become a published flavour."),
    ] = None,
    conf_th: Annotated[
        float | None, typer.Option(help=f"Use boxes above this confidence; -1: always --num-bb. {_OWN} 0.2.")
    ] = None,
    max_bb: Annotated[int | None, typer.Option("--max-bb", help=f"At most so many boxes an image. {_OWN} 100.")] = None,
    min_bb: Annotated[int | None, typer.Option("--min-bb", help=f"At least so many boxes an image. {_OWN} 10.")] = None,
    num_bb: Annotated[
        int | None, typer.Option("--num-bb", help=f"Boxes an image with --conf-th -1. {_OWN} 36.")
    ] = None,
    workers: Workers = 1,
) -> None:
    """Convert detected boxes to an image database, or an image database to another flavour.

    An image database keeps all it holds, unless other boxes are asked for. A killed run is continued by the same
    command. Unreadable images are skipped, counted and listed. Of a VinVL folder (vinvl) or the shelve of Detic's
    detections in one (det, or merged: det+fast, det+fast_labels) all boxes are kept, up to --max-bb, and the tags.
    """
    from dataclasses import replace

    from crossmodal.data.region_lmdb import LmdbRegions
    from crossmodal.data.region_names import database_name, stem
    from crossmodal.data.region_writer import convert_region_db, write_region_db
    from crossmodal.data.regions import open_regions
    from crossmodal.data.vinvl_writer import write_vinvl

    given = {"conf_th": conf_th, "max_bb": max_bb, "min_bb": min_bb, "num_bb": num_bb}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    db = open_regions(source, kind=None if from_ is None else from_.value, verify=True, **asked)
    if flavour is Target.vinvl:
        _report_regions(write_vinvl(db, output))
        return
    rule = replace(db.rule, **asked)
    exact = isinstance(db, LmdbRegions) or db.chosen
    if isinstance(db, LmdbRegions) and (not asked or stem(db.path.resolve().name) == database_name(rule)):
        written = convert_region_db(db, output, flavour.value, float16=bool(float16), workers=workers)
    else:
        written = write_region_db(
            db.sources(),
            output,
            **vars(rule),
            flavour=flavour.value,
            float16=False if exact and float16 is None else float16,
            chosen=db.chosen and conf_th is None,
            workers=workers,
            total=len(db),
            origin=str(db.path) if from_ is None else f"{db.path} ({from_.value})",
        )
    _report_regions(written)


@app.command()
def photos(
    folder: Annotated[Path, typer.Argument(help="Folder of JPEG and PNG files.")],
    output: Output,
    feature_dim: Annotated[int, typer.Option(help="Width of a region's feature.")] = 2048,
    flavour: Flavoured = Flavour.msgpack,
    conf_th: ConfTh = 0.2,
    max_bb: MaxBB = 100,
    min_bb: MinBB = 10,
    num_bb: NumBB = 36,
    workers: Workers = 1,
) -> None:
    """Make an image database of a folder of photos with the built-in extractor.

    The extractor needs no weights: grid cells and salient crops, described by colour, gradients and texture.
    It is a stand-in for a detector: good for trying the toolkit, not for published numbers, and its features
    don't fit a model trained on a detector's.
    """
    from crossmodal.data.extractors import GridExtractor
    from crossmodal.data.photos import write_photo_db

    written = write_photo_db(
        folder,
        output,
        extractor=GridExtractor(feature_dim),
        conf_th=conf_th,
        max_bb=max_bb,
        min_bb=min_bb,
        num_bb=num_bb,
        flavour=flavour.value,
        workers=workers,
    )
    typer.echo("Regions come from the built-in extractor, a stand-in for a detector.")
    _report_regions(written)


@app.command()
def texts(
    source: Annotated[Path, typer.Argument(help="COCO or Karpathy JSON, a Flickr token file, or a TSV.")],
    output: Output,
    format: Annotated[str | None, typer.Option(help="Format of the source; guessed if absent.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder, vocab.txt, tokenizer.json or hub name; trained if absent.")
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Size of a trained vocabulary.")] = 8000,
    split: Annotated[str | None, typer.Option(help="Which split of a Karpathy JSON.")] = None,
    image_suffix: Annotated[str, typer.Option(help="Ending of image ids in place of the file's.")] = ".npz",
    lowercase: Annotated[bool, typer.Option(help="Lower-case before a trained tokenizer.")] = True,
    images: Annotated[
        Path | None, typer.Option(help="Image database: keep only captions whose image it holds.")
    ] = None,
    divide: Annotated[str | None, typer.Option(help="Several databases by image: train=0.8,val=0.1,test=0.1.")] = None,
) -> None:
    """Convert captions to a UNITER-compatible text database."""
    from crossmodal.data.text_writer import write_texts

    done = write_texts(
        source,
        output,
        format=format,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        split=split,
        image_suffix=image_suffix,
        lowercase=lowercase,
        images=images,
        divide=None if divide is None else _shares(divide),
    )
    typer.echo(f"{done['captions']} captions of {done['images']} images: {done['output']}")
    if done["without_image"]:
        missing = done["missing_images"]
        typer.echo(
            f"{done['without_image']} captions left out: {len(missing)} images are not in {images}, "
            f"such as {_examples(missing)}"
        )
    if done["captionless"]:
        bare = done["captionless"]
        typer.echo(f"{len(bare)} images of {images} have no caption, such as {_examples(bare)}")
    if divide is not None:
        typer.echo(", ".join(f"{name}: {count} captions" for name, count in done["parts"].items()))
    if done["empty"]:
        typer.echo(f"{len(done['empty'])} captions left out: no word piece, such as {_examples(done['empty'])}")


@app.command()
def scenes(
    output: Output,
    seed: Annotated[int, typer.Option(help="The same seed gives the same world.")] = 0,
    train: Annotated[int, typer.Option(help="Training scenes.")] = 3000,
    val: Annotated[int, typer.Option(help="Validation scenes.")] = 200,
    test: Annotated[int, typer.Option(help="Test scenes.")] = 200,
) -> None:
    """Render the built-in world of coloured objects: pictures, regions, captions, splits."""
    from crossmodal.data.scenes import write_world

    write_world(output, seed=seed, train=train, val=val, test=test)
    typer.echo(f"world written to {output}")


@app.command()
def check(
    regions: Annotated[Path, typer.Argument(help="An image database, or anything `regions` reads.")],
    texts: Annotated[Path | None, typer.Option(help="A text database or VinVL caption file that refers to it.")] = None,
    longest: Annotated[int, typer.Option(help="Word pieces a text may have without the special ones.")] = 510,
    conf_th: ConfTh = 0.2,
    max_bb: MaxBB = 100,
    min_bb: MinBB = 10,
    num_bb: NumBB = 36,
    flavour: Annotated[
        Flavour | None, typer.Option(help="Which flavour of an image set; the first that is there if absent.")
    ] = None,
) -> None:
    """Read databases whole and report what is wrong. Exit status 1 if anything is."""
    from crossmodal.data.check import check as run_check
    from crossmodal.data.regions import open_regions
    from crossmodal.data.texts import open_texts
    from crossmodal.errors import DataError

    db = open_regions(
        regions,
        conf_th=conf_th,
        max_bb=max_bb,
        min_bb=min_bb,
        num_bb=num_bb,
        flavour=None if flavour is None else flavour.value,
        verify=True,
    )
    unusable = None
    text_db = None
    if texts is not None:
        try:
            text_db = open_texts(texts)
        except DataError as error:
            unusable = str(error)
    report = run_check(text_db, db, longest=longest)
    if unusable is not None:
        report.problem("unusable text database", unusable)
    typer.echo(str(report))
    raise typer.Exit(report.exit_code)


def _report_regions(written: Path) -> None:
    from crossmodal.data.regions import open_regions

    db = open_regions(written)
    boxes = list(db.lengths.values())
    typer.echo(f"{len(db)} images, {min(boxes)} to {max(boxes)} boxes each, {db.feature_dim} numbers a box: {written}")


def _examples(names: list[str]) -> str:
    return ", ".join(names[:3])


def _shares(text: str) -> dict[str, float]:
    """``train=0.8,test=0.2`` as a mapping."""
    from crossmodal.errors import ConfigError

    try:
        return {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ConfigError(f"--divide {text!r} cannot be read; write it as train=0.8,val=0.1,test=0.1") from None
