"""The rank loss against loops, and the life of its thresholds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossmodal.losses.cross_modal_rank import CrossModalRank, Rule

from .wrong_captions import Fields, fields, naive_cmr

cases = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))


def loss_of(given: Fields, **options: object) -> CrossModalRank:
    return CrossModalRank(types=given.mask.shape[1], **options).double()  # type: ignore[arg-type]


def naive_thresholds(given: Fields, old: list[float], rule: Rule) -> list[float]:
    own, wrong, _, _ = given.scores()
    new = []
    for k, before in enumerate(old):
        valid = [i for i in range(len(own)) if given.mask[i, k]]
        if not valid:
            new.append(before)
        elif rule == "mean":
            new.append(sum(own) / len(own) - sum(wrong[i][k] for i in valid) / len(valid))
        else:
            gaps = [own[i] - wrong[i][k] if i in valid else 0.0 for i in range(len(own))]
            new.append(max(gaps) / 5)
    return new


@settings(max_examples=40, deadline=None)
@given(cases, st.sampled_from(["mean", "max"]), st.sampled_from([0.5, 10.0]))
def test_values_and_thresholds_of_three_updates(case: tuple[int, int, int], rule: Rule, bound: float) -> None:
    items, types, seed = case
    loss = loss_of(fields(items, types), threshold=rule, upper_bound=bound)
    thresholds = [0.0] * types
    for step in range(3):
        given = fields(items, types, seed=seed + step)
        assert float(loss(*given)) == pytest.approx(naive_cmr(given, thresholds), abs=1e-9)
        loss.after_update()
        thresholds = [min(bound, max(0.0, x)) for x in naive_thresholds(given, thresholds, rule)]
        assert loss.thresholds.tolist() == pytest.approx(thresholds)


def test_a_fixed_threshold_stays_whatever_the_bound() -> None:
    given = fields(3)
    loss = loss_of(given, threshold="fixed", fixed_threshold=3.0, upper_bound=1.0, reset_each_epoch=True)
    for _ in range(2):
        loss.begin_epoch()
        assert float(loss(*given)) == pytest.approx(naive_cmr(given, [3.0] * 4))
        loss.after_update()


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_a_type_that_the_batch_lacks_keeps_its_threshold_and_costs_nothing(rule: Rule) -> None:
    loss = loss_of(fields(4), threshold=rule)
    loss.thresholds.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    given = fields(4).differentiable()
    given.mask[:, 2] = 0
    value = loss(*given)
    value.backward()
    loss.after_update()
    assert loss.thresholds[2] == 3 and loss.thresholds.isfinite().all()
    assert given.negatives.grad is not None and not given.negatives.grad.unflatten(0, (4, 4))[:, 2].any()
    assert float(value.detach()) == pytest.approx(naive_cmr(given, [1.0, 2.0, 3.0, 4.0]))


def test_thresholds_change_with_updates_not_with_calls() -> None:
    loss, first, second = loss_of(fields(4)), fields(4, seed=1), fields(4, seed=2)
    value = loss(*first)
    assert not loss.thresholds.any() and loss(*first) == value
    loss(*second)
    loss.after_update()
    once = loss_of(fields(4))
    once(*second)
    once.after_update()
    assert torch.equal(loss.thresholds, once.thresholds) and loss.thresholds.any()  # the last call counts
    loss.after_update()  # an update in which it had no batch
    assert torch.equal(loss.thresholds, once.thresholds)


def test_an_update_that_was_not_made_leaves_no_trace() -> None:
    loss = loss_of(fields(4))
    loss(*fields(4))
    loss.after_update(made=False)
    loss.after_update()
    assert not loss.thresholds.any()


def test_evaluation_leaves_the_thresholds() -> None:
    loss = loss_of(fields(4)).eval()
    loss(*fields(4))
    loss.after_update()
    assert not loss.thresholds.any()


@pytest.mark.parametrize("reset", [False, True])
def test_thresholds_are_saved_and_outlive_an_epoch_unless_it_resets_them(reset: bool) -> None:
    loss, other = (loss_of(fields(4), reset_each_epoch=reset) for _ in range(2))
    loss(*fields(4))
    loss.after_update()
    saved = loss.state_dict()
    assert list(saved) == ["thresholds"]
    other.load_state_dict(saved)
    assert torch.equal(other.thresholds, loss.thresholds)
    other.begin_epoch()
    assert other.thresholds.any() != torch.tensor(reset)


def test_no_gradient_reaches_the_thresholds() -> None:
    loss, given = loss_of(fields(4)), fields(4).differentiable()
    loss(*given)
    loss.after_update()
    assert not loss.thresholds.requires_grad
    loss.eval()

    def value(*fields: Tensor) -> Tensor:
        return loss(*fields)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(value, tuple(given))


def test_an_empty_batch_costs_nothing_and_keeps_the_thresholds() -> None:
    for rule in ("mean", "max"):
        loss, given = loss_of(fields(1), threshold=rule), fields(0).differentiable()
        loss.thresholds.fill_(2.0)
        value = loss(*given)
        value.backward()
        loss.after_update()
        assert value.item() == 0 and loss.thresholds.tolist() == [2.0] * 4


def test_another_number_of_types_is_refused() -> None:
    with pytest.raises(ValueError, match=r"negative_mask has \(3,\) types, the loss 4; set types"):
        CrossModalRank()(*fields(2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    half = Fields(*(x.to(dtype) for x in fields(4, scale=100.0)))
    full = Fields(*(x.float() for x in half))
    loss, other = CrossModalRank(), CrossModalRank()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*half)
    assert value.dtype == torch.float32 and torch.equal(value, other(*full))
    loss.after_update(), other.after_update()
    assert loss.thresholds.dtype == torch.float32 and torch.equal(loss.thresholds, other.thresholds)
