"""From the recipe's streams to callable objectives, checked before any data is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from crossmodal import losses
from crossmodal.data.datasets import DATASETS
from crossmodal.errors import ConfigError, nearest
from crossmodal.model.base import Field, registered

from .mining import MINERS, Miner
from .recipe import LossSpec, Recipe, StreamSpec, Weight
from .schedules import anneal

_GLOBAL = frozenset({"items", "scores"})


class Giver(Protocol):
    """What gives fields: a model, or what is known of it before it is built."""

    @property
    def name(self) -> str: ...

    @property
    def fields(self) -> Mapping[str, Field]: ...


class LearnedWeight(nn.Module):
    """A loss L weighed by its log-variance s: (exp(-s) L + s) / 2, s = -2.3 at first (ALADIN, spec section 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.tensor(-2.3))

    def forward(self, loss: Tensor) -> Tensor:
        return (torch.exp(-self.log_variance) * loss + self.log_variance) / 2


class Value(NamedTuple):
    """What a loss gives: its value as it is minimised and as it is shown, and its own number of units, or None."""

    value: Tensor
    shown: float
    units: int | None


@dataclass(frozen=True)
class Fed:
    """What a model gives of batches with some roles: its item fields are named after the roles."""

    name: str
    fields: Mapping[str, Field]

    @staticmethod
    def of(model: Giver, roles: Set[str]) -> Fed:
        fitting = {k: v for k, v in model.fields.items() if v.kind != "items" or k.rpartition("_")[0] in roles}
        return Fed(model.name, fitting)


@dataclass(frozen=True)
class Term:
    """One loss of a stream: `call` takes the fields in `reads`, each with its kind, in their order.

    counts: whether it gives its own count of units. learned: what weighs it, where its weight is learned.
    constants: the places among what `call` takes that the recipe fills with a number, in their order, and the numbers.
    """

    tag: str
    reads: tuple[tuple[str, str], ...]
    call: Callable[..., Any]
    weight: Weight
    counts: bool
    learned: LearnedWeight | None = None
    constants: tuple[tuple[int, float], ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it sees the global batch, and has the same value on all ranks."""
        return any(kind in _GLOBAL for _, kind in self.reads)

    @property
    def modules(self) -> list[nn.Module]:
        """What of it is trained, or has a state."""
        return [module for module in (self.call, self.learned) if isinstance(module, nn.Module)]

    def __call__(self, fields: Mapping[str, Tensor]) -> Value:
        read = [fields[name] for name, _ in self.reads]
        for place, number in self.constants:
            read.insert(place, torch.tensor(number, device=read[0].device))
        try:
            given = self.call(*read)
        except losses.WrongFields as error:
            raise ConfigError(f"the loss {self.tag} cannot be computed: {error}") from None
        value, units = given if isinstance(given, tuple) else (given, None)
        return Value(self.learned(value) if self.learned else value, float(value.detach()), units)

    def weight_at(self, step: int, total: int) -> float:
        return self.weight.scale * anneal(self.weight.schedule, step, total)


@dataclass(frozen=True)
class Objective:
    """A stream's miner and losses; `given` are the fields that the model can give."""

    name: str
    terms: tuple[Term, ...]
    miner: Miner | None
    given: frozenset[str]

    @property
    def wants(self) -> frozenset[str]:
        """The fields that the model must give."""
        return self._read & self.given

    @property
    def taught(self) -> frozenset[str]:
        """The fields that teachers must give."""
        return frozenset(name for name in self._read if "." in name)

    @property
    def _read(self) -> frozenset[str]:
        return frozenset(name for term in self.terms for name, _ in term.reads)

    def of_kind(self, kind: str) -> frozenset[str]:
        """The model's, the data's and the miner's fields of this kind that its losses read."""
        return frozenset(name for term in self.terms for name, of in term.reads if of == kind and "." not in name)

    def at(self, epoch: int) -> Objective:
        """Without the losses that begin later."""
        return replace(self, terms=tuple(term for term in self.terms if term.weight.from_epoch <= epoch))


def build_objectives(
    recipe: Recipe, model: Giver, teachers: Mapping[str, Giver] | None = None
) -> tuple[list[Objective], nn.ModuleList]:
    """The objectives of a recipe, and the losses among them that are modules (with parameters or state).

    Raises ConfigError with every loss, option or field that does not fit.
    """
    wrong: list[str] = []
    taught = {f"{name}.{field}" for name, teacher in (teachers or {}).items() for field in teachable(teacher)}
    objectives = [
        _objective(stream, name, f"streams.{i}", model, taught, wrong)
        for i, (stream, name) in enumerate(zip(recipe.streams, recipe.stream_names(), strict=True))
    ]
    if recipe.accumulate > 1:
        wrong += [why for objective in objectives for why in _uncacheable(objective, recipe)]
    if wrong:
        raise ConfigError("the recipe cannot be trained:\n  " + "\n  ".join(wrong))
    return objectives, nn.ModuleList(module for o in objectives for t in o.terms for module in t.modules)


def _uncacheable(objective: Objective, recipe: Recipe) -> list[str]:
    """Why losses over the global batch do not go with `accumulate` here (`caching` says how they do)."""
    whole = [term.tag for term in objective.terms if term.whole]
    if not whole:
        return []
    said = f"accumulate: {recipe.accumulate} does not fit the loss {whole[0]}, which sees the global batch,"
    why = []
    if len(whole) < len(objective.terms):
        why.append(f"{said} beside others of its stream that do not; give them streams of their own")
    if recipe.distributed.gradients != "flat":
        why.append(f"{said} with distributed.gradients {recipe.distributed.gradients}; use flat, or accumulate 1")
    if objective.taught:
        why.append(f"{said} and a teacher's fields; set accumulate to 1")
    return why


def teachable(teacher: Giver) -> list[str]:
    """The fields that a model can give as a teacher: the scores of all its scorers, and one field an item."""
    return [name for name, field in teacher.fields.items() if field.kind == "items" and not field.ragged] + [
        f"{scorer}_scores" for scorer in registered()[teacher.name].scorer_names
    ]


def _objective(
    stream: StreamSpec, name: str, where: str, model: Giver, taught: Set[str], wrong: list[str]
) -> Objective:
    added: set[str] = set()
    given = model
    dataset = _named(DATASETS, stream.data.draw, f"{where}.data.draw", "dataset", wrong)
    if dataset is not None:
        _checked_options(dataset, stream.data.options, f"{where}.data", wrong, exclude=("seed", "stream", "teachers"))
        given = Fed.of(model, dataset.roles)
        added |= dataset.adds | (taught if "teachers" in _options(dataset) else set())
    miner = None
    if stream.miner is not None:
        made = _named(MINERS, stream.miner.use, f"{where}.miner.use", "miner", wrong)
        options = None if made is None else _checked_options(made, stream.miner.options, f"{where}.miner", wrong)
        if options is not None:
            miner = made(**options)
            added = set(miner.adds)
    terms = [
        term
        for i, spec in enumerate(stream.losses)
        if (term := _term(spec, name, f"{where}.losses.{i}", given, added, wrong)) is not None
    ]
    if terms and all(term.weight.from_epoch > 0 for term in terms):
        wrong.append(f"{where}.losses: all of them begin after epoch 0; let one have weight.from_epoch 0")
    return Objective(name, tuple(terms), miner, frozenset(given.fields))


def _term(spec: LossSpec, stream: str, where: str, model: Giver, added: set[str], wrong: list[str]) -> Term | None:
    if spec.use not in losses.names():
        wrong.append(f"{where}.use: no loss is called {spec.use!r}; {nearest(spec.use, losses.names())}")
        return None
    signature = losses.signature(spec.use)
    mapping = {k: v for k, v in spec.options.items() if k in signature.fields}
    options = {k: v for k, v in spec.options.items() if k not in signature.fields}
    numbers = {k for k, v in mapping.items() if signature.fields[k] == "scalar" and isinstance(v, (int, float))}
    constants = tuple((i, float(mapping[name])) for i, name in enumerate(signature.fields) if name in numbers)
    reads = tuple((mapping.get(name, name), kind) for name, kind in signature.fields.items() if name not in numbers)
    missing = [name for name, _ in reads if name not in model.fields and name not in added]
    for name in missing:
        givers = [m for m, cls in registered().items() if name in cls.all_fields]
        fed = ", ".join(feedable(model, added)) or "none"
        wrong.append(
            f"{where}: the loss {spec.use} needs the field {name!r}, which neither {model.name} nor this stream's data "
            f"and miner give (models that give it: {', '.join(givers) or 'none'}); losses that can be fed here: {fed}"
        )
    checked = _checked_options(losses.get(spec.use), options, where, wrong, also=[*signature.fields, "weight", "tag"])
    if missing or checked is None:
        return None
    try:
        call = losses.build(spec.use, **checked)
    except ValueError as error:  # options that do not go together
        wrong.append(f"{where}: {error}")
        return None
    learned = LearnedWeight() if spec.weight.learned else None
    return Term(spec.tag or f"{stream}/{spec.use}", reads, call, spec.weight, signature.counts, learned, constants)


def feedable(model: Giver, added: Iterable[str] = ("matched",)) -> list[str]:
    """The losses whose fields the model, with what data and miner add, can give."""
    given, matrix = {*model.fields, *added}, any(field.kind == "scores" for field in model.fields.values())
    return [name for name in losses.names() if losses.signature(name).fed_by(given, matrix=matrix)]


def _named(table: Mapping[str, Any], name: str, where: str, what: str, wrong: list[str]) -> Any:
    if name not in table:
        wrong.append(f"{where}: no {what} is called {name!r}; {nearest(name, table)}")
        return None
    return table[name]


def _options(made: Callable[..., Any]) -> list[str]:
    """Its keyword-only parameters."""
    return [p.name for p in inspect.signature(made).parameters.values() if p.kind is p.KEYWORD_ONLY]


def _checked_options(
    made: Callable[..., Any],
    options: Mapping[str, Any],
    where: str,
    wrong: list[str],
    *,
    exclude: Sequence[str] = (),
    also: Sequence[str] = (),
) -> dict[str, Any] | None:
    """The options as the types that the keyword-only parameters of `made` have; None where one does not fit.

    exclude: parameters that a recipe does not set; also: keys that are known but not options.
    """
    hints = get_type_hints(getattr(made, "__init__") if isinstance(made, type) else made)  # noqa: B009
    known = [name for name in _options(made) if name not in exclude]
    checked: dict[str, Any] = {}
    count = len(wrong)
    for key, value in options.items():
        if key not in known:
            wrong.append(f"{where}: unknown option {key!r}; {nearest(key, [*known, *also])}")
            continue
        try:
            checked[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            wrong.append(f"{where}.{key}: {message[0].lower()}{message[1:]}, found {value!r}")
    return checked if len(wrong) == count else None
