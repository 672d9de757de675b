"""A whole federated run from a configuration: round 0, start factors and head, rounds, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flwr.serverapp import Grid

from fedinit import digest, wire
from fedinit.config import Choice, Config
from fedinit.initializers import create_initializer
from fedinit.metrics import Accuracy, Observer, Roster, Round
from fedinit.models import Backbone, init_head, select_targets
from strategies import create_aggregator
from strategies.aggregator import Aggregate
from strategies.federated_lora import EvaluateFn, FederatedLora
from strategies.reinit import create_reinit


@dataclass(frozen=True)
class Outcome:
    """aggregate: the final global factors and head. accuracy: of the last evaluation, or None.
    trainable: how many numbers a client trains in a round, head included."""

    aggregate: Aggregate
    roster: Roster
    accuracy: Accuracy | None
    rounds: int
    seconds: float
    bytes_up: int
    bytes_down: int
    trainable: int
    final_hash: str

    def summary(self) -> dict[str, Any]:
        """The figures of summary.json."""
        return {
            "final_hash": self.final_hash,
            "accuracy": None if self.accuracy is None else self.accuracy.mean,
            "accuracy_by_domain": {} if self.accuracy is None else self.accuracy.by_domain,
            "rounds": self.rounds,
            "clients": len(self.roster.examples),
            "seconds": self.seconds,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "trainable_parameters": self.trainable,
            "diagnostics": dict(self.aggregate.diagnostics),
        }


def check_method(config: Config) -> None:
    """Build the method once, so that a wrong option is found before any data is read. Raises InputError."""
    create_aggregator(config.strategy.name, weighting=config.weighting, **config.strategy.options)
    create_reinit(config.reinit.name, config.reinit.options)
    create_initializer(config.init.name, config.init.options).check(config.adapter.rank)


def federate(
    config: Config,
    grid: Grid,
    backbone: Backbone,
    *,
    observers: Sequence[Observer] = (),
    evaluate_fn: EvaluateFn | None = None,
    method: Choice | None = None,
) -> Outcome:
    """Run the configuration over a grid. `method` replaces the configured strategy (for a reference run).

    Raises InputError for options that do not fit, RunFailed when the clients cannot finish it.
    """
    chosen = method or config.strategy
    watch = _Last()
    strategy = FederatedLora(
        aggregator=create_aggregator(chosen.name, weighting=config.weighting, **chosen.options),
        reinit=create_reinit(config.reinit.name, config.reinit.options),
        seed=config.seed,
        participation=config.participation,
        evaluate_clients=config.evaluation.where == "clients",
        evaluate_every=config.evaluation.every,
        timeout=config.node_timeout,
        observers=[*observers, watch],
    )
    targets = select_targets(backbone.module, config.adapter.targets, config.adapter.rank)
    layers = create_initializer(config.init.name, config.init.options).start(targets, config.adapter.rank, config.seed)
    roster = strategy.meet(grid, backbone.digest)
    head = init_head(config.head.init, len(roster.class_names), backbone.features, config.seed)
    initial = wire.encode(wire.to_tensors(layers, head))
    strategy.start(grid, initial, config.rounds, timeout=config.node_timeout, evaluate_fn=evaluate_fn)
    final = wire.to_tensors(strategy.state.layers, strategy.state.head)
    return Outcome(
        aggregate=strategy.state,
        roster=roster,
        accuracy=watch.accuracy,
        rounds=config.rounds,
        seconds=watch.seconds,
        bytes_up=strategy.bytes_up,
        bytes_down=strategy.bytes_down,
        trainable=sum(final[name].numel() for name in strategy.trained(config.rounds)),
        final_hash=digest.of_tensors(final),
    )


class _Last(Observer):
    """Keeps the last accuracy and the seconds of all rounds."""

    accuracy: Accuracy | None = None
    seconds: float = 0.0

    def round_done(self, numbers: Round) -> None:
        self.seconds += numbers.seconds
        self.accuracy = numbers.accuracy or self.accuracy


