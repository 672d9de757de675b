"""A whole federated run from a configuration: round 0, start factors and head, rounds, and what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flwr.serverapp import Grid
from torch import Tensor

from fedinit import wire
from fedinit.adapters.kinds import KINDS
from fedinit.config.schema import Choice, Config
from fedinit.errors import InputError
from fedinit.factors import Factors, stack
from fedinit.heads import create_head
from fedinit.heads.head import HeadContext
from fedinit.initializers import create_initializer
from fedinit.initializers.initializer import InitContext
from fedinit.models import Backbone, select_targets, shared_inputs
from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.runs.stopping import unbroken
from fedinit.scores import SCORES, Score
from fedinit.seeding import derive
from fedinit.state import digest
from fedinit.state.checkpoint import Checkpoints, Part, State
from fedinit.state.start import StartState
from strategies.aggregator import Aggregate
from strategies.reinit import ReinitContext
from strategies.server.compatibility import aggregator_of, fixes_scales, reinit_of
from strategies.server.federated_lora import EvaluateFn, FederatedLora
from strategies.server.gate import Gate
from strategies.server.round_zero import begin, step_scales
from strategies.server_opt import create_server_optimizer


@dataclass(frozen=True)
class Outcome:
    """aggregate: the final global factors and head. offset: the base offset by layer. score: of the last evaluation,
    or None. trainable: how many numbers a client that trains every slot sends in a round, head included. start: what
    round 0 has to say."""

    aggregate: Aggregate
    offset: Mapping[str, Tensor]
    roster: Roster
    score: Score | None
    rounds: int
    seconds: float
    bytes_up: int
    bytes_down: int
    trainable: int
    final_hash: str
    start: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """The figures of summary.json."""
        return {
            "final_hash": self.final_hash,
            "score": self.roster.score,
            self.roster.score: None if self.score is None else self.score.mean,
            f"{self.roster.score}_by_domain": {} if self.score is None else self.score.by_domain,
            "rounds": self.rounds,
            "clients": len(self.roster.examples),
            "seconds": self.seconds,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "trainable_parameters": self.trainable,
            "diagnostics": dict(self.aggregate.diagnostics),
            "start": dict(self.start),
        }


def client_ranks(config: Config, examples: Mapping[int, int]) -> dict[int, int]:
    """{partition id: rank} for clients with these numbers of examples, as `adapter.ranks` says; empty where all have
    the global rank r.

    A list is dealt in turn. halving: r, r/2, r/4, … down to 1, rounded down, dealt in turn. by_examples: r·n_i/max n,
    rounded up, so that what a client can learn grows with what it has seen. Raises InputError for a list of more ranks
    than clients.
    """
    rule, rank = config.adapter.ranks, config.adapter.rank
    if rule is None:
        return {}
    if rule == "by_examples":
        most = max(examples.values())
        return {client: max(1, -(-rank * count // most)) for client, count in examples.items()}
    if rule == "halving":
        rule = [rank >> i for i in range(rank.bit_length())]
    elif len(rule) > len(examples):
        raise InputError(f"adapter.ranks: {len(rule)} ranks for {len(examples)} clients; expected one a client at most")
    return {client: rule[i % len(rule)] for i, client in enumerate(examples)}


def federate(
    config: Config,
    grid: Grid,
    backbone: Backbone,
    *,
    observers: Sequence[Observer] = (),
    evaluate_fn: EvaluateFn | None = None,
    method: Choice | None = None,
    checkpoints: Path | None = None,
    parts: Mapping[str, Part] = MappingProxyType({}),
) -> Outcome:
    """Run the configuration over a grid. `method` replaces the configured strategy (for a reference run).

    checkpoints: the folder where the run is saved after round 0 and every round, and whose last checkpoint it goes on
    from. parts: what is saved besides the server's state, by name: the clients of a simulation, the run's files.

    Raises InputError for options that do not fit, RunFailed when the clients cannot finish it.
    """
    chosen = method or config.strategy
    aggregator = aggregator_of(config, chosen)
    watch = _Last()
    targets = select_targets(backbone.module, config.adapter.targets, config.adapter.rank)
    initializer = create_initializer(config.init.name, config.init.options)
    initializer.fit(targets, config.adapter.rank)
    head = create_head(config.head.name, config.head.options)
    scale = config.adapter.scale

    def frozen(name: str) -> Tensor:
        return backbone.module.get_submodule(name).weight.detach().cpu()

    start = _Start()
    setting = InitContext(targets=targets, rank=config.adapter.rank, scale=scale, seed=config.seed, weight=frozen)
    if initializer.needs != "none":
        setting = dataclasses.replace(setting, groups=shared_inputs(backbone, targets))

    def draw(round: int) -> Mapping[str, Factors]:
        """What a round starts from where the initialiser is asked again: another draw, or the start of round 0."""
        if not initializer.random:
            return start.state.layers
        return adopted(initializer.plan(setting.reseed(derive(config.seed, "fresh", round))).layers)

    def adopted(layers: Mapping[str, Factors]) -> dict[str, Factors]:
        """A start as the method trains it."""
        return {name: aggregator.adopt(factors) for name, factors in layers.items()}

    def completed(begun: StartState) -> StartState:
        """What round 0 made, as the method trains it and clients of this kind of adapters start from it."""

        def started(name: str, f: Factors) -> Factors:
            whole = f if name not in begun.merge else stack([f, begun.merge[name]], [1.0, 1.0])
            return KINDS[config.adapter.kind].begin(f, whole, frozen(name), scale)

        layers = {name: started(name, f) for name, f in adopted(begun.layers).items()}
        return dataclasses.replace(begun, layers=layers)

    strategy = FederatedLora(
        aggregator=aggregator,
        reinit=reinit_of(config, aggregator),
        kind=KINDS[config.adapter.kind],
        ground=ReinitContext({name: config.adapter.rank for name in targets}, scale, draw, frozen),
        server_optimizer=create_server_optimizer(config.server_opt.name, config.server_opt.options),
        seed=config.seed,
        participation=config.participation,
        evaluate_clients=config.evaluation.where == "clients",
        evaluate_every=config.evaluation.every,
        evaluate_rounds=config.evaluation.rounds,
        timeout=config.node_timeout,
        gate=Gate(**vars(config.gate)),
        quorum=config.quorum,
        resamples=config.resamples,
        reply_timeout=config.reply_timeout,
        observers=[*observers, watch],
    )
    whole = {**parts, "start": start, "server": strategy, "rounds": watch}
    if checkpoints is not None:
        values = {**config.computed(), "method": chosen.name, "backbone": backbone.digest}
        keeper = Checkpoints(checkpoints, values)
        _restore(keeper, whole, observers)

        def keep(round: int) -> None:
            with unbroken():
                keeper.save(round, {name: part.snapshot() for name, part in whole.items()})

        strategy.keep = keep
    roster = strategy.meet(grid, backbone.digest)
    strategy.ranks = client_ranks(config, roster.examples)
    strategy.announce(config.rounds)
    waiting = config.reply_timeout or config.node_timeout
    if start.state is None:
        head_setting = HeadContext(classes=roster.class_names, features=backbone.features, seed=config.seed)
        start.state = completed(begin(strategy, grid, head, head_setting, initializer, setting, waiting))
    begun = start.state
    strategy.ground = dataclasses.replace(strategy.ground, ranks={name: f.rank for name, f in begun.layers.items()})
    if fixes_scales(config):
        rounds = range(1, config.rounds + 1)
        ever = frozenset(part for round in rounds for part in strategy.trainable(round))

        def fix(grid: Grid) -> Mapping[str, float]:
            scales, notes = step_scales(strategy, grid, ever, config.seed, waiting)
            start.state = dataclasses.replace(start.state, notes={**start.state.notes, "step_scales": notes})
            return scales

        strategy.fix_scales = fix
    initial = wire.encode(wire.start_to_tensors(begun))
    strategy.start(grid, initial, config.rounds, timeout=config.node_timeout, evaluate_fn=evaluate_fn)
    final = strategy.final_tensors()
    return Outcome(
        aggregate=strategy.state,
        offset=strategy.holdings.base.offset,
        roster=roster,
        score=watch.score,
        rounds=config.rounds,
        seconds=watch.seconds,
        bytes_up=strategy.nodes.bytes_up,
        bytes_down=strategy.nodes.bytes_down,
        trainable=sum(final[name].numel() for name in strategy.trained(config.rounds)),
        final_hash=digest.of_tensors(final),
        start=start.state.notes,
    )


def _restore(keeper: Checkpoints, parts: Mapping[str, Part], observers: Sequence[Observer]) -> None:
    """Put every part where the latest whole checkpoint left it, and say which later ones were passed over."""
    loaded = keeper.load()
    for name, part in parts.items():
        if name in loaded.states:
            part.restore(loaded.states[name])
    events = [("checkpoint_damaged", {"checkpoint": name, "detail": why}) for name, why in loaded.passed_over]
    if loaded.states:
        events.append(("resumed", {"round": loaded.round}))
    for kind, facts in events:
        for observer in observers:
            observer.event(kind, facts)


class _Start:
    """The start that round 0 came to, for what later rounds ask of it; None before it is known."""

    state: StartState | None = None

    def snapshot(self) -> State:
        return State(wire.to_tensors(self.state.layers, self.state.head), {"notes": self.state.notes})

    def restore(self, state: State) -> None:
        layers, head = wire.from_tensors(state.tensors)
        self.state = StartState(layers=layers, head=head, notes=state.facts["notes"])  # its merge is in the base


class _Last(Observer):
    """Keeps the last score and the seconds of all rounds."""

    score: Score | None = None
    seconds: float = 0.0

    def round_zero_done(self, numbers: RoundReport) -> None:
        self.seconds += numbers.seconds

    def round_done(self, numbers: RoundReport) -> None:
        self.seconds += numbers.seconds
        self.score = numbers.score or self.score

    def snapshot(self) -> State:
        facts = {"seconds": self.seconds, "score": None}
        if self.score is not None:
            facts["score"] = [self.score.name, dict(self.score.part), dict(self.score.whole)]
        return State(facts=facts)

    def restore(self, state: State) -> None:
        self.seconds = state.facts["seconds"]
        self.score = None
        if state.facts["score"] is not None:
            name, part, whole = state.facts["score"]
            self.score = SCORES[name](part=part, whole=whole)
