"""The parts that a configuration chooses, built once: what they say of themselves decides what goes together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fedinit.adapters.kinds import KINDS, Kind
from fedinit.config.client import SGDSaIConfig
from fedinit.config.privacy import ClientPrivacyConfig
from fedinit.config.schema import Choice, Config
from fedinit.errors import InputError
from fedinit.heads import create_head
from fedinit.heads.head import Head
from fedinit.initializers import create_initializer
from fedinit.initializers.initializer import Initializer
from fedinit.statistics import Sampled
from strategies import create_aggregator
from strategies.aggregator import Aggregator
from strategies.reinit import Reinit, create_reinit
from strategies.robust import create_robust
from strategies.robust.contract import Robust
from strategies.server_opt import ServerOptimizer, create_server_optimizer


@dataclass(frozen=True)
class Components:
    """A configuration, and what its choices build.

    aggregator: the method. reinit, reinit_name: its re-initialiser, with `auto` resolved.
    kind: of the adapters. initializer, head: what the start is made by.
    server_optimizer: None for `server_opt=none`. robust: None for `robust=none`.
    under_flower: whether a Flower server runs it.
    """

    config: Config
    aggregator: Aggregator
    reinit: Reinit
    reinit_name: str
    kind: Kind
    initializer: Initializer
    head: Head
    server_optimizer: ServerOptimizer | None
    robust: Robust | None
    under_flower: bool = False

    @staticmethod
    def of(config: Config, under_flower: bool = False) -> Components:
        """The components of a run. Raises InputError for an option that its component cannot have."""
        aggregator = aggregator_of(config, config.strategy)
        return Components(
            config=config,
            aggregator=aggregator,
            reinit=reinit_of(config, aggregator),
            reinit_name=reinit_name(config, aggregator),
            kind=KINDS[config.adapter.kind],
            initializer=create_initializer(config.init.name, config.init.options),
            head=create_head(config.head.name, config.head.options),
            server_optimizer=create_server_optimizer(config.server_opt.name, config.server_opt.options),
            robust=create_robust(config.robust.name, config.robust.options),
            under_flower=under_flower,
        )

    def trained(self, *rounds: int) -> frozenset[str]:
        """The factors that clients train in any of these rounds; in any round at all, where none is given, of methods
        whose factors take turns."""
        return frozenset().union(*map(self.aggregator.trainable, rounds or (1, 2)))


def aggregator_of(config: Config, chosen: Choice) -> Aggregator:
    """The method that `chosen` names, with the run's weighting. Raises InputError for an option it cannot have."""
    if "weighting" in chosen.options:
        raise InputError("strategy.weighting: no such key; weighting= is one of the run")
    weighting = {} if config.weighting == "auto" else {"weighting": config.weighting}
    options = {**weighting, **chosen.options}
    if isinstance(config.privacy, ClientPrivacyConfig):
        options = {"weighting": "uniform", **options}
    aggregator = create_aggregator(chosen.name, **options)
    if isinstance(config.privacy, ClientPrivacyConfig) or config.secure_aggregation.name != "none":
        return dataclasses.replace(aggregator, diagnostics=False)  # of one mean, noisy or not, there is no bias to see
    return aggregator


def reinit_name(config: Config, aggregator: Aggregator) -> str:
    """The configured re-initialiser; `auto` is the method's own."""
    return aggregator.reinits[0] if config.reinit.name == "auto" else config.reinit.name


def reinit_of(config: Config, aggregator: Aggregator) -> Reinit:
    """The configured re-initialiser. Raises InputError for an option it cannot have."""
    return create_reinit(reinit_name(config, aggregator), config.reinit.options)


def measured_groups(initializer: Initializer, head: Head) -> dict[str, Sampled]:
    """{config group: its component} of what clients measure for a start; empty where nobody does."""
    made = {"init": initializer, "head": head}
    return {group: component for group, component in made.items() if isinstance(component, Sampled)}


def fixes_scales(config: Config) -> bool:
    """Whether the server fixes the step scales of the clients' optimiser before round 1."""
    return isinstance(config.client, SGDSaIConfig) and config.client.gsnr_scope == "global_once"
