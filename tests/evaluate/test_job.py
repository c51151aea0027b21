"""Scoring a corpus as a job that can be stopped and taken up again, on a real model and databases."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crossmodal.data.corpus import Corpus, Part, open_corpus
from crossmodal.data.items import RegionItem, TextItem
from crossmodal.errors import DataError
from crossmodal.evaluate.job import ScoringJob, share
from crossmodal.evaluate.ranks import ranks
from crossmodal.evaluate.recall import recall
from crossmodal.evaluate.results import save_results
from crossmodal.evaluate.retrieval import fixed_gallery_recall, score_corpus
from crossmodal.evaluate.scored import Scored
from crossmodal.model.base import Model
from crossmodal.model.checkpoints import load

TOKENS = 60


class Stop(Exception):
    """What a progress callback raises to end the scoring."""


def stop_after(tiles: int) -> Callable[[int], None]:
    seen: list[int] = []

    def progress(pairs: int) -> None:
        seen.append(pairs)
        if len(seen) == tiles:
            raise Stop

    return progress


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    return load(trained)


@pytest.fixture
def corpus(tiny_world: Path) -> Corpus:
    return open_corpus([str(tiny_world / "texts" / "test.db")], [str(tiny_world / "regions" / "test")])


def open_subset(world: Path) -> Corpus:
    """The same without the longest captions."""
    texts, images = ([str(world / kind)] for kind in ("texts/test.db", "regions/test"))
    return open_corpus(texts, images, max_text=max(open_corpus(texts, images).parts[0].texts.lengths.values()) - 1)


def job(model: Model, corpus: Corpus, output: Path | None = None, **options: Any) -> ScoringJob:
    return ScoringJob(model, corpus, **{"tokens": TOKENS, "output": output, **options})


def save(folder: Path, scored: Scored) -> None:
    ranked = ranks(scored.scores, scored.image_of)
    args = scored.scores, scored.text_ids, scored.image_ids, ranked, recall(ranked), {}
    save_results(folder, *args, key=scored.key)


def test_every_score_is_that_of_its_pair_alone(model: Model, corpus: Corpus) -> None:
    scored = score_corpus(model, corpus, tokens=TOKENS)
    part = corpus.parts[0]
    for row in (0, 7, 23):
        text = scored.text_ids[row]
        assert scored.image_ids[int(scored.image_of[row])] == part.texts.image_of[text]
        for column in (0, 5):
            alone = model.score(part.text(text), part.image(scored.image_ids[column]))
            assert float(scored.scores[row, column]) == pytest.approx(alone, abs=1e-6)


def test_each_item_is_read_once(model: Model, corpus: Corpus, tmp_path: Path) -> None:
    read: Counter[str] = Counter()

    class Watched(Part):
        def text(self, key: str) -> TextItem:
            read[key] += 1
            return super().text(key)

        def image(self, key: str) -> RegionItem:
            read[key] += 1
            return super().image(key)

    part = corpus.parts[0]
    watched = Corpus([Watched(part.texts, part.regions)])
    job(model, watched, tmp_path).run()
    assert read == dict.fromkeys([*part.texts.ids, *part.texts.images], 1)


@pytest.mark.parametrize("tiles", [1, 5, 40])
def test_a_stopped_job_is_taken_up_and_gives_the_same_bits(
    tiles: int, model: Model, corpus: Corpus, tmp_path: Path
) -> None:
    whole = job(model, corpus).run()
    first = job(model, corpus, tmp_path)
    with pytest.raises(Stop):
        first.run(stop_after(tiles))
    again = job(model, corpus, tmp_path)
    assert again.kept == int(first.plan.pairs()[:tiles].sum())
    assert again.kept + again.rest == again.pairs == 24 * 8
    scored: list[int] = []
    found = again.run(scored.append)
    assert sum(scored) == again.rest and len(scored) == len(first.plan) - tiles
    assert torch.equal(found.scores, whole.scores)
    assert found.key == first.key == again.key is not None
    assert job(model, corpus, tmp_path).rest == 0  # until the results are saved, the journal keeps everything


def test_finished_scores_serve_a_later_job_without_its_journal(model: Model, corpus: Corpus, tmp_path: Path) -> None:
    first = job(model, corpus, tmp_path)
    scored = first.run()
    save(tmp_path, scored)
    first.forget()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranks.npz", "results.json", "scores.npz"]
    again = job(model, corpus, tmp_path)
    assert (again.kept, again.rest) == (again.pairs, 0)
    assert torch.equal(again.run().scores, scored.scores)
    assert not (tmp_path / "journal").exists()
    path = tmp_path / "scores.npz"
    content = bytearray(path.read_bytes())
    content[content.index(scored.scores.numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    assert job(model, corpus, tmp_path).kept == 0


def test_other_weights_data_tokens_or_scores_have_another_key(
    model: Model, corpus: Corpus, tiny_world: Path, trained: Path, tmp_path: Path
) -> None:
    keys = [job(model, corpus, tmp_path).key, job(model, corpus, tmp_path, tokens=2 * TOKENS).key]
    other = load(trained)
    with torch.no_grad():
        next(iter(other.parameters()))[-1, -1] += 1e-6
    keys.append(job(other, corpus, tmp_path).key)
    keys.append(job(load(trained).double(), corpus, tmp_path).key)
    keys.append(job(model, open_subset(tiny_world), tmp_path).key)
    part = corpus.parts[0]

    class Edited(Part):
        def image(self, key: str) -> RegionItem:
            item = super().image(key)
            if key == self.texts.images[3]:
                item.features[0, 0] += 0.01
            return item

    keys.append(job(model, Corpus([Edited(part.texts, part.regions)]), tmp_path).key)
    assert len(set(keys)) == len(keys)
    moved = Path(shutil.copytree(tiny_world, tmp_path / "moved"))
    there = open_corpus([str(moved / "texts" / "test.db")], [str(moved / "regions" / "test")])
    assert job(load(trained), there, tmp_path).key == keys[0]


def test_a_journal_of_another_key_is_not_used_and_said(model: Model, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        job(model, corpus, tmp_path, tokens=100).run(stop_after(3))
    other = job(model, corpus, tmp_path)
    assert other.kept == 0 and other.starts_anew
    with pytest.raises(Stop):
        other.run(stop_after(2))
    assert job(model, corpus, tmp_path, tokens=100).kept > 0  # both are kept until one is finished


def test_a_score_that_is_not_a_number_is_refused_by_name(model: Model, corpus: Corpus, tmp_path: Path) -> None:
    part = corpus.parts[0]
    lost = part.texts.images[2]

    class Broken(Part):
        def image(self, key: str) -> RegionItem:
            item = super().image(key)
            if key == lost:
                item.features[:] = float("nan")
            return item

    broken = job(model, Corpus([Broken(part.texts, part.regions)]), tmp_path)
    with pytest.raises(DataError, match=rf"the score of caption test_\d\d_\d with image {lost} is NaN"):
        broken.run()
    kept = job(model, Corpus([Broken(part.texts, part.regions)]), tmp_path)
    assert not kept._scores.isnan().any()


def test_the_probe_estimates_the_rest(model: Model, corpus: Corpus, tmp_path: Path) -> None:
    before = job(model, corpus, tmp_path)
    assert before.estimate() > 0
    with pytest.raises(Stop):
        before.run(stop_after(10))
    after = job(model, corpus, tmp_path)
    assert after.estimate() > 0
    found = after.run()
    assert torch.equal(found.scores, job(model, corpus).run().scores)  # the probe leaves nothing behind
    assert job(model, corpus, tmp_path).estimate() == 0


def test_progress_counts_the_pairs_and_may_end_the_scoring(model: Model, corpus: Corpus) -> None:
    seen: list[int] = []
    score_corpus(model, corpus, tokens=TOKENS, progress=seen.append)
    assert sum(seen) == 24 * 8 and len(seen) > 10
    with pytest.raises(Stop):
        score_corpus(model, corpus, tokens=TOKENS, progress=stop_after(2))
    seen.clear()
    fixed_gallery_recall(model, corpus, 4, tokens=TOKENS, progress=seen.append)
    assert sum(seen) == 24 * 4
    with pytest.raises(Stop):
        fixed_gallery_recall(model, corpus, 4, tokens=TOKENS, progress=stop_after(2))


def test_an_empty_corpus_is_refused(model: Model) -> None:
    with pytest.raises(DataError, match="holds no captions after its filters"):
        score_corpus(model, Corpus([]))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ranks_share_the_work_by_cost(size: int) -> None:
    costs = torch.randint(1, 100, (50,), generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(50)[::2]
    parts = share(costs, numbers, size)
    assert torch.equal(torch.cat(parts), numbers)
    spent = [int(costs[part].sum()) for part in parts]
    assert max(spent) - min(spent) <= 2 * int(costs.max())


def test_fewer_tiles_than_ranks_leave_some_without_work() -> None:
    assert [len(part) for part in share(torch.tensor([5, 5]), torch.arange(2), 2)] == [1, 1]
    assert sum(len(part) for part in share(torch.tensor([5, 5]), torch.arange(2), 4)) == 2
    assert [len(part) for part in share(torch.tensor([5]), torch.arange(0), 3)] == [0, 0, 0]


def test_scores_of_the_same_model_in_training_mode(model: Model, corpus: Corpus) -> None:
    expected = job(model, corpus).run().scores
    model.train()
    try:
        assert torch.equal(job(model, corpus).run().scores, expected)
        assert model.training
    finally:
        model.eval()
