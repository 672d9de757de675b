"""The one Flower strategy: any aggregation method with any re-initialiser, over any Grid.

A run is a fold of `run_round` over the server's state; this class is what Flower calls of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedinit import wire
from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.scores import Score
from strategies.server import collecting, evaluating, requests
from strategies.server.collecting import Pending
from strategies.server.evaluating import Schedule, evaluate_clients, score_of
from strategies.server.exchange import Exchange
from strategies.server.gate import Expected
from strategies.server.method import Method
from strategies.server.replies import Asked
from strategies.server.round import advance, combined, run_round
from strategies.server.state import ServerState
from strategies.server.weighing import weigh

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class FederatedLora(Strategy):
    """Flower's Strategy over a Method and a ServerState. `state` is the server's after the last completed round."""

    def __init__(
        self,
        *,
        method: Method,
        exchange: Exchange,
        state: ServerState,
        schedule: Schedule,
        observer: Observer,
        on_checkpoint: Callable[[ServerState], None] = lambda state: None,
        counted: Callable[[RoundReport, Roster], RoundReport] = lambda report, _: report,
    ) -> None:
        """
        method: what is done in every round.
        exchange: the way to the clients, which have registered.
        state: where the run stands.
        schedule: which rounds the clients evaluate, besides any evaluate_fn.
        observer: told of every round.
        on_checkpoint: called with the state after each round, when a checkpoint may be made.
        counted: gives each round's report what the run has spent.
        """
        self.method, self.exchange, self.state = method, exchange, state
        self.schedule, self.observer, self.on_checkpoint, self.counted = schedule, observer, on_checkpoint, counted
        self.expected: dict[int, Expected] = {}  # node id -> what its update must hold, of the last configure_train
        self.pending = Pending()
        self.asked: dict[int, Asked] = {}  # node id -> who was asked, of the last configure_evaluate

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
        """Go on from the state until round `num_rounds` is done. The grid, the start and the time-outs are those of the
        exchange and the state; `grid`, `initial_arrays` and `timeout` are part of Flower's contract and not read.

        evaluate_fn returns {"domains": indices, "correct": counts, "num-examples": counts}, or what another score is
        made of (Score.wire), as clients do.
        Raises RunFailed for a round without a usable reply.
        """
        result, evaluation = Result(), evaluate_config or ConfigRecord()
        while self.state.round < num_rounds:
            began, up, down = time.perf_counter(), self.exchange.bytes_up, self.exchange.bytes_down
            last = self.state.round + 1 == num_rounds
            self.pending.clear()
            state, report = run_round(self.state, self.method, self.exchange, last, train_config or {}, self.pending)
            losses = {"loss": float(report.train_loss or 0.0), "clients": len(report.clients)}
            result.train_metrics_clientapp[state.round] = MetricRecord({**losses, **report.diagnostics})
            score = None
            if self.schedule.is_due(state.round, num_rounds):
                state, score = self._evaluated(state, evaluation, evaluate_fn, result)
            spent = time.perf_counter() - began
            phases = {**report.phases, "evaluation": spent - report.seconds}
            up, down = self.exchange.bytes_up - up, self.exchange.bytes_down - down
            report = replace(report, seconds=spent, score=score, bytes_up=up, bytes_down=down, phases=phases)
            report = self.counted(report, state.roster)
            self.pending.clear()
            self._done(state, report, num_rounds)
        result.arrays = wire.encode(self.state.tensors())
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """A message a sampled client: its start factors, less the frozen ones it holds, and the head."""
        clients = self.method.sample(server_round, self.exchange.clients)
        asked = requests.for_training(self.state, self.method, self.exchange, clients, config)
        self.state, messages, self.expected = asked
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """The new model by wire name (ServerState.tensors), and its diagnostics, from the replies that are let in."""
        admitted = collecting.admit(self.method, self.exchange, replies, self.expected)
        state = collecting.drop(self.state, self.exchange, server_round, admitted.refusals)
        weighed = weigh(admitted.updates, self.method, state.model, server_round, state.clip)
        state, aggregate = combined(state, self.method, self.exchange, admitted, weighed)
        assert aggregate is not None  # no secret sums here, which Flower's loop has no stages for
        self.state = advance(state, self.method, admitted, weighed, aggregate)
        return wire.encode(self.state.tensors()), MetricRecord(dict(self.state.model.diagnostics))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """The global factors and head to every client that evaluates."""
        asked = requests.for_evaluation(self.state, self.method, self.exchange, config)
        self.state, messages, self.asked = asked
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The score, its mean and by domain; None where nobody's sums can be used. Clients that failed are in the
        ledger."""
        self.state, score = evaluating.merge_replies(self.state, self.method, self.exchange, replies, self.asked)
        return None if score is None else _metrics(score)

    def summary(self) -> None:
        """Part of Flower's contract; observers report instead."""

    def _evaluated(
        self, state: ServerState, config: ConfigRecord, evaluate_fn: EvaluateFn | None, result: Result
    ) -> tuple[ServerState, Score | None]:
        """The score of the model after a round that is due, by the clients and, where there is one, by evaluate_fn."""
        score, round = None, state.round
        if self.schedule.by_clients:
            state, score = evaluate_clients(state, self.method, self.exchange, config)
            result.evaluate_metrics_clientapp[round] = MetricRecord() if score is None else _metrics(score)
        counted = None if evaluate_fn is None else evaluate_fn(round, wire.encode(state.tensors()))
        if counted is not None:
            result.evaluate_metrics_serverapp[round] = counted
            score = score_of([counted], state.roster)
        return state, score

    def _done(self, state: ServerState, report: RoundReport, num_rounds: int) -> None:
        """Take the state of a completed round, and tell observer and checkpoint of it."""
        self.state = state
        self.observer.round_done(report)
        if state.round == 1 or self.schedule.is_due(state.round, num_rounds):
            self.observer.model(state.round, state.tensors())
        self.on_checkpoint(state)


def _metrics(score: Score) -> MetricRecord:
    return MetricRecord({score.name: score.mean, **score.by_domain})
