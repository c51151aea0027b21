"""A recipe: the full description of one training run, typed, from YAML or JSON (DESIGN.md sections 5 and 6)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from crossmodal.errors import ConfigError, nearest


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Open(BaseModel):
    """A component and its options: `use` names it, the other keys are options of what it names."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DataSpec(Strict):
    """A corpus: text databases, and the region database of each (one for all, or one each)."""

    texts: list[str]
    images: list[str]
    max_text: int = Field(-1, description="keep captions of at most so many word pieces; -1 keeps all")
    conf_th: float = 0.2
    max_bb: int = 100
    min_bb: int = 10
    num_bb: int = 36
    compressed: bool | None = None

    @field_validator("texts", "images", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class CheckpointSpec(Strict):
    path: str
    layout: Literal["crossmodal", "uniter", "bert"] | None = None


class ModelSpec(Strict):
    """What to train: sizes from `config` (a mapping, a JSON file or a shipped name) or from the checkpoint."""

    use: str = "uniter"
    config: dict[str, Any] | str = Field(default_factory=dict)
    checkpoint: CheckpointSpec | None = None
    dropout: float | None = Field(None, ge=0, lt=1, description="overwrites every dropout probability")
    tokenizer: str | None = None

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class DataUse(Open):
    """Which corpus a stream draws from and how: options are those of the dataset that `draw` names."""

    use: str
    draw: str = "pools"


class MinerSpec(Open):
    use: str


class Weight(Strict):
    """A loss weight that follows training: scale * schedule(step / steps)."""

    schedule: Literal["constant", "linear", "exp", "log"] = "constant"
    scale: float = 1.0


class LossSpec(Open):
    """A registered loss; other keys are its options, or `field: other_name` to feed a field under another name."""

    use: str
    weight: Weight = Weight()
    tag: str | None = Field(None, description="the name it is logged under")

    @field_validator("weight", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return {"scale": value} if isinstance(value, (int, float)) else value


class StreamSpec(Strict):
    data: DataUse
    losses: list[LossSpec] = Field(min_length=1)
    miner: MinerSpec | None = None
    ratio: float | None = Field(None, gt=0, description="share of the steps, where a step draws one stream")
    name: str | None = None

    @field_validator("data", mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value


class OptimizerSpec(Strict):
    use: Literal["published_adamw", "adamw", "adam", "adamax"] = "published_adamw"
    lr: float = Field(5e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(0.01, ge=0)
    no_decay: list[str] = ["bias", "LayerNorm.bias", "LayerNorm.weight"]
    clip: float = Field(2.0, description="largest global gradient norm; -1 for none")
    warmup: int = Field(500, ge=0, description="updates of linear warm-up")


class ValidateSpec(Strict):
    """Validation on `data`: `every` updates, full recall (the mean of both directions) or fixed galleries."""

    data: str = "val"
    every: int = Field(500, ge=1)
    gallery: int | None = Field(None, ge=2, description="fixed galleries of so many images instead of all")


class DistributedSpec(Strict):
    """How several ranks share their gradients; docs/distributed.md compares the ways."""

    gradients: Literal["flat", "overlapped", "sharded"] = Field(
        "flat", description="flat: one sum behind the backward pass, as published; overlapped: DDP, or horovod's "
        "optimizer; sharded: FSDP2, gradients and optimizer states in shards (torchrun)")  # fmt: skip
    half: bool = Field(False, description="exchange gradients in float16 (flat, overlapped)")
    unused_parameters: bool = Field(True, description="DDP: look for parameters that a step does not use")
    static_graph: bool = Field(False, description="DDP: every step uses the same parameters in the same order")
    bucket_mb: float = Field(25, gt=0, description="DDP: MB of gradients that are exchanged at once")


class Recipe(Strict):
    name: str = "run"
    seed: int = 42
    steps: int = Field(ge=1, description="optimizer updates")
    batch: int = Field(8, ge=1, description="anchors a stream, update and rank")
    accumulate: int = Field(1, ge=1, description="micro-steps that one update's batch is split into")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    model: ModelSpec = ModelSpec()
    data: dict[str, DataSpec]
    streams: list[StreamSpec] = Field(min_length=1)
    optimizer: OptimizerSpec = OptimizerSpec()
    distributed: DistributedSpec = DistributedSpec()
    validation: ValidateSpec | None = None
    keep: int = Field(2, ge=1, description="how many of the latest checkpoints stay beside the best")
    save_every: int | None = Field(None, ge=1, description="updates between checkpoints, beside each validation's")
    max_skipped: int = Field(10, ge=0, description="updates that may be skipped, over the run, for a loss or gradient "
                             "that is not finite")  # fmt: skip
    log_every: int = Field(10, ge=1)
    workers: int = Field(0, ge=0, description="processes that read and collate")
    token_budget: int = Field(16384, ge=1, description="tokens scored at once in validation")
    test: str | None = Field(None, description="corpus that is evaluated when training has ended")

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        used = {f"streams.{i}.data.use": s.data.use for i, s in enumerate(self.streams)}
        if self.validation:
            used["validation.data"] = self.validation.data
        if self.test:
            used["test"] = self.test
        wrong = [f"{at}: no data is called {name!r}; {nearest(name, self.data)}" for at, name in used.items()
                 if name not in self.data]  # fmt: skip
        ratios = [s.ratio is not None for s in self.streams]
        if any(ratios) and not all(ratios):
            wrong.append("streams: some have a ratio and some have none; give every stream one, or none")
        if self.distributed.gradients == "sharded" and self.precision == "fp16":
            wrong.append("precision: fp16 does not go with distributed.gradients: sharded; use bf16 or fp32")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def stream_names(self) -> list[str]:
        return [s.name or f"{i}_{s.data.options.get('anchor', s.data.draw)}" for i, s in enumerate(self.streams)]


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a YAML or JSON file, or a shipped recipe by name, and apply ``a.b=c`` overrides.

    Raises ConfigError with every mistake that was found.
    """
    return parse_recipe(read_config(source), overrides, where=str(source))


def parse_recipe(values: Mapping[str, Any], overrides: Iterable[str] = (), where: str = "the recipe") -> Recipe:
    changed: dict[str, Any] = json.loads(json.dumps(values, default=str))
    for override in overrides:
        _set(changed, override)
    try:
        return Recipe(**changed)
    except ValidationError as error:
        lines = [line for e in error.errors() for line in _explain(e)]
        raise ConfigError(f"{where} cannot be used:\n  " + "\n  ".join(lines)) from None


def read_config(source: str | Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, or in a shipped configuration of that name.

    Raises ConfigError where there is neither, or where the file does not hold a mapping.
    """
    path = Path(source)
    if not path.is_file():
        shipped = {Path(f.name).stem: f for f in resources.files("crossmodal.configs").iterdir()
                   if f.name.endswith((".yaml", ".json"))}  # fmt: skip
        if path.stem not in shipped or path.parent.name not in ("", "configs"):
            raise ConfigError(
                f"there is no configuration {str(source)!r}: it is no file, and of the shipped ones, "
                f"{nearest(path.stem, shipped)}"
            )
        text = shipped[path.stem].read_text()
    else:
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is neither YAML nor JSON ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source} holds no mapping of keys to values; see configs/ for examples")
    return values


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-5 as a string; here it is a number, as in JSON."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)$|^[-+]?(\d+\.\d*|\.\d+)$"),
    list("-+0123456789."),
)


def _set(values: dict[str, Any], override: str) -> None:
    """Apply one ``a.b.0.c=value``; the value is read as YAML."""
    name, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override!r} has no '='; write it as a.b=value")
    *path, last = name.split(".")
    at: Any = values
    for key in path:
        at = at[_index(at, key, override)] if isinstance(at, list) else at.setdefault(key, {})
        if not isinstance(at, (dict, list)):
            raise ConfigError(f"--set {override!r}: {key!r} holds {at!r}, which has no keys of its own")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: {text!r} is no YAML value; quote it") from None
    at[_index(at, last, override) if isinstance(at, list) else last] = value


def _index(at: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(at):
        raise ConfigError(f"--set {override!r}: {key!r} is not a position in a list of {len(at)}; count from 0")
    return int(key)


def _explain(error: Any) -> list[str]:
    """A pydantic error as lines: where, what, and the nearest known key."""
    where = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known(error["loc"][:-1])
        return [f"{where}: unknown key; {nearest(str(error['loc'][-1]), known)}"]
    if error["type"] == "missing":
        return [f"{where}: is missing; add it"]
    if error["type"] == "value_error":
        return str(error["ctx"]["error"]).splitlines()
    return [f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, found {error['input']!r}"]


def _known(path: Sequence[Any]) -> list[str]:
    """The keys that the recipe knows at a path."""
    model: Any = Recipe
    for key in path:
        if isinstance(key, int):
            continue
        if isinstance(model, type) and issubclass(model, BaseModel) and key in model.model_fields:
            model = _inner(model.model_fields[key].annotation)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _inner(annotation: Any) -> Any:
    """The model inside list[M], dict[str, M] or M | None."""
    from typing import get_args

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_inner(a) for a in get_args(annotation)]
    return next((f for f in found if f is not None), None)
