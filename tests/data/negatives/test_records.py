"""CE-CLIP's records: written and read, as published and as JSON lines."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossmodal.data.negatives import records as module
from crossmodal.data.negatives.records import CeRecord, coco_image, read_records, write_records
from crossmodal.errors import DataError

RECORDS = [
    CeRecord(476220, 314, "An empty kitchen.", ("###", "An interior kitchen.", "An empty room.", "###"), (0, 1, 1, 0)),
    CeRecord("cc3m/1.jpg", "b", "Ein Bär\nläuft", ("x", "y", "z", "###"), (1, 1, 1, 0)),
    CeRecord(9, 2, "dogs", ("###",) * 4, (0,) * 4),
]


@pytest.mark.parametrize("name", ["a.jsonl", "folder"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    assert read_records(write_records(RECORDS, tmp_path / name)) == RECORDS


def test_folders_are_cut_and_read_in_the_order_of_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 1)
    many = [RECORDS[0], *RECORDS] * 3
    folder = write_records(many, tmp_path / "out")
    assert len(list(folder.iterdir())) == 12 and (folder / "processed_dataset11.npy").exists()
    assert read_records(folder) == many


def test_published_files_are_read(tmp_path: Path) -> None:
    """As `numpy.save` writes a list of dicts, which is what the published code does."""
    np.save(tmp_path / "a.npy", [record.published() for record in RECORDS])
    assert read_records(tmp_path / "a.npy") == RECORDS
    old = [record.published() for record in RECORDS[:1]]
    assert list(old[0]) == ["image_id", "id", "caption", *module.KEYS, "valid_caption"]
    assert old[0]["valid_caption"] == [1, 0, 1, 1, 0]


def test_images() -> None:
    assert RECORDS[0].image_file("train2014") == "train2014/COCO_train2014_000000476220.jpg"
    assert RECORDS[1].image_file("train2014") == "cc3m/1.jpg"
    assert coco_image("COCO_train2014_000000000009.jpg") == 9 and coco_image("1000092795.jpg") == "1000092795.jpg"


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"caption": "a"}], "record 0 of .* is no record of wrong captions .it has no 'image_path'"),
        ([{**RECORDS[0].published(), "valid_caption": [1, 2, 1, 1, 0]}], "other things than sentences"),
        ([{**RECORDS[0].published(), "caption": 3}], "other things than sentences"),
        ([Malicious()], "builtins.print, which is no data, and was not run"),
        ([1.0, 2.0], "holds an array of float64 of shape"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, said: str) -> None:
    kind = None if isinstance(content[0], float) else object
    np.save(tmp_path / "a.npy", np.array(content, dtype=kind))
    with pytest.raises(DataError, match=said):
        read_records(tmp_path / "a.npy")
    assert "run" not in capsys.readouterr().out


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = write_records(RECORDS, tmp_path / "out") / "processed_dataset0.npy"
    content = whole.read_bytes()
    for number, damaged in enumerate((content[:200], content[:-9], b"", pickle.dumps(RECORDS[0].published()))):
        (tmp_path / f"{number}.npy").write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            read_records(tmp_path / f"{number}.npy")
    (tmp_path / "a.jsonl").write_text('{"image_id": 1\n')
    with pytest.raises(DataError, match=r"line 1 of .* is not JSON"):
        read_records(tmp_path / "a.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no records"):
        read_records(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_records(tmp_path / "none.jsonl")
