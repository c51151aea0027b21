"""NDCG of a corpus, whose images stand in evaluation order while relevances stand in the order of the files."""

from __future__ import annotations

import math
from pathlib import Path

import lmdb
import pytest
import torch
from torch import Tensor

from crossmodal.data.corpus import Corpus, open_corpus
from crossmodal.data.text_writer import Caption, write_text_db
from crossmodal.data.texts import decode_record, encode_record
from crossmodal.data.tokenizers import load_tokenizer
from crossmodal.errors import ConfigError, DataError
from crossmodal.evaluate.ndcg import write_relevances
from crossmodal.evaluate.relevances import file_order, ndcg_of_corpus, open_relevances
from crossmodal.evaluate.rouge import rouge_l
from crossmodal.evaluate.scored import Scored


@pytest.fixture(scope="module")
def corpus(tiny_world: Path) -> Corpus:
    return open_corpus([str(tiny_world / "texts" / "test.db")], [str(tiny_world / "regions" / "test")])


def scored(corpus: Corpus, seed: int = 0) -> Scored:
    scores = torch.rand(len(corpus), len(corpus.image_keys), generator=torch.Generator().manual_seed(seed))
    texts, images = [key for _, key in corpus.anchors], [key for _, key in corpus.image_keys]
    return Scored(scores, texts, images, corpus.image_of_texts())


def dcg(gains: list[float]) -> float:
    return sum((2**gain - 1) / math.log2(k + 2) for k, gain in enumerate(gains))


def naive(scores: dict[tuple[str, str], float], relevance: dict[tuple[str, str], float], folds: list[list[str]],
          captions: dict[str, list[str]]) -> tuple[float, float]:  # fmt: skip
    """Means over folds of the means over captions and over images, by their names; fewer than 25 items are ranked."""
    image: list[float] = []
    text: list[float] = []
    for images in folds:
        names = [name for one in images for name in captions[one]]
        rows = [[(scores[t, i], relevance[t, i]) for i in images] for t in names]
        columns = [[(scores[t, i], relevance[t, i]) for t in names] for i in images]
        for queries, means in ((rows, image), (columns, text)):
            values = []
            for query in queries:
                found = [gain for _, gain in sorted(query, reverse=True)]
                values.append(dcg(found[:25]) / dcg(sorted(found, reverse=True)[:25]))
            means.append(sum(values) / len(values))
    return sum(image) / len(folds), sum(text) / len(folds)


@pytest.mark.parametrize("folds", [1, 2, 4])
def test_the_value_of_loops_over_names(corpus: Corpus, tmp_path: Path, folds: int) -> None:
    texts = corpus.parts[0].texts
    assert file_order(corpus) != list(range(len(corpus.image_keys)))  # else this would show nothing
    of_files = torch.rand(len(corpus), len(texts.images), generator=torch.Generator().manual_seed(1))
    write_relevances(tmp_path / "tiny-test-spice.npy", of_files)
    relevances = open_relevances([str(tmp_path / "tiny-test-spice.npy")], corpus, tmp_path)
    found = scored(corpus)
    metrics = ndcg_of_corpus(found, relevances, corpus, folds=folds)

    def by_name(matrix: Tensor, images: list[str]) -> dict[tuple[str, str], float]:
        return {(t, i): float(matrix[a, b]) for a, t in enumerate(texts.ids) for b, i in enumerate(images)}

    size = len(texts.images) // folds
    cut = [list(texts.images[k * size : (k + 1) * size]) for k in range(folds)]
    captions = {image: list(names) for image, names in texts.texts_of.items()}
    expected = naive(by_name(found.scores, found.image_ids), by_name(of_files, list(texts.images)), cut, captions)
    assert (metrics["img_ndcg_spice"], metrics["txt_ndcg_spice"]) == pytest.approx(expected)


def test_rouge_is_computed_from_the_captions_and_kept(corpus: Corpus, tmp_path: Path) -> None:
    relevance = open_relevances(["rougeL"], corpus, tmp_path / "cache")["rougeL"]
    texts = corpus.parts[0].texts
    sentences = {key: str(texts[key].sentence) for key in texts.ids}
    for row, key in enumerate(texts.ids):
        for column, image in enumerate(texts.images):
            references = [sentences[other] for other in texts.texts_of[image]]
            assert float(relevance[row, column]) == pytest.approx(rouge_l(sentences[key], references), abs=1e-6)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(torch.zeros(relevance.shape).numpy().tobytes())
    assert not open_relevances(["rougeL"], corpus, tmp_path / "cache")["rougeL"].any()


def test_the_best_order_has_1(corpus: Corpus, tmp_path: Path) -> None:
    relevances = open_relevances(["rougeL"], corpus, tmp_path)
    found = scored(corpus)
    found.scores[:, file_order(corpus)] = relevances["rougeL"]
    assert ndcg_of_corpus(found, relevances, corpus) == pytest.approx({"img_ndcg_rougeL": 1, "txt_ndcg_rougeL": 1})
    assert ndcg_of_corpus(found, {}, corpus) == {}


def test_mistakes(corpus: Corpus, tmp_path: Path) -> None:
    for name in ("a-test-spice.npy", "b-test-spice.npy"):
        write_relevances(tmp_path / name, torch.zeros(len(corpus), len(corpus.image_keys)))
    both = [str(tmp_path / "a-test-spice.npy"), str(tmp_path / "b-test-spice.npy")]
    with pytest.raises(ConfigError, match=r"b-test-spice.npy: another one is called spice too; give one of them"):
        open_relevances(both, corpus, tmp_path)
    write_relevances(tmp_path / "small.npy", torch.zeros(3, 4))
    with pytest.raises(DataError, match=r"small.npy has 48 bytes, and 24 captions times 8 images of raw float32"):
        open_relevances([str(tmp_path / "small.npy")], corpus, tmp_path)
    with pytest.raises(DataError, match=r"none.npy cannot be read"):
        open_relevances([str(tmp_path / "none.npy")], corpus, tmp_path)


def test_captions_without_sentences(tiny_world: Path, corpus: Corpus, tmp_path: Path) -> None:
    image, tokenizer = corpus.parts[0].texts.images[0], load_tokenizer(tiny_world / "texts" / "test.db")
    write_text_db([Caption("one", image, "a red dog")], tmp_path / "texts.db", tokenizer)
    leave_word_pieces(tmp_path / "texts.db")
    bare = open_corpus([str(tmp_path / "texts.db")], [str(tiny_world / "regions" / "test")])
    with pytest.raises(DataError, match=r"caption 'one' of .* is kept without its sentence, and rougeL compares words"):
        open_relevances(["rougeL"], bare, tmp_path)


def leave_word_pieces(folder: Path) -> None:
    """Take away the sentences, which published text databases may lack."""
    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        for key, value in list(transaction.cursor()):
            record = {name: decode_record(value)[name] for name in ("input_ids", "img_fname")}
            transaction.put(key, encode_record(record))
