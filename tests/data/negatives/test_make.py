"""From captions to files, with a report, through the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor

from crossmodal.commands import negatives as command
from crossmodal.data.captions import Caption
from crossmodal.data.negatives.make import ce_clip_records, negclip_rows
from crossmodal.data.negatives.records import read_records
from crossmodal.data.negatives.rules import RuleTagger
from crossmodal.data.negatives.table import read_table
from crossmodal.errors import ConfigError, DataError

from .test_ce_clip import numbered
from .words import CAPTIONS, masked_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "captions.tsv"
    path.write_text("".join(f"{i}.jpg\t{caption}\n" for i, caption in enumerate(CAPTIONS)))
    return path


def run(*words: Any) -> None:
    app = typer.Typer()
    app.command()(command.negatives)
    app([str(word) for word in words], standalone_mode=False)


def test_records_and_their_report() -> None:
    captions = [Caption(str(i), f"COCO_val2014_{i:012d}.jpg", sentence) for i, sentence in enumerate(CAPTIONS)]
    records, report = ce_clip_records(captions, RuleTagger(), numbered, seed=1)
    assert [(record.image, record.id) for record in records] == [(i, i) for i in range(5)]
    assert [record.caption for record in records] == CAPTIONS
    counts = {kind: sum(record.valid[i] for record in records) for i, kind in enumerate(report.types)}
    assert {kind: report.made[kind] for kind in report.types} == counts
    said = str(report).splitlines()
    assert said[0] == "5 captions, tagged by the built-in word lists and rules"
    assert said[1].startswith(f"  relation: {counts['relation']} made (")
    assert sum(" -> " in line for line in said) == sum(min(3, count) for count in counts.values())
    assert records == ce_clip_records(captions, RuleTagger(), numbered, seed=1)[0]


def test_rows_are_the_first_captions_of_images_that_have_wrong_ones() -> None:
    pairs = [("a.jpg", CAPTIONS[4]), ("a.jpg", CAPTIONS[3]), ("b.jpg", "A horse."), ("c.jpg", CAPTIONS[0])]
    captions = [Caption(str(i), image, sentence) for i, (image, sentence) in enumerate(pairs)]
    rows, report = negclip_rows(captions, RuleTagger())
    assert [row.image for row in rows] == ["a.jpg", "c.jpg"] and report.captions == 3
    assert all(row.negatives and row.caption not in row.negatives for row in rows)


@pytest.mark.parametrize("name", ["out.jsonl", "out"])
def test_the_command_writes_records(
    source: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = masked_model(tmp_path / "bert")
    run(source, "-o", tmp_path / name, "--fill", model, "--tagger", "rules", "--seed", 3)
    records = read_records(tmp_path / name)
    assert [record.caption for record in records] == CAPTIONS and records[0].image == "0.jpg"
    assert "5 captions, tagged by the built-in word lists and rules" in capsys.readouterr().out
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["types"]["noun"]["made"] == sum(record.valid[2] for record in records) > 0


def test_the_command_writes_a_table_with_hard_images(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vectors(checkpoint: Path, files: list[Path], device: str) -> Tensor:
        assert all(file.parent == tmp_path / "images" for file in files)
        return torch.nn.functional.normalize(torch.arange(1.0, len(files) + 1)[:, None] + torch.eye(len(files)), dim=1)

    monkeypatch.setattr(command, "_vectors", vectors)
    out = tmp_path / "out.tsv"
    options = ("--like", "negclip", "--checkpoint", tmp_path, "--images", tmp_path / "images", "--hard", 2)
    run(source, "-o", out, *options)
    table = read_table(out)
    assert len(table) == 4 and all(len(row.hard) == 2 for row in table)
    run(source, "-o", out, "--like", "negclip")
    assert all(row.hard == () for row in read_table(out))


def test_a_table_with_a_header_is_read_as_recipes_read_it(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "title"])
        rows.writerows((f"{i}.jpg", caption) for i, caption in enumerate(CAPTIONS))
    found = []
    for given, out in ((source, tmp_path / "a.tsv"), (table, tmp_path / "b.tsv")):
        run(given, "-o", out, "--like", "negclip", "--tagger", "rules")
        found.append(list(read_table(out)))
    assert found[0] == found[1] and len(found[0]) == 4
    with pytest.raises(ConfigError, match="split does not go with"):
        run(table, "-o", tmp_path / "a.tsv", "--like", "negclip", "--split", "train")


@pytest.mark.parametrize(
    ("rows", "said"), [("", "holds no captions"), ("a.jpg,A cat,7\nb.jpg,A dog,7\n", "2 captions with the id '7'")]
)
def test_a_table_without_captions_or_with_double_ids_is_refused(tmp_path: Path, rows: str, said: str) -> None:
    table, out = tmp_path / "captions.csv", tmp_path / "a.tsv"
    table.write_text("filepath,title,id\n" + rows)
    with pytest.raises(DataError, match=said):
        run(table, "-o", out, "--like", "negclip", "--tagger", "rules")
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "a.tsv"], "--like negclip writes a .tsv"),
        (["-o", "a.jsonl", "--like", "negclip"], "--like negclip writes a .tsv"),
        (["-o", "a.jsonl"], "give its folder with --fill"),
        (["-o", "a.tsv", "--like", "negclip", "--images", "x"], "need both --checkpoint and --images"),
    ],
)
def test_what_does_not_go_together_is_refused(source: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(source, *words)
