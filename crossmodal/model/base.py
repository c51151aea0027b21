"""What a model is (DESIGN.md section 4): encode each side once, then score pairs; give fields by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from crossmodal.data.batches import Batch, Items
from crossmodal.errors import ConfigError, nearest
from crossmodal.files import write_whole

from .pickles import save_torch

Kind = Literal["items", "scores", "groups", "scalar"]


@dataclass(frozen=True)
class Field:
    """A named tensor that a model can give: its kind says what the engine does with it across ranks.

    ragged: an item field whose first dimension runs over the rows of all items, one item after the other; the field
    `<role>_lengths` (B,) says how many rows each has.
    """

    kind: Kind
    doc: str
    ragged: bool = False


@dataclass(frozen=True)
class Encoded:
    """B encoded items of one side, ragged, sliceable and concatenable.

    rows:    name -> (N, ...) tensor, the rows of item b being the `lengths[b]` ones after those before it.
    vectors: name -> (B, ...) tensor, one entry an item.
    lengths: (B,) int64 on the host.
    """

    lengths: Tensor
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    def row_index(self, items: Tensor) -> Tensor:
        """The rows of these items one after the other: (P,) -> (sum of their lengths,), all on the host."""
        return ragged_index((self.lengths.cumsum(0) - self.lengths)[items], self.lengths[items])

    def __getitem__(self, items: slice | Sequence[int] | Tensor) -> Encoded:
        if isinstance(items, slice) and items.step in (None, 1):  # neighbours: views, nothing is copied
            ends = torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)])
            start, stop, _ = items.indices(len(self))
            stop = max(start, stop)
            first, last = int(ends[start]), int(ends[stop])
            return Encoded(
                self.lengths[start:stop],
                {k: v[first:last] for k, v in self.rows.items()},
                {k: v[start:stop] for k, v in self.vectors.items()},
            )
        if isinstance(items, slice):
            items = range(len(self))[items]
        index = torch.arange(len(self))[items if isinstance(items, Tensor) else list(items)]
        rows = self.row_index(index)
        return Encoded(
            self.lengths[index],
            {k: v[rows.to(v.device)] for k, v in self.rows.items()},
            {k: v[index.to(v.device)] for k, v in self.vectors.items()},
        )

    @staticmethod
    def cat(parts: Iterable[Encoded]) -> Encoded:
        """The items of all parts, one after the other; of no parts, no items and no tensors."""
        parts = list(parts)
        if not parts:
            return Encoded(torch.zeros(0, dtype=torch.int64))
        return Encoded(
            torch.cat([p.lengths for p in parts]),
            {k: torch.cat([p.rows[k] for p in parts]) for k in parts[0].rows},
            {k: torch.cat([p.vectors[k] for p in parts]) for k in parts[0].vectors},
        )

    def to(self, device: torch.device | str) -> Encoded:
        return Encoded(
            self.lengths,
            {k: v.to(device, non_blocking=True) for k, v in self.rows.items()},
            {k: v.to(device, non_blocking=True) for k, v in self.vectors.items()},
        )

    def save(self, path: Path) -> None:
        """Write the items, and of a slice its own rows alone, to a file that appears when it is complete."""
        content = {
            "lengths": self.lengths.clone(),
            "rows": {k: _own_storage(v) for k, v in self.rows.items()},
            "vectors": {k: _own_storage(v) for k, v in self.vectors.items()},
        }
        write_whole(path, lambda temporary: save_torch(content, temporary))

    @staticmethod
    def open(path: Path) -> Encoded:
        """Read what `save` wrote, memory-mapped: rows come from the file as they are used."""
        return Encoded(**torch.load(path, mmap=True, weights_only=True))


def _own_storage(x: Tensor) -> Tensor:
    """x on the host, copied if it is a view: a saved view takes all that it is a view of with it."""
    x = x.detach().cpu()
    return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x


def ragged_index(starts: Tensor, lengths: Tensor) -> Tensor:
    """starts[0], starts[0]+1, ... (lengths[0] of them), starts[1], ...: (P,), (P,) -> (sum,)."""
    first = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) + (starts - first).repeat_interleave(lengths)


class Scorer(Protocol):
    """Scores pairs of encoded items; higher is a better match.

    reads: the rows and vectors of `Encoded` that it needs.
    cost: of a pair, as a share of what its tokens cost in a joint transformer: cheap scorers take larger tiles.
    """

    @property
    def reads(self) -> tuple[str, ...]: ...

    @property
    def cost(self) -> float: ...

    def __call__(self, a: Encoded, b: Encoded, pairs: Tensor | None = None) -> Tensor:
        """pairs (P,2) on the host -> (P,); None: every a with every b -> (A,B)."""
        ...


def all_pairs(a: int, b: int) -> Tensor:
    """(a*b, 2): every row of one with every row of the other, the second running fastest."""
    return torch.cartesian_prod(torch.arange(a), torch.arange(b)).reshape(-1, 2)


@dataclass(frozen=True)
class Layout:
    """How published files name a model's tensors.

    marks: a key that starts with one of them tells that a file is of this layout.
    rename: a published key as the model's own; a key that the model has not is reported as ignored.
    convert: what is to be done first, where tensors are split, joined or turned otherwise than in the model.
    """

    marks: tuple[str, ...]
    rename: Callable[[str], str]
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict


class Model(nn.Module):
    """Base of every system. Subclasses say what they encode (`sides`), give (`fields`) and score (`scorers`)."""

    name: str
    sides: ClassVar[Mapping[str, type[Any]]]
    scorer_names: ClassVar[tuple[str, ...]]  # the default one first
    all_fields: ClassVar[Mapping[str, str]]  # name -> what it is, for every configuration
    processed_by: ClassVar[str] = "uniter"  # the name of its processor
    dropouts: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob", "attention_probs_dropout_prob")  # in its config
    fields: Mapping[str, Field]  # those of this configuration
    layouts: ClassVar[Mapping[str, Layout]] = {}  # name -> published layout that it loads, the most special first
    tied: ClassVar[Mapping[str, str]] = {}  # published names of tensors that the model keeps once -> its own
    processor: Any = None

    @classmethod
    @abstractmethod
    def fields_of(cls, config: Mapping[str, Any]) -> Mapping[str, Field]:
        """The fields that a model of this configuration gives: known before it is built."""

    @classmethod
    def own_words(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration by the names of this model, also where it has those of another implementation."""
        return dict(config)

    @classmethod
    def published_config(cls, path: Path) -> dict[str, Any]:
        """What a published checkpoint says of the configuration; nothing where its form has none."""
        return {}

    @property
    @abstractmethod
    def scorers(self) -> Mapping[str, Scorer]: ...

    @property
    @abstractmethod
    def config_dict(self) -> dict[str, Any]:
        """The configuration that builds this model again, as plain data."""

    def fitted(self, state: Mapping[str, Tensor], where: object) -> Mapping[str, Tensor]:
        """Weights from `where`, under the model's own names, as its sizes take them."""
        return state

    def after_update(self) -> None:
        """What the optimizer's step must be followed by."""

    def learning_rate_factors(self, decay: float) -> dict[str, float]:
        """What multiplies the learning rate of each parameter, by name, where that decays layer by layer.

        Raises ConfigError in a model without such layers.
        """
        raise ConfigError(f"the model {self.name} takes no optimizer.layer_decay; leave it out")

    def start_new(self, new: Sequence[str]) -> None:
        """Give parameters that a checkpoint did not hold the start that others of it determine."""

    @abstractmethod
    def encode(self, side: str, items: Items) -> Encoded:
        """All work that needs one side only."""

    @abstractmethod
    def forward(self, batch: Batch, want: Iterable[str]) -> dict[str, Tensor]:
        """Encode each role of the batch once and compute the fields in `want`, no others."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.inference_mode()
    def score(self, text: Any, image: Any, scorer: str | None = None) -> float:
        """How well one raw text and one raw image match (whatever the processor takes for each side)."""
        with inference(self):
            a = self.encode("text", self.processor("text", [text]).to(self.device))
            b = self.encode("image", self.processor("image", [image]).to(self.device))
            return float(self.scorers[scorer or next(iter(self.scorers))](a, b))


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Dropout off and no gradients inside; every module gets back the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


_MODELS: dict[str, type[Model]] = {}


def register(name: str) -> Callable[[type[Model]], type[Model]]:
    """Add a model class, built from its configuration, under `name`."""

    def decorate(cls: type[Model]) -> type[Model]:
        if name in _MODELS:
            raise ValueError(f"model {name!r} is registered twice")
        _MODELS[name] = cls
        cls.name = name
        return cls

    return decorate


def check_scorers(names: Iterable[str], model: str, known: Iterable[str]) -> None:
    """Raises ConfigError for a name that is not one of the scorers that a model has."""
    for name in names:
        if name not in known:
            raise ConfigError(f"the model {model} has no scorer {name!r}; {nearest(name, known)}")


def registered() -> Mapping[str, type[Model]]:
    return dict(_MODELS)
