"""Every configuration key as a typed field, checked after Hydra has composed it and before anything runs.

Hydra's own objects stop at the door: `load` turns the composed mapping into frozen dataclasses, or raises
InputError with one line. The strategy, re-initialiser and initialiser keep their options as a mapping, since the
classes that define them live on the other side of the import arrow; `build` checks those in the same way.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from fedinit.errors import InputError, choose, did_you_mean

CONF_DIR = Path(__file__).resolve().parent.parent.parent / "conf"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A component looked up by name, with the options that its own class checks."""

    KEY: ClassVar[str] = "name"  # the key that holds the name

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HeadChoice(Choice):
    KEY: ClassVar[str] = "init"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str  # a timm model name, with or without a pretrained tag
    kwargs: Mapping[str, Any]  # passed to timm.create_model; null image size etc. stay timm's
    checkpoint: str | None  # safetensors file, or "embedded:<file>" for one inside the package
    sha256: str | None = None  # that the checkpoint file must have; null: any
    pretrained: bool  # timm's own weights, from the network, unless a checkpoint is given
    image_size: int | None  # pixels; null: the model's own
    mean: tuple[float, ...] | None  # per channel, on [0, 1]; null: the model's own
    std: tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    kind: Literal["dora", "lora", "vera"]
    rank: int
    # Of the clients: a list that is dealt in turn, or a rule; null: all have `rank`. The scale is the same for all.
    ranks: tuple[int, ...] | Literal["by_examples", "halving"] | None
    alpha: float
    scaling: Literal["standard", "rslora"]  # s = alpha / rank, or alpha / √rank (rsLoRA, arXiv 2312.03732)
    dropout: float  # on the adapter's input, while training
    targets: tuple[str, ...] | None  # patterns of layer names; null: the paper's for this kind of model

    @property
    def scale(self) -> float:
        """s, what every product of factors is multiplied by; the same at all ranks. VeRA has none."""
        if self.kind == "vera":
            return 1.0
        return self.alpha / (self.rank if self.scaling == "standard" else self.rank**0.5)


@dataclass(frozen=True, kw_only=True)
class MatrixConfig:
    rows: int
    columns: int
    rank: int  # of the truth
    symmetric: bool
    condition: float  # largest over smallest singular value
    observe: Literal["gaussian", "full"]
    measurements: int
    noise: float  # both in units of the targets' root mean square
    outlier: float
    corrupted: float  # share of the training targets that are outliers

    def __post_init__(self) -> None:
        for key in ("rows", "columns"):
            at_least(f"data.matrix.{key}", getattr(self, key), 2)
        at_least("data.matrix.rank", self.rank, 1)
        if self.rank > min(self.rows, self.columns):
            raise InputError(
                f"data.matrix.rank={self.rank}: the matrix is {self.rows}x{self.columns}; expected "
                f"{min(self.rows, self.columns)} or less"
            )
        if self.symmetric and self.rows != self.columns:
            shape = f"{self.rows}x{self.columns}"
            raise InputError(f"data.matrix.symmetric=true: the matrix is {shape}; expected a square one")
        within("data.matrix.condition", self.condition, 1, math.inf, open_high=True)
        at_least("data.matrix.measurements", self.measurements, 1)
        for key in ("noise", "outlier"):
            within(f"data.matrix.{key}", getattr(self, key), 0, math.inf, open_high=True)
        within("data.matrix.corrupted", self.corrupted, 0, 1, open_high=True)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    name: str
    root: str | None
    domains: tuple[str, ...] | None  # null: all
    classes: tuple[str, ...] | int | None  # names, or the first n in sorted order; null: all
    test_fraction: float  # used where the source has no split of its own
    validation_fraction: float | None  # set: evaluate on this share of the training images, leave the test images out
    cache_dir: str | None  # where decoded images are kept between runs; null: kept in memory only
    matrix: MatrixConfig | None = None  # of matrix_sensing


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    name: str
    clients: int | None  # null: one a domain
    alpha: float  # Dirichlet concentration
    min_examples: int  # smallest training set of a client


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    optimizer: str
    lr: float
    lr_ratio_b: float  # LoRA+: the learning rate of B as a multiple of lr
    momentum: float
    betas: tuple[float, float]
    weight_decay: float
    gsnr_scope: Literal["client_once", "global_once", "per_round"]  # of sgd_sai: who fixes a block's scale, how often
    prox: float  # FedProx: adds prox/2·‖θ − θ_start‖² over adapter and head to the loss
    clip_norm: float | None  # global norm over one client's adapters and head; null: none
    batch_size: int
    epochs: int
    max_steps: int | None  # batches a client and round, at most; null: no cap
    augment: Literal["none", "flip", "crop_flip"]
    loss: Literal["auto", "cross_entropy", "l2", "l1"] = "auto"  # auto: cross_entropy for classes, l2 for numbers


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    name: Literal["local"]
    device: str  # auto, cpu, cuda, cuda:1 …
    lanes: int | None  # null: one a core on CPU, one a device on CUDA
    clients_per_bank: int
    strict: bool  # serialise every message, as a network would


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    where: Literal["server", "clients", "none"]
    every: int  # rounds; the last round is always evaluated
    rounds: tuple[int, ...] | None  # the rounds to evaluate, in place of `every`
    batch_size: int
    head_alone: bool  # also run the same budget with the adapters frozen


@dataclass(frozen=True, kw_only=True)
class DiagnosticsConfig:
    name: Literal["none", "init"]
    examples: int  # of the probe set
    outputs: int  # that the kernel sums over; of more, random combinations

    def __post_init__(self) -> None:
        at_least("diagnostics.examples", self.examples, 2, "a kernel compares examples")
        at_least("diagnostics.outputs", self.outputs, 1)


@dataclass(frozen=True, kw_only=True)
class LoggerConfig:
    name: Literal["auto", "none", "wandb", "wandb_offline"]
    project: str
    entity: str | None


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    enabled: bool  # false lets everything in that can be summed: for trying what the gate is good for
    max_factor_ratio: float  # of a factor's norm to its start's, either way
    max_product_ratio: float  # of a layer's product B·A to an orthonormal map of its shape


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str
    rounds: int
    seed: int
    participation: float  # share of the clients in a round
    weighting: Literal["auto", "examples", "uniform", "norm"]
    node_timeout: float  # seconds to wait for clients to be there, and for replies where reply_timeout is null
    reply_timeout: float | None  # seconds to wait for the replies of a round
    quorum: int | float  # usable updates that a round needs: how many (2), or what share of those asked (0.5)
    resamples: int  # how often a round without a quorum asks other clients
    output_dir: str
    resume: str
    strategy: Choice
    reinit: Choice
    server_opt: Choice
    init: Choice
    model: ModelConfig
    adapter: AdapterConfig
    head: HeadChoice
    data: DataConfig
    partition: PartitionConfig
    client: ClientConfig
    engine: EngineConfig
    evaluation: EvaluationConfig
    gate: GateConfig
    diagnostics: DiagnosticsConfig
    logger: LoggerConfig

    def __post_init__(self) -> None:
        at_least("rounds", self.rounds, 1, "a run has one round or more")
        at_least("seed", self.seed, 0)
        within("participation", self.participation, 0, 1, open_low=True)
        positive("node_timeout", self.node_timeout)
        if self.reply_timeout is not None:
            positive("reply_timeout", self.reply_timeout)
        if isinstance(self.quorum, int):
            at_least("quorum", self.quorum, 1, "a whole number is a number of clients, a fraction a share")
        else:
            within("quorum", self.quorum, 0, 1, open_low=True)
        at_least("resamples", self.resamples, 0)
        for key in ("max_factor_ratio", "max_product_ratio"):
            within(f"gate.{key}", getattr(self.gate, key), 1, math.inf, open_low=True, open_high=True)
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise InputError(f"name={self.name!r}: expected a plain word, since it names the run's folder")
        at_least("adapter.rank", self.adapter.rank, 1)
        positive("adapter.alpha", self.adapter.alpha)
        if isinstance(self.adapter.ranks, tuple):
            for rank in self.adapter.ranks:
                at_least("adapter.ranks", rank, 1)
            if max(self.adapter.ranks, default=0) != self.adapter.rank:
                raise InputError(
                    f"adapter.ranks={list(self.adapter.ranks)}: the largest must be adapter.rank={self.adapter.rank}, "
                    "the rank of the global adapter"
                )
        within("adapter.dropout", self.adapter.dropout, 0, 1, open_high=True)
        if self.adapter.targets is not None and not self.adapter.targets:
            raise InputError("adapter.targets=[]: expected one pattern or more, or null for the model's default")
        if self.model.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.model.sha256):
            raise InputError(f"model.sha256={self.model.sha256}: expected the 64 hexadecimal digits of sha256sum")
        if self.model.image_size is not None:
            at_least("model.image_size", self.model.image_size, 1)
        for key in ("mean", "std"):
            for value in getattr(self.model, key) or ():
                within(f"model.{key}", value, 0, 1, open_low=key == "std")
        within("data.test_fraction", self.data.test_fraction, 0, 1, open_low=True, open_high=True)
        if self.data.validation_fraction is not None:
            within("data.validation_fraction", self.data.validation_fraction, 0, 1, open_low=True, open_high=True)
        if isinstance(self.data.classes, int):
            at_least("data.classes", self.data.classes, 2, "a classifier needs two classes")
        if self.partition.clients is not None:
            at_least("partition.clients", self.partition.clients, 1)
        positive("partition.alpha", self.partition.alpha)
        at_least("partition.min_examples", self.partition.min_examples, 1)
        positive("client.lr", self.client.lr)
        positive("client.lr_ratio_b", self.client.lr_ratio_b)
        within("client.momentum", self.client.momentum, 0, 1, open_high=True)
        for beta in self.client.betas:
            within("client.betas", beta, 0, 1, open_high=True)
        within("client.weight_decay", self.client.weight_decay, 0, math.inf, open_high=True)
        within("client.prox", self.client.prox, 0, math.inf, open_high=True)
        if self.client.clip_norm is not None:
            positive("client.clip_norm", self.client.clip_norm)
        at_least("client.batch_size", self.client.batch_size, 1)
        at_least("client.epochs", self.client.epochs, 1)
        if self.client.max_steps is not None:
            at_least("client.max_steps", self.client.max_steps, 1)
        if self.engine.lanes is not None:
            at_least("engine.lanes", self.engine.lanes, 1)
        at_least("engine.clients_per_bank", self.engine.clients_per_bank, 1)
        at_least("evaluation.every", self.evaluation.every, 1)
        for round in self.evaluation.rounds or ():
            at_least("evaluation.rounds", round, 1)
        at_least("evaluation.batch_size", self.evaluation.batch_size, 1)

    def identity(self) -> str:
        """Ten hexadecimal digits that name what this run computes, but for the seed, which the folder's name carries
        beside the hash."""
        values = self.computed()
        del values["seed"]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def computed(self) -> dict[str, Any]:
        """The keys that a run's result is a function of.

        Left out: where it writes, how it logs, how long it waits, how it is scheduled (lanes change no bit), what its
        files are checked against.
        """
        values = to_dict(self)
        for key in ("output_dir", "resume", "logger", "node_timeout", "reply_timeout"):
            del values[key]
        del values["engine"]["lanes"], values["engine"]["strict"]
        del values["data"]["cache_dir"], values["model"]["sha256"]
        return values


def load(values: Mapping[str, Any]) -> Config:
    """The composed configuration as a checked `Config`. Raises InputError, one line, naming the key."""
    return build(Config, values, "")


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values that `load` takes back: ``load(to_dict(c)) == c``."""
    return _plain(config)


def build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a mapping, with its field types checked.

    Fields without a default must be given; unknown keys are refused with the nearest known one. `where` is the
    dotted place that messages begin with. Raises InputError.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in fields:
            raise InputError(
                f"{prefix}{key}: no such key{did_you_mean(key, fields)}. Known here: {', '.join(sorted(fields))}."
            )
    made = {}
    for key, spec in fields.items():
        if key in values:
            made[key] = _convert(hints[key], values[key], prefix + key)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise InputError(f"{prefix}{key}: not set, and it has no default")
    return cls(**made)


def at_least(key: str, value: int, low: int, why: str = "") -> None:
    """Raise InputError unless ``value >= low``."""
    if value < low:
        raise InputError(f"{key}={value}: expected {low} or more" + (f"; {why}" if why else ""))


def positive(key: str, value: float) -> None:
    """Raise InputError unless `value` is a finite number above zero."""
    within(key, value, 0, math.inf, open_low=True, open_high=True)


def within(key: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> None:
    """Raise InputError unless `value` lies in the interval; NaN lies in none."""
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (above and below):
        interval = f"{'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
        raise InputError(f"{key}={value}: expected a number in {interval}")


def check_rank(targets: Mapping[str, tuple[int, int]], rank: int) -> None:
    """Raise InputError for a rank above min(d, k) of a layer {name: (d, k)}."""
    for name, (d, k) in targets.items():
        if rank > min(d, k):
            raise InputError(f"adapter.rank={rank}: layer {name} is {d}x{k}; expected a rank of {min(d, k)} or less")


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        # A list is meant for an option that takes lists, so that its fault is the one that is told.
        fitting = [a for a in options if (typing.get_origin(a) is tuple) == isinstance(value, (list, tuple))]
        options = fitting or options
        for option in options[:-1]:
            try:
                return _convert(option, value, where)
            except InputError:
                continue
        return _convert(options[-1], value, where)
    if hint in (Choice, HeadChoice):
        if not isinstance(value, Mapping) or not isinstance(value.get(hint.KEY), str):
            raise InputError(f"{where}: expected one of its choices (see --help), got {value!r}")
        return hint(name=value[hint.KEY], options={k: v for k, v in value.items() if k != hint.KEY})
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected one of its choices (see --help), got {value!r}")
        return build(hint, value, where)
    if origin is Literal:
        if value not in args:
            choose(where, value, args)
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise InputError(f"{where}={value}: expected a list such as [a,b]")
        if args[-1] is Ellipsis:
            return tuple(_convert(args[0], v, where) for v in value)
        if len(args) != len(value):
            raise InputError(f"{where}={list(value)}: expected {len(args)} values")
        return tuple(_convert(a, v, where) for a, v in zip(args, value, strict=True))
    if origin is not None:  # Mapping[str, Any]
        if not isinstance(value, Mapping):
            raise InputError(f"{where}={value}: expected key: value pairs")
        return dict(value)
    return _scalar(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[hint]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # a name made of digits reads as a number in YAML
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise InputError(f"{where}={value}: expected {expected}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return {value.KEY: value.name, **_plain(value.options)}
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
