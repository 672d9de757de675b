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

from fedinit import digest, wire
from fedinit.adapters import KINDS
from fedinit.checkpoint import Checkpoints, Part, State
from fedinit.config import Choice, Config
from fedinit.errors import InputError
from fedinit.factors import Factors, stack
from fedinit.heads import create_head
from fedinit.heads.head import HeadSetting
from fedinit.initializers import INITIALIZERS, Initializer, create_initializer
from fedinit.initializers.initializer import Setting, StartState
from fedinit.metrics import SCORES, Observer, Roster, Round, Score
from fedinit.models import Backbone, select_targets, shared_inputs
from fedinit.row_norms import magnitudes
from fedinit.seeding import derive
from fedinit.stopping import unbroken
from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Aggregate, Aggregator
from strategies.choosing import Choosing
from strategies.federated_lora import EvaluateFn, FederatedLora
from strategies.gate import Gate
from strategies.reinit import Ground, Reinit, create_reinit
from strategies.round_zero import begin, step_scales
from strategies.server_opt import create_server_optimizer
from strategies.starts import check_head, check_start


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


def check_method(config: Config) -> None:
    """Build the method once, so that a wrong option is found before any data is read. Raises InputError."""
    aggregator = _aggregator(config, config.strategy)
    _reinit(config, aggregator)
    aggregator.check(config.adapter.rank)
    if config.diagnostics.name != "none" and aggregator.personal:
        raise InputError(
            f"diagnostics={config.diagnostics.name}: with strategy={config.strategy.name} every client keeps a factor "
            "of its own and there is no global model to look at; use diagnostics=none"
        )
    if config.diagnostics.name != "none" and config.adapter.kind != "lora":
        raise InputError(
            f"diagnostics={config.diagnostics.name}: its kernels and ranks are those of adapter=lora; with "
            f"adapter={config.adapter.kind} use diagnostics=none"
        )
    if config.head.name == "none" and config.strategy.name == "head_alone":
        raise InputError("strategy=head_alone: trains the head alone, and head=none has none; choose another strategy")
    if aggregator.personal and config.evaluation.where == "server":
        raise InputError(
            f"evaluation=server: with strategy={config.strategy.name} every client keeps a factor of its own and there "
            "is no global model to evaluate; use evaluation=clients"
        )
    initializer = create_initializer(config.init.name, config.init.options)
    initializer.check(config.adapter.rank)
    _check_kind(config, aggregator, initializer)
    check_start(config, aggregator, initializer)
    check_head(config, create_head(config.head.name, config.head.options), initializer)
    if create_server_optimizer(config.server_opt.name, config.server_opt.options) is not None:
        if aggregator.unmoved:
            fitting = sorted(name for name, method in AGGREGATORS.items() if not method.unmoved)
            raise InputError(
                f"server_opt={config.server_opt.name}: does not go with strategy={config.strategy.name}, "
                f"{aggregator.unmoved}; these go: {', '.join(fitting)}"
            )
        if config.reinit.name not in ("auto", "average"):
            raise InputError(
                f"server_opt={config.server_opt.name}: needs clients that start from the global factors; "
                f"got reinit={config.reinit.name}, choose one of: auto, average"
            )
    if _fixes_scales(config) and (isinstance(aggregator, Choosing) or config.adapter.ranks is not None):
        who = f"strategy={config.strategy.name}" if isinstance(aggregator, Choosing) else "adapter.ranks"
        raise InputError(
            f"client.gsnr_scope=global_once: with {who} clients train blocks of different sizes, which have no one "
            "scale; use client_once or per_round"
        )
    if config.adapter.ranks is None:
        return
    if not aggregator.mixed_ranks:
        mixed = sorted(name for name, kind in AGGREGATORS.items() if kind.mixed_ranks)
        raise InputError(
            f"adapter.ranks: {config.strategy.name} has one rank for all clients; these take any: {', '.join(mixed)}"
        )
    if config.reinit.name == "pissa":
        raise InputError(
            "adapter.ranks: reinit=pissa takes W0's own components out of the base, which a client of a "
            "lower rank would then lack; use another reinit"
        )


def _check_kind(config: Config, aggregator: Aggregator, initializer: Initializer) -> None:
    """Raise InputError where method, start or settings do not go with the kind of adapters."""
    name, kind = config.adapter.kind, KINDS[config.adapter.kind]
    if why := aggregator.objection(name):
        fitting = sorted(n for n, method in AGGREGATORS.items() if name in method.kinds)
        raise InputError(
            f"adapter={name}: does not go with strategy={config.strategy.name}: {why}; these go: {', '.join(fitting)}"
        )
    if name not in initializer.kinds:
        fitting = sorted(n for n, start in INITIALIZERS.items() if name in start.kinds)
        raise InputError(
            f"adapter={name}: init={config.init.name} makes no start for it; choose one of: {', '.join(fitting)}"
        )
    if not kind.mixed_ranks and config.adapter.ranks is not None:
        raise InputError(f"adapter.ranks: adapter={name} has one rank for all clients")
    if config.client.lr_ratio_b != 1 and ("B" in kind.names or "B" not in trained_parts(config)):
        what = f"adapter={name}" if "B" in kind.names else f"strategy={config.strategy.name}"
        raise InputError(f"client.lr_ratio_b={config.client.lr_ratio_b}: {what} trains no B; use 1")


def _fixes_scales(config: Config) -> bool:
    return config.client.optimizer == "sgd_sai" and config.client.gsnr_scope == "global_once"


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


def trained_parts(config: Config, *rounds: int) -> frozenset[str]:
    """The factors that clients train in any of the rounds; in one round or another, where none is given."""
    aggregator = _aggregator(config, config.strategy)
    return frozenset().union(*map(aggregator.trainable, rounds or (1, 2)))


def _aggregator(config: Config, chosen: Choice) -> Aggregator:
    weighting = {} if config.weighting == "auto" else {"weighting": config.weighting}
    return create_aggregator(chosen.name, **weighting, **chosen.options)


def _reinit(config: Config, aggregator: Aggregator) -> Reinit:
    """The configured re-initialiser; `auto` is the method's own. Raises InputError for a pair that makes no sense."""
    name = aggregator.reinits[0] if config.reinit.name == "auto" else config.reinit.name
    made = create_reinit(name, config.reinit.options)
    kind = KINDS[config.adapter.kind]
    if kind.reinits is not None and name not in kind.reinits:
        raise InputError(
            f"reinit={name}: does not go with adapter={config.adapter.kind}, {kind.why}; "
            f"choose one of: {', '.join(kind.reinits)}"
        )
    if name not in aggregator.reinits:
        raise InputError(
            f"reinit={name}: does not go with strategy={config.strategy.name}, {aggregator.why}; "
            f"choose one of: {', '.join(aggregator.reinits)}"
        )
    if made.at is not None and "average" not in aggregator.reinits:
        raise InputError(
            f"reinit.at={list(made.at)}: after the other rounds clients start from the global factors; this does not "
            f"go with strategy={config.strategy.name}, {aggregator.why}"
        )
    return made


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
    aggregator = _aggregator(config, chosen)
    watch = _Last()
    targets = select_targets(backbone.module, config.adapter.targets, config.adapter.rank)
    initializer = create_initializer(config.init.name, config.init.options)
    initializer.fit(targets, config.adapter.rank)
    head = create_head(config.head.name, config.head.options)
    scale = config.adapter.scale

    def frozen(name: str) -> Tensor:
        return backbone.module.get_submodule(name).weight.detach().cpu()

    start = _Start()
    setting = Setting(targets=targets, rank=config.adapter.rank, scale=scale, seed=config.seed, weight=frozen)
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
        """What round 0 made, as the method trains it, with magnitudes where the adapters have them."""
        layers = adopted(begun.layers)
        if config.adapter.kind == "dora":
            for name, f in layers.items():
                whole = f if name not in begun.merge else stack([f, begun.merge[name]], [1.0, 1.0])
                layers[name] = dataclasses.replace(f, m=magnitudes(frozen(name), whole.A, whole.B, scale).float())
        return dataclasses.replace(begun, layers=layers)

    strategy = FederatedLora(
        aggregator=aggregator,
        reinit=_reinit(config, aggregator),
        kind=KINDS[config.adapter.kind],
        ground=Ground({name: config.adapter.rank for name in targets}, scale, draw, frozen),
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
        head_setting = HeadSetting(classes=roster.class_names, features=backbone.features, seed=config.seed)
        start.state = completed(begin(strategy, grid, head, head_setting, initializer, setting, waiting))
    begun = start.state
    strategy.ground = dataclasses.replace(strategy.ground, ranks={name: f.rank for name, f in begun.layers.items()})
    if _fixes_scales(config):
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

    def round_zero_done(self, numbers: Round) -> None:
        self.seconds += numbers.seconds

    def round_done(self, numbers: Round) -> None:
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
