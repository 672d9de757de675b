"""The one Flower strategy: it runs any aggregation method with any re-initialiser, over any Grid.

Node ids are random in Flower, so everything that must repeat is keyed by partition id: round 0 asks every node who
it is; sampling draws partition ids from the round's seed; updates are summed in partition order.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from fedinit import slots, wire
from fedinit.adapters.kinds import KINDS, Kind
from fedinit.errors import RunFailed
from fedinit.factors import leading
from fedinit.runs.observer import ClientReport, Observer, Roster, RoundReport
from fedinit.scores import SCORES, Score
from fedinit.seeding import numpy_generator
from fedinit.state import base_offset as base
from fedinit.state import digest
from fedinit.state.checkpoint import State
from strategies.aggregator import Aggregate, Aggregator, Update
from strategies.dora import effective_bias
from strategies.methods.choosing import Choosing
from strategies.reinit import Reinit, ReinitContext, Start
from strategies.server.gate import Expected, Gate, admit_counts
from strategies.server.holdings import Holdings
from strategies.server.introduction import Introduction
from strategies.server.nodes import Nodes
from strategies.server.replies import Asked, Made, Refusal, sift
from strategies.server_opt import ServerOptimizer

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class FederatedLora(Strategy):
    """aggregator, reinit: the method. kind: of the adapters. ground: what re-initialisers may need. ranks: {partition
    id: rank} of all clients, the largest being the global one, or empty where all have that; lower ones train the
    leading components. participation: share of the clients in a round. evaluate_clients: ask the clients to evaluate,
    besides any evaluate_fn. evaluate_every: rounds, or evaluate_rounds: which; the last is always evaluated. timeout:
    seconds to wait for the clients to appear. keep: called after each round, and with 0 before the first, when a
    checkpoint may be made. gate: what lets updates in.
    quorum: the updates a round needs, a number (int) or a share of the clients asked (float); up to `resamples` times
    others are asked for what is missing. reply_timeout: seconds that each of these requests takes at most, with the
    search for nodes that went."""

    def __init__(
        self,
        *,
        aggregator: Aggregator,
        reinit: Reinit,
        ground: ReinitContext,
        seed: int,
        kind: Kind = KINDS["lora"],
        ranks: Mapping[int, int] | None = None,
        server_optimizer: ServerOptimizer | None = None,
        participation: float = 1.0,
        evaluate_clients: bool = False,
        evaluate_every: int = 1,
        evaluate_rounds: Collection[int] | None = None,
        timeout: float = 3600.0,
        observers: Sequence[Observer] = (),
        keep: Callable[[int], None] = lambda round: None,
        gate: Gate | None = None,
        quorum: int | float = 1,
        resamples: int = 0,
        reply_timeout: float | None = None,
    ) -> None:
        self.aggregator, self.reinit, self.ground, self.kind = aggregator, reinit, ground, kind
        self.ranks = dict(ranks or {})
        self.server_optimizer = server_optimizer
        self.holdings = Holdings()
        self.seed, self.participation = seed, participation
        self.nodes = Nodes(timeout, self.tell)
        self.evaluate_clients, self.evaluate_every = evaluate_clients, evaluate_every
        self.evaluate_rounds = evaluate_rounds
        self.observers, self.keep = list(observers), keep
        self.gate, self.quorum, self.resamples, self.reply_timeout = gate or Gate(), quorum, resamples, reply_timeout
        # Asks, once the start is there, for the step scales of the clients' optimisers, where the server fixes them.
        self.fix_scales: Callable[[Grid], Mapping[str, float]] | None = None
        self.scales: Mapping[str, float] = {}  # by wire name
        self.roster: Roster | None = None
        self.state: Aggregate | None = None
        self.round = 0  # the last that was completed
        self._expected: dict[int, Expected] = {}  # node id -> what its update must hold
        self._evaluating: dict[int, Asked] = {}  # node id -> who was asked to evaluate
        self._counted: Sequence[int] = ()  # bytes up and down of the rounds before a restart
        self._round_clients: list[ClientReport] = []
        self._score: Score | None = None
        self._last_round = 0
        self.round_zero_clients: list[ClientReport] = []
        self._began = time.perf_counter()
        self._announced = False

    # -- round 0 ---------------------------------------------------------------------------------------------------

    def meet(self, grid: Grid, backbone_digest: str) -> Roster:
        """Ask every node who it is, until all partitions are there. Raises RunFailed as `Nodes.meet` does, and for
        other classes or domains than the run was begun with."""
        facts = self.nodes.meet(grid, backbone_digest, self._stands)
        first = next(iter(facts.values()))
        roster = Roster(
            examples={client: fact.examples for client, fact in facts.items()},
            class_names=list(first.classes),
            domain_names=list(first.domains),
            score=first.score,
        )
        self._compare(self.roster or roster, roster)
        for client, fact in facts.items():
            self._believe(client, fact)
        self.roster = roster
        return self.roster

    @property
    def _stands(self) -> int:
        """The last round that was completed, -1 at the very beginning."""
        return -1 if self.state is None else self.round

    def _look_around(
        self, grid: Grid, deadline: float, wanted: Collection[int] = (), silent: Collection[int] = ()
    ) -> None:
        """Greet nodes that appeared or were started again in mid-run."""
        for client, fact in self.nodes.look_around(grid, deadline, self._stands, wanted, silent):
            self._believe(client, fact)
            self.tell("client_back", {"round": self.round + 1, "client": client})

    def ask(
        self,
        grid: Grid,
        content: RecordDict,
        kind: str,
        timeout: float,
        admit: Callable[[Message, Asked], Made | Refusal],
    ) -> tuple[dict[int, Made], list[Refusal]]:
        """The same question to every client; {partition id: what `admit` made of its reply}, and refusals."""
        messages = [Message(wire.clone(content), node, kind) for _, node in sorted(self.nodes.by_client.items())]
        return self._answers(grid, messages, timeout, admit)

    def ask_at_start(
        self,
        grid: Grid,
        facts: Mapping[str, object],
        trainable: frozenset[str],
        timeout: float,
        admit: Callable[[Message, Asked], Made | Refusal],
    ) -> tuple[dict[int, Made], list[Refusal]]:
        """As `ask`, for statistics of clients that are given the start and what of the base they lack, as in training.
        trainable: the factors that are trained in some round; the others they keep."""
        clients = sorted(self.nodes.by_client)
        starts = {c: self._start_of(c) for c in clients}
        passing = frozenset(wire.trained_names(self.state.layers, self.state.head, trainable))
        settings = {**self._about(0, trainable), **facts}
        messages = self._messages(starts, settings, passing, "query.statistics", self._marks(starts))
        for message in messages:
            message.content[wire.ASKED] = wire.encode({})
        return self._answers(grid, messages, timeout, admit)

    def _answers(
        self, grid: Grid, messages: list[Message], timeout: float, admit: Callable[[Message, Asked], Made | Refusal]
    ) -> tuple[dict[int, Made], list[Refusal]]:
        """What came of questions of round 0."""
        clients = {node: client for client, node in self.nodes.by_client.items()}
        sent = {message.metadata.dst_node_id: message for message in messages}
        asked = {node: Asked.over(grid, clients[node], 0, message) for node, message in sent.items()}
        return sift(self.nodes.exchange(grid, messages, timeout), asked, self.nodes.client_of, admit)

    def lost(self, round: int, refusals: Sequence[Refusal]) -> None:
        """Put refusals into the ledger, and send those clients everything next time: they may have lost what they
        held."""
        for refusal in refusals:
            self._forget(refusal.client)
            self.refused(round, refusal)

    def _forget(self, client: int) -> None:
        """Take nothing that this client was sent for granted any more."""
        if client in self.nodes.by_client:
            self.holdings.forget(client)

    def refused(self, round: int, refusal: Refusal) -> None:
        """Put a refusal into the ledger."""
        self.tell("refused", {"round": round, **vars(refusal)})

    def announce(self, num_rounds: int) -> None:
        """Tell the observers that the run begins, once."""
        if not self._announced:
            self._announced, self._last_round = True, num_rounds
            for observer in self.observers:
                observer.started(num_rounds, self.roster)

    def _compare(self, before: Roster, now: Roster) -> None:
        """The clients of a run that goes on, against those it was begun with."""
        for what, old, new in (
            ("classes", before.class_names, now.class_names),
            ("domains", before.domain_names, now.domain_names),
        ):
            if old != new:
                raise RunFailed(f"this run was begun with other {what}: {old}; the clients now have {new}")
        for client in sorted(before.examples.keys() | now.examples.keys()):
            old, new = before.examples.get(client, 0), now.examples.get(client, 0)
            if old != new:
                self.tell("examples_changed", {"client": client, "before": old, "now": new})

    def _believe(self, client: int, fact: Introduction) -> None:
        """Of what the client was sent before, count only on what it says it still holds."""
        self.holdings.believe(client, fact.held, fact.base_key)
        keeps, accepted = self.aggregator.personal or self.reinit.own_factors, self.holdings.accepted
        if keeps and client in accepted and accepted[client] not in fact.own_rounds:
            del accepted[client]
            self.tell("client_state_lost", {"client": client, "detail": "it starts from the global factors again"})

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def snapshot(self) -> State:
        """All that the next round is made from, besides what the clients keep."""
        tensors = {f"model/{n}": t for n, t in wire.to_tensors(self.state.layers, self.state.head).items()}
        offset = self.holdings.base.snapshot()
        tensors |= {f"base/{name}": tensor for name, tensor in offset.tensors.items()}
        if self.server_optimizer is not None:
            tensors |= {f"moments/{name}": tensor for name, tensor in self.server_optimizer.moments.items()}
        facts = {
            "round": self.round,
            "diagnostics": dict(self.state.diagnostics),
            "base": offset.facts,
            **self.holdings.facts(),
            "scales": dict(self.scales),
            "bytes": [self.nodes.bytes_up, self.nodes.bytes_down],
            "roster": {
                "examples": {str(client): n for client, n in self.roster.examples.items()},
                "classes": list(self.roster.class_names),
                "domains": list(self.roster.domain_names),
                "score": self.roster.score,
            },
        }
        return State(tensors, facts)

    def restore(self, state: State) -> None:
        """Go on after the round of the snapshot; `meet` comes next."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "base": {}, "moments": {}}
        for name, tensor in state.tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        facts = state.facts
        layers, head = wire.from_tensors(parts["model"])
        self.state = Aggregate(layers=layers, head=head, diagnostics=facts["diagnostics"])
        self.holdings.base.restore(State(parts["base"], facts["base"]))
        if self.server_optimizer is not None:
            self.server_optimizer.moments.update(parts["moments"])
        self.round = facts["round"]
        self.holdings.recall(facts)
        self.scales = facts["scales"]
        self._counted = facts["bytes"]
        roster = facts["roster"]
        self.roster = Roster(
            examples={int(client): n for client, n in roster["examples"].items()},
            class_names=roster["classes"],
            domain_names=roster["domains"],
            score=roster["score"],
        )

    # -- the run ---------------------------------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run up to `num_rounds` rounds from the start in `initial_arrays` (wire.start_to_tensors); `meet` comes first.
        After `restore` the run goes on from there, and `initial_arrays` are not read.

        evaluate_fn returns {"domains": indices, "correct": counts, "num-examples": counts}, or what another score is
        made of (Score.wire), as clients do.
        Raises RunFailed for a round without a usable reply.
        """
        if self.roster is None:
            raise RunFailed("start() needs the roster; call meet() first")
        self.announce(num_rounds)
        self._last_round = num_rounds
        if self.state is None:
            begun = wire.start_from_tensors(wire.decode(initial_arrays))
            self.state = Aggregate(layers=begun.layers, head=begun.head)
            self.holdings.base.merge(begun.merge)
            if self.fix_scales is not None:
                self.scales = self.fix_scales(grid)
            self._report_round_zero()
            self._show(0)
            self.keep(0)
        else:
            self.nodes.bytes_up, self.nodes.bytes_down = self._counted
            for observer in self.observers:
                observer.resumed(self.round)
        arrays, result = wire.encode(self.final_tensors()), Result()
        for round in range(self.round + 1, num_rounds + 1):
            began, up, down = time.perf_counter(), self.nodes.bytes_up, self.nodes.bytes_down
            judged = self._gather(round, train_config or ConfigRecord(), grid, self.reply_timeout or timeout)
            arrays, metrics = self._commit(round, *judged)
            result.train_metrics_clientapp[round] = metrics
            self._score = None
            messages = self.configure_evaluate(round, arrays, evaluate_config or ConfigRecord(), grid)
            if messages:
                measured = self.aggregate_evaluate(
                    round, self.nodes.exchange(grid, messages, self.reply_timeout or timeout)
                )
                result.evaluate_metrics_clientapp[round] = measured or MetricRecord()
            if evaluate_fn is not None and self._due(round):
                counted = evaluate_fn(round, arrays)
                if counted is not None:
                    result.evaluate_metrics_serverapp[round] = counted
                    self._score = self._merge_counts([counted])
            numbers = RoundReport(
                round=round,
                seconds=time.perf_counter() - began,
                train_loss=float(metrics["loss"]),
                score=self._score,
                bytes_up=self.nodes.bytes_up - up,
                bytes_down=self.nodes.bytes_down - down,
                clients=self._round_clients,
                diagnostics=self.state.diagnostics,
            )
            for observer in self.observers:
                observer.round_done(numbers)
            self.round = round
            if round == 1 or self._due(round):
                self._show(round)
            self.keep(round)
        result.arrays = arrays
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """A message a sampled client: its start factors, less the frozen ones it holds, and the head."""
        return self._requests(server_round, self.sample(server_round), config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Gate, aggregate, and the new global factors and head. Raises RunFailed when no reply is usable."""
        updates, refusals = self._judge(replies)
        self.lost(server_round, refusals)
        return self._commit(server_round, updates, refusals)

    def _requests(self, server_round: int, clients: Sequence[int], config: ConfigRecord, grid: Grid) -> list[Message]:
        trainable, trained = self.trainable(server_round), self.trained(server_round)
        settings = {**self._about(server_round, trainable), "own-factors": self.reinit.own_factors, **config}
        if self.scales:
            names = wire.trained_names(self.state.layers, self.state.head, trainable)
            settings["scales"] = [self.scales.get(name, 0.0) for name in names]
        starts = {c: self._start_of(c) for c in clients}
        budgets, own = self._budgets(clients, trainable), self._marks(starts)
        for client, budget in budgets.items():
            own[client] |= {"slots": budget, "choice": self.aggregator.choice, "probe": self.aggregator.probe}
        messages = self._messages(starts, settings, trained, "train", own)
        self._expected = {
            self.nodes.by_client[c]: Expected.over(
                grid, c, server_round, message, sent=starts[c], trained=trained, slots=budgets.get(c)
            )
            for c, message in zip(starts, messages, strict=True)
        }
        return messages

    def _about(self, round: int, trainable: frozenset[str]) -> dict[str, object]:
        """What a message says of the factors in it."""
        parts = {part for factors in self.state.layers.values() for part in factors.parts}
        return {
            "round": round,
            "trainable": sorted(trainable),
            "keep": sorted(({"A", "B", "R", *parts} - trainable) | self.aggregator.personal),
            "personal": sorted(self.aggregator.personal),
        }

    def _marks(self, starts: Mapping[int, Mapping[str, Tensor]]) -> dict[int, dict[str, str | int]]:
        """{client: its setting "start-digest"}; clients of one rank have one start."""
        marks = {rank: digest.of_tensors(starts[c]) for rank, c in {self.ranks.get(c): c for c in starts}.items()}
        return {c: {"start-digest": marks[self.ranks.get(c)]} for c in starts}

    def _gather(
        self, round: int, config: ConfigRecord, grid: Grid, timeout: float
    ) -> tuple[list[tuple[Update, ClientReport]], list[Refusal]]:
        """The round's updates and refusals. Without a quorum, clients that were not asked yet take the places of those
        that failed, then those that gave no answer, each time drawn from (seed, round, attempt).

        Raises RunFailed when there is no quorum after all.
        """
        clients = self.sample(round)
        need = self.need(len(clients))
        chosen, asked, updates, refusals = clients, set(clients), [], []
        for attempt in range(self.resamples + 1):
            # An attempt ends `timeout` seconds after it began. Of these, half at most go to nodes that are away, so
            # that those which are there have the other half to answer in.
            began = time.monotonic()
            found = began + timeout / 2
            if attempt:
                silent = {r.client for r in refusals if r.code in ("no_reply", "client_error")}
                silent -= {update.client for update, _ in updates}
                fresh = sorted(set(self.nodes.by_client) - asked) or sorted(silent & asked)
                count = min(len(fresh), len(clients) - len(updates))
                if not count:
                    break
                draw = numpy_generator(self.seed, "resampling", round, attempt)
                chosen = sorted(int(c) for c in draw.choice(fresh, size=count, replace=False))
                self.tell("resampled", {"round": round, "attempt": attempt, "usable": len(updates), "clients": chosen})
                asked |= set(chosen)
                self._look_around(grid, found, chosen, {r.client for r in refusals})
            else:
                self._look_around(grid, found)
            messages = self._requests(round, chosen, config, grid)
            more, failed = self._judge(self.nodes.exchange(grid, messages, began + timeout - time.monotonic()))
            self.lost(round, failed)
            updates = sorted([*updates, *more], key=lambda pair: pair[0].client)
            refusals += failed
            if len(updates) >= need:
                return updates, refusals
        if updates:
            why = f"{refusals[0].code}: {refusals[0].detail}" if refusals else "too few clients"
            raise RunFailed(f"round {round}: {len(updates)} usable updates, the quorum is {need} ({why})")
        return updates, refusals

    def _commit(
        self, server_round: int, updates: Sequence[tuple[Update, ClientReport]], refusals: Sequence[Refusal]
    ) -> tuple[ArrayRecord, MetricRecord]:
        if not updates:
            why = f"{refusals[0].code}: {refusals[0].detail}" if refusals else "no reply came in time"
            hint = "; a lower client.lr may help" if refusals and refusals[0].code == "not_finite" else ""
            raise RunFailed(f"round {server_round}: no usable update from any client ({why}){hint}")
        returned = [update for update, _ in updates]
        aggregate = self.aggregator.aggregate(returned, server_round, self.state)
        if self.aggregator.diagnostics and "m" in self.kind.beside:
            weights, ground = self.aggregator.weights(returned), self.ground.over(self.holdings.base.offset)
            found = effective_bias(returned, weights, aggregate, ground)
            aggregate = dataclasses.replace(aggregate, diagnostics={**aggregate.diagnostics, **found})
        if self.server_optimizer is not None:
            aggregate = self.server_optimizer.step(self.state, aggregate)
        self._settle(aggregate, server_round)
        self.holdings.accepted |= {update.client: server_round for update, _ in updates}
        self._round_clients = [numbers for _, numbers in updates]
        total = sum(c.examples for c in self._round_clients)
        loss = sum(c.loss * c.examples for c in self._round_clients) / total
        metrics = MetricRecord({"loss": loss, "clients": len(updates), **self.state.diagnostics})
        return wire.encode(self.final_tensors()), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """The global factors and head to every client that has test images, in rounds that are evaluated."""
        if not (self.evaluate_clients and self._due(server_round)):
            return []
        settings = {"round": server_round, "keep": [], "personal": sorted(self.aggregator.personal), **config}
        clients = sorted(client for client, images in self.nodes.tests.items() if images)
        whole = wire.to_tensors(self.state.layers, self.state.head)
        mark = {"start-digest": digest.of_tensors(whole)}
        own = dict.fromkeys(clients, mark)
        messages = self._messages(dict.fromkeys(clients, whole), settings, frozenset(whole), "evaluate", own)
        pairs = zip(clients, messages, strict=True)
        self._evaluating = {self.nodes.by_client[c]: Asked.over(grid, c, server_round, message) for c, message in pairs}
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The sums of the score, merged; clients that failed are in the ledger."""
        counted, refusals = self._judge_counts(replies)
        for refusal in refusals:
            self._forget(refusal.client)  # the message brought its base up to date, if it came
            self.tell("evaluation_failed", {"round": server_round, **vars(refusal)})
        if not counted:
            return None
        self._score = self._merge_counts(list(counted.values()))
        return MetricRecord({self._score.name: self._score.mean, **self._score.by_domain})

    def summary(self) -> None:
        """Part of Flower's contract; observers report instead."""

    # -- pieces ----------------------------------------------------------------------------------------------------

    def trainable(self, round: int) -> frozenset[str]:
        """The parts of Factors that clients train in a round."""
        return self.kind.trained(self.aggregator.trainable(round))

    def trained(self, round: int) -> frozenset[str]:
        """The wire names of what comes back in a round: the method's factors, and the head."""
        trainable = self.trainable(round) - self.aggregator.personal
        return frozenset(wire.trained_names(self.state.layers, self.state.head, trainable))

    def need(self, asked: int) -> int:
        """How many of so many clients must give a usable answer."""
        return self.quorum if isinstance(self.quorum, int) else math.ceil(self.quorum * asked - 1e-9)

    def sample(self, round: int) -> list[int]:
        """The partition ids of a round, in order: a function of the seed and the round alone."""
        everyone = sorted(self.nodes.by_client)
        count = max(1, round_half_up(self.participation * len(everyone)))
        draw = numpy_generator(self.seed, "sampling", round)
        return sorted(int(c) for c in draw.choice(everyone, size=count, replace=False))

    def final_tensors(self) -> dict[str, Tensor]:
        """Everything a model is: factors, head, and the base offset under "offset/<layer>"."""
        offset = {base.NAME + name: value for name, value in self.holdings.base.offset.items()}
        return wire.to_tensors(self.state.layers, self.state.head) | offset

    def _settle(self, aggregate: Aggregate, round: int) -> None:
        """Re-initialise, and move into the base what the start leaves out. The effective model stays as it is.

        After the last round nobody starts any more: the global factors stay, as the run's result.
        """
        if round == self._last_round:
            start = Start(aggregate.layers, aggregate.residual)
        else:
            start = self.reinit.after(aggregate, round, self.ground.over(self.holdings.base.offset))
        self.holdings.base.merge(start.merge)
        self.state = dataclasses.replace(aggregate, layers=start.layers, residual={})

    def _report_round_zero(self) -> None:
        numbers = RoundReport(
            round=0,
            seconds=time.perf_counter() - self._began,
            train_loss=None,
            score=None,
            bytes_up=self.nodes.bytes_up,
            bytes_down=self.nodes.bytes_down,
            clients=self.round_zero_clients,
        )
        for observer in self.observers:
            observer.round_zero_done(numbers)

    def _start_of(self, client: int) -> dict[str, Tensor]:
        """The global factors at this client's ranks, and the head, by wire name. Of a layer of rank r′, which the start
        may have dealt, a client of rank r_i of r has ⌈r′·r_i/r⌉."""
        layers = self.state.layers
        if client in self.ranks and not isinstance(self.aggregator, Choosing):
            rank, whole = self.ranks[client], max(self.ranks.values())
            layers = {name: leading(f, -(-f.rank * rank // whole)) for name, f in layers.items()}
        return wire.to_tensors(layers, self.state.head)

    def _budgets(self, clients: Iterable[int], trainable: frozenset[str]) -> dict[int, int]:
        """{client: slots} of those that train a part of the slots, of their own choice."""
        if not isinstance(self.aggregator, Choosing):
            return {}
        (part,) = trainable & set(slots.AXIS)
        total = sum(slots.count(f, part) for f in self.state.layers.values())
        whole = max(self.ranks.values(), default=1)
        shares = {c: self.aggregator.portion(self.ranks.get(c, whole), whole) for c in clients}
        return {c: max(1, round_half_up(share * total)) for c, share in shares.items() if share < 1}

    def _messages(
        self,
        starts: Mapping[int, Mapping[str, Tensor]],
        settings: Mapping[str, object],
        passing: frozenset[str],
        kind: str,
        own: Mapping[int, Mapping[str, str | int]] = MappingProxyType({}),
    ) -> list[Message]:
        """Each client's tensors but those it holds as they are, and what of the base it lacks. Clients keep what they
        are sent, except for the names in `passing`. own: settings of one client.

        A list, not a generator: Flower's HttpGrid reads it twice.
        """
        messages = []
        for client, lacking in self.holdings.lacking(starts, passing).items():
            merges, how = self.holdings.base.catch_up(client)
            about = {"backbone": self.nodes.backbone_digest, "base-key": self.holdings.base.key, "base-update": how}
            # What a client keeps of its own it goes on with from that round, not from one that was refused.
            past = {"accepted": self.holdings.accepted.get(client, 0)}
            config = ConfigRecord({**settings, **about, **past, **own.get(client, {})})
            content = RecordDict({wire.STATE: wire.encode(lacking), wire.CONFIG: config})
            if merges:
                content[base.RECORD] = wire.encode(merges)
            messages.append(Message(content, self.nodes.by_client[client], kind))
        return messages

    def _judge(self, replies: Iterable[Message]) -> tuple[list[tuple[Update, ClientReport]], list[Refusal]]:
        """Updates in client order with their numbers, and refusals; a client that did not answer is one of them."""

        def admit(reply: Message, expected: Expected) -> tuple[Update, ClientReport] | Refusal:
            judged = self.gate.admit(reply, expected)
            return judged if isinstance(judged, Refusal) else (judged, _numbers(judged, reply.content[wire.METRICS]))

        made, refusals = sift(replies, self._expected, self.nodes.client_of, admit)
        return list(made.values()), refusals

    def _judge_counts(self, replies: Iterable[Message]) -> tuple[dict[int, MetricRecord], list[Refusal]]:
        """{client: the sums of its evaluation}, and refusals."""
        domains, score = len(self.roster.domain_names), SCORES[self.roster.score]

        def admit(reply: Message, asked: Asked) -> MetricRecord | Refusal:
            return admit_counts(reply, asked, domains, score, self.nodes.tests[asked.client])

        return sift(replies, self._evaluating, self.nodes.client_of, admit)

    def _merge_counts(self, counted: Sequence[MetricRecord]) -> Score:
        kind = SCORES[self.roster.score]
        part: dict[str, float] = {}
        whole: dict[str, float] = {}
        for domain, *sums in sorted(
            row for m in counted for row in zip(m["domains"], *(m[key] for key in kind.wire), strict=True)
        ):
            name = self.roster.domain_names[domain]
            part[name] = part.get(name, 0) + sums[0]
            whole[name] = whole.get(name, 0) + sums[1]
        return kind(part=part, whole=whole)

    def _due(self, round: int) -> bool:
        if round == self._last_round:
            return True
        return round % self.evaluate_every == 0 if self.evaluate_rounds is None else round in self.evaluate_rounds

    def _show(self, round: int) -> None:
        for observer in self.observers:
            observer.model(round, self.final_tensors())

    def tell(self, kind: str, facts: Mapping[str, object]) -> None:
        """Tell the observers of what belongs in the ledger."""
        for observer in self.observers:
            observer.event(kind, facts)


def round_half_up(value: float) -> int:
    """0.5 goes up: half of five clients is three. The small term absorbs the rounding of share × clients."""
    return int(value + 0.5 + 1e-9)


def _numbers(update: Update, metrics: Mapping[str, float]) -> ClientReport:
    """What a client says of its training; without the gate a number may be missing."""
    return ClientReport(
        client=update.client,
        examples=update.examples,
        steps=int(metrics.get("steps", 0)),
        loss=float(metrics.get("loss", float("nan"))),
        drift_factors=float(metrics.get("drift-factors", 0.0)),
        drift_product=float(metrics.get("drift-product", 0.0)),
        optimizer_state=int(metrics.get("optimizer-state", 0)),
    )
