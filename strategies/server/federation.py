"""A whole federated run from a configuration: round 0, start factors and head, rounds, and what came out."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fedinit import wire
from fedinit.adapters.kinds import KINDS
from fedinit.config.attack import AttackConfig
from fedinit.config.privacy import ClientPrivacyConfig, ExamplePrivacyConfig
from fedinit.config.schema import Choice, Config
from fedinit.config.secure_aggregation import SecAggConfig
from fedinit.errors import InputError, PrivacySpent, RunFailed
from fedinit.models import Backbone
from fedinit.privacy.mechanism import ClientMechanism
from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.secagg.messages import refuse_few
from fedinit.state import digest
from fedinit.state.checkpoint import Checkpoints, Part
from fedinit.stopping import unbroken
from fedinit.transport.introduction import Introduction
from strategies.aggregator import Aggregate
from strategies.robust import create_robust
from strategies.server.audience import Audience
from strategies.server.collecting import reconcile
from strategies.server.components import aggregator_of, fixes_scales, reinit_of
from strategies.server.delivery import is_remote
from strategies.server.evaluating import Schedule
from strategies.server.exchange import Exchange
from strategies.server.federated_lora import EvaluateFn, FederatedLora
from strategies.server.gate import Gate
from strategies.server.measuring import refuse_few_images, told, who_measure
from strategies.server.meeting import Meeting, other_code
from strategies.server.method import Method, sample_size
from strategies.server.opening import Opening
from strategies.server.outcome import Outcome, Tally
from strategies.server.placing import server_device
from strategies.server.private import affordable_rounds, check_privacy, mechanism_of, spent_of
from strategies.server.restoring import restored, save_all
from strategies.server.round_zero import fix_step_scales
from strategies.server.spending import Spending, untrainable
from strategies.server.state import ServerState
from strategies.server_opt import create_server_optimizer

Save = Callable[[ServerState], None]


def client_ranks(config: Config, examples: Mapping[int, int], clients: int = 0) -> dict[int, int]:
    """{partition id: rank} for clients with these numbers of examples, as `adapter.ranks` says; empty where all have
    the global rank r.

    A list is dealt in turn. halving: r, r/2, r/4, … down to 1, rounded down, dealt in turn. by_examples: r·n_i/max n,
    rounded up, so that what a client can learn grows with what it has seen; n_i above `gate.max_weight` times their
    median counts as that, so that one client's claim does not leave the others a rank of one.

    clients: how many there are with those that the run began without. Raises InputError for a list of more ranks.
    """
    rule, rank = config.adapter.ranks, config.adapter.rank
    if rule is None:
        return {}
    if rule == "by_examples":
        limit = Gate(**vars(config.gate)).most(examples.values())
        counts = {client: int(min(count, limit)) for client, count in examples.items()}
        most = max(counts.values())
        return {client: max(1, -(-rank * count // most)) for client, count in counts.items()}
    if rule == "halving":
        rule = [rank >> i for i in range(rank.bit_length())]
    elif len(rule) > (there := max(clients, len(examples))):
        raise InputError(f"adapter.ranks: {len(rule)} ranks for {there} clients; expected one a client at most")
    return {client: rule[client % len(rule)] for client in examples}


def check_clients(config: Config, examples: Mapping[int, int], clients: int = 0) -> None:
    """Raise InputError where the configuration wants more clients than these, {partition id: number of examples}, or
    other ones. clients: how many there are with those that the run began without."""
    asked = sorted(examples)[: sample_size(config.participation, len(examples))]
    if isinstance(config.quorum, int) and config.quorum > len(asked):
        of = "" if len(asked) == len(examples) else f", of whom a round asks {len(asked)}"
        raise InputError(f"quorum={config.quorum}: there are {len(examples)} clients{of}")
    rule = create_robust(config.robust.name, config.robust.options)
    root, there = getattr(rule, "root", None), max(clients, len(examples))
    if root is not None and root >= there:
        raise InputError(f"robust.root={root}: expected one of the partition ids 0 to {there - 1}")
    if rule is not None and (fault := rule.fault(asked)):
        raise InputError(f"robust={config.robust.name} cannot judge a round of {len(asked)} clients: {fault}")
    if isinstance(config.secure_aggregation, SecAggConfig):
        share = f"of {len(examples)}, at participation={config.participation:g}"
        refuse_few(len(asked), f"a round has {len(asked)} clients ({share})")
    check_privacy(config, examples)
    if isinstance(config.attack, AttackConfig):
        bad = config.attack.attackers(there, config.seed)
        if config.robust.name == "trust" and root in bad:
            why = f"client {root} would attack, which robust.root={root} vouches for"
            hint = "give attack.clients=[…] without it, or another robust.root"
            raise InputError(f"attack={config.attack.name}: {why}; {hint}")
    client_ranks(config, examples, clients)


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
    """Run the configuration over a grid; what came of it.

    grid: Flower's, or one in this process.
    backbone: the server's copy, whose digest the clients' must have.
    observers: told of every round and of what belongs in the ledger.
    evaluate_fn: scores the model where the server evaluates, as in FederatedLora.start.
    method: replaces the configured strategy, for a reference run.
    checkpoints: the folder where the run is saved after round 0 and every round, and whose last checkpoint it goes on
    from; None: it is not saved.
    parts: what is saved besides the server's state, by name: the clients of a simulation, the run's files.

    Raises InputError for options that do not fit, RunFailed when the clients cannot finish it.
    """
    chosen, tally, spending = method or config.strategy, Tally(), Spending(config, drawn_anew=is_remote(grid))
    audience = Audience([*observers, tally, spending])
    opening = Opening(config, aggregator_of(config, chosen), backbone)
    exchange = Exchange(
        grid,
        timeout=config.node_timeout,
        emit=audience.event,
        reply_timeout=config.reply_timeout,
        waiting=audience.waiting,
        domain_of=config.partition.domain_of,
    )
    all_parts = {**parts, "start": opening, "rounds": tally, "spending": spending}
    keeper, saved = None, None
    if checkpoints is not None:
        keeper = Checkpoints(checkpoints, {**config.computed(), "method": chosen.name, "backbone": backbone.digest})
        saved = restored(keeper, all_parts, audience, config.privacy)

    def save(state: ServerState) -> None:
        if keeper is not None:
            with unbroken():
                save_all(keeper, state, all_parts)

    run_method, state = _ready(config, exchange, opening, saved, audience, save)
    strategy = FederatedLora(
        method=dataclasses.replace(run_method, device=server_device(config, grid)),
        exchange=exchange,
        state=state,
        schedule=Schedule.of(config.evaluation),
        observer=audience,
        on_checkpoint=save,
        counted=spending.of,
    )
    rounds = affordable_rounds(config, run_method, audience)
    with _as_far_as_privacy_goes(config, strategy, audience), _frozen(), _also_counting_lost(spending, strategy, save):
        strategy.start(grid, ArrayRecord(), rounds, evaluate_fn=evaluate_fn)
    return _outcome(strategy.state, run_method, tally, spending, opening)


@contextlib.contextmanager
def _as_far_as_privacy_goes(config: Config, strategy: FederatedLora, audience: Audience) -> Iterator[None]:
    """Of a run whose clients have no ε for the next round the rounds that there were are the run: training that was
    asked for again has cost again. Without any it has failed, and so has one that has no such ε."""
    try:
        yield
    except PrivacySpent as spent:
        round = strategy.state.round
        if not round or not isinstance(config.privacy, ExamplePrivacyConfig):
            raise
        audience.event("stops_early", {"after_round": round, "of": config.rounds, "detail": str(spent)})


@contextlib.contextmanager
def _also_counting_lost(spending: Spending, strategy: FederatedLora, save: Save) -> Iterator[None]:
    """What clients spent in a round that ends the run, whatever it ends by, is kept, for a run that goes on from the
    last checkpoint."""
    try:
        yield
    except BaseException:
        if spending.lost(strategy.pending, strategy.pending.told):
            with contextlib.suppress(OSError):  # what ended the run is told
                save(strategy.state)
        raise


@contextlib.contextmanager
def _frozen() -> Iterator[None]:
    """What is there by now stays: the collector need not look through it again and again in a round of many clients."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _ready(
    config: Config,
    exchange: Exchange,
    opening: Opening,
    saved: ServerState | None,
    audience: Audience,
    save: Save,
) -> tuple[Method, ServerState]:
    """The method of every round, and the state that the next one goes on from: after the clients have registered, and
    round 0 where it was not done before."""
    began, round = time.perf_counter(), -1 if saved is None else saved.round
    introductions = exchange.register_clients(opening.backbone.digest, round, Meeting.of(config))
    roster, reports, measuring = roster_of(introductions), [], who_measure(config, exchange.clients)
    if saved is not None:
        _compare(saved.roster, roster, audience, config)
    clients = next(iter(introductions.values())).partitions  # on which those that are used agree
    check_clients(config, roster.examples, clients)
    ranks = client_ranks(config, roster.examples, clients)
    audience.started(config.rounds, roster)
    if absent := [client for client in range(clients) if client not in introductions]:
        audience.event("began_without", {"round": max(round, 0) + 1, "clients": absent})
    for facts in other_code(introductions):
        audience.event("other_code", {"round": max(round, 0) + 1, **facts})
    if saved is None:
        refuse_few_images(config, roster.examples)
        if opening.measured:
            audience.doing(f"{told(measuring, exchange.clients)} the start, {opening.measured}")
        reports = opening.make(exchange, measuring, roster)
    privacy = mechanism_of(config, opening.aggregator, len(roster.examples), exchange)
    method = _method_of(config, opening, ranks, privacy)
    if saved is not None:
        state = reconcile(dataclasses.replace(saved, roster=roster), method, exchange, introductions.items())
        exchange.bytes_up, exchange.bytes_down = state.bytes_up, state.bytes_down
        audience.resumed(state.round)
        if isinstance(config.privacy, ExamplePrivacyConfig):
            save(state)  # with the images that clients have now, should the next round be lost
        return method, state
    state = reconcile(ServerState.begun(opening.start, roster, {}), method, exchange, introductions.items())
    if fixes_scales(config):
        audience.doing(f"{told(measuring, exchange.clients)} the step scales")
        state, notes, reports = fix_step_scales(state, method, exchange, measuring, config.rounds, config.client.loss)
        opening.note(step_scales=notes)
    state = dataclasses.replace(state, bytes_up=exchange.bytes_up, bytes_down=exchange.bytes_down)
    audience.round_zero_done(
        RoundReport(
            round=0,
            seconds=time.perf_counter() - began,
            train_loss=None,
            score=None,
            bytes_up=state.bytes_up,
            bytes_down=state.bytes_down,
            clients=reports,
        )
    )
    audience.model(0, state.tensors())
    save(state)
    return method, state


def _method_of(config: Config, opening: Opening, ranks: Mapping[int, int], privacy: ClientMechanism | None) -> Method:
    """What every round is done by. ranks: of the clients."""
    secure, reinit = config.secure_aggregation, reinit_of(config, opening.aggregator)
    gate = Gate(**vars(config.gate), private=config.privacy.name == "examples", own_starts=reinit.own_factors)
    return Method(
        aggregator=opening.aggregator,
        reinit=reinit,
        context=opening.reinit_context,
        seed=config.seed,
        kind=KINDS[config.adapter.kind],
        ranks=ranks,
        server_optimizer=create_server_optimizer(config.server_opt.name, config.server_opt.options),
        participation=config.participation,
        evaluation=config.evaluation.participation,
        gate=dataclasses.replace(gate, untrainable=untrainable(config)),
        robust=create_robust(config.robust.name, config.robust.options),
        secure=secure if isinstance(secure, SecAggConfig) else None,
        quorum=config.quorum,
        resamples=config.resamples,
        privacy=privacy,
        client=config.client,
    )


def roster_of(introductions: Mapping[int, Introduction]) -> Roster:
    """Who takes part, from what the clients say of themselves, by partition id."""
    first = next(iter(introductions.values()))
    return Roster(
        examples={client: said.examples for client, said in introductions.items()},
        class_names=list(first.classes),
        domain_names=list(first.domains),
        score=first.score,
    )


def _compare(before: Roster, current: Roster, audience: Audience, config: Config) -> None:
    """The clients of a run that goes on, against those it was begun with. Raises RunFailed for other classes or
    domains, and for another number of clients where ε is of a share of them."""
    was, now = len(before.examples), len(current.examples)
    if was != now and isinstance(config.privacy, ClientPrivacyConfig):
        raise RunFailed(
            f"this run was begun with {was} clients, and there are {now}: what its ε counts, privacy=clients, is of "
            "rounds of one number of clients; have the same there, or begin anew with resume=never"
        )
    for what, old, new in (
        ("classes", before.class_names, current.class_names),
        ("domains", before.domain_names, current.domain_names),
    ):
        if old != new:
            raise RunFailed(f"this run was begun with other {what}: {old}; the clients now have {new}")
    for client in sorted(before.examples.keys() | current.examples.keys()):
        was, has = before.examples.get(client, 0), current.examples.get(client, 0)
        if was != has:
            audience.event("examples_changed", {"client": client, "before": was, "now": has})


def _outcome(state: ServerState, method: Method, tally: Tally, spending: Spending, opening: Opening) -> Outcome:
    tally.refuse_nothing(state.round)
    tensors, privacy = state.tensors(), opening.config.privacy
    # Of what clients begin with: an aggregate may be larger, as FLoRA's, whose factors are those of all clients.
    begun = Aggregate(layers=opening.start.layers, head=opening.start.head)
    sent = wire.to_tensors(begun.layers, begun.head)
    spent = {} if method.privacy is None else spent_of(method.privacy, state.round)
    return Outcome(
        aggregate=state.model,
        offset=state.base.offset,
        roster=state.roster,
        score=tally.score,
        rounds=state.round,
        seconds=tally.seconds,
        bytes_up=state.bytes_up,
        bytes_down=state.bytes_down,
        trainable=sum(sent[name].numel() for name in method.ever_returned(begun, state.round)),
        final_hash=digest.of_tensors(tensors),
        start=opening.start.notes,
        personal=method.aggregator.personal,
        privacy=spent,
        accepted={client: state.mirror(client).accepted for client in state.roster.examples},
        epsilon=spending.epsilon,
        noise_drawn_by=spending.noise_drawn_by,
        left_out=tally.left_out,
        skipped=tally.skipped,
        absent=tally.absent,
        masked={} if method.secure is None else vars(method.secure),
        delta=privacy.delta if isinstance(privacy, ExamplePrivacyConfig) else None,
    )
