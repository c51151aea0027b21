"""Results on disk and as text."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from crossmodal.errors import DataError
from crossmodal.evaluate.bootstrap import bootstrap
from crossmodal.evaluate.recall import chance, ranks, recall
from crossmodal.evaluate.results import (
    load_results,
    published_lines,
    results_table,
    save_results,
    stored_key,
    stored_scores,
)
from crossmodal.files import write_whole

TEXTS = ["t0", "t1", "t2", "naïve"]
IMAGES = ["a.npz", "b.npz"]
IMAGE_OF = [0, 0, 1, 1]
SCORES = torch.tensor([[0.9, 0.1], [0.2, 0.2], [0.3, 0.4], [0.8, 0.6]], dtype=torch.float64)


def _save(folder: Path, key: str | None = None) -> Path:
    ranked = ranks(SCORES, IMAGE_OF)
    return save_results(
        folder,
        SCORES,
        TEXTS,
        IMAGES,
        ranked,
        recall(ranked),
        {"checkpoint": "runs/1/best", "folds": 1},
        intervals=bootstrap(ranked),
        chance=chance(IMAGE_OF, 2),
        key=key,
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    loaded = load_results(_save(tmp_path / "new" / "results"))
    ranked = ranks(SCORES, IMAGE_OF)
    assert loaded.scores.dtype == torch.float32
    assert torch.equal(loaded.scores, SCORES.float())
    assert (loaded.text_ids, loaded.image_ids) == (TEXTS, IMAGES)
    assert torch.equal(loaded.ranks.image, ranked.image) and torch.equal(loaded.ranks.text, ranked.text)
    assert torch.equal(loaded.ranks.image_ties, ranked.image_ties) and loaded.ranks.ties == "average"
    assert loaded.metrics == recall(ranked)
    assert loaded.settings == {"checkpoint": "runs/1/best", "folds": 1}
    assert loaded.intervals == bootstrap(ranked)
    assert loaded.chance == chance(IMAGE_OF, 2)


def test_no_file_needs_pickle_and_none_is_left_over(tmp_path: Path) -> None:
    folder = _save(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["ranks.npz", "results.json", "scores.npz"]
    for name in ("scores.npz", "ranks.npz"):
        with np.load(folder / name, allow_pickle=False) as file:
            assert all(file[key].dtype != object for key in file.files)
    assert json.loads((folder / "results.json").read_text())["ties"] == "average"


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete results"):
        load_results(tmp_path)
    folder = _save(tmp_path)
    (folder / "ranks.npz").write_bytes((folder / "ranks.npz").read_bytes()[:50])
    with pytest.raises(DataError, match="run the test again"):
        load_results(folder)


def test_scores_are_found_by_their_key(tmp_path: Path) -> None:
    assert stored_scores(tmp_path, "a") is None and stored_key(tmp_path) is None
    _save(tmp_path, "a")
    found = stored_scores(tmp_path, "a")
    assert found is not None and torch.equal(found, SCORES.float())
    assert stored_scores(tmp_path, "b") is None and stored_key(tmp_path) == "a"
    (tmp_path / "results.json").unlink()  # killed before it was written
    assert stored_scores(tmp_path, "a") is not None and stored_key(tmp_path) is None
    _save(tmp_path)
    assert stored_scores(tmp_path, "a") is None and stored_key(tmp_path) is None
    (tmp_path / "scores.npz").write_bytes((tmp_path / "scores.npz").read_bytes()[:200])
    (tmp_path / "results.json").write_text("[1]")
    assert stored_scores(tmp_path, "a") is None and stored_key(tmp_path) is None


@pytest.mark.parametrize("file", ["scores.npz", "ranks.npz", "results.json"])
def test_files_of_two_evaluations_are_refused(file: str, tmp_path: Path) -> None:
    mine = _save(tmp_path / "mine", "a")
    assert load_results(mine).metrics
    ranked = ranks(SCORES[:3], IMAGE_OF[:3])
    other = save_results(tmp_path / "other", SCORES[:3], TEXTS[:3], IMAGES, ranked, recall(ranked), {}, key="b")
    (mine / file).write_bytes((other / file).read_bytes())
    with pytest.raises(DataError, match="belong to different evaluations"):
        load_results(mine)


def test_scores_of_another_run_of_the_same_shape_are_refused(tmp_path: Path) -> None:
    mine, other = _save(tmp_path / "mine", "a"), _save(tmp_path / "other", "b")
    (mine / "scores.npz").write_bytes((other / "scores.npz").read_bytes())
    with pytest.raises(DataError, match="belong to different evaluations"):
        load_results(mine)


def test_ids_must_fit(tmp_path: Path) -> None:
    ranked = ranks(SCORES, IMAGE_OF)
    with pytest.raises(DataError, match="one id for each row"):
        save_results(tmp_path, SCORES, TEXTS[:3], IMAGES, ranked, recall(ranked), {})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "x", lambda temporary: temporary.write_bytes(b"old"))
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_published_lines() -> None:
    metrics = recall(ranks(SCORES, IMAGE_OF, ties="optimistic"))
    assert published_lines(metrics).splitlines() == [
        "image retrieval R1: 75.00",
        "image retrieval R5: 100.00",
        "image retrieval R10: 100.00",
        "text retrieval R1: 100.00",
        "text retrieval R5: 100.00",
        "text retrieval R10: 100.00",
    ]


def test_published_lines_of_aladin() -> None:
    metrics = recall(ranks(SCORES, IMAGE_OF, ties="optimistic"))
    assert published_lines(metrics, "aladin", "matching").splitlines() == [
        "Recall Image to text: 100.00, 100.00, 100.00",
        "Recall Text to image: 75.00, 100.00, 100.00",
        "Sum score: 575.00",
    ]
    more = {"img_ndcg_rougeL": 0.25, "txt_ndcg_rougeL": 0.5, "img_ndcg_spice": 0.125, "txt_ndcg_spice": 1.0}
    assert published_lines(metrics | {"img_median_rank": 1.5} | more, "aladin", "alignment").splitlines() == [
        "Image to text: 100.0, 100.0, 100.0, 1.0, 1.0, ndcg_rouge=0.5000, ndcg_spice=1.0000",
        "Text to image: 75.0, 100.0, 100.0, 1.0, 1.2, ndcg_rouge=0.2500, ndcg_spice=0.1250",
        "Alignment head rsum: 575.00",
    ]
    assert (
        published_lines(metrics, "aladin", "alignment").splitlines()[0]
        == "Image to text: 100.0, 100.0, 100.0, 1.0, 1.0"
    )


def test_table_lines_up() -> None:
    ranked = ranks(SCORES, IMAGE_OF)
    text = results_table(recall(ranked), chance=chance(IMAGE_OF, 2), intervals=bootstrap(ranked))
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["retrieval", "R@1", "R@5", "R@10"]
    assert [line.split()[0] for line in lines[2:-1]] == ["image", "interval", "chance", "text", "interval", "chance"]
    end = lines[0].index("R@5") + len("R@5")
    assert lines[2][:end].endswith(" 100.00") and lines[5][:end].endswith(" 100.00")
    assert lines[-1].startswith("mean of both directions: ") and "rsum: " in lines[-1]
    assert "interval" not in results_table(recall(ranked))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
