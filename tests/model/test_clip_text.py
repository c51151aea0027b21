from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossmodal.data.batches import Texts
from crossmodal.model.clip_text import ClipText

SIZES = {"vocab_size": 40, "width": 16, "heads": 4, "layers": 3, "context": 9, "embed_dim": 6}


def tower() -> ClipText:
    torch.manual_seed(0)
    return ClipText(**SIZES).double().eval()  # type: ignore[arg-type]


def naive(model: ClipText, ids: Tensor) -> tuple[Tensor, Tensor]:
    """One sentence (T,), with PyTorch's own attention and an explicit causal mask."""
    width, heads = SIZES["width"], SIZES["heads"]
    mask = torch.full((len(ids), len(ids)), -torch.inf, dtype=torch.float64).triu(1)
    x = model.token_embedding(ids) + model.positional_embedding[: len(ids)]
    for block in model.transformer.resblocks:
        attention = torch.nn.MultiheadAttention(width, heads).double()
        attention.load_state_dict(block.attn.state_dict())
        y = block.ln_1(x)
        x = x + attention(y, y, y, attn_mask=mask)[0]
        h = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(h * torch.sigmoid(1.702 * h))
    end = ids.tolist().index(max(ids.tolist()))
    return model.ln_final(x)[end] @ model.text_projection, x


@pytest.mark.parametrize("lengths", [[5, 9, 1, 3], [4, 4, 4], [1], [9, 1]])
def test_packed_sentences_are_those_alone(lengths: list[int]) -> None:
    model, generator = tower(), torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(0, 40, (len(lengths), 9), generator=generator)  # padding is arbitrary
    pooled, states = model(Texts(ids, torch.tensor(lengths)))
    alone = [naive(model, row[:n]) for row, n in zip(ids, lengths, strict=True)]
    torch.testing.assert_close(pooled, torch.stack([vector for vector, _ in alone]))
    torch.testing.assert_close(states, torch.cat([x for _, x in alone]))


def test_the_end_is_the_first_of_the_largest_ids_within_the_length() -> None:
    model = tower()
    once = model(Texts(torch.tensor([[3, 7, 39]]), torch.tensor([3])))[0]
    again = model(Texts(torch.tensor([[3, 7, 39, 39, 5]]), torch.tensor([5])))[0]
    padded = model(Texts(torch.tensor([[3, 7, 1, 39]]), torch.tensor([3])))[0]
    torch.testing.assert_close(again, once)
    torch.testing.assert_close(padded, naive(model, torch.tensor([3, 7, 1]))[0][None])


def test_a_row_of_zeros_is_pooled_at_its_first_position() -> None:
    model = tower()
    zeros = model(Texts(torch.zeros(1, 6, dtype=torch.int64), torch.tensor([6])))[0]
    torch.testing.assert_close(zeros, naive(model, torch.zeros(1, dtype=torch.int64))[0][None])


def test_sentences_of_several_items_are_rows() -> None:
    model, ids, lengths = tower(), torch.arange(12).view(4, 3), torch.tensor([3, 2, 3, 1])
    grouped = model(Texts(ids, lengths, counts=torch.tensor([3, 1])))
    for found, expected in zip(grouped, model(Texts(ids, lengths)), strict=True):
        assert torch.equal(found, expected)
    assert grouped[0].shape == (4, 6) and grouped[1].shape == (9, 16)


def test_published_names_and_sizes() -> None:
    block = {
        "ln_1.weight": (16,), "ln_1.bias": (16,), "attn.in_proj_weight": (48, 16), "attn.in_proj_bias": (48,),
        "attn.out_proj.weight": (16, 16), "attn.out_proj.bias": (16,), "ln_2.weight": (16,), "ln_2.bias": (16,),
        "mlp.c_fc.weight": (64, 16), "mlp.c_fc.bias": (64,), "mlp.c_proj.weight": (16, 64), "mlp.c_proj.bias": (16,),
    }  # fmt: skip
    expected = {f"transformer.resblocks.{i}.{name}": shape for i in range(3) for name, shape in block.items()}
    expected |= {
        "token_embedding.weight": (40, 16), "positional_embedding": (9, 16), "text_projection": (16, 6),
        "ln_final.weight": (16,), "ln_final.bias": (16,),
    }  # fmt: skip
    assert {name: tuple(value.shape) for name, value in ClipText(**SIZES).state_dict().items()} == expected  # type: ignore[arg-type]


def test_defaults_are_those_of_vit_b_32() -> None:
    with torch.device("meta"):
        published = ClipText()
    assert sum(p.numel() for p in published.parameters()) == 63_428_096
    assert len(published.transformer.resblocks) == 12


def test_initial_spread() -> None:
    torch.manual_seed(0)
    model = ClipText(vocab_size=200, width=64, heads=2, layers=2, context=77, embed_dim=32)
    block = model.transformer.resblocks[1]
    spreads = {
        model.token_embedding.weight: 0.02, model.positional_embedding: 0.01, model.text_projection: 64**-0.5,
        block.attn.in_proj_weight: 64**-0.5, block.attn.out_proj.weight: 64**-0.5 / 2, block.mlp.c_fc.weight: 128**-0.5,
        block.mlp.c_proj.weight: 64**-0.5 / 2,
    }  # fmt: skip
    for parameter, expected in spreads.items():
        assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.1)


def test_gradients_reach_every_weight() -> None:
    model = tower()
    pooled, _ = model(Texts(torch.tensor([[1, 9, 30], [2, 31, 0]]), torch.tensor([3, 2])))
    pooled.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
