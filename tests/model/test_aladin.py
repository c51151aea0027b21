"""ALADIN against its padded form, and what its options promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crossmodal.data.batches import Regions, Texts, Vectors
from crossmodal.errors import DataError
from crossmodal.model.aladin import FIELDS, Aladin
from crossmodal.model.base import inference
from crossmodal.model.scorers import AlignmentScorer, VectorScorer

from . import aladin_padded
from .aladin_inputs import BATCH, CLIP, REGIONS, TEXTS, model, regions, texts, vectors

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "no image norm": {"use_img_layernorm": False},
    "no layers": {"matching_layers": 0},
    "shared layers": {"alignment_layers": 2},
    "own layers": {"alignment_layers": 1, "shared_layers": False},
    "mean depth": {"depth_matching": "mean", "depth_alignment": "mean"},
    "gated depth": {"depth_matching": "gated", "depth_alignment": "gated", "post_layers": 1},
    "gated depth, published masks": {
        "depth_matching": "gated",
        "depth_alignment": "gated",
        "post_layers": 1,
        "depth_masks": "published",
    },
    "mean depth, published masks": {"depth_matching": "mean", "depth_masks": "published"},
    "post layers alone": {"post_layers": 1},
    "padded": {"padded": True, "depth_matching": "gated", "post_layers": 1},
}
HIDDEN = {"tokens", "embeds", "hidden"}


def assert_equal_to_padded(found: Aladin, side: str, items: Any) -> None:
    ours, naive = found.parts(side, items, HIDDEN), aladin_padded.parts(found, side, items)
    torch.testing.assert_close(ours["tokens"], naive["tokens"])
    torch.testing.assert_close(ours["embeds"], naive["embeds"])
    torch.testing.assert_close(ours["hidden"], naive["hidden" if found.config.encodes_padding else "hidden_real"])


# --- the padded form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_equal_to_the_padded_form(name: str) -> None:
    found = model(**VARIANTS[name])
    wide = Texts(torch.nn.functional.pad(TEXTS.input_ids, (0, 2)), TEXTS.lengths)  # padding that nobody needs
    assert_equal_to_padded(found, "text", wide)
    assert_equal_to_padded(found, "image", REGIONS)


@pytest.mark.parametrize("name", ["published", "gated depth, published masks"])
def test_gradients_equal_those_of_the_padded_form(name: str) -> None:
    found = model(**VARIANTS[name])
    parameters = [p for p in found.parameters() if p.requires_grad]

    def gradients(parts: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        value = sum((parts[part] * torch.arange(parts[part].numel()).view_as(parts[part])).sum() for part in HIDDEN)
        assert isinstance(value, Tensor)
        return torch.autograd.grad(value / 100, parameters, allow_unused=True)

    naive = aladin_padded.parts(found, "image", REGIONS)
    naive["hidden"] = naive["hidden" if found.config.encodes_padding else "hidden_real"]
    for a, b in zip(gradients(found.parts("image", REGIONS, HIDDEN)), gradients(naive), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_regions_of_detic_have_their_own_mapper() -> None:
    found = model(detection="det+fast", img_feature_dim=1040)
    items = regions([3, 2], texts([3, 2], tags=True), width=1040)
    items.features[0, 1, 1030:] = 0
    items.features[1, 0, 1030:] = 0
    assert_equal_to_padded(found, "image", items)
    assert model(detection="det_padded", img_feature_dim=1030).oscar_model.bert.detic_to_oscar_img is None
    assert model(detection="fast", img_feature_dim=1040).oscar_model.bert.detic_to_oscar_img is None
    assert model(detection="det", img_feature_dim=1040).oscar_model.bert.img_embedding.in_features == 1030


def test_vectors_in_the_place_of_words() -> None:
    found = model(clip_tags=True, clip_captions=True, clip=None)
    assert_equal_to_padded(found, "text", vectors([4, 7, 2], 512))
    assert_equal_to_padded(found, "image", regions([2, 3, 1], vectors([3, 1, 5], 512)))


# --- CLIP's tower --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
def test_clips_tower_gives_the_vectors(padded: bool) -> None:
    found = model(clip_tags=True, clip_captions=True, clip=CLIP, padded=padded)
    assert found.clip_model is not None
    captions = texts([4, 9, 2])
    sentences = replace(texts([3, 5, 2, 4, 4, 6], seed=7), counts=torch.tensor([3, 1, 2]))
    images = regions([2, 3, 1], sentences)
    with torch.no_grad():
        pooled, _ = found.clip_model(sentences)
        _, states = found.clip_model(replace(captions, lengths=torch.tensor([9, 9, 9])))
    tags = Vectors(torch.nn.utils.rnn.pad_sequence(list(pooled.split([3, 1, 2])), batch_first=True), sentences.counts)
    words = Vectors(states.unflatten(0, (3, 9)), captions.lengths)
    for side, tower, given_vectors in (("text", captions, words), ("image", images, replace(images, tags=tags))):
        ours, expected = found.parts(side, tower, HIDDEN), found.parts(side, given_vectors, HIDDEN)
        for name in HIDDEN:
            torch.testing.assert_close(ours[name], expected[name])


def test_clips_tower_has_no_gradients_and_stays_in_evaluation_mode() -> None:
    found = model(clip_captions=True, clip=CLIP).train()
    assert found.clip_model is not None and found.training
    assert not any(m.training for m in found.clip_model.modules())
    assert not any(p.requires_grad for p in found.clip_model.parameters())
    assert model(clip=CLIP).clip_model is None


# --- one item for itself -------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.integers(1, 4), st.sampled_from(["published", "gated depth", "shared layers"]))
def test_an_item_is_encoded_the_same_in_any_company(order: list[int], count: int, name: str) -> None:
    found = model(**VARIANTS[name])
    chosen = torch.tensor(order[:count])
    for side, items in (("text", TEXTS), ("image", REGIONS)):
        with inference(found):
            everyone, some = found.encode(side, items), found.encode(side, items.select(chosen))
        torch.testing.assert_close(some.rows["tokens"], everyone[chosen].rows["tokens"])
        torch.testing.assert_close(some.vectors["embeds"], everyone[chosen].vectors["embeds"])
        assert some.lengths.tolist() == items.lengths[chosen].tolist()


def test_what_is_encoded_has_length_one() -> None:
    found = model()
    for side, items in (("text", TEXTS), ("image", REGIONS)):
        encoded = found.encode(side, items)
        for x in (encoded.rows["tokens"], encoded.vectors["embeds"]):
            torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x), dtype=x.dtype))
        assert len(encoded.rows["tokens"]) == int(items.lengths.sum())


# --- fields and scorers --------------------------------------------------------------------------------------------


def test_only_what_is_wanted_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    found, calls = model(alignment_layers=1), []
    for name in ("oscar_model.bert", "final_projection_net", "transformer_encoder_1"):
        found.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    for wanted, expected in (
        ({"text_tokens", "text_lengths"}, {"oscar_model.bert", "transformer_encoder_1"}),
        ({"image_embeds"}, {"oscar_model.bert", "final_projection_net"}),
        ({"text_hidden"}, {"oscar_model.bert"}),
        ({"text_lengths", "image_lengths"}, set()),
    ):
        calls.clear()
        assert found(BATCH, wanted).keys() == wanted
        assert set(calls) == expected and calls.count("oscar_model.bert") <= 1


def test_fields_are_the_encoded_items() -> None:
    found = model()
    names = {name for name, field in found.fields.items() if field.kind == "items"}
    assert names == FIELDS.keys() - {"alignment_scores", "matching_scores"}
    given_fields = found(replace(BATCH, roles={**BATCH.roles, "negative_text": ("text", TEXTS)}), names)
    assert given_fields["negative_text_embeds"].equal(given_fields["text_embeds"])
    for role, items in (("text", TEXTS), ("image", REGIONS)):
        encoded = found.encode(role, items)
        torch.testing.assert_close(given_fields[f"{role}_tokens"], encoded.rows["tokens"])
        torch.testing.assert_close(given_fields[f"{role}_embeds"], encoded.vectors["embeds"])
        assert given_fields[f"{role}_lengths"].tolist() == items.lengths.tolist()
        ragged = {name for name in names if found.fields[name].ragged and name.startswith(role)}
        assert ragged == {f"{role}_tokens", f"{role}_hidden"}
        assert all(len(given_fields[name]) == int(items.lengths.sum()) for name in ragged)


@pytest.mark.parametrize(("clamp", "training", "expected"), [
    ("batch", True, "batch"), ("batch", False, "always"), ("never", True, "never"), ("never", False, "never"),
])  # fmt: skip
def test_a_gallery_is_no_batch(clamp: str, training: bool, expected: str) -> None:
    found = model(clamp=clamp, aggregation="symm", measure="order").train(training)
    assert tuple(found.scorers) == Aladin.scorer_names
    assert found.scorers["alignment"] == AlignmentScorer("symm", expected)  # type: ignore[arg-type]
    assert found.scorers["matching"] == VectorScorer("order")


# --- freezing ------------------------------------------------------------------------------------------------------

FROZEN = ("oscar_model.", "transformer_encoder_1.", "depth_aggregator_model_alignment.", "feature_fusion.")


@pytest.mark.parametrize("freeze", ["backbone", "published"])
def test_a_frozen_backbone_has_no_gradients(freeze: str) -> None:
    found = model(
        freeze=freeze, alignment_layers=1, depth_alignment="gated", depth_matching="gated", post_layers=1
    ).train()
    given_fields = found(BATCH, {"text_tokens", "text_embeds", "image_embeds"})
    assert not given_fields["text_tokens"].requires_grad
    (given_fields["text_embeds"] @ given_fields["image_embeds"].T).square().sum().backward()
    for name, parameter in found.named_parameters():
        assert (parameter.grad is None) == name.startswith(FROZEN), name


def test_dropout_of_a_frozen_backbone() -> None:
    """`backbone` gives the same teacher at every call, `published` a noisy one; heads drop out in both."""
    for freeze, steady in (("backbone", True), ("published", False), ("none", False)):
        found = model(freeze=freeze, alignment_layers=1).train()
        first, second = (found(BATCH, {"text_tokens", "text_embeds"}) for _ in range(2))
        assert torch.equal(first["text_tokens"], second["text_tokens"]) == steady
        assert not torch.equal(first["text_embeds"], second["text_embeds"])
        assert found.final_projection_net.training
        with inference(found):
            assert not any(m.training for m in found.modules())
        assert found.training and found.oscar_model.training == (not steady)


def test_the_pair_classifier_of_the_backbone_is_not_trained() -> None:
    found = model().train()
    given_fields = found(BATCH, {"text_tokens", "image_embeds"})
    (given_fields["text_tokens"].sum() + given_fields["image_embeds"].sum()).backward()
    without = {name for name, p in found.named_parameters() if p.grad is None}
    assert without == {
        f"oscar_model.{part}.{kind}" for part in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")
    }
    assert not any(p.requires_grad for name, p in found.named_parameters() if name in without)


# --- mistakes ------------------------------------------------------------------------------------------------------


def test_items_that_it_does_not_read() -> None:
    found = model()
    with pytest.raises(DataError, match="image 1 of a batch has no regions"):
        found.encode("image", replace(REGIONS, lengths=torch.tensor([3, 0, 1, 4])))
    with pytest.raises(DataError, match="the model reads tags as token ids, but none are given"):
        found.encode("image", replace(REGIONS, tags=None))
    with pytest.raises(DataError, match="the model reads captions as token ids, but they are Vectors"):
        found.encode("text", vectors([2], 8))
    with pytest.raises(DataError, match="without CLIP's text tower"):
        model(clip_captions=True, clip=None).encode("text", TEXTS)
    with pytest.raises(DataError, match="a sentence for every tag, but tags are given as one"):
        model(clip_tags=True, clip=CLIP).encode("image", REGIONS)
    with pytest.raises(DataError, match="the model reads tags as CLIP vectors, but none are given"):
        model(clip_tags=True, clip=CLIP).encode("image", replace(REGIONS, tags=None))


def test_layers_start_as_copies_and_the_backbone_as_bert_does() -> None:
    torch.manual_seed(0)
    built = Aladin({"vocab_size": 30, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
                    "intermediate_size": 64, "max_position_embeddings": 8, "img_feature_dim": 64})  # fmt: skip
    first, second = built.final_projection_net.layers
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    linear = built.oscar_model.bert.img_embedding
    assert isinstance(linear, nn.Linear) and not linear.bias.any()
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_regions_without_tags_of_their_own_position() -> None:
    """Regions have no position: in another order they give the same tokens in that order."""
    found = model()
    one = REGIONS.select(torch.tensor([1]))
    turned = Regions(one.features.flip(1), one.boxes, one.lengths, one.tags)
    ours, flipped = found.encode("image", one), found.encode("image", turned)
    torch.testing.assert_close(flipped.rows["tokens"], ours.rows["tokens"].flip(0))
