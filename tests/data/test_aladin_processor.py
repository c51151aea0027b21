"""ALADIN's processor: word pieces, CLIP's sentences, and rows of regions with their boxes."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crossmodal.data.aladin_processor import DETIC, AladinProcessor
from crossmodal.data.batches import Regions, Texts
from crossmodal.data.clip_tokenizer import ClipTokenizer
from crossmodal.data.corpus import open_corpus
from crossmodal.data.items import RegionItem, TextItem
from crossmodal.data.processors import PROCESSORS, UniterProcessor, load_processor
from crossmodal.data.tokenizers import Tokenizer, train_tokenizer
from crossmodal.errors import CheckpointError, ConfigError, DataError
from tests.data.vinvl_folders import write_captions, write_vinvl

SENTENCES = ["a red ball left of a blue cube", "a small green cone", "two rings"]
TAGS = ("red ball", "cube", "cone", "cube")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES, 60)


@pytest.fixture(scope="module")
def clip() -> ClipTokenizer:
    return ClipTokenizer([("a", "n"), ("d", "o"), ("do", "g</w>")])


@pytest.fixture
def processor(tokenizer: Tokenizer) -> AladinProcessor:
    return AladinProcessor(10, max_text=8, max_tags=7, max_regions=3, tokenizer=tokenizer)


def item(rows: int, width: int = 4, **more: object) -> RegionItem:
    generator = np.random.default_rng(rows)
    features = generator.normal(size=(rows, width)).astype(np.float32)
    return RegionItem("v.npz", features, generator.random((rows, 6), np.float32), **more)  # type: ignore[arg-type]


def read(processor: AladinProcessor, *items: RegionItem) -> tuple[Regions, Texts]:
    regions = processor("image", items)
    assert isinstance(regions, Regions) and isinstance(regions.tags, Texts)
    return regions, regions.tags


def test_captions_stand_between_cls_and_sep_and_are_cut_on_the_right(
    processor: AladinProcessor, tokenizer: Tokenizer
) -> None:
    texts = processor("text", [TextItem("c", sentence=SENTENCES[0]), SENTENCES[2]])
    assert isinstance(texts, Texts) and texts.type_ids is None
    long, short = (tokenizer.encode(sentence) for sentence in (SENTENCES[0], SENTENCES[2]))
    assert len(long) > 6 and texts.lengths.tolist() == [8, len(short) + 2]
    assert texts.input_ids[0].tolist() == [tokenizer.cls, *long[:6], tokenizer.sep]
    assert texts.input_ids[1, : len(short) + 2].tolist() == [tokenizer.cls, *short, tokenizer.sep]
    assert not texts.input_ids[1, len(short) + 2 :].any()


def test_stored_ids_of_the_models_tokenizer_are_taken(processor: AladinProcessor, tokenizer: Tokenizer) -> None:
    stored = TextItem("c", (9, 8, 7), sentence=SENTENCES[0], tokenizer=tokenizer.identity)
    assert processor("text", [stored]).input_ids.tolist() == [[tokenizer.cls, 9, 8, 7, tokenizer.sep]]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="caption c holds ids of tokenizer 'other' and no sentence"):
        processor("text", [TextItem("c", (9,), tokenizer="other")])


def test_tags_begin_with_unk_and_are_cut_on_the_right(processor: AladinProcessor, tokenizer: Tokenizer) -> None:
    _, tags = read(processor, item(2, tags=TAGS), item(1, tags=("cone",)), item(1))
    whole, cone = tokenizer.encode(" ".join(TAGS)), tokenizer.encode("cone")
    assert len(whole) > 5 and tags.lengths.tolist() == [7, len(cone) + 2, 2]
    assert tags.input_ids[0].tolist() == [tokenizer.unk, *whole[:5], tokenizer.sep]
    assert tags.input_ids[1, : len(cone) + 2].tolist() == [tokenizer.unk, *cone, tokenizer.sep]
    assert tags.input_ids[2, :2].tolist() == [tokenizer.unk, tokenizer.sep]
    assert tags.type_ids is not None
    for row, length in zip(tags.type_ids.tolist(), tags.lengths.tolist(), strict=True):
        assert row == [0, *[1] * (length - 1), *[0] * (7 - length)]


def test_regions_are_features_and_boxes_the_first_so_many(processor: AladinProcessor) -> None:
    items = [item(5), item(2)]
    regions, _ = read(processor, *items)
    assert regions.features.shape == (2, 3, 10) and regions.boxes.shape == (2, 3, 6)
    assert regions.lengths.tolist() == [3, 2] and regions.features.dtype == torch.float32
    for b, (one, length) in enumerate(zip(items, (3, 2), strict=True)):
        assert np.array_equal(regions.features[b, :length, :4], one.features[:length])
        assert np.array_equal(regions.features[b, :length, 4:], one.boxes[:length])
        assert np.array_equal(regions.boxes[b, :length], one.boxes[:length])
    assert not regions.features[1, 2:].any() and not regions.boxes[1, 2:].any()


def test_boxes_keep_their_precision_beside_features_in_half_precision(processor: AladinProcessor) -> None:
    one = item(2)
    half = replace(one, features=one.features.astype(np.float16))
    regions, _ = read(processor, half)
    assert np.array_equal(regions.features[0, :, 4:], one.boxes)


def test_rows_of_detics_have_their_box_behind_1024_features_height_first(processor: AladinProcessor) -> None:
    mixed = item(3, 2048, detic=np.array([True, False, True]))
    regions, _ = read(replace(processor, img_feature_dim=2054), mixed)
    rows = regions.features[0].numpy()
    for i in (0, 2):
        assert np.array_equal(rows[i, :DETIC], mixed.features[i, :DETIC])
        assert np.array_equal(rows[i, DETIC : DETIC + 4], mixed.boxes[i, :4])
        assert rows[i, DETIC + 4] == mixed.boxes[i, 5] and rows[i, DETIC + 5] == mixed.boxes[i, 4]
        assert not rows[i, DETIC + 6 :].any()
    assert np.array_equal(rows[1], np.concatenate([mixed.features[1], mixed.boxes[1]]))
    alone = item(2, DETIC, detic=np.ones(2, bool))
    narrow, _ = read(replace(processor, img_feature_dim=DETIC + 6), alone)
    wide, _ = read(replace(processor, img_feature_dim=2054), alone)
    assert torch.equal(wide.features[..., : DETIC + 6], narrow.features) and not wide.features[..., DETIC + 6 :].any()


@pytest.mark.parametrize(
    "odd", [item(2, 5), item(2, 3), item(2, 4, detic=np.ones(2, bool)), item(2, DETIC, detic=np.array([True, False]))]
)
def test_features_of_another_width_are_refused_by_image(processor: AladinProcessor, odd: RegionItem) -> None:
    with pytest.raises(DataError, match=r"regions of image v\.npz are \d+ wide with their boxes, the model takes 2054"):
        replace(processor, img_feature_dim=2054)("image", [item(2, 2048), odd])


def test_equal_tags_are_tokenized_once(processor: AladinProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    encode = Tokenizer.encode

    def counted(self: Tokenizer, sentence: str) -> list[int]:
        calls.append(sentence)
        return encode(self, sentence)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    read(processor, item(2, tags=TAGS), item(3, tags=TAGS))
    read(processor, item(1, tags=TAGS), item(1, tags=("cone",)))
    assert calls == [" ".join(TAGS), "cone"]
    copy = pickle.loads(pickle.dumps(processor))
    assert torch.equal(read(copy, item(2, tags=TAGS))[1].input_ids, read(processor, item(2, tags=TAGS))[1].input_ids)


def test_clip_tags_are_a_sentence_for_every_word(processor: AladinProcessor, clip: ClipTokenizer) -> None:
    reads = replace(processor, clip_tags=True, clip_tokenizer=clip, max_tags=4)
    assert reads.tag_sentences(["ball_(sports)", "red"]) == [
        "start of the sequence",
        "a photo of a ball sports",
        "a photo of a red",
    ]
    _, tags = read(reads, item(2, tags=TAGS), item(1), item(1, tags=("red ball",)))
    assert tags.counts is not None and tags.counts.tolist() == [4, 1, 3] and tags.type_ids is None
    sentences = ["start of the sequence", *(f"a photo of a {word}" for word in ("red", "ball", "cube", "red", "ball"))]
    first, red, ball, cube, *_ = clip.rows(sentences)
    expected = [first, red, ball, cube, first, first, red, ball]
    assert tags.lengths.tolist() == [len(row) for row in expected]
    for found, row in zip(tags.input_ids.tolist(), expected, strict=True):
        assert found[: len(row)] == row and not any(found[len(row) :])


def test_equal_tags_are_counted_in_the_order_of_their_first(processor: AladinProcessor, clip: ClipTokenizer) -> None:
    reads = replace(processor, clip_tags=True, aggregate_tags=True, clip_tokenizer=clip, max_tags=6)
    words = ["tree", "knife", "ball_(sports)", "tree", "ball_(sports)", *["dog"] * 11, *["bus"] * 10, "extra"]
    assert reads.tag_sentences(words) == [
        "start of the sequence",
        "a photo of two trees",
        "a photo of a knife",
        "a photo of two balls sports",
        "a photo of many dogs",
        "a photo of ten buses",
    ]


def test_plurals_need_inflect(processor: AladinProcessor, clip: ClipTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    from crossmodal.data import aladin_processor

    aladin_processor._english.cache_clear()
    monkeypatch.setitem(sys.modules, "inflect", None)
    reads = replace(processor, clip_tags=True, aggregate_tags=True, clip_tokenizer=clip)
    assert reads.tag_sentences(["tree"])[1] == "a photo of a tree"
    with pytest.raises(ConfigError, match="install it with pip install inflect"):
        reads.tag_sentences(["tree", "tree"])


def test_clip_captions_are_cut_by_words_context_and_width(processor: AladinProcessor, clip: ClipTokenizer) -> None:
    reads = replace(processor, clip_captions=True, clip_tokenizer=clip, max_text=10)
    texts = reads("text", ["a dog", "xyzw " * 3])
    assert isinstance(texts, Texts)
    assert texts.input_ids[0, : texts.lengths[0]].tolist() == [clip.start, *clip.encode("a dog"), clip.end]
    assert texts.input_ids[1].tolist() == [clip.start, *clip.encode("xyzw xyzw xyzw")][:10]
    few = replace(reads, max_text=5)("text", ["a b c d e f"])
    assert few.input_ids.tolist() == [[clip.start, *clip.encode("a b c"), clip.end]]  # type: ignore[union-attr]
    long = replace(reads, max_text=90)("text", ["x" * 80])
    assert long.input_ids.tolist() == [[clip.start, *clip.encode("x" * 80)[:75], clip.end]]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="ids, and 100 fit"):
        replace(reads, max_text=90)("text", ["x" * 120])


def test_the_byte_of_id_0_is_not_counted_in_a_clip_caption(processor: AladinProcessor, clip: ClipTokenizer) -> None:
    reads = replace(processor, clip_captions=True, clip_tokenizer=clip, max_text=20)
    row = [clip.start, *clip.encode("a!!!b"), clip.end]
    assert row.count(0) == 2
    assert reads("text", ["a!!!b"]).lengths.tolist() == [len(row) - 2]  # type: ignore[union-attr]


def test_a_clip_caption_needs_its_sentence(processor: AladinProcessor, clip: ClipTokenizer) -> None:
    reads = replace(processor, clip_captions=True, clip_tokenizer=clip)
    for text in (TextItem("c", (5, 6)), TextItem("c", sentence=" ")):
        with pytest.raises(DataError, match="caption 'c' has no sentence for CLIP to read"):
            reads("text", [text])


def test_without_a_tokenizer_nothing_is_read() -> None:
    bare = AladinProcessor(10)
    with pytest.raises(DataError, match=r"a caption must be tokenized.*model\.tokenizer"):
        bare("text", ["a dog"])
    with pytest.raises(DataError, match=r"a tag must be tokenized.*model\.tokenizer"):
        bare("image", [item(1)])
    with pytest.raises(DataError, match=r"a tag must be tokenized.*clip_vocab"):
        replace(bare, clip_tags=True)("image", [item(1)])


def test_options_that_cannot_be_are_refused() -> None:
    for options, said in (
        ({"max_text": 2}, "max_text is 2; it must be at least 3"),
        ({"max_regions": 0}, "max_regions is 0"),
        ({"max_tags": 1}, "max_tags is 1"),
        ({"img_feature_dim": 6}, "img_feature_dim is 6"),
        ({"aggregate_tags": True}, "aggregate_tags needs clip_tags"),
    ):
        with pytest.raises(ConfigError, match=said):
            AladinProcessor(**options)


def test_a_processor_comes_back_as_it_was_saved(
    processor: AladinProcessor, clip: ClipTokenizer, tmp_path: Path
) -> None:
    for number, one in enumerate(
        (
            processor,
            replace(processor, clip_tags=True, aggregate_tags=True, clip_tokenizer=clip, extractor={"use": "grid"}),
            AladinProcessor(10, clip_tags=True, clip_captions=True, clip_tokenizer=clip),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        one.save(folder)
        loaded = load_processor(folder)
        assert isinstance(loaded, AladinProcessor)
        bare = {"tokenizer": None, "clip_tokenizer": None}
        assert replace(loaded, **bare) == replace(one, **bare)  # type: ignore[arg-type]
        assert torch.equal(read(loaded, item(2, tags=TAGS))[1].input_ids, read(one, item(2, tags=TAGS))[1].input_ids)
        assert torch.equal(loaded.texts(SENTENCES).input_ids, one.texts(SENTENCES).input_ids)


def test_a_folder_that_lacks_a_tokenizer_is_refused(
    processor: AladinProcessor, clip: ClipTokenizer, tmp_path: Path
) -> None:
    replace(processor, clip_tags=True, clip_tokenizer=clip).save(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"the CLIP tokenizer of .* cannot be read"):
        load_processor(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the tokenizer\.json"):
        load_processor(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"use": "aladin", "odd": 1}', '{"use": "aladin", "max_text": 0}'])
def test_a_damaged_processor_is_refused(processor: AladinProcessor, tmp_path: Path, content: str) -> None:
    processor.save(tmp_path)
    (tmp_path / "processor.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"processor\.json cannot be read"):
        load_processor(tmp_path)


def test_the_registry_and_unknown_names(processor: AladinProcessor, tmp_path: Path) -> None:
    assert "aladin" in PROCESSORS and all(made.use == name for name, made in PROCESSORS.items())
    (tmp_path / "processor.json").write_text('{"use": "aladdin"}')
    with pytest.raises(CheckpointError, match="names the processor 'aladdin'; did you mean aladin"):
        load_processor(tmp_path)


def test_processors_of_a_corpus_of_vinvls(tokenizer: Tokenizer, clip: ClipTokenizer, tmp_path: Path) -> None:
    write_vinvl(tmp_path / "vinvl", {"1": 2, "2": 3})
    captions = write_captions(tmp_path / "x.pt", {1: ["a red ball"], 2: ["two rings"]})
    corpus = open_corpus([str(captions)], [str(tmp_path / "vinvl")])
    tokenizer.save(tmp_path / "words")
    clip.save(tmp_path / "clip")
    made = AladinProcessor.of_corpus(corpus, {}, str(tmp_path / "words"), max_text=9)
    assert made.sizes() == {"vocab_size": tokenizer.vocab_size, "img_feature_dim": 16} and made.max_text == 9
    _, images = (
        next(corpus.batches(side, keys, made))
        for side, keys in (("text", corpus.anchors), ("image", corpus.image_keys))
    )
    assert isinstance(images, Regions) and images.features.shape == (2, 3, 16)
    wide = AladinProcessor.of_corpus(corpus, {"img_feature_dim": 2054}, str(tmp_path / "words"))
    assert wide.img_feature_dim == 2054
    both = AladinProcessor.of_corpus(corpus, {}, clip_vocab=str(tmp_path / "clip"), clip_tags=True, clip_captions=True)
    assert both.sizes() == {"img_feature_dim": 16} and both.clip_tokenizer is not None
    uniter = UniterProcessor.of_corpus(corpus, {}, str(tmp_path / "words"))
    assert uniter.sizes() == {"vocab_size": tokenizer.vocab_size, "img_dim": 10}
    for use, said in (("aladin", "ALADIN tokenizes tags and captions"), ("uniter", "sentences without word pieces")):
        with pytest.raises(ConfigError, match=said):
            PROCESSORS[use].of_corpus(corpus, {})
        with pytest.raises(ConfigError, match="no option 'max_tex'; did you mean max_text"):
            PROCESSORS[use].of_corpus(corpus, {}, max_tex=4)
