"""How good the global model is, from the sums that clients count on their own test images."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Message, MetricRecord

from fedinit.config.schema import EvaluationConfig
from fedinit.runs.observer import Roster
from fedinit.scores import SCORES, Score
from strategies.server import requests
from strategies.server.exchange import Exchange
from strategies.server.gate import admit_counts
from strategies.server.method import Method
from strategies.server.replies import Asked, Refusal, match_replies
from strategies.server.state import ServerState


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Which rounds are evaluated; the last always is.

    by_clients: whether the clients evaluate.
    every: after how many rounds each time. rounds: which ones, in place of `every`; None: as `every` says.
    """

    by_clients: bool = False
    every: int = 1
    rounds: Collection[int] | None = None

    @staticmethod
    def of(settings: EvaluationConfig) -> Schedule:
        """As `evaluation` says."""
        return Schedule(by_clients=settings.where == "clients", every=settings.every, rounds=settings.rounds)

    def is_due(self, round: int, last: int) -> bool:
        """Whether a round is evaluated, in a run that ends with round `last`."""
        if round == last:
            return True
        return round % self.every == 0 if self.rounds is None else round in self.rounds


def evaluate_clients(
    state: ServerState, method: Method, exchange: Exchange, extra: requests.Settings = requests.NOTHING
) -> tuple[ServerState, Score | None]:
    """The state after the evaluation, and the score over the clients that evaluate; None where nobody's sums can be
    used.

    extra: settings that go into every message. Clients that failed are in the ledger.
    """
    state, messages, asked = requests.for_evaluation(state, method, exchange, extra)
    replies = exchange.send(messages, exchange.reply_timeout, asked)
    state, score = merge_replies(state, method, exchange, replies, asked)
    return replace(state, bytes_up=exchange.bytes_up, bytes_down=exchange.bytes_down), score


def merge_replies(
    state: ServerState, method: Method, exchange: Exchange, replies: Iterable[Message], asked: Mapping[int, Asked]
) -> tuple[ServerState, Score | None]:
    """As `evaluate_clients`, from replies that are there. asked: {node id: what its client was asked}."""
    counted, refusals = admit(state.roster, exchange, replies, asked)
    for refusal in refusals:
        exchange.emit("evaluation_failed", {"round": state.round, **vars(refusal)})
    state = state.dropping(r.client for r in refusals)  # the message brought its base up to date, if it came
    if not counted:
        return state, None
    most = method.gate.most(count for count in exchange.tests.values() if count)
    return state, score_of(list(counted.values()), state.roster, most)


def admit(
    roster: Roster, exchange: Exchange, replies: Iterable[Message], asked: Mapping[int, Asked]
) -> tuple[dict[int, MetricRecord], list[Refusal]]:
    """{client: the sums of its evaluation}, and the refusals. asked: {node id: what its client was asked}."""
    score = SCORES[roster.score]

    def judge(reply: Message, wanted: Asked) -> MetricRecord | Refusal:
        domains = exchange.domains_of(wanted.client, roster.domain_names)
        return admit_counts(reply, wanted, domains, score, exchange.tests[wanted.client])

    return match_replies(replies, asked, exchange.client_of, judge)


def score_of(counted: Sequence[MetricRecord], roster: Roster, most: float = math.inf) -> Score:
    """The score from the sums of several evaluations, added up by domain in a fixed order.

    counted: {"domains": indices into the roster's names, and the score's two lists (Score.wire)} each.
    most: test images that one evaluation counts for; the sums over more of them are scaled down to it.
    """
    kind = SCORES[roster.score]
    part: dict[str, float] = {}
    whole: dict[str, float] = {}
    rows: list[tuple[Any, ...]] = []
    for record in counted:
        lists: dict[str, Any] = dict(record)
        low, high = (lists[key] for key in kind.wire)
        if kind.counts_examples and sum(high) > most:
            low, high = ([most * value / sum(high) for value in values] for values in (low, high))
        rows += zip(lists["domains"], low, high, strict=True)
    for domain, low, high in sorted(rows):
        name = roster.domain_names[int(domain)]
        part[name] = part.get(name, 0) + low
        whole[name] = whole.get(name, 0) + high
    return kind(part=part, whole=whole)
