"""UNITER's fields against slow loops over pairs: order, roles, blocks, heads, and that nothing else is computed."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from crossmodal.data.batches import Batch, Items, Regions, Texts
from crossmodal.errors import ConfigError
from crossmodal.model.base import Encoded
from crossmodal.model.uniter import ATTENTION_FIELDS, Uniter, UniterConfig, join
from crossmodal.model.uniter_heads import PRETRAINING_FIELDS

from . import padded

CONFIG: dict[str, Any] = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 12, "img_dim": 8, "img_label_dim": 5, "initializer_range": 0.3,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
MATRIX = [(0, 0), (0, 2), (3, 1), (2, 1), (1, 0), (0, 1)]


def uniter(**changes: Any) -> Uniter:
    torch.manual_seed(0)
    return Uniter({**CONFIG, **changes}).double()


def texts(lengths: list[int], seed: int = 1, extra: int = 0) -> Texts:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 30, (len(lengths), max(lengths) + extra), generator=draw)
    return Texts(ids, torch.tensor(lengths))


def regions(lengths: list[int], seed: int = 2, extra: int = 0, masked: bool = False) -> Regions:
    """Padding holds numbers too: nothing may read it."""
    draw, width = torch.Generator().manual_seed(seed), max(lengths) + extra
    features = torch.randn(len(lengths), width, 8, generator=draw).double()
    boxes = torch.rand(len(lengths), width, 7, generator=draw).double()
    hidden = None
    if masked:
        hidden = torch.rand(len(lengths), width, generator=draw) < 0.5
        hidden &= torch.arange(width) < torch.tensor(lengths)[:, None]
        hidden[:, 0] = True
    return Regions(features, boxes, torch.tensor(lengths), masked=hidden)


def batch(t: Texts, r: Regions, pairs: list[tuple[int, int]] | None = None, group: int = 1, **extras: Tensor) -> Batch:
    listed = None if pairs is None else torch.tensor(pairs)
    return Batch({"text": ("text", t), "image": ("image", r)}, listed, group, extras=extras)


def some() -> tuple[Texts, Regions]:
    return texts([4, 2, 6, 3], extra=1), regions([3, 1, 5], extra=2)


lengths = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(lengths, lengths, st.integers(0, 10**6))
def test_scores_equal_the_padded_form_in_any_order_of_pairs(t: list[int], r: list[int], seed: int) -> None:
    model, a, b = uniter(), texts(t, seed), regions(r, seed)
    pairs = [(i, j) for i in range(len(t)) for j in range(len(r))]
    random.Random(seed).shuffle(pairs)
    scores = model(batch(a, b, pairs), {"rank_scores"})["rank_scores"]
    torch.testing.assert_close(scores[:, 0], padded.rank_scores(model, a, b, torch.tensor(pairs)))


def test_groups_keep_the_order_of_pairs() -> None:
    model, (a, b) = uniter(), some()
    given_fields = model(batch(a, b, MATRIX, group=3), {"rank_scores", "itm_logits"})
    states, _ = padded.joint_states(model, a, b, torch.tensor(MATRIX))
    pooled = padded.pooled(model, states[-1])
    torch.testing.assert_close(given_fields["rank_scores"], model.rank_output(pooled).view(2, 3))
    torch.testing.assert_close(given_fields["itm_logits"], model.itm_output(pooled).view(2, 3, 2))


def test_without_pairs_item_i_matches_item_i() -> None:
    model, a, b = uniter(), texts([4, 2, 5]), regions([2, 6, 1])
    alone = model(batch(a, b), {"rank_scores"})["rank_scores"]
    told = model(batch(a, b, [(0, 0), (1, 1), (2, 2)]), {"rank_scores"})["rank_scores"]
    assert torch.equal(alone, told)


def test_gradients_equal_those_of_the_padded_form() -> None:
    model, (a, b) = uniter(), some()
    a = Texts(a.input_ids, a.lengths, type_ids=torch.arange(28).view(4, 7) % 2)
    used = [p for n, p in model.named_parameters() if not n.startswith(("itm_output", "uniter.img_embeddings.mask"))]
    ours = torch.autograd.grad(model(batch(a, b, MATRIX), {"rank_scores"})["rank_scores"].square().sum(), used)
    naive = torch.autograd.grad(padded.rank_scores(model, a, b, torch.tensor(MATRIX)).square().sum(), used)
    torch.testing.assert_close(ours, naive)


def test_roles_may_have_other_names_and_hold_more() -> None:
    model, (a, b) = uniter(), some()
    roles: dict[str, tuple[str, Items]] = {
        "text": ("text", texts([5])), "caption": ("text", a), "photo": ("image", b)
    }  # fmt: skip
    scores = model(Batch(roles, torch.tensor(MATRIX), between=("caption", "photo")), {"rank_scores"})["rank_scores"]
    torch.testing.assert_close(scores[:, 0], padded.rank_scores(model, a, b, torch.tensor(MATRIX)))


class Counting(Uniter):
    """Notes what it is asked to encode."""

    encoded: list[tuple[str, int]]

    def encode(self, side: str, items: Items) -> Encoded:
        self.encoded.append((side, len(items)))
        return super().encode(side, items)


def test_every_role_is_encoded_once() -> None:
    model, (a, b) = Counting({**CONFIG, "pretraining": True}).double(), some()
    model.encoded = []
    model(batch(a, b, MATRIX), {"rank_scores", *ATTENTION_FIELDS, "word_states"})
    assert model.encoded == [("text", 4), ("image", 3)]


@pytest.mark.parametrize(
    ("want", "idle"),
    [
        ("rank_scores", ["itm_output", "cls", "feat_regress", "region_classifier"]),
        ("itm_logits", ["rank_output", "cls", "feat_regress", "region_classifier"]),
        ("word_logits", ["rank_output", "itm_output", "feat_regress", "region_classifier"]),
        ("region_predictions", ["rank_output", "itm_output", "cls", "region_classifier"]),
        ("region_logits", ["rank_output", "itm_output", "cls", "feat_regress"]),
        ("text_attention", ["rank_output", "itm_output", "uniter.pooler", "uniter.encoder.layer.1.output"]),
    ],
)
def test_only_what_is_wanted_is_computed(want: str, idle: list[str]) -> None:
    model, ran = uniter(pretraining=True), []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    fields = model(batch(texts([4, 5]), regions([3, 2], masked=True), masked_words=torch.eye(2, 5) > 0), {want})
    assert fields.keys() == {want} and any(name.startswith("uniter.encoder.layer.0") for name in ran)
    assert not [name for name in ran if name.startswith(tuple(idle))]
    fields[want].sum().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith(tuple(idle)))


def test_heads_are_there_only_if_asked_for() -> None:
    assert uniter().fields.keys() == Uniter.all_fields.keys() - PRETRAINING_FIELDS.keys()
    assert uniter(pretraining=True).fields.keys() == Uniter.all_fields.keys()
    assert {field.kind for field in uniter().fields.values()} == {"groups"}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(2, 6), min_size=1, max_size=3), lengths, st.integers(0, 10**6))
def test_attention_blocks_equal_softmaxes_cut_out_of_the_joint_sequence(t: list[int], r: list[int], seed: int) -> None:
    model, a, b, draw = uniter(), texts(t, seed), regions(r, seed), random.Random(seed)
    pairs = [(draw.randrange(len(t)), draw.randrange(len(r))) for _ in range(6)]
    fields = model(batch(a, b, pairs, group=2), ATTENTION_FIELDS)
    attention = model.uniter.encoder.last.attention.inner
    positives = pairs[::2]
    states, _ = padded.joint_states(model, a, b, torch.tensor(positives))
    assert fields["word_counts"].tolist() == [t[i] - 2 for i, _ in positives]
    assert fields["region_counts"].tolist() == [r[j] for _, j in positives]
    for g, (i, j) in enumerate(positives):
        places = {"text": range(1, t[i] - 1), "image": range(t[i], t[i] + r[j])}
        q, k = (attention.split(project(states[-2][g])) for project in (attention.query, attention.key))  # (h,L,d)
        for rows in places:
            for columns in places:
                name = f"{rows}_attention" if rows == columns else f"{rows}_{columns}_attention"
                expected = torch.zeros_like(fields[name][g])
                for x, row in enumerate(places[rows]):
                    for h in range(2):
                        scores = [q[h, row] @ k[h, column] / 8**0.5 for column in places[columns]]
                        if scores:
                            expected[x, : len(scores)] += torch.stack(scores).softmax(0) / 2
                torch.testing.assert_close(fields[name][g], expected)


def test_blocks_of_a_caption_without_words_are_zero() -> None:
    fields = uniter()(batch(texts([2]), regions([3])), ATTENTION_FIELDS)
    assert fields["word_counts"].tolist() == [0] and not fields["text_image_attention"].any()
    assert fields["text_attention"].shape == (1, 1, 1)  # the losses need one column at least


def test_an_index_replaces_the_plain_concatenation() -> None:
    model, (a, b) = uniter(), some()
    width, pairs = a.input_ids.shape[1], torch.tensor(MATRIX)
    plain = model(batch(a, b, MATRIX), {"rank_scores"})["rank_scores"]

    def scores(rows: list[list[int]]) -> Tensor:
        index = torch.full((len(rows), max(map(len, rows))), -1)
        for p, row in enumerate(rows):
            index[p, : len(row)] = torch.tensor(row)
        return model(batch(a, b, MATRIX, joint_index=index), {"rank_scores"})["rank_scores"]

    real = [
        [*range(int(a.lengths[i])), *range(width, width + int(b.lengths[j]))] for i, j in MATRIX
    ]  # fmt: skip
    torch.testing.assert_close(scores(real), plain)
    # padding read as tokens and a part of the regions lost, as the published defects do
    full_texts = Texts(a.input_ids, torch.full((4,), width))
    full_regions = Regions(b.features, b.boxes, torch.full((3,), b.boxes.shape[1]))
    broken = [[*row[:-1], int(a.lengths[i])] for row, (i, _) in zip(real, MATRIX, strict=True)]
    sequences = []
    for row, (i, j) in zip(broken, pairs.tolist(), strict=True):
        embedded = padded.embed_text(model, full_texts, i), padded.embed_regions(model, full_regions, j)
        sequences.append(torch.cat(embedded)[row])
    last = padded.encode(model.uniter.encoder, *padded.pad(sequences))[-1]
    torch.testing.assert_close(scores(broken), model.rank_output(padded.pooled(model, last)))


def test_pairs_lie_sorted_in_the_packing_and_say_where() -> None:
    model, (a, b) = uniter(), some()
    joint = join(model.encode("text", a), model.encode("image", b), torch.tensor(MATRIX))
    assert joint.packing.lengths.tolist() == sorted(joint.packing.lengths.tolist())
    for p, (i, j) in enumerate(MATRIX):
        start, n = int(joint.starts[p]), int(a.lengths[i] + b.lengths[j])
        expected = torch.cat([padded.embed_text(model, a, i), padded.embed_regions(model, b, j)])
        torch.testing.assert_close(joint.x[start : start + n], expected)


@pytest.mark.parametrize("pairs", [None, [(2, 0), (0, 1), (1, 1), (0, 2)]])
def test_pretraining_fields_follow_the_pairs(pairs: list[tuple[int, int]] | None) -> None:
    model, a, b = uniter(pretraining=True), texts([4, 6, 3]), regions([3, 5, 2], masked=True)
    assert b.masked is not None
    words = torch.zeros(3, 6, dtype=torch.bool)
    words[0, 1] = words[1, 2] = words[1, 4] = words[2, 1] = True
    fields = model(batch(a, b, pairs, masked_words=words), PRETRAINING_FIELDS)
    rows = pairs or [(0, 0), (1, 1), (2, 2)]
    states, _ = padded.joint_states(model, a, b, torch.tensor(rows))
    hidden_words, hidden_regions = [], []
    for p, (i, j) in enumerate(rows):
        n, r = int(a.lengths[i]), int(b.lengths[j])
        last = states[-1][p]
        hidden_words += [last[t] for t in range(n) if words[i, t]]
        hidden_regions += [last[n + k] for k in range(r) if b.masked[j, k]]
        torch.testing.assert_close(fields["word_states"][p, :n], last[:n])
        torch.testing.assert_close(fields["region_states"][p, :r], last[n : n + r])
        assert fields["word_pad"][p].tolist() == [False] * n + [True] * (fields["word_pad"].shape[1] - n)
        assert fields["region_pad"][p].tolist() == [False] * r + [True] * (fields["region_pad"].shape[1] - r)
    state = model.state_dict()

    def head(name: str, x: Tensor, norm: str) -> Tensor:
        h = F.gelu(x @ state[f"{name}.weight"].T + state[f"{name}.bias"])
        return F.layer_norm(h, (16,), state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-12)

    w, v = torch.stack(hidden_words), torch.stack(hidden_regions)
    transformed = head("cls.predictions.transform.dense", w, "cls.predictions.transform.LayerNorm")
    table = state["uniter.embeddings.word_embeddings.weight"]
    torch.testing.assert_close(fields["word_logits"], transformed @ table.T + state["cls.predictions.bias"])
    regressed = head("feat_regress.net.0", v, "feat_regress.net.2") @ state["uniter.img_embeddings.img_linear.weight"]
    torch.testing.assert_close(fields["region_predictions"], regressed + state["feat_regress.bias"])
    classified = head("region_classifier.net.0", v, "region_classifier.net.2")
    expected = classified @ state["region_classifier.net.3.weight"].T + state["region_classifier.net.3.bias"]
    torch.testing.assert_close(fields["region_logits"], expected)


def test_the_padding_word_has_no_gradient() -> None:
    model, a = uniter(), Texts(torch.tensor([[3, 0, 5]]), torch.tensor([3]))
    model(batch(a, regions([2])), {"rank_scores"})["rank_scores"].sum().backward()
    gradient = model.uniter.embeddings.word_embeddings.weight.grad
    assert gradient is not None and not gradient[0].any() and gradient[3].any()


def test_initial_weights() -> None:
    model = Uniter({**CONFIG, "initializer_range": 0.05, "hidden_size": 64, "vocab_size": 500})
    assert float(model.uniter.embeddings.word_embeddings.weight.detach().std()) == pytest.approx(0.05, rel=0.05)
    assert model.uniter.embeddings.word_embeddings.weight[0].any()  # the padding row is drawn like the others
    assert not model.uniter.pooler.dense.bias.any()
    assert torch.equal(model.rank_output.weight, model.itm_output.weight[1:])


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="hidden_size 10 is not a multiple of num_attention_heads 4"):
        UniterConfig.of({"hidden_size": 10, "num_attention_heads": 4})
    with pytest.raises(ConfigError, match="hidden_act 'tanh' is unknown; use one of gelu, relu, swish"):
        UniterConfig.of({"hidden_act": "tanh"})
    assert UniterConfig.of({"hidden_size": 24, "someone_elses": 1}).hidden_size == 24


def test_the_configuration_builds_the_same_model_again() -> None:
    model = uniter(pretraining=True)
    again = Uniter(model.config_dict).double()
    again.load_state_dict(model.state_dict())
    a, b = some()
    for built in (model, again):
        built.eval()
    one, two = (built(batch(a, b, MATRIX), {"rank_scores"})["rank_scores"] for built in (model, again))
    assert torch.equal(one, two)


def test_a_configuration_of_the_wrong_type_is_said_plainly() -> None:
    with pytest.raises(ConfigError, match="hidden_size is 'wide'"):
        Uniter({"vocab_size": 10, "hidden_size": "wide"})
