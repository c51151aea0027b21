"""The hash of what scores were made from: equal for equal things, different for any other."""

from __future__ import annotations

from pathlib import Path

import torch

from crossmodal.data.batches import Texts
from crossmodal.evaluate.identity import Identity
from crossmodal.model.checkpoints import load
from crossmodal.model.precision import int8


def digest(*values: object) -> bytes:
    identity = Identity()
    for value in values:
        identity.add(value)
    return identity.digest()


def test_other_content_type_shape_or_grouping_gives_another_hash() -> None:
    x = torch.arange(6, dtype=torch.int32)
    different = [
        (x,), (x + 1,), (x.float(),), (x.view(torch.float32),), (x.view(2, 3),), (x[:0],), (x[:0].view(0, 3),), (),
        (x.bfloat16(),), (x.half(),), ([x],), ((x,),), ([x, x],), ([x], [x]), ({"x": x},), ({"y": x},),
        (Texts(x[None].long(), torch.tensor([6])),), (Texts(x[None].long(), torch.tensor([5])),),
        ("ab", "c"), ("a", "bc"), ("abc",), (1, 23), (12, 3), (None,), (torch.float32,),
    ]  # fmt: skip
    assert len({digest(*values) for values in different}) == len(different)


def test_the_same_content_gives_the_same_hash() -> None:
    x = torch.randn(6, 8)
    assert digest(x) == digest(x.clone()) == digest(x.T.contiguous().T) == digest(torch.cat([x, x])[:6])
    assert digest({"a": [x, 1]}) == digest({"a": [x.clone().requires_grad_(), 1]})


def test_batches_pass_unchanged_and_are_added() -> None:
    batches = [Texts(torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, n])) for n in (1, 2)]
    identity = Identity()
    assert list(identity.watched(batches)) == batches
    assert identity.digest() == digest(*batches)


def test_quantised_weights_count(trained: Path) -> None:
    first, second, other = (load(trained) for _ in range(3))
    with torch.no_grad():
        next(p for name, p in other.named_parameters() if "layer.0.output.dense.weight" in name)[0, 0] += 0.5
    states = [int8(model).state_dict() for model in (first, second, other)]
    assert digest(states[0]) == digest(states[1]) != digest(states[2])
    assert digest(first.state_dict()) != digest(states[0])
