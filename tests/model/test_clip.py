"""CLIP's two towers against torch's own attention, what the model gives, locks and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossmodal.data.batches import Batch, Texts, Vectors
from crossmodal.errors import DataError
from crossmodal.model.base import Encoded
from crossmodal.model.clip import Clip
from crossmodal.model.clip_config import ClipConfig
from crossmodal.model.clip_vision import ClipVision, resampled

from .clip_inputs import BATCH, clip, pixels, texts


def naive_image(tower: ClipVision, picture: Tensor, *, quick: bool, kept: Tensor | None = None) -> Tensor:
    """One picture (3,H,W): patches cut out by hand, PyTorch's attention, no packing."""
    side, width = tower.conv1.kernel_size[0], tower.conv1.out_channels
    blocks: Any = tower.transformer.resblocks
    cells = [
        picture[:, y : y + side, x : x + side]
        for y in range(0, picture.shape[1], side)
        for x in range(0, picture.shape[2], side)
    ]
    patches = torch.stack([(tower.conv1.weight * cell).sum(dim=(1, 2, 3)) for cell in cells])
    patches = patches + tower.positional_embedding[1:]
    patches = patches if kept is None else patches[kept]
    x = torch.cat([(tower.class_embedding + tower.positional_embedding[0])[None], patches])
    x = tower.ln_pre(x)
    for block in blocks:
        attention = nn.MultiheadAttention(width, block.attn.heads).to(x.dtype)
        attention.load_state_dict(block.attn.state_dict())
        y = block.ln_1(x)
        branch = attention(y, y, y)[0]
        x = x + (branch if isinstance(block.ls_1, nn.Identity) else branch * block.ls_1.gamma)
        h = block.mlp.c_fc(block.ln_2(x))
        branch = block.mlp.c_proj(h * torch.sigmoid(1.702 * h) if quick else F.gelu(h))
        x = x + (branch if isinstance(block.ls_2, nn.Identity) else branch * block.ls_2.gamma)
    return tower.ln_post(x.mean(dim=0) if tower.global_pool else x[0]) @ tower.proj


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("size", [(12, 12), (8, 16), (4, 4)])
def test_the_image_tower(quick: bool, pool: bool, scale: float | None, size: tuple[int, int]) -> None:
    model = clip(quick_gelu=quick, global_pool=pool, vision_layer_scale=scale, image_size=size).double()
    given = pixels(3, *size)
    expected = torch.stack([naive_image(model.visual, x.double(), quick=quick) for x in given.values])
    torch.testing.assert_close(model.features("image", given), expected)


def test_captions_may_be_padded_or_not() -> None:
    model = clip().double()
    short = model.features("text", texts([5, 3, 4]))
    padded = texts([5, 3, 4], width=9)
    torch.testing.assert_close(model.features("text", padded), short)
    whole = Texts(padded.input_ids, torch.tensor([9, 9, 9]))  # all that follows the end token is seen by none
    torch.testing.assert_close(model.features("text", whole), short)


def test_every_role_is_encoded_by_its_side() -> None:
    model = clip()
    negatives = texts([4, 6], seed=5)
    batch = Batch({**BATCH.roles, "negative_text": ("text", negatives)})
    given = model(batch, ["image_embeds", "text_embeds", "negative_text_embeds", "logit_scale"])
    assert given.keys() == {"image_embeds", "text_embeds", "negative_text_embeds", "logit_scale"}
    torch.testing.assert_close(given["negative_text_embeds"], F.normalize(model.features("text", negatives), dim=1))
    torch.testing.assert_close(given["image_embeds"].norm(dim=1), torch.ones(4))
    assert float(given["logit_scale"].detach()) == pytest.approx(float(model.logit_scale.detach().exp()))
    assert model(batch, []) == {}
    assert model.fields["negative_text_embeds"].kind == "items" and model.fields["logit_scale"].kind == "scalar"
    assert model.fields["cosine_scores"].kind == "scores"


def test_scores_are_cosines() -> None:
    model = clip()
    a, b = (model.encode(*BATCH.roles[role]) for role in ("text", "image"))
    scores = model.scorers["cosine"](a, b)
    expected = F.cosine_similarity(a.vectors["embeds"][:, None], b.vectors["embeds"][None], dim=2)
    torch.testing.assert_close(scores, expected)
    assert isinstance(a[:2], Encoded) and len(a[[1, 3]]) == 2


def test_vectors_of_the_model_stand_for_items() -> None:
    model = clip()
    raw = model.features("image", pixels(4))
    torch.testing.assert_close(model.embeds("image", Vectors(raw)), model.embeds("image", pixels(4)))
    with pytest.raises(DataError, match=r"vectors of shape \(4, 5\) stand for items, the model's have 6 numbers"):
        model.encode("image", Vectors(raw[:, :5]))


def test_wrong_sizes() -> None:
    with pytest.raises(DataError, match="pictures are 3 x 12 x 16, the model reads 3 x 12 x 12"):
        clip().encode("image", pixels(2, 12, 16))
    with pytest.raises(DataError, match="a caption has 10 tokens, the model takes 9"):
        clip().encode("text", texts([3, 10]))


def test_half_precision_gives_unit_vectors_in_full_precision() -> None:
    model = clip().bfloat16()
    embeds = model.embeds("image", pixels(3))
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(embeds, clip().embeds("image", pixels(3)), atol=0.1, rtol=0)


def test_recomputing_changes_no_gradient() -> None:
    plain, saving = clip(), clip(recompute=True)
    for model in (plain, saving):
        model.train()
        given = model(BATCH, ["text_embeds", "image_embeds"])
        (given["text_embeds"] @ given["image_embeds"].T).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if name != "logit_scale":
            torch.testing.assert_close(a.grad, b.grad)


def test_patches_left_out_in_training() -> None:
    model = clip(patch_dropout=0.6).double()
    given = pixels(3)
    full = model.features("image", given)
    torch.testing.assert_close(model.features("image", given), full)  # evaluation keeps all
    torch.manual_seed(7)
    found = model.train().features("image", given)
    torch.manual_seed(7)
    kept = torch.randn(3, 9, dtype=torch.float32).topk(3).indices  # 9 patches, int(9 * 0.4) = 3 stay
    expected = torch.stack(
        [naive_image(model.visual, x.double(), quick=True, kept=k) for x, k in zip(given.values, kept, strict=True)]
    )
    torch.testing.assert_close(found, expected)
    assert torch.isfinite(clip(patch_dropout=0.99).train().features("image", given)).all()  # one patch stays


def trained(model: Clip) -> Iterator[str]:
    return (name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_locked_towers() -> None:
    assert set(trained(clip(image_unlocked=0, text_unlocked=0))) == {"logit_scale"}
    names = set(trained(clip(image_unlocked=1, text_unlocked=2)))
    assert {name for name in names if name.startswith("visual.")} == {"visual.proj"}
    rest = {name for name in names if name.startswith("text.") and not name.startswith("text.transformer.resblocks.2.")}
    assert rest == {"text.text_projection", "text.ln_final.weight", "text.ln_final.bias"}
    assert not any(name.startswith("text.transformer.resblocks.1.") for name in names)
    everything = {name for name, _ in clip().named_parameters()}
    assert set(trained(clip())) == everything == set(trained(clip(image_unlocked=4, text_unlocked=5)))


def test_learning_rates_decay_by_depth() -> None:
    factors = clip().learning_rate_factors(0.5)
    assert factors.keys() == dict(clip().named_parameters()).keys()
    expected = {
        "logit_scale": 1, "visual.proj": 1, "text.text_projection": 1, "visual.ln_post.bias": 1 / 2,
        "visual.transformer.resblocks.1.ln_1.weight": 1 / 2, "visual.transformer.resblocks.0.ln_1.weight": 1 / 4,
        "visual.conv1.weight": 1 / 8, "visual.class_embedding": 1 / 8, "visual.ln_pre.bias": 1 / 8,
        "text.transformer.resblocks.0.mlp.c_fc.bias": 1 / 8, "text.token_embedding.weight": 1 / 16,
        "text.positional_embedding": 1 / 16, "text.ln_final.weight": 1 / 2,
    }  # fmt: skip
    assert {name: factors[name] for name in expected} == expected


@pytest.mark.parametrize(("start", "end"), [(-1.0, 0.0), (3.0, 3.0), (7.0, log(100))])
def test_the_scale_is_kept_in_bounds(start: float, end: float) -> None:
    model = clip()
    with torch.no_grad():
        model.logit_scale.fill_(start)
    model.after_update()
    assert float(model.logit_scale.detach()) == pytest.approx(end)


def test_a_bias_where_the_model_has_one() -> None:
    assert "logit_bias" not in clip().fields and clip().logit_bias is None
    model = clip(logit_bias=-10.0)
    assert model.fields["logit_bias"].kind == "scalar"
    assert model(BATCH, ["logit_bias"])["logit_bias"] is model.logit_bias


def test_the_published_size() -> None:
    with torch.device("meta"):
        model = Clip(ClipConfig())
    assert len(model.state_dict()) == 302
    assert sum(p.numel() for p in model.parameters()) == 151_277_313


def test_initial_spread() -> None:
    torch.manual_seed(0)
    tower = ClipVision(image_size=(64, 64), patch_size=8, width=64, heads=2, layers=1, embed_dim=32)
    for parameter in (tower.class_embedding, tower.positional_embedding, tower.proj):
        assert float(parameter.detach().std()) == pytest.approx(1 / 8, rel=0.25)
    assert float(clip().logit_scale.detach()) != 0 and float(Clip({}).logit_scale.detach()) == pytest.approx(
        log(1 / 0.07)
    )


def test_tables_of_positions() -> None:
    table = torch.arange(10.0)[:, None].expand(10, 2).clone()
    assert resampled(table, (3, 3)) is table
    assert resampled(table, (1, 9)) is table  # as many rows: taken over, whatever the grid
    assert resampled(table[:8], (2, 2)).shape == (8, 2)  # of no square: loading says that it does not fit
    new = resampled(table, (2, 4))
    assert new.shape == (9, 2) and torch.equal(new[0], table[0])
    constant = resampled(torch.full((17, 3), 2.5, dtype=torch.float16), (7, 5))
    assert constant.dtype == torch.float16
    torch.testing.assert_close(constant, torch.full((36, 3), 2.5, dtype=torch.float16))
