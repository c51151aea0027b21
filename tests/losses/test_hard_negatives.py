"""The losses with wrong captions against loops over all entries, and their edges."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.losses.contrastive import clip_info_nce
from crossmodal.losses.hard_negatives import Form, hard_negative_itc, intra_modal_contrastive, negclip

from .wrong_captions import Fields, fields, naive_imc, naive_itc

FORMS = get_args(Form)
cases = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
BOTH = pytest.mark.parametrize("loss", [hard_negative_itc, intra_modal_contrastive])


def of(case: tuple[int, int, int]) -> Fields:
    return fields(case[0], case[1], seed=case[2])


@settings(max_examples=30, deadline=None)
@given(cases, st.booleans())
def test_itc_is_the_loop(case: tuple[int, int, int], masked: bool) -> None:
    given = of(case)
    assert float(hard_negative_itc(*given, mask_missing=masked)) == pytest.approx(naive_itc(given, masked=masked))


@settings(max_examples=40, deadline=None)
@given(cases, st.sampled_from(FORMS))
def test_imc_is_the_loop(case: tuple[int, int, int], form: Form) -> None:
    given = of(case)
    assert float(intra_modal_contrastive(*given, form=form)) == pytest.approx(naive_imc(given, form))
    if form in ("v2024_01", "paper") and given.mask.any():
        ours = intra_modal_contrastive(*given, form=form, mask_missing=True)
        assert float(ours) == pytest.approx(naive_imc(given, form, masked=True))


@settings(max_examples=20, deadline=None)
@given(cases)
def test_negclip_is_the_loop_over_both_halves(case: tuple[int, int, int]) -> None:
    own, hard = of(case), of((*case[:2], case[2] + 1))
    both = Fields(*(torch.cat([a, b]) for a, b in zip(own[:4], hard[:4], strict=True)), own.scale)
    roles = [x for pair in zip(own[:3], hard[:3], strict=True) for x in pair]
    assert float(negclip(*roles, own.scale)) == pytest.approx(naive_itc(both))


def test_negclip_does_not_depend_on_how_ranks_cut_the_batch() -> None:
    """Every role is gathered by itself: two ranks' rows give what one rank has that holds them all."""
    own, hard = fields(4, 2, seed=1), fields(4, 2, seed=2)
    roles = [x for pair in zip(own[:3], hard[:3], strict=True) for x in pair]
    order = torch.tensor([2, 3, 0, 1])  # of items: the other rank's first
    rows = (order[:, None] * 2 + torch.arange(2)).flatten()
    shuffled = [x[order if len(x) == 4 else rows] for x in roles]
    torch.testing.assert_close(negclip(*shuffled, own.scale), negclip(*roles, own.scale))


@BOTH
def test_gradients(loss: Callable[..., Tensor]) -> None:
    given = fields(3, 2).differentiable()
    for options in ({}, {"mask_missing": True}):
        assert torch.autograd.gradcheck(partial(loss, **options), tuple(given))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_every_form(form: Form) -> None:
    assert torch.autograd.gradcheck(partial(intra_modal_contrastive, form=form), tuple(fields(3, 2).differentiable()))


@BOTH
@pytest.mark.parametrize("masked", [False, True])
def test_an_empty_batch_costs_nothing(loss: Callable[..., Tensor], masked: bool) -> None:
    given = fields(0, 4).differentiable()
    value = loss(*given, mask_missing=masked)
    value.backward()
    assert value.item() == 0 and given.texts.grad is not None


def test_without_wrong_captions_only_the_right_ones_count() -> None:
    given = fields(4, 3)._replace(mask=torch.zeros(4, 3)).differentiable()
    ours = hard_negative_itc(*given, mask_missing=True)
    torch.testing.assert_close(ours, clip_info_nce(given.images, given.texts, given.scale))
    for form in ("v2024_01", "paper"):
        value = intra_modal_contrastive(*given, form=form, mask_missing=True)
        value.backward()
        assert value.item() == 0 and given.texts.grad is not None and given.texts.grad.isfinite().all()


@pytest.mark.parametrize("form", ["main", "v2023_06"])
def test_forms_whose_target_may_be_missing_are_not_masked(form: Form) -> None:
    with pytest.raises(ValueError, match=f"mask_missing does not go with the form '{form}'.*v2024_01"):
        intra_modal_contrastive(*fields(2), form=form, mask_missing=True)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    half = Fields(*(x.to(dtype) for x in fields(4)))
    full = Fields(*(x.float() for x in half))
    value = loss(*half)
    assert value.dtype == torch.float32 and torch.equal(value, loss(*full))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(value, loss(*half))
