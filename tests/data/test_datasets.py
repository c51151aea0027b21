from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossmodal.data.batches import Batch, Regions, Texts
from crossmodal.data.captions import Caption
from crossmodal.data.corpus import Corpus, open_corpus
from crossmodal.data.datasets import DATASETS, MaskedWords, Matched, Pools, Triples, hide_words
from crossmodal.data.processors import UniterProcessor
from crossmodal.data.region_writer import write_region_db
from crossmodal.data.samplers import keyed_random
from crossmodal.data.text_writer import write_text_db
from crossmodal.data.tokenizers import Tokenizer, train_tokenizer
from crossmodal.errors import ConfigError, DataError

WORDS = ["red", "blue", "ball", "cube", "left", "right", "of", "small", "large", "ring"]
LONGEST = 7  # word pieces
ANCHORS = 40  # of the corpus; there are some more
DRAWN = sorted(DATASETS.keys() - {"matched", "matched_negatives", "hard_images"})  # these have no pairs

# Reading the same few databases for every example is what is wanted here.
checked = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def captions(part: int, images: int) -> Iterator[Caption]:
    """1 to 5 captions an image of 1 to 9 words; ids and image names are the same in every part."""
    generator = np.random.default_rng(part)
    for v in range(images):
        for c in range(1 + (v + part) % 5):
            words = generator.choice(WORDS, size=generator.integers(1, 10)).tolist()
            yield Caption(id=f"{v}_{c}", sentence=" ".join(words), image=f"{v}.npz")


def records(part: int, images: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Features hold the part and the image's number, so that a batch shows where its regions come from."""
    for v in range(images):
        rows = 10 + v % 3
        features = np.full((rows, 2), [part, v], np.float16)
        yield f"{v}.npz", {"norm_bb": np.zeros((rows, 6), np.float16), "features": features, "conf": np.ones((rows, 1))}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(WORDS, 100)


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two databases, with images without captions; captions over LONGEST are left out."""
    folder = tmp_path_factory.mktemp("corpus")
    texts, images = [], []
    for part, count in enumerate((12, 9)):
        texts.append(str(write_text_db(captions(part, count), folder / f"texts_{part}", tokenizer)))
        write_region_db(records(part, count + 3), folder / f"regions_{part}")
        images.append(str(folder / f"regions_{part}"))
    found = open_corpus(texts, images, max_text=LONGEST)
    assert all(0 < len(part.texts) < len(part.texts.lengths) for part in found.parts) and len(found) >= ANCHORS
    return found


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer, corpus: Corpus) -> UniterProcessor:
    return UniterProcessor(
        cls=tokenizer.cls,
        sep=tokenizer.sep,
        mask=tokenizer.mask,
        v_range=tokenizer.v_range,
        img_dim=2,
        identity=tokenizer.identity,
        tokenizer=tokenizer,
    )


anchor_lists = st.lists(st.integers(0, ANCHORS - 1), min_size=1, max_size=4, unique=True)
keys = st.tuples(st.integers(0, 3), st.integers(0, 3))  # seed, epoch


def parts_of(batch: Batch) -> tuple[Texts, Regions]:
    text, image = batch.roles["text"][1], batch.roles["image"][1]
    assert isinstance(text, Texts) and isinstance(image, Regions)
    return text, image


def groups(batch: Batch) -> list[list[tuple[str, int, str, list[int]]]]:
    """The pairs of each group: caption id, database of the image, image id, the caption's tokens."""
    text, image = parts_of(batch)
    assert batch.pairs is not None
    pairs = []
    for i, j in batch.pairs.tolist():
        database, number = image.features[j, 0].tolist()
        assert batch.ids["image"][j] == f"{int(number)}.npz"
        pairs.append((batch.ids["text"][i], int(database), batch.ids["image"][j], text.input_ids[i].tolist()))
    for pair in pairs:
        while pair[3][-1] == 0:
            pair[3].pop()
    return [pairs[i : i + batch.group] for i in range(0, len(pairs), batch.group)]


def tokens(corpus: Corpus, processor: UniterProcessor, part: int, caption: str) -> list[int]:
    return [processor.cls, *corpus.parts[part].texts[caption].input_ids, processor.sep]


@checked
@given(anchor_lists, keys, st.sampled_from(["text", "image"]), st.integers(2, 6))
def test_pools_hold_the_matched_pair_and_then_different_wrong_ones_of_the_anchors_own_database(
    corpus: Corpus, processor: UniterProcessor, anchors: list[int], key: tuple[int, int], anchor: Any, size: int
) -> None:
    pools = Pools(corpus, processor, anchor=anchor, pool=size, seed=key[0], stream="s")
    batch = pools.batch(anchors, key[1])
    assert batch.group == size and batch.groups == len(anchors)
    assert batch.extras["matched"].tolist() == [[1] + [0] * (size - 1)] * len(anchors)
    for number, group in zip(anchors, groups(batch), strict=True):
        part, caption = corpus.anchors[number]
        texts = corpus.parts[part].texts
        image = texts.image_of[caption]
        assert group[0] == (caption, part, image, tokens(corpus, processor, part, caption))
        drawn_texts, drawn_images = {pair[0] for pair in group[1:]}, {pair[2] for pair in group[1:]}
        assert {pair[1] for pair in group} == {part}
        for pair in group:
            assert pair[3] == tokens(corpus, processor, part, pair[0])
        if anchor == "text":
            assert drawn_texts == {caption} and len(drawn_images) == size - 1
            assert drawn_images <= set(texts.images) - {image}
        else:
            assert drawn_images == {image} and len(drawn_texts) == size - 1
            assert drawn_texts <= set(texts.ids) - set(texts.texts_of[image])


@checked
@given(anchor_lists, keys, st.integers(1, 4))
def test_triples_are_the_matched_pair_then_wrong_images_then_wrong_captions(
    corpus: Corpus, processor: UniterProcessor, anchors: list[int], key: tuple[int, int], negatives: int
) -> None:
    triples = Triples(corpus, processor, negatives=negatives, seed=key[0], stream="s")
    batch = triples.batch(anchors, key[1])
    assert batch.group == 1 + 2 * negatives
    for number, (first, *others) in zip(anchors, groups(batch), strict=True):
        part, caption = corpus.anchors[number]
        texts = corpus.parts[part].texts
        image = texts.image_of[caption]
        assert first[:3] == (caption, part, image)
        wrong_images, wrong_texts = others[:negatives], others[negatives:]
        assert {pair[0] for pair in wrong_images} == {caption} and {pair[2] for pair in wrong_texts} == {image}
        assert {pair[1] for pair in others} == {part}
        drawn = {pair[2] for pair in wrong_images}
        assert len(drawn) == negatives and drawn <= set(texts.images) - {image}
        drawn = {pair[0] for pair in wrong_texts}
        assert len(drawn) == negatives and drawn <= set(texts.ids) - set(texts.texts_of[image])


@checked
@given(anchor_lists, keys, st.sampled_from(DRAWN), st.randoms(use_true_random=False))
def test_what_an_anchor_gets_depends_on_nothing_but_its_key(
    corpus: Corpus, processor: UniterProcessor, anchors: list[int], key: tuple[int, int], draw: str, random: Any
) -> None:
    options: dict[str, Any] = {"pool": 4} if draw == "pools" else {}
    dataset = DATASETS[draw](corpus, processor, seed=key[0], stream="s", **options)
    together = dict(zip(anchors, groups(dataset.batch(anchors, key[1])), strict=True))
    other_order = anchors.copy()
    random.shuffle(other_order)
    again = DATASETS[draw](corpus, processor, seed=key[0], stream="s", **options)
    again.batch([random.randrange(len(corpus))], key[1] + 1)  # a history of its own
    assert dict(zip(other_order, groups(again.batch(other_order, key[1])), strict=True)) == together
    for anchor in anchors:
        assert groups(again.batch([anchor], key[1])) == [together[anchor]]


@pytest.mark.parametrize("draw", DRAWN)
def test_seed_stream_and_epoch_each_change_the_draw(corpus: Corpus, processor: UniterProcessor, draw: str) -> None:
    options: dict[str, Any] = {"pool": 5} if draw == "pools" else {}
    anchors = range(20)

    def drawn(seed: int, stream: str, epoch: int) -> Any:
        return groups(DATASETS[draw](corpus, processor, seed=seed, stream=stream, **options).batch(anchors, epoch))

    first = drawn(0, "s", 0)
    assert drawn(0, "s", 0) == first
    for other in (drawn(1, "s", 0), drawn(0, "t", 0), drawn(0, "s", 1)):
        assert other != first
        assert [group[0][:3] for group in other] == [group[0][:3] for group in first]


@pytest.mark.parametrize(("anchor", "role"), [("text", "image"), ("image", "text")])
def test_over_the_epochs_every_other_item_of_the_database_is_drawn(
    corpus: Corpus, processor: UniterProcessor, anchor: Any, role: str
) -> None:
    pools = Pools(corpus, processor, anchor=anchor, pool=5)
    seen = {id for epoch in range(60) for id in pools.batch([0], epoch).ids[role]}
    part, caption = corpus.anchors[0]
    texts = corpus.parts[part].texts
    truth = {texts.image_of[caption]} if anchor == "text" else set(texts.texts_of[texts.image_of[caption]])
    own = {texts.image_of[caption]} if anchor == "text" else {caption}
    assert seen == (set(texts.images if anchor == "text" else texts.ids) - truth) | own


def test_an_item_stands_in_a_batch_once(corpus: Corpus, processor: UniterProcessor) -> None:
    batch = Pools(corpus, processor, pool=6).batch(range(len(corpus)), 0)
    text, image = parts_of(batch)
    assert len(text) == len(corpus)
    assert len(image) == sum(len(part.texts.images) for part in corpus.parts)


def test_a_pool_larger_than_the_database_is_refused(corpus: Corpus, processor: UniterProcessor) -> None:
    with pytest.raises(DataError, match="12 negatives cannot be drawn from 12 candidates"):
        Pools(corpus, processor, pool=13).batch([0], 0)


@checked
@given(anchor_lists, keys, st.sampled_from([0.0, 0.15, 0.5, 1.0]))
def test_masked_words_hides_words_alone_and_keeps_what_stood_there(
    corpus: Corpus, processor: UniterProcessor, anchors: list[int], key: tuple[int, int], probability: float
) -> None:
    dataset = MaskedWords(corpus, processor, probability=probability, seed=key[0])
    batch = dataset.batch(anchors, key[1])
    text, _ = parts_of(batch)
    assert batch.pairs is not None and batch.pairs[:, 0].tolist() == list(range(len(anchors)))
    masked, targets = batch.extras["masked_words"], batch.extras["word_targets"]
    original = torch.zeros_like(text.input_ids)
    for row, number in enumerate(anchors):
        stored = tokens(corpus, processor, *corpus.anchors[number])
        assert text.lengths[row] == len(stored)
        original[row, : len(stored)] = torch.tensor(stored)
        assert 1 <= masked[row].sum() <= len(stored) - 2
        assert not masked[row, 0] and not masked[row, len(stored) - 1 :].any()
    assert torch.equal(text.input_ids[~masked], original[~masked])
    assert torch.equal(targets, original[masked])
    if probability == 1:
        assert masked.sum() == (text.lengths - 2).sum()
    if probability == 0:
        assert masked[:, 1].all() and masked.sum() == len(anchors)
        assert (text.input_ids[:, 1] == processor.mask).all()


def test_of_the_chosen_words_80_percent_become_mask_10_percent_random_and_10_percent_stay(
    processor: UniterProcessor,
) -> None:
    length, rows = 202, 200
    word = processor.v_range[1] + 5  # no random word can be this one
    ids = torch.full((rows, length), word)
    masked = torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):
        hide_words(ids[row], masked[row], length, processor, 0.15, keyed_random((row,)))
    chosen = ids[masked]
    n = rows * (length - 2)

    def within(count: int, of: int, share: float) -> bool:
        """Five standard deviations of a binomial count; the draws are fixed by their keys."""
        return abs(count - of * share) <= 5 * (of * share * (1 - share)) ** 0.5

    assert within(int(masked.sum()), n, 0.15)
    assert within(int((chosen == processor.mask).sum()), len(chosen), 0.8)
    assert within(int((chosen == word).sum()), len(chosen), 0.1)
    random_words = chosen[(chosen != processor.mask) & (chosen != word)]
    low, high = processor.v_range
    assert random_words.min() == low and random_words.max() == high - 1
    assert len(random_words.unique()) == high - low


def test_a_caption_without_words_has_nothing_to_hide(processor: UniterProcessor) -> None:
    ids, masked = torch.tensor([processor.cls, processor.sep]), torch.zeros(2, dtype=torch.bool)
    hide_words(ids, masked, 2, processor, 1.0, keyed_random((0,)))
    assert ids.tolist() == [processor.cls, processor.sep] and not masked.any()


def test_the_published_wrong_index_counts_from_the_last_caption_of_the_pool(
    corpus: Corpus, processor: UniterProcessor
) -> None:
    pools = Pools(corpus, processor, anchor="image", pool=5, published_defect="last_text_offset")
    batch = pools.batch([3], 0)
    index = batch.extras["joint_index"]
    n_text, n_image = (lengths.tolist() for lengths in batch.pair_lengths())
    assert index.shape == (5, max(t + v for t, v in zip(n_text, n_image, strict=True)))
    for row, t, v in zip(index.tolist(), n_text, n_image, strict=True):
        expected = [*range(t), *range(n_text[-1], n_text[-1] + v)]
        assert row == expected + [-1] * (index.shape[1] - len(expected))
    with pytest.raises(ConfigError, match="one pool at a time"):
        pools.batch([3, 4], 0)


def test_what_does_not_join_is_named(corpus: Corpus, tmp_path: Path) -> None:
    texts = corpus.parts[0].texts
    write_region_db(records(0, 7), tmp_path)
    missing = "7.npz, 8.npz, 9.npz"
    with pytest.raises(DataError, match=rf"5 of 12 images named by the captions in .*texts_0 .* \(first: {missing}\)"):
        open_corpus([str(texts.path)], [str(tmp_path)])


def test_a_corpus_without_captions_is_refused(corpus: Corpus) -> None:
    texts, regions = corpus.parts[0].texts, corpus.parts[0].regions
    with pytest.raises(DataError, match=r"no caption of .*texts_0 can be used \(the shortest has \d+ word pieces"):
        open_corpus([str(texts.path)], [str(regions.path.parent)], max_text=0)


@checked
@given(anchor_lists)
def test_matched_items_stand_in_the_same_rows_of_both_roles_and_for_every_teacher(
    corpus: Corpus, processor: UniterProcessor, anchors: list[int]
) -> None:
    batch = Matched(corpus, processor, teachers={"joint": processor}).batch(anchors, 0)
    assert batch.pairs is None and batch.groups == len(anchors)
    for row, anchor in enumerate(anchors):
        part, caption = corpus.anchors[anchor]
        image = corpus.parts[part].texts.image_of[caption]
        assert (batch.ids["text"][row], batch.ids["image"][row]) == (caption, image)
        regions = batch.roles["image"][1]
        assert isinstance(regions, Regions)
        assert regions.features[row, 0].tolist() == [part, int(image.removesuffix(".npz"))]
    same = batch.extras["image_ids"][:, None] == batch.extras["image_ids"]
    keys = [(corpus.anchors[a][0], image) for a, image in zip(anchors, batch.ids["image"], strict=True)]
    assert same.tolist() == [[a == b for b in keys] for a in keys]
    for role, (side, items) in batch.teachers["joint"].items():
        assert side == batch.roles[role][0] and len(items) == len(anchors)
