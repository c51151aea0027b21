"""Batches: plain frozen dataclasses of tensors (DESIGN.md section 3).

Padding is at the right. `lengths` and `pairs` stay on the host, also after `.to(device)`: they shape the
computation (how many rows, which groups), and reading them there would make the device wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound="_Tensors")

_HOST = frozenset({"lengths", "counts", "pairs"})


class _Tensors:
    """What the batch classes share: moving tensor fields (but the host ones) and selecting items."""

    def _map(self: T, function: Any) -> T:
        changed: dict[str, Any] = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if f.name not in _HOST:
                changed[f.name] = _apply(value, function)
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self: T, device: torch.device | str) -> T:
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self: T) -> T:
        return self._map(lambda t: t.pin_memory())

    def select(self: T, items: Tensor, *, trim: bool = True) -> T:
        """These items (host int64); with `trim`, padding that none of them needs is cut."""
        lengths = getattr(self, "lengths", None)
        changed: dict[str, Any] = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, _Tensors):
                changed[f.name] = value.select(items, trim=trim)
            elif isinstance(value, Tensor):
                value = value[items.to(value.device)]
                if lengths is not None and trim and f.name not in _HOST:
                    value = value[:, : int(lengths[items].max())]
                changed[f.name] = value
        return replace(self, **changed)  # type: ignore[type-var]


def _apply(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, _Tensors):
        return value._map(function)
    if isinstance(value, dict):
        return {k: _apply(v, function) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_apply(v, function) for v in value)
    return value


def length_mask(lengths: Tensor, width: int) -> Tensor:
    """(B,) lengths -> (B, width) bool, true on the first `lengths[b]` positions."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


@dataclass(frozen=True)
class Texts(_Tensors):
    """Captions as token ids: `input_ids` (B,T) int64, `lengths` (B,) int64, `type_ids` (B,T) or None.

    With `counts` (B,) int64 an item is several sentences: `counts[b]` rows of `input_ids` (S,T) and `lengths` (S,),
    after those of the items before it; S their sum.
    """

    input_ids: Tensor
    lengths: Tensor
    type_ids: Tensor | None = None
    counts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths if self.counts is None else self.counts)

    def select(self, items: Tensor, *, trim: bool = True) -> Texts:
        if self.counts is None:
            return super().select(items, trim=trim)
        rows = torch.cat([torch.arange(len(self.lengths)).split(self.counts.tolist())[i] for i in items.tolist()])
        return replace(replace(self, counts=None).select(rows, trim=trim), counts=self.counts[items])


@dataclass(frozen=True)
class Vectors(_Tensors):
    """Features computed beforehand: `values` (B,D), or (B,L,D) with `lengths` (B,)."""

    values: Tensor
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Regions(_Tensors):
    """Detected boxes: `features` (B,R,F), `boxes` (B,R,P), `lengths` (B,) int64, and optionally their `tags`.

    `masked` (B,R) bool marks regions hidden for masked-region modelling; their features are zero already.
    """

    features: Tensor
    boxes: Tensor
    lengths: Tensor
    tags: Texts | Vectors | None = None
    masked: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Pixels(_Tensors):
    """Pictures: `values` (B,3,H,W) float."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)


Items = Texts | Regions | Pixels | Vectors


@dataclass(frozen=True)
class Batch(_Tensors):
    """Items in roles, and which of them form pairs.

    roles: role -> (side of the model that encodes it, items), e.g. ``{"text": ("text", Texts), "image": ...}``.
    pairs: (P,2) int64 on the host, rows of the roles in `between`; None means item i matches item i.
    group: pairs come in groups of this size, the positive first.
    ids:   role -> the database id of every item.
    extras: named tensors that a dataset or a miner adds, e.g. ``matched`` (G, group).
    ghost: it counts nothing: a rank that has no anchors left runs along with it, so that all make the same calls.
    teachers: teacher -> its roles: the same items as its own processor makes them.
    """

    roles: Mapping[str, tuple[str, Items]]
    pairs: Tensor | None = None
    group: int = 1
    ids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    between: tuple[str, str] = ("text", "image")
    ghost: bool = False
    teachers: Mapping[str, Mapping[str, tuple[str, Items]]] = field(default_factory=dict)

    @property
    def groups(self) -> int:
        """How many groups: the units over which a loss on group fields is averaged."""
        if self.ghost:
            return 0
        count = len(self.roles[self.between[0]][1]) if self.pairs is None else len(self.pairs)
        return count // self.group

    @property
    def device(self) -> torch.device:
        """Where the items' tensors are."""
        _, items = next(iter(self.roles.values()))
        return next(
            v.device for f in fields(items) if f.name not in _HOST and isinstance(v := getattr(items, f.name), Tensor)
        )

    def pair_lengths(self) -> tuple[Tensor, Tensor]:
        """(P,) tokens or regions of each pair's two items, on the host."""
        assert self.pairs is not None
        lengths = [getattr(self.roles[role][1], "lengths")[self.pairs[:, i]] for i, role in enumerate(self.between)]  # noqa: B009
        return lengths[0], lengths[1]

    def keep(self, rows: Tensor, *, trim: bool = True) -> Batch:
        """Only these rows of `pairs`, (G, k) on the host, as groups of k; items in no pair are dropped.

        With an explicit index (a published defect), or without `trim`, padding stays: the index counts it.
        """
        assert self.pairs is not None
        kept = self.pairs[rows.flatten()]
        index = self.extras.get("joint_index")
        trim = trim and index is None
        roles, ids, columns = dict(self.roles), dict(self.ids), []
        for column, role in enumerate(self.between):
            used, renumbered = kept[:, column].unique(return_inverse=True)
            side, items = self.roles[role]
            roles[role] = (side, items.select(used, trim=trim))
            if role in ids:
                ids[role] = [ids[role][i] for i in used.tolist()]
            columns.append(renumbered)
        extras = {"matched": (torch.arange(rows.shape[1]) == 0).long().expand(len(rows), -1).to(self.device)}
        if index is not None:
            extras["joint_index"] = index[rows.flatten().to(index.device)]
        return replace(
            self, roles=roles, ids=ids, pairs=torch.stack(columns, dim=1), group=rows.shape[1], extras=extras
        )
