"""The registry of losses. A loss's signature is its contract (DESIGN.md section 5): positional parameters are
the fields it needs, annotated with their kind; keyword-only ones are its hyper-parameters.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Any, NewType, TypeVar, get_origin, get_type_hints

import torch
from torch import Tensor, nn

Items = NewType("Items", Tensor)
"""A field with one row an item of a role; gathered over ranks."""
Scores = NewType("Scores", Tensor)
"""A score matrix (texts, images) over the global batch."""
Groups = NewType("Groups", Tensor)
"""A field with one row a group (or a row of its own unit); stays on its rank."""
Scalar = NewType("Scalar", Tensor)
"""A parameter or scalar, the same on all ranks."""


class WrongFields(ValueError):
    """A field has not the shape that a loss's options say: its message ends with what to change."""


_KINDS = {"Items": "items", "Scores": "scores", "Groups": "groups", "Scalar": "scalar"}
_LOSSES: dict[str, Any] = {}
L = TypeVar("L", bound=Callable[..., Any])


def register(name: str) -> Callable[[L], L]:
    """Add a loss function, or an `nn.Module` class with state, under `name`."""

    def decorate(loss: L) -> L:
        if name in _LOSSES:
            raise ValueError(f"loss {name!r} is registered twice")
        _LOSSES[name] = loss
        return loss

    return decorate


def names() -> list[str]:
    return sorted(_LOSSES)


def get(name: str) -> Any:
    """The registered function or class. Raises KeyError with the near names."""
    if name not in _LOSSES:
        close = difflib.get_close_matches(name, _LOSSES, n=3) or names()
        raise KeyError(f"no loss is called {name!r}; near or known names: {', '.join(close)}")
    return _LOSSES[name]


@dataclass(frozen=True)
class Signature:
    """What a loss reads: `fields` name -> kind, `options` name -> default (`inspect.Parameter.empty` if none).

    counts: whether it returns its mean together with its own count of units.
    """

    fields: dict[str, str]
    options: dict[str, Any]
    counts: bool = False

    def fed_by(self, given: Set[str], *, matrix: bool) -> bool:
        """Whether a recipe can feed it fields of these names. It may give a number for a scalar, and name a score
        matrix of its own for any, where the model gives one (`matrix`)."""
        free = {"scalar", "scores"} if matrix else {"scalar"}
        return {name for name, kind in self.fields.items() if kind not in free} <= given


def signature(name: str) -> Signature:
    """The contract of a registered loss, read from its own signature."""
    loss: Any = get(name)
    called = loss.forward if isinstance(loss, type) and issubclass(loss, nn.Module) else loss
    fields: dict[str, str] = {}
    options: dict[str, Any] = {}
    for p in inspect.signature(called).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            options[p.name] = p.default
        elif p.name != "self":
            kind = str(p.annotation).rsplit(".", 1)[-1]
            if kind not in _KINDS:
                raise TypeError(f"the field {p.name!r} of loss {name!r} must be annotated with {', '.join(_KINDS)}")
            fields[p.name] = _KINDS[kind]
    if isinstance(loss, type):
        init = inspect.signature(loss).parameters.values()
        options = {p.name: p.default for p in init if p.kind is p.KEYWORD_ONLY}
    return Signature(fields, options, get_origin(get_type_hints(called).get("return")) is tuple)


def build(name: str, **options: Any) -> Callable[..., Any]:
    """A callable on the loss's fields: the function with its options bound, or the module built with them."""
    loss = get(name)
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        return loss(**options)

    def bound(*fields: Tensor) -> Any:
        return loss(*fields, **options)

    return bound


def full_precision(*tensors: Tensor) -> Iterable[Tensor]:
    """The tensors in float32 (float64 stays): losses never compute in half precision."""
    return (t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def mean_or_zero(terms: Tensor) -> Tensor:
    """The mean; 0 where there are no terms (a rank without units), so that its gradient is 0 and not NaN."""
    return terms.mean() if terms.numel() else terms.sum()
