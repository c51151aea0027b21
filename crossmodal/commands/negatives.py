"""``crossmodal data negatives``: make wrong captions of captions, and find hard images."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor


class Like(str, Enum):
    """Whose wrong captions."""

    ce_clip = "ce-clip"
    negclip = "negclip"


class Tagging(str, Enum):
    """What tells nouns from verbs."""

    auto = "auto"
    spacy = "spacy"
    rules = "rules"


_BATCH = 64  # images that are encoded together


Output = Annotated[
    Path, typer.Option("--output", "-o", help="A .tsv (negclip); a .jsonl, or a folder of .npy as published (ce-clip).")
]
Liked = Annotated[Like, typer.Option(help="ce-clip: a noun swap and three replaced words; negclip: swaps.")]
Filled = Annotated[Path | None, typer.Option(help="ce-clip: folder of a masked language model (distilroberta-base).")]
Tagged = Annotated[Tagging, typer.Option(help="auto: spaCy where its model is installed, else built-in rules.")]
Published = Annotated[bool, typer.Option("--published", help="ce-clip: with the published code's mistakes.")]


def negatives(
    source: Annotated[Path, typer.Argument(help="COCO or Karpathy JSON, a Flickr token file, or a table.")],
    output: Output,
    like: Liked = Like.ce_clip,
    fill: Filled = None,
    tagger: Tagged = Tagging.auto,
    spacy_model: Annotated[str, typer.Option(help="Which model of spaCy.")] = "en_core_web_sm",
    seed: Annotated[int, typer.Option(help="The same seed gives the same wrong captions.")] = 0,
    published: Published = False,
    format: Annotated[str | None, typer.Option(help="Format of the source; guessed if absent.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split of a Karpathy JSON.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="negclip: the model that finds hard images.")] = None,
    images: Annotated[Path | None, typer.Option(help="negclip: the folder of the images.")] = None,
    hard: Annotated[int, typer.Option(help="negclip: hard images of each image.")] = 3,
) -> None:
    """Make wrong captions, one edit away from right ones, and report how many there are of each kind."""
    import json

    import torch

    from crossmodal.data.caption_tables import read_any_captions
    from crossmodal.data.negatives.fill import MaskedFill
    from crossmodal.data.negatives.make import ce_clip_records, negclip_rows
    from crossmodal.data.negatives.records import write_records
    from crossmodal.data.negatives.spacy_tagger import open_tagger
    from crossmodal.data.negatives.table import with_hard_images, write_table
    from crossmodal.errors import ConfigError
    from crossmodal.files import write_whole

    if (output.suffix == ".tsv") != (like is Like.negclip):
        raise ConfigError(f"--output {output}: --like negclip writes a .tsv, --like ce-clip a .jsonl or a folder")
    if like is Like.ce_clip and fill is None:
        raise ConfigError(
            "--like ce-clip replaces words with a masked language model: give its folder with --fill (a download of "
            "distilroberta-base is the published one), or use --like negclip, which needs none"
        )
    if (checkpoint is None) != (images is None):
        raise ConfigError("hard images need both --checkpoint and --images")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    captions = read_any_captions(source, format=format, split=split)
    tags = open_tagger(tagger.value, spacy_model, noun_phrases=like is Like.negclip)
    if like is Like.ce_clip:
        assert fill is not None
        records, report = ce_clip_records(
            captions, tags, MaskedFill(fill, device=device), seed=seed, published=published
        )
        write_records(records, output)
    else:
        rows, report = negclip_rows(captions, tags, seed=seed)
        if checkpoint is not None and images is not None:
            from crossmodal.retrieve.neighbours import nearest_others

            vectors = _vectors(checkpoint, [images / row.image for row in rows], device)
            rows = with_hard_images(rows, nearest_others(vectors, hard).tolist())
        write_table(rows, output)
    text = json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n"
    write_whole(output.with_name(f"{output.stem}.report.json"), lambda part: part.write_text(text, encoding="utf-8"))
    typer.echo(f"{report}\nwritten to {output}")


def _vectors(checkpoint: Path, files: Sequence[Path], device: str) -> Tensor:
    """(N,D), one unit vector a picture."""
    from crossmodal.errors import ConfigError
    from crossmodal.model.checkpoints import load
    from crossmodal.retrieve.scoring import encode_all

    model = load(checkpoint, device)
    if "cosine" not in model.scorer_names:
        raise ConfigError(f"{checkpoint} holds the model {model.name}, which has no vectors of images; use a CLIP")
    batches = (model.processor("image", files[i : i + _BATCH]) for i in range(0, len(files), _BATCH))
    return encode_all(model, "image", batches).vectors["embeds"]
