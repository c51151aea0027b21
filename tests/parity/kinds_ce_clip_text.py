"""Wrong captions, shuffles and the tables of CE-CLIP and NegCLIP against recorded ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from crossmodal.data.clip_tokenizer import load_clip_tokenizer
from crossmodal.data.negatives.ce_clip import MASK, four_negatives
from crossmodal.data.negatives.negclip import six_negatives
from crossmodal.data.negatives.records import CeRecord
from crossmodal.data.negatives.table import parse_table
from crossmodal.data.negatives.tagged import Tagged
from crossmodal.evaluate.suites.shuffles import Shuffler, pre_caption

from .harness import Case, kind

ENDINGS = ("", "/pre_caption")
CLIP_VOCAB = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vocab" / "clip"


def ids(sentences: Sequence[str]) -> np.ndarray:
    """(n,77) as recorded: padded with zeros."""
    if not CLIP_VOCAB.is_dir():
        pytest.skip(f"{CLIP_VOCAB} isn't there")
    rows = load_clip_tokenizer(CLIP_VOCAB).rows(sentences)
    padded = np.zeros((len(rows), 77), dtype=np.int64)
    for row, found in zip(padded, rows, strict=True):
        row[: len(found)] = found
    return padded


@kind("ce_clip", "text_ce_negatives")
def ce_negatives(case: Case) -> None:
    def fill(sentences: Sequence[str]) -> list[list[str]]:
        return [[sentence.replace(MASK, f"w{r}") for r in range(5)] for sentence in sentences]

    inputs, rng = case.config["inputs"], Random(case.config["python_random_seed"])
    tagged = [Tagged.of(x["caption"], [(t["text"], t["pos"], "") for t in x["tokens"]]) for x in inputs]
    made = four_negatives(tagged, fill, rng, published=bool(case.json["quirks"]))
    records = [
        CeRecord(x["image_id"], x["id"], x["caption"], four.negatives, four.valid).published()
        for x, four in zip(inputs, made, strict=True)
    ]
    assert records == case.json["scalar_outputs"]["final_records"]
    case.array("valid_caption", np.array([record["valid_caption"] for record in records]))


@kind("ce_clip", "text_negclip_negatives")
def negclip_negatives(case: Case) -> None:
    rng = Random(case.config["python_random_seed"])
    for record in case.json["scalar_outputs"]["records"]:
        words = [(t["text"], t["pos"], t["tag"]) for t in record["tokens"]]
        found = six_negatives(Tagged.of(record["caption"], words, record["noun_chunks"]), rng)
        kept = [negative for negative in found.values() if negative is not None]
        case.equal("slots", [found[slot] for slot in record["slots"]], list(record["slots"].values()))
        case.equal("kept", kept, record["kept"])


@kind("ce_clip", "text_aro_shuffles")
def aro_shuffles(case: Case) -> None:
    config, recorded = case.config, case.json["scalar_outputs"]
    shuffler = Shuffler(config["numpy_random_seed"], config["python_random_seed"])
    names = ("nouns_and_adj", "allbut_nouns_and_adj", "within_trigrams", "trigrams")
    for record in recorded["records"]:
        tagged = [(token["text"], token["tag"]) for token in record["spacy_tokens"]]
        for name, ours in zip(names, shuffler.four(tagged, record["nltk_tokens"]), strict=True):
            case.equal(f"shuffle_{name}", [ours, pre_caption(ours)], [record[f"shuffle_{name}{x}"] for x in ENDINGS])
        case.equal("pre_caption", [pre_caption(record["caption"])], [record["pre_caption"]])
    all_words = [shuffler.all_words(record["caption"]) for record in recorded["records"]]
    case.equal("shuffle_all_words", all_words, recorded["shuffle_all_words"])


@kind("ce_clip", "text_pre_caption")
def cleaned_captions(case: Case) -> None:
    for name, recorded in case.json["scalar_outputs"].items():
        words = int(name.removeprefix("max"))
        case.equal(name, [pre_caption(caption, words) for caption in case.config["inputs"]], recorded)


@kind("ce_clip", "data_negclip_table")
def negclip_table(case: Case) -> None:
    table = parse_table(case.config["tsv"])
    rng, rows = Random(case.config["python_random_seed"]), case.config["access_order"]
    picks = [table.pick(row, rng) for row in rows]
    for row, pick, recorded in zip(rows, picks, case.json["scalar_outputs"]["picks"], strict=True):
        assert {"row": row, "image": table[row].image, "hard_image": table[pick.hard].image} == recorded
    sentences = {
        "caption_ids": [table[row].caption for row in rows],
        "hard_image_caption_ids": [table[pick.hard].caption for pick in picks],
        "negative_caption_ids": [pick.negative for pick in picks],
        "hard_image_negative_caption_ids": [pick.hard_negative for pick in picks],
    }
    for name, given in sentences.items():
        case.array(name, ids(given))


@kind("ce_clip", "data_npy_batch")
def npy_batch(case: Case) -> None:
    records = [CeRecord.of(record) for record in case.config["records"]]
    negatives = [negative for record in records for negative in record.negatives]
    case.array("tokens", ids([*(record.caption for record in records), *negatives]))
    case.array("valid_mask5", np.array([[1, *record.valid] for record in records]))
    case.scalar("batch", len(records))
