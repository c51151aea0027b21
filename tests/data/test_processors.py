from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crossmodal.data.batches import Regions, Texts
from crossmodal.data.items import RegionItem, TextItem
from crossmodal.data.processors import UniterProcessor, load_processor
from crossmodal.data.tokenizers import Tokenizer, train_tokenizer
from crossmodal.errors import CheckpointError, DataError

SENTENCES = ["a red ball left of a blue cube", "a small green cone", "two rings"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES, 60)


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer) -> UniterProcessor:
    return UniterProcessor(
        cls=tokenizer.cls,
        sep=tokenizer.sep,
        mask=tokenizer.mask,
        v_range=tokenizer.v_range,
        img_dim=4,
        identity=tokenizer.identity,
        max_text=20,
        tokenizer=tokenizer,
    )


def item(rows: int, width: int = 4, dtype: type = np.float16, id: str = "v.npz") -> RegionItem:
    generator = np.random.default_rng(rows)
    return RegionItem(id, generator.normal(size=(rows, width)).astype(dtype), generator.random((rows, 6), np.float32))


def test_captions_stand_between_cls_and_sep_and_are_padded_at_the_right(
    processor: UniterProcessor, tokenizer: Tokenizer
) -> None:
    texts = processor("text", SENTENCES)
    assert isinstance(texts, Texts)
    for ids, length, sentence in zip(texts.input_ids.tolist(), texts.lengths.tolist(), SENTENCES, strict=True):
        assert ids[:length] == [tokenizer.cls, *tokenizer.encode(sentence), tokenizer.sep]
        assert not any(ids[length:])
    assert texts.input_ids.shape[1] == texts.lengths.max()


def test_ids_that_the_models_own_tokenizer_made_are_used_as_stored(processor: UniterProcessor) -> None:
    stored = TextItem("c", (9, 8, 7), sentence=SENTENCES[0], tokenizer=processor.identity)
    assert processor.words(stored) == [9, 8, 7]


def test_a_published_name_counts_as_identity(processor: UniterProcessor) -> None:
    published = TextItem("c", (9, 8, 7), tokenizer="bert-base-cased")
    assert replace(processor, tokenizer=None, identity="bert-base-cased").words(published) == [9, 8, 7]
    named = train_tokenizer(SENTENCES, 60)
    named.name = "google-bert/bert-base-cased"
    assert replace(processor, tokenizer=named).words(published) == [9, 8, 7]


def test_ids_of_another_tokenizer_are_made_anew_from_the_sentence(
    processor: UniterProcessor, tokenizer: Tokenizer
) -> None:
    other = TextItem("c", (9, 8, 7), sentence=SENTENCES[0], tokenizer="bert-base-cased")
    assert processor.words(other) == tokenizer.encode(SENTENCES[0])
    assert processor.words(TextItem("c", sentence=SENTENCES[1])) == tokenizer.encode(SENTENCES[1])


def test_a_database_of_ids_alone_is_refused_for_another_tokenizer_with_that_reason(processor: UniterProcessor) -> None:
    alone = TextItem("caption_7", (9, 8, 7), tokenizer="bert-base-cased")
    for refusing in (processor, replace(processor, tokenizer=None)):
        with pytest.raises(DataError, match=r"caption_7 holds ids of tokenizer 'bert-base-cased' and no sentence"):
            refusing.words(alone)


def test_a_sentence_needs_a_tokenizer(processor: UniterProcessor) -> None:
    with pytest.raises(DataError, match=r"must be tokenized, but the checkpoint holds no tokenizer.*model\.tokenizer"):
        replace(processor, tokenizer=None)("text", ["a red ball"])


def test_a_caption_over_the_position_table_is_refused_by_name(processor: UniterProcessor) -> None:
    fits = TextItem("c", tuple(range(5, 25)), tokenizer=processor.identity)
    assert len(processor.words(fits)) == 20
    with pytest.raises(DataError, match=r"caption long has 21 word pieces, the model takes 20"):
        processor.words(TextItem("long", tuple(range(5, 26)), tokenizer=processor.identity))


def test_regions_get_the_area_as_seventh_number_and_zeros_as_padding(processor: UniterProcessor) -> None:
    items = [item(2), item(5), item(3)]
    regions = processor("image", items)
    assert isinstance(regions, Regions)
    assert regions.features.shape == (3, 5, 4) and regions.boxes.shape == (3, 5, 7)
    assert regions.lengths.tolist() == [2, 5, 3]
    assert regions.features.dtype == torch.float16 and regions.boxes.dtype == torch.float32
    for b, one in enumerate(items):
        n = len(one)
        assert np.array_equal(regions.features[b, :n], one.features)
        assert np.array_equal(regions.boxes[b, :n, :6], one.boxes)
        assert np.array_equal(regions.boxes[b, :n, 6], one.boxes[:, 4] * one.boxes[:, 5])
        assert not regions.features[b, n:].any() and not regions.boxes[b, n:].any()


@pytest.mark.parametrize("first", [np.float16, np.float32])
def test_no_feature_is_rounded_because_another_image_is_stored_in_half_precision(
    processor: UniterProcessor, first: type
) -> None:
    second = np.float32 if first is np.float16 else np.float16
    items = [item(2, dtype=first), item(3, dtype=second)]
    regions = processor("image", items)
    assert isinstance(regions, Regions) and regions.features.dtype == torch.float32
    for b, one in enumerate(items):
        assert np.array_equal(regions.features[b, : len(one)], one.features)


def test_features_of_another_width_are_refused_by_image(processor: UniterProcessor) -> None:
    with pytest.raises(DataError, match=r"regions of image odd\.npz are 3 wide, the model takes 4"):
        processor("image", [item(2), item(2, width=3, id="odd.npz")])


def test_a_picture_needs_an_extractor(processor: UniterProcessor) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(DataError, match="reads detected regions, not pictures"):
        processor("image", [picture])


def test_a_processor_comes_back_as_it_was_saved(processor: UniterProcessor, tmp_path: Path) -> None:
    processor = replace(processor, extractor={"use": "grid", "feature_dim": 4})
    processor.save(tmp_path)
    loaded = UniterProcessor.load(tmp_path)
    assert replace(loaded, tokenizer=None) == replace(processor, tokenizer=None)
    assert loaded.tokenizer is not None and processor.tokenizer is not None
    assert loaded.tokenizer.identity == processor.tokenizer.identity
    assert loaded.words(SENTENCES[0]) == processor.words(SENTENCES[0])


def test_a_processor_without_a_tokenizer_comes_back_without(processor: UniterProcessor, tmp_path: Path) -> None:
    bare = replace(processor, tokenizer=None, identity="bert-base-cased")
    bare.save(tmp_path)
    assert UniterProcessor.load(tmp_path) == bare


def test_a_folder_says_whose_processor_it_holds_and_older_ones_are_uniters(
    processor: UniterProcessor, tmp_path: Path
) -> None:
    processor.save(tmp_path)
    values = json.loads((tmp_path / "processor.json").read_text())
    assert values.pop("use") == "uniter"
    for _ in range(2):
        loaded = load_processor(tmp_path)
        assert isinstance(loaded, UniterProcessor) and loaded.sizes() == processor.sizes()
        (tmp_path / "processor.json").write_text(json.dumps(values))


def test_a_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no processor\.json"):
        UniterProcessor.load(tmp_path)


def test_a_caption_without_words_is_refused_by_name(processor: UniterProcessor) -> None:
    for empty in ("", " ", "\u200d"):
        with pytest.raises(DataError, match="has no word that the tokenizer knows"):
            processor("text", ["a red ball", empty])


def test_word_pieces_outside_the_vocabulary_are_refused_by_name(processor: UniterProcessor) -> None:
    for pieces in ((5, processor.v_range[1]), (-1, 5)):
        with pytest.raises(DataError, match=rf"caption odd holds word pieces from {min(pieces)} to {max(pieces)}"):
            processor.words(TextItem("odd", pieces, tokenizer=processor.identity))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"v_range": 5}', '{"v_range": [1, 2], "odd": 3}'])
def test_a_damaged_processor_is_refused_by_name(processor: UniterProcessor, tmp_path: Path, content: str) -> None:
    processor.save(tmp_path)
    (tmp_path / "processor.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"processor\.json cannot be read"):
        UniterProcessor.load(tmp_path)
