"""A recipe: the full description of one training run, typed, from YAML or JSON (DESIGN.md sections 5 and 6)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from crossmodal.errors import ConfigError, nearest

_HOW_LONG = "steps: is missing; add it, or epochs"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


Part = TypeVar("Part", bound=Strict)


class Open(BaseModel):
    """A component and its options: `use` names it, the other keys are options of what it names."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DataSpec(Strict):
    """A corpus: sources of captions, and the regions or pictures of each (one for all, or one each)."""

    texts: list[str]
    images: list[str]
    max_text: int = Field(-1, description="keep captions of at most so many word pieces; -1 keeps all")
    conf_th: float = 0.2
    max_bb: int = 100
    min_bb: int = 10
    num_bb: int = 36
    compressed: bool | None = None
    image_keys: str | None = Field(None, description="a file of image ids: which of a VinVL caption file, in order")
    captions_per_image: int | None = Field(None, ge=1, description="the first so many, of a file of captions")
    split: str | None = Field(None, description="of Karpathy's JSON: val, or train+restval")
    separator: str | None = Field(None, description="of a table of captions; a tab or a comma where it is left out")
    image_column: str | None = Field(None, description="of a table of captions; filepath or image if left out")
    caption_column: str | None = Field(None, description="of a table of captions; title or caption if left out")
    detections: Literal["fast", "det", "det_padded", "det+fast", "det+fast_labels"] | None = Field(
        None, description="whose detections a VinVL folder gives: its own, Detic's, or both merged"
    )
    published_merge: bool = Field(False, description="merge the two detectors with the published mistakes")

    @field_validator("texts", "images", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class CheckpointSpec(Strict):
    path: str
    layout: str | None = Field(None, description="the published layout of its keys; guessed where it is left out")


class ModelSpec(Strict):
    """What to train: sizes from `config` (a mapping, a JSON file or a shipped name) or from the checkpoint."""

    use: str = "uniter"
    config: dict[str, Any] | str = Field(default_factory=dict)
    checkpoint: CheckpointSpec | None = None
    also: list[CheckpointSpec] = Field(default_factory=list, description="files of parts, such as CLIP's text tower")
    dropout: float | None = Field(None, ge=0, lt=1, description="overwrites every dropout probability")
    tokenizer: str | None = None
    processor: dict[str, Any] = Field(default_factory=dict, description="options of the model's processor")

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
    from_epoch: int = Field(0, ge=0, description="the loss is left out before this epoch, counted from 0")
    learned: bool = Field(False, description="learn the loss's log-variance s with the model: (exp(-s) L + s) / 2")


class LossSpec(Open):
    """A registered loss; other keys are its options, or `field: other_name` to feed a field under another name.

    A scalar field, such as `logit_scale`, may be a number instead, where the model has none: it is not learnt then.
    """

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
    eps: float | None = Field(None, gt=0, description="the optimizer's own where it is left out")
    weight_decay: float = Field(0.01, ge=0)
    no_decay: list[str] = ["bias", "LayerNorm.bias", "LayerNorm.weight"]
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rates fall by this from layer to layer, from the "
                               "end of a tower to its beginning")  # fmt: skip
    clip: float = Field(2.0, description="largest global gradient norm; -1 for none")
    warmup: int = Field(500, ge=0, description="updates of linear warm-up")
    schedule: Literal["linear", "cosine", "step", "constant"] = Field(
        "linear", description="after warm-up: linear to 0 at the last update; a half cosine to 0 there; times `gamma` "
        "every `step_epochs`; or as it is, until `cooldown`")  # fmt: skip
    step_epochs: int = Field(15, ge=1)
    gamma: float = Field(0.1, gt=0, le=1)
    cooldown: int = Field(0, ge=0, description="constant: so many last updates, over which the rate falls to `end_lr`")
    cooldown_power: float = Field(1.0, gt=0, description="1 falls in a straight line, 2 in a parabola")
    end_lr: float = Field(0.0, ge=0)


class ValidateSpec(Strict):
    """Validation on `data`: `every` updates, full recall (the mean of both directions) or fixed galleries.

    With several `scorers` of the model, each is measured, and the best checkpoint is that of the largest mean.
    """

    data: str = "val"
    every: int = Field(500, ge=1)
    scorers: list[str] = Field(default_factory=list, description="the model's first one where none is named")
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


class TeacherSpec(Strict):
    """A trained model, frozen, whose fields losses read as `<name of the teacher>.<field>`."""

    checkpoint: str


class Recipe(Strict):
    name: str = "run"
    seed: int = 42
    steps: int = Field(0, ge=0, description="optimizer updates")
    epochs: int = Field(0, ge=0, description="instead of steps: passes over the anchors of the first stream")
    batch: int = Field(8, ge=1, description="anchors a stream, update and rank")
    accumulate: int = Field(1, ge=1, description="micro-steps that one update's batch is split into")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    model: ModelSpec = ModelSpec()
    data: dict[str, DataSpec]
    teachers: dict[str, TeacherSpec] = Field(default_factory=dict)
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
        if bool(self.steps) == bool(self.epochs):
            wrong.append("give steps or epochs, not both" if self.steps else _HOW_LONG)
        wrong += [f"teachers.{name}: a name without dots, please; it stands before the dot of its fields"
                  for name in self.teachers if "." in name]  # fmt: skip
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
        if not {"steps", "epochs"} & changed.keys() and _HOW_LONG not in lines:  # checked only when all else is well
            lines.insert(0, _HOW_LONG)
        raise ConfigError(f"{where} cannot be used:\n  " + "\n  ".join(lines)) from None


def changed_part(part: Part, overrides: Iterable[str]) -> Part:
    """A part of a recipe, such as its model, with ``a.b=c`` overrides. Raises ConfigError with every mistake."""
    changed: dict[str, Any] = json.loads(part.model_dump_json())
    for override in overrides:
        _set(changed, override)
    try:
        return type(part)(**changed)
    except ValidationError as error:
        lines = [line for e in error.errors() for line in _explain(e, type(part))]
        raise ConfigError("--set cannot be used:\n  " + "\n  ".join(lines)) from None


def read_config(source: str | Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, or in a shipped configuration of that name.

    Raises ConfigError where there is neither, or where the file does not hold a mapping.
    """
    path = Path(source)
    if not path.is_file():
        shipped = {config_name(f.name): f for f in resources.files("crossmodal.configs").iterdir()
                   if f.name.endswith((".yaml", ".json"))}  # fmt: skip
        name = config_name(source)
        if name not in shipped or path.parent.name not in ("", "configs"):
            raise ConfigError(
                f"there is no configuration {str(source)!r}: it is no file, and of the shipped ones, "
                f"{nearest(name, shipped)}"
            )
        text = shipped[name].read_text()
    else:
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is neither YAML nor JSON ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source} holds no mapping of keys to values; see configs/ for examples")
    return values


def config_name(source: str | Path) -> str:
    """The name of a configuration, which may have dots in it: that of its file without the suffix."""
    return re.sub(r"\.(ya?ml|json)$", "", Path(source).name)


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


def _explain(error: Any, root: type[BaseModel] | None = None) -> list[str]:
    """A pydantic error as lines: where, what, and the nearest known key."""
    where = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known(error["loc"][:-1], root or Recipe)
        return [f"{where}: unknown key; {nearest(str(error['loc'][-1]), known)}"]
    if error["type"] == "missing":
        return [f"{where}: is missing; add it"]
    if error["type"] == "value_error":
        return str(error["ctx"]["error"]).splitlines()
    return [f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, found {error['input']!r}"]


def _known(path: Sequence[Any], root: type[BaseModel]) -> list[str]:
    """The keys that a recipe, or the part `root` of one, knows at a path."""
    model: Any = root
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
