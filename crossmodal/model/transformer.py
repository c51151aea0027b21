"""The one transformer: a post-LayerNorm encoder over packed sequences.

Sequences of different length lie one after the other in a single (N, D) tensor, so that every matrix
product works on real tokens only. Attention alone needs to know where a sequence ends: it runs on groups of
neighbouring sequences (`Packing`), which are padded only where that is cheaper than one more kernel call.
Parameter names are BERT's, which UNITER, IAIS and OSCAR/VinVL checkpoints share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-12

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "swish": F.silu}

# How much wasted attention (multiply-adds) is worth one kernel call less: about 50 microseconds of one core.
_CALL_COST = 2_000_000


@dataclass(frozen=True)
class Group:
    """`count` neighbouring sequences of `rows` packed rows, which attention handles in one call of `width`.

    Where their lengths differ, or some of their rows are no keys, `padding` says how; otherwise it is None.
    """

    count: int
    rows: int
    width: int
    padding: Padding | None

    def padded(self, x: Tensor) -> Tensor:
        """The group's packed rows (rows,D) as (count,T,D)."""
        if self.padding is not None:
            x = x.index_select(0, self.padding.rows)
        return x.unflatten(0, (self.count, self.width))

    def packed(self, x: Tensor) -> Tensor:
        """The real rows of x (count,T,D), one after the other."""
        rows = x.flatten(0, 1)
        return rows if self.padding is None else rows.index_select(0, self.padding.kept)


@dataclass(frozen=True)
class Padding:
    """rows (n T,): the row of the group at each padded position, padding repeats a sequence's first row;
    kept (rows of the group,): the padded positions that are real; mask (n,1,1,T) bool, true where attended to."""

    rows: Tensor
    kept: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Packing:
    """Where B sequences lie in a packed (N, D) tensor: `lengths` (B,) on the host, `first` (B,) on the device."""

    lengths: Tensor
    first: Tensor
    groups: tuple[Group, ...]

    @staticmethod
    def of(lengths: Tensor, width: int, device: torch.device, keys: Tensor | None = None) -> Packing:
        """Plan the groups of sequences of these lengths (host, int64), best sorted, for attention `width` D.

        keys (N,) bool on the host: the rows that are attended to, at least one a sequence; None: all of them.
        """
        ends = lengths.cumsum(0)
        first = ends - lengths
        groups = []
        for start, stop in _plan(lengths.tolist(), width):
            low, high, longest = int(first[start]), int(ends[stop - 1]), int(lengths[start:stop].max())
            padding = None
            if high - low < (stop - start) * longest or (keys is not None and not keys[low:high].all()):
                position = torch.arange(longest)
                real = position < lengths[start:stop, None]
                rows = first[start:stop, None] - low + torch.where(real, position, 0)
                mask = real if keys is None else real & keys[low:high][rows]
                kept = real.flatten().nonzero().flatten()
                padding = Padding(rows.flatten().to(device), kept.to(device), mask[:, None, None, :].to(device))
            groups.append(Group(stop - start, high - low, longest, padding))
        return Packing(lengths, first.to(device), tuple(groups))


def _plan(lengths: list[int], width: int) -> list[tuple[int, int]]:
    """Cut consecutive sequences into groups: extend a group while padding costs less than a further call."""
    bounds: list[tuple[int, int]] = []
    start, longest, exact = 0, 0, 0
    for i, n in enumerate(lengths):
        new_longest = max(longest, n)
        waste = (i + 1 - start) * new_longest**2 - (exact + n * n)
        if i > start and 2 * width * waste > _CALL_COST:
            bounds.append((start, i))
            start, new_longest, exact = i, n, 0
        longest, exact = new_longest, exact + n * n
    if lengths:
        bounds.append((start, len(lengths)))
    return bounds


class PackedAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over each packed sequence; how Q, K and V are projected, subclasses say."""

    def __init__(self, width: int, heads: int, dropout: float, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.head_width, self.dropout, self.causal = heads, width // heads, dropout, causal

    def split(self, x: Tensor) -> Tensor:
        """(..., T, D) -> (..., h, T, d)"""
        return x.unflatten(-1, (self.heads, self.head_width)).transpose(-3, -2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, first_only: bool = False) -> Tensor:
        """q, k, v (N,D) -> (N,D); with `first_only` q and what is returned are (B,D), of the first rows."""
        rows = [group.rows for group in packing.groups]
        queries = [group.count for group in packing.groups] if first_only else rows
        parts = zip(packing.groups, q.split(queries), k.split(rows), v.split(rows), strict=True)
        return torch.cat([self._group(*part, first_only) for part in parts])

    def _group(self, group: Group, q: Tensor, k: Tensor, v: Tensor, first_only: bool) -> Tensor:
        query = q[:, None] if first_only else group.padded(q)  # (n,1,D) or (n,T,D)
        # Padding lies at the right, so that a causal mask hides it from all real rows.
        out = F.scaled_dot_product_attention(
            self.split(query),
            self.split(group.padded(k)),
            self.split(group.padded(v)),
            attn_mask=None if group.padding is None or self.causal else group.padding.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
        )
        out = out.transpose(1, 2).flatten(2)  # (n,h,T,d) -> (n,T,D)
        return out[:, 0] if first_only else group.packed(out)


class SelfAttention(PackedAttention):
    """Attention with BERT's three projections."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, dropout)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor, packing: Packing, first_only: bool) -> Tensor:
        """x (N,D) -> (N,D), or (B,D) for the first row of each sequence."""
        q = self.query(x.index_select(0, packing.first) if first_only else x)
        return self.attend(q, self.key(x), self.value(x), packing, first_only)

    def probabilities(self, q: Tensor, k: Tensor, real: Tensor) -> Tensor:
        """Attention of projected, padded queries over keys, no dropout: (B,T,D), (B,K,D), (B,K) -> (B,h,T,K).

        Softmax runs over the real keys only, in float32 at least; a sequence without any gets rows of 0.
        """
        scores = self.split(q) @ self.split(k).transpose(-1, -2) / self.head_width**0.5
        if scores.dtype.itemsize < 4:
            scores = scores.float()
        real = real[:, None, None, :]
        return scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(dim=-1) * real


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.add_module("self", SelfAttention(width, heads, attention_dropout))
        self.output = Residual(width, width, dropout)

    @property
    def inner(self) -> SelfAttention:
        module = self.get_submodule("self")
        assert isinstance(module, SelfAttention)
        return module


class Residual(nn.Module):
    """LayerNorm(dropout(W h) + x)."""

    def __init__(self, width_in: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(h)) + x)


class Intermediate(nn.Module):
    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.dense = nn.Linear(width, inner)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


class Layer(nn.Module):
    """One post-LayerNorm layer: y = LN(attention(x) + x); LN(W2 act(W1 y) + y)."""

    def __init__(
        self, width: int, heads: int, inner: int, activation: str, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout, attention_dropout)
        self.intermediate = Intermediate(width, inner, activation)
        self.output = Residual(inner, width, dropout)

    def forward(self, x: Tensor, packing: Packing, first_only: bool = False) -> Tensor:
        """x (N,D) -> (N,D); with `first_only`, (B,D): the first row of each sequence and nothing else."""
        context = self.attention.inner(x, packing, first_only)
        y = self.attention.output(context, x.index_select(0, packing.first) if first_only else x)
        return self.output(self.intermediate(y), y)


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        inner: int,
        activation: str = "gelu",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            Layer(width, heads, inner, activation, dropout, attention_dropout) for _ in range(layers)
        )

    @property
    def last(self) -> Layer:
        layer = self.layer[-1]
        assert isinstance(layer, Layer)
        return layer

    def below_last(self, x: Tensor, packing: Packing) -> Tensor:
        """The input of the last layer, (N,D): where the attention blocks of IAIS are taken."""
        for layer in list(self.layer)[:-1]:
            x = layer(x, packing)
        return x

    def states(self, x: Tensor, packing: Packing) -> list[Tensor]:
        """x and the output of every layer, (N,D) each."""
        states = [x]
        for layer in self.layer:
            states.append(layer(states[-1], packing))
        return states

    def forward(self, x: Tensor, packing: Packing, first_only: bool = False) -> Tensor:
        """x (N,D) -> last hidden states (N,D), or (B,D) of the first positions with `first_only`."""
        return self.last(self.below_last(x, packing), packing, first_only)
