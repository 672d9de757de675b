"""Every configuration key as a typed field, checked after Hydra has composed it and before anything runs.

Hydra's own objects stop at the door: `load` turns the composed mapping into frozen dataclasses, each of which checks
its own fields, or raises InputError with one line. What a group's choices are is in `GROUPS`: a dataclass each, of the
options that this choice reads. Those of the strategy, the starts and the server's optimiser are defined where they are
computed, partly on the other side of the import arrow: their options stay a mapping here, and are checked in the same
way when they are built.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from fedinit.config.adapter import ADAPTERS, ProductConfig, VeRAConfig
from fedinit.config.attack import ATTACKS, AttackConfig, NoAttack
from fedinit.config.build import build, create, plain, shown
from fedinit.config.bundled import refuse_renamed, title
from fedinit.config.checks import at_least, positive, within
from fedinit.config.client import CLIENTS, ClientConfig
from fedinit.config.engine import ENGINES, EngineConfig, refuse_no_device
from fedinit.config.privacy import PRIVACY, NoPrivacy, PrivacyConfig
from fedinit.config.secure_aggregation import SECURE_AGGREGATIONS, NoSecureAggregation, SecAggConfig
from fedinit.data import SOURCES
from fedinit.data.partition import PARTITIONS, Partitioner
from fedinit.data.source import Source
from fedinit.errors import InputError, choose
from fedinit.seeding import derive


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A component looked up by name, with the options that its own class checks."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The backbone (`model=`), and where its weights come from."""

    name: str  # a timm model name, with or without a pretrained tag
    kwargs: Mapping[str, Any]  # passed to timm.create_model; null image size etc. stay timm's
    checkpoint: str | None  # safetensors file, or "embedded:<file>" for one inside the package
    sha256: str | None = None  # that the checkpoint file must have; null: any
    checkpoint_grid: tuple[int, int] | None = None  # rows and columns of the file's positions; null: of a square image
    pretrained: bool  # timm's own weights, from the network, unless a checkpoint is given
    image_size: int | tuple[int, int] | None  # pixels a side, or [height,width]; null: the model's own
    mean: tuple[float, ...] | None  # per channel, on [0, 1]; null: the model's own
    std: tuple[float, ...] | None

    def __post_init__(self) -> None:
        if self.checkpoint is not None and not self.checkpoint.strip():
            raise InputError("model.checkpoint is empty; give the path, or null for timm's own weights")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise InputError(f"model.sha256={self.sha256}: expected the 64 hexadecimal digits of sha256sum")
        for side in (self.image_size,) if isinstance(self.image_size, int) else self.image_size or ():
            at_least("model.image_size", side, 1)
        for side in self.checkpoint_grid or ():
            at_least("model.checkpoint_grid", side, 1)
        for value in self.mean or ():
            within("model.mean", value, 0, 1)
        for value in self.std or ():
            within("model.std", value, 0, 1, open_low=True)
        refuse_renamed(self.name, self.kwargs, self.checkpoint)

    @property
    def title(self) -> str:
        """What the model is called where people read it."""
        return title(self.name, self.checkpoint)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Where and when the global model is evaluated (`evaluation=`); `every` and `rounds` are those of diagnostics too,
    also where nobody evaluates."""

    where: Literal["server", "clients", "none"]
    every: int  # rounds; the last round is always evaluated
    rounds: tuple[int, ...] | None  # the rounds to evaluate, in place of `every`; some may lie beyond the last
    batch_size: int
    head_alone: bool  # also run the same budget with the adapters frozen
    participation: float = 1.0  # share of the clients with test images that evaluate, by `evaluation=clients`

    def __post_init__(self) -> None:
        at_least("evaluation.every", self.every, 1)
        for round in self.rounds or ():
            at_least("evaluation.rounds", round, 1)
        at_least("evaluation.batch_size", self.batch_size, 1)
        within("evaluation.participation", self.participation, 0, 1, open_low=True)
        if self.where != "clients" and self.participation != 1:
            raise InputError(
                f"evaluation.participation={self.participation:g}: is for evaluation=clients; leave it out, or use that"
            )


@dataclass(frozen=True, kw_only=True)
class NoDiagnostics:
    """`diagnostics=none`."""

    name: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class InitDiagnostics:
    """`diagnostics=init`: figures that explain a start, measured on a probe set."""

    name: Literal["init"] = "init"
    examples: int = 64  # of the probe set
    outputs: int = 16  # that the kernel sums over; of more, random combinations

    def __post_init__(self) -> None:
        at_least("diagnostics.examples", self.examples, 2, "a kernel compares examples")
        at_least("diagnostics.outputs", self.outputs, 1)


DIAGNOSTICS: dict[str, type[NoDiagnostics | InitDiagnostics]] = {"init": InitDiagnostics, "none": NoDiagnostics}


# Where the trackers are, which import much; besides them there are `auto` and `none` (fedinit/runs/tracking.py).
LOGGERS: dict[str, str] = {
    "mlflow": "fedinit.runs.mlflow_tracker:MlflowTracker",
    "tensorboard": "fedinit.runs.tensorboard_tracker:TensorboardTracker",
    "wandb": "fedinit.runs.wandb_tracker:WandbTracker",
    "wandb_offline": "fedinit.runs.wandb_tracker:OfflineWandbTracker",
}


@dataclass(frozen=True, kw_only=True)
class LoggerConfig:
    """Which service is told of the run (`logger=`), and under which names."""

    name: str
    project: str  # of wandb; the experiment of MLflow
    entity: str | None  # of wandb

    def __post_init__(self) -> None:
        choose("logger", self.name, ["auto", "none", *LOGGERS])


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """The bounds within which the server lets updates in (`gate.<field>=`)."""

    enabled: bool  # false lets everything in that can be summed: for trying what the gate is good for
    max_factor_ratio: float  # of a factor's norm to its start's, either way
    max_product_ratio: float  # of a layer's product B·A to an orthonormal map of its shape
    max_weight: float = 3.0  # of a client in the aggregate, in medians of the round's weights

    def __post_init__(self) -> None:
        for key in ("max_factor_ratio", "max_product_ratio"):
            within(f"gate.{key}", getattr(self, key), 1, math.inf, open_low=True, open_high=True)
        within("gate.max_weight", self.max_weight, 1, math.inf, open_high=True)


class Group(NamedTuple):
    """A group whose choices each read keys of their own. key: the one that holds the name. choices: {name: its
    dataclass}, None where it is built later, by the package that computes it."""

    key: str = "name"
    choices: Mapping[str, Any] | None = None


GROUPS = {
    "strategy": Group(),
    "reinit": Group(),
    "server_opt": Group(),
    "robust": Group(),
    "init": Group(),
    "head": Group("init"),
    "adapter": Group("kind", ADAPTERS),
    "data": Group("name", SOURCES),
    "partition": Group("name", PARTITIONS),
    "client": Group("optimizer", CLIENTS),
    "engine": Group("name", ENGINES),
    "attack": Group("name", ATTACKS),
    "privacy": Group("name", PRIVACY),
    "diagnostics": Group("name", DIAGNOSTICS),
    "secure_aggregation": Group("name", SECURE_AGGREGATIONS),
}

RESUME = "auto, never or the folder of a run"  # what the key takes
MOST_ROUNDS = 999_999  # names of checkpoints have six digits
# What a run's result is no function of: where it writes, how it logs, how long it waits, how it is scheduled
# (engines, lanes and actors change no bit), what its files are checked against.
UNCOUNTED = ("output_dir", "resume", "report", "preview", "logger", "node_timeout", "reply_timeout", "engine.name")
UNCOUNTED += ("engine.lanes", "engine.actors", "engine.address", "engine.strict")
UNCOUNTED += ("data.cache", "data.cache_above", "data.cache_dir", "model.sha256")
# Nor these where they are what they were before there was a choice: (group, key, value).
LATER = (
    ("", "server_device", "auto"),
    ("", "start_participation", 1.0),
    ("engine", "compile", False),
    ("engine", "threads", 1),
    ("evaluation", "participation", 1.0),
)
# Nor where its data and its backbone's file lie: what is in them counts (fedinit/runs/made_of.py).
PLACES = ("data.root", "model.checkpoint")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration of a run, checked. Raises InputError, one line, for a value out of range."""

    name: str
    rounds: int
    seed: int
    participation: float  # share of the clients in a round
    start_participation: float = 1.0  # share of the clients that measure the start
    weighting: Literal["auto", "examples", "uniform", "norm"]
    node_timeout: float  # seconds to wait for clients to be there, and for replies where reply_timeout is null
    reply_timeout: float | None  # seconds to wait for the replies of a round
    quorum: int | float  # usable updates that a round needs: how many (2), or what share of those asked (0.5)
    resamples: int  # how often a round without a quorum asks other clients
    output_dir: str
    resume: str = field(metadata={"expected": RESUME})
    report: Literal["full", "no_images", "none"] = "full"  # what report.html is made of (docs/report.md)
    preview: bool = False  # say what the run would be, and do not run
    # Where the server weighs and aggregates updates. auto: where a simulation's clients train, else the CPU.
    server_device: str = "auto"
    strategy: Choice
    reinit: Choice
    server_opt: Choice
    init: Choice
    model: ModelConfig
    adapter: ProductConfig | VeRAConfig
    head: Choice
    data: Source
    partition: Partitioner
    client: ClientConfig
    engine: EngineConfig
    evaluation: EvaluationConfig
    gate: GateConfig
    robust: Choice = field(default_factory=lambda: Choice(name="none"))
    secure_aggregation: SecAggConfig | NoSecureAggregation = field(default_factory=NoSecureAggregation)
    attack: AttackConfig | NoAttack = field(default_factory=NoAttack)
    privacy: PrivacyConfig | NoPrivacy = field(default_factory=NoPrivacy)
    diagnostics: NoDiagnostics | InitDiagnostics
    logger: LoggerConfig

    def __post_init__(self) -> None:
        at_least("rounds", self.rounds, 1, "a run has one round or more")
        if self.rounds > MOST_ROUNDS:
            raise InputError(f"rounds={self.rounds}: expected {MOST_ROUNDS:,} or fewer")
        at_least("seed", self.seed, 0)
        within("participation", self.participation, 0, 1, open_low=True)
        within("start_participation", self.start_participation, 0, 1, open_low=True)
        positive("node_timeout", self.node_timeout)
        refuse_no_device("server_device", self.server_device)
        if self.reply_timeout is not None:
            positive("reply_timeout", self.reply_timeout)
        if isinstance(self.quorum, int):
            at_least("quorum", self.quorum, 1, "a whole number is a number of clients, a fraction a share")
        else:
            within("quorum", self.quorum, 0, 1, open_low=True)
        at_least("resamples", self.resamples, 0)
        if self.partition.test_domains and self.evaluation.where == "clients":
            raise InputError(
                f"partition.test_domains=[{','.join(self.partition.test_domains)}]: no client holds images of these "
                "domains, so evaluation=clients cannot judge them; use evaluation=server"
            )
        plain_name = self.name.isprintable() and len(self.name) <= 200
        if not self.name or "/" in self.name or self.name.startswith(".") or not plain_name:
            why = "expected a plain word of up to 200 characters, since it names the run's folder"
            raise InputError(f"name={shown(self.name)}: {why}")
        if not self.resume.strip():
            raise InputError(f"resume={self.resume}: expected {RESUME}")
        if not self.output_dir or not self.output_dir.isprintable():
            raise InputError(f"output_dir={shown(self.output_dir)}: expected the path of a folder, in printable signs")

    def identity(self, made_of: str = "", digits: int = 10) -> str:
        """So many hexadecimal digits (64 at the most) that name what this run computes, but for the seed, which the
        folder's name carries beside the hash. Ten tell one's own runs apart; against who looks for two of one name it
        takes all.

        made_of: a digest of the files that the run is made of; "": the configuration alone is named.
        """
        values = self.computed()
        del values["seed"]
        text = json.dumps(values, sort_keys=True) + made_of
        return hashlib.sha256(text.encode()).hexdigest()[:digits]

    @property
    def has_head_alone(self) -> bool:
        """Whether the same budget is run with the adapters frozen too. Where clients' data is private it is not: a
        second run on it would be counted."""
        itself = self.strategy.name == "head_alone" or self.head.name == "none"
        return self.evaluation.head_alone and not itself and self.privacy.name == "none"

    def private_seed(self, weights: str) -> int:
        """What noise and samples are drawn by where privacy is simulated. Of one seed, runs with another clip, noise,
        rate, method, precision or backbone draw others: one that two of them had in common could be reckoned from the
        two. Their name, where they are computed and how they are looked at change the rounding of float32, no draw.

        weights: a digest of the backbone's, wherever its file lies."""
        beside = ("seed", "name", "engine", "server_device", "evaluation", "diagnostics")
        values: dict[str, Any] = {key: value for key, value in self.computed().items() if key not in beside}
        values |= {"weights": weights, "precision": self.engine.precision}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        return derive(self.seed, "privacy", digest)

    def computed(self) -> dict[str, Any]:
        """The keys that a run's result is a function of: all that the choices read, but `UNCOUNTED` and `PLACES`."""
        values = to_dict(self)
        for key in (*UNCOUNTED, *PLACES):
            group, _, last = key.rpartition(".")
            (values[group] if group else values).pop(last, None)
        for group, key, usual in LATER:
            within_group = values[group] if group else values
            if within_group[key] == usual:
                del within_group[key]
        return values


def load(values: Mapping[str, Any]) -> Config:
    """The composed configuration as a checked `Config`. Raises InputError, one line, naming the key."""
    return build(Config, {key: _chosen(key, value) if key in GROUPS else value for key, value in values.items()}, "")


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values that `load` takes back: ``load(to_dict(c)) == c``."""
    values = plain(config)
    for name, group in GROUPS.items():
        if group.choices is None:
            values[name] = {group.key: values[name]["name"], **values[name]["options"]}
    return values


def _chosen(name: str, value: Any) -> Any:
    """What a group's choice reads, from its mapping."""
    group = GROUPS[name]
    if not isinstance(value, Mapping) or not isinstance(value.get(group.key), str):
        raise InputError(f"{name}: expected one of its choices (see --help), got {value!r}")
    options = {key: v for key, v in value.items() if key != group.key}
    if group.choices is None:
        return Choice(name=value[group.key], options=options)
    return create(name, group.choices, value[group.key], options)
