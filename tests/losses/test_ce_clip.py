"""CE-CLIP's whole objective is the sum of its terms, with each product computed once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crossmodal.losses.ce_clip import CeClip
from crossmodal.losses.contrastive import clip_info_nce
from crossmodal.losses.cross_modal_rank import CrossModalRank
from crossmodal.losses.hard_negatives import hard_negative_itc, intra_modal_contrastive

from .wrong_captions import Fields, fields


def value_and_gradients(value: Tensor, given: Fields) -> list[Tensor]:
    leaves = [given.images, given.texts, given.negatives, given.scale]
    return [value, *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize(("cmr", "imc"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_it_is_the_sum_of_its_terms(cmr: float, imc: float, hard: bool, masked: bool) -> None:
    whole = CeClip(cmr_weight=cmr, imc_weight=imc, hard_negatives=hard, mask_missing=masked, types=3).double()
    rank = CrossModalRank(types=3).double()
    for step in range(3):
        given = fields(4, 3, seed=step).differentiable()
        if hard:
            parts = hard_negative_itc(*given, mask_missing=masked)
        else:
            parts = clip_info_nce(given.images, given.texts, given.scale)
        if cmr:
            parts = parts + cmr * rank(*given)
        if imc:
            parts = parts + imc * intra_modal_contrastive(*given, mask_missing=masked)
        torch.testing.assert_close(value_and_gradients(whole(*given), given), value_and_gradients(parts, given))
        rank.after_update(), whole.after_update()
        torch.testing.assert_close(whole.thresholds, rank.thresholds)
        assert list(whole.terms) == ["itc", *["cmr"] * bool(cmr), *["imc"] * bool(imc)]
        assert not any(term.requires_grad for term in whole.terms.values())


class Products(TorchDispatchMode):
    """Notes the shapes of what is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.shapes[args[0].shape[-2], args[1].shape[-1]] += 1
        return func(*args, **(kwargs or {}))


def test_no_product_is_computed_twice() -> None:
    with Products() as seen:
        CeClip().double()(*fields(6))
    assert seen.shapes == {(6, 30): 1, (6, 24): 1}  # images with all texts, captions with wrong ones


def test_one_item_and_none() -> None:
    for items in (0, 1):
        given = fields(items).differentiable()
        value = CeClip().double()(*given)
        value.backward()
        assert value.isfinite() and given.images.grad is not None and given.images.grad.isfinite().all()


def test_gradients() -> None:
    loss = CeClip(types=2).double()
    assert torch.autograd.gradcheck(lambda *given: loss(*given), tuple(fields(3, 2).differentiable()))


def test_forms_whose_target_may_be_missing_are_not_masked() -> None:
    with pytest.raises(ValueError, match="mask_missing does not go with the form 'main'"):
        CeClip(form="main", mask_missing=True)
    CeClip(form="main", mask_missing=True, imc_weight=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    half = Fields(*(x.to(dtype) for x in fields(4, scale=100.0)))
    with torch.autocast("cpu", torch.bfloat16):
        value = CeClip()(*half)
    assert value.dtype == torch.float32 and torch.equal(value, CeClip()(*(x.float() for x in half)))
