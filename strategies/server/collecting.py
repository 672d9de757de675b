"""The updates of a round: clients are asked, their replies judged, and others asked for what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import Message

from fedinit.data.reporter import counted
from fedinit.errors import Code, PrivacySpent, RunFailed
from fedinit.privacy.steps import so_far
from fedinit.runs.observer import ClientReport
from fedinit.said import first_ten
from fedinit.seeding import numpy_generator
from fedinit.transport.introduction import Introduction
from strategies.aggregator import Update
from strategies.server import requests
from strategies.server.bounds import KnownBounds
from strategies.server.exchange import SAY_SECONDS, Exchange
from strategies.server.gate import Accepted, Expected
from strategies.server.meeting import other_code
from strategies.server.method import Method
from strategies.server.placing import beside_clients
from strategies.server.replies import Refusal, match_replies
from strategies.server.running_mean import RunningMean
from strategies.server.state import ServerState

Images = Mapping[int, Sequence[int]]  # {client: how many images it had, each time that it was asked}
NOT_BEGUN = (Code.limit.name, Code.too_few_examples.name, Code.spent.name)  # refusals of a site that has not trained


class Pending(dict[int, list[int]]):
    """{client: how many images it had, each time that it was asked to train}, of a round that is not counted yet.

    told: {client: the ε that it says it has spent}, with its update or where it has none for a round more."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[int, float] = {}

    def clear(self) -> None:
        super().clear()
        self.told.clear()

    def hear(self, added: Admitted) -> None:
        """Keep what these clients say that they have spent."""
        self.told |= {report.client: report.epsilon for report in added.reports if report.epsilon is not None}
        spent = [refusal for refusal in added.refusals if refusal.code == Code.spent.name]
        self.told |= {refusal.client: said for refusal in spent if (said := so_far(refusal.detail)) is not None}


@dataclass(frozen=True)
class Admitted:
    """What was let in in a round, in client order, and what was refused.

    reports: what each client says of its training, one an update.
    shares: {client: p_i} where the one update is the mean of these clients', summed before the server had it; loss is
    their mean loss then, and threshold is how many unmask a sum of the round.
    asked: those who were asked to train, whatever became of it, but that they did not by their own limits. told: as of
    Pending.
    """

    updates: Sequence[Update] = ()
    reports: Sequence[ClientReport] = ()
    refusals: Sequence[Refusal] = ()
    shares: Mapping[int, float] = field(default_factory=dict)
    loss: float | None = None
    threshold: int | None = None
    asked: Images = field(default_factory=dict)
    told: Mapping[int, float] = field(default_factory=dict)

    @property
    def clients(self) -> list[int]:
        """Whose updates were let in."""
        return list(self.shares) or [update.client for update in self.updates]

    def __add__(self, other: Admitted) -> Admitted:
        """Both, in client order."""
        pairs = zip([*self.updates, *other.updates], [*self.reports, *other.reports], strict=True)
        ordered = sorted(pairs, key=lambda pair: pair[0].client)
        updates, reports = [update for update, _ in ordered], [report for _, report in ordered]
        return Admitted(updates, reports, [*self.refusals, *other.refusals])

    @property
    def why(self) -> str:
        """The first refusal as "<code>: <detail>"; empty where there is none."""
        return f"{self.refusals[0].code}: {self.refusals[0].detail}" if self.refusals else ""


def collect(
    state: ServerState, method: Method, exchange: Exchange, extra: requests.Settings, asked: Pending
) -> tuple[ServerState, Admitted]:
    """The updates of round `state.round + 1`, and the state once its messages have gone.

    Without a quorum, clients that were not asked yet take the places of those that failed, then those that gave no
    answer, each time drawn from (seed, round, attempt).

    extra: settings that go into every message. asked: filled as clients are asked, for who has to know it though the
    round ends the run. Raises RunFailed when there is no quorum after all, or no update; PrivacySpent
    where there never will be, as too many have no ε left.
    """
    round = state.round + 1
    clients = method.sample(round, exchange.clients)
    need, chosen, admitted = method.needed(len(clients)), clients, Admitted()
    running = RunningMean.begun(state, method, exchange, clients)
    for attempt in range(method.resamples + 1):
        # An attempt ends `reply_timeout` seconds after it began. Of these, half at most go to nodes that are away, so
        # that those which are there have the other half to answer in.
        end = time.monotonic() + exchange.reply_timeout
        halfway = end - exchange.reply_timeout / 2
        if attempt:
            chosen = _others(method, exchange, round, attempt, len(clients), set(asked), admitted)
            if not chosen:
                break
            state = discovered(state, method, exchange, halfway, chosen, {r.client for r in admitted.refusals})
        else:
            state = discovered(state, method, exchange, halfway)
        state, messages, expected = requests.for_training(state, method, exchange, chosen, extra)
        for client in chosen:
            asked.setdefault(client, []).append(state.roster.examples.get(client, 0))
        if running is None:
            say = _awaited(exchange, expected)
            replies = exchange.send(messages, end - time.monotonic(), expected, say)
            added = admit(method, exchange, replies, expected)
        else:
            with beside_clients(exchange.grid):
                added = admit(method, exchange, exchange.one_by_one(messages, expected), expected, running.add)
        state = drop(state, exchange, round, added.refusals)
        admitted += added
        asked.hear(added)
        idle = {refusal.client for refusal in added.refusals if refusal.code in NOT_BEGUN}
        for client in idle.intersection(chosen).difference(update.client for update in added.updates):
            asked[client].pop()
        if len(admitted.updates) >= need:
            admitted = admitted if running is None else replace(admitted, **running.closed())
            images = {client: images for client, images in asked.items() if images}
            return state, replace(admitted, asked=images, told=dict(asked.told))
    spent = {refusal.client for refusal in admitted.refusals if refusal.code == Code.spent.name}
    if spent and len(set(exchange.by_client) - spent) < need:
        why = next(refusal.detail for refusal in admitted.refusals if refusal.client in spent)
        raise PrivacySpent(f"round {round}: {counted(len(spent), 'client')} cannot train ({why})")
    if admitted.updates:
        why = admitted.why or "too few clients"
        raise RunFailed(f"round {round}: {len(admitted.updates)} usable updates, the quorum is {need} ({why})")
    hint = "; a lower client.lr may help" if admitted.why.startswith(("not_finite", "factor_norm", "head_norm")) else ""
    why = admitted.why or "no reply came in time"
    raise RunFailed(f"round {round}: no usable update from any client ({why}){hint}")


def _awaited(exchange: Exchange, expected: Mapping[int, Expected]) -> Callable[[Collection[int]], None]:
    """What says, when it is called with nodes whose updates are missing, whose these are; after every while, where they
    are others than it said before."""
    spoken, said = time.monotonic(), ""

    def say(nodes: Collection[int]) -> None:
        nonlocal spoken, said
        waited = sorted((expected[node].client, expected[node].round) for node in nodes if node in expected)
        if not waited or time.monotonic() - spoken < SAY_SECONDS:
            return
        several, clients = "s" * (len(waited) > 1), first_ten([client for client, _ in waited])
        spoken = time.monotonic()
        text = f"round {waited[0][1]}: waits for the update{several} of client{several} {clients}"
        if text != said:
            exchange.waiting(text)
        said = text

    return say


def admit(
    method: Method,
    exchange: Exchange,
    replies: Iterable[Message],
    expected: Mapping[int, Expected],
    kept: Callable[[Accepted], Update] = lambda accepted: accepted.update,
) -> Admitted:
    """The replies that become updates; a client that did not answer is among the refusals.

    expected: {node id: what its update must hold}. kept: what is kept of an update that is let in.
    """
    known = KnownBounds()

    def judge(reply: Message, wanted: Expected) -> tuple[Update, ClientReport] | Refusal:
        judged = method.gate.admit(reply, wanted, method.transforms, known)
        return judged if isinstance(judged, Refusal) else (kept(judged), _report(judged))

    pairs, refusals = match_replies(replies, expected, exchange.client_of, judge)
    return Admitted([update for update, _ in pairs.values()], [report for _, report in pairs.values()], refusals)


def drop(
    state: ServerState, exchange: Exchange, round: int, refusals: Sequence[Refusal], kind: str = "refused"
) -> ServerState:
    """Put refusals into the ledger, and send those clients everything next time: they may have lost what they held.
    kind: as `Exchange.log_refusal` has it."""
    for refusal in refusals:
        exchange.log_refusal(round, refusal, kind)
    return state.dropping(refusal.client for refusal in refusals)


def reconcile(
    state: ServerState, method: Method, exchange: Exchange, introductions: Iterable[tuple[int, Introduction]]
) -> ServerState:
    """The state in which, of what clients were sent before, only what they say they still hold is counted on.

    introductions: (partition id, what it says of itself). One that has lost the factors it would go on from starts
    from the global ones, and the ledger says so.
    """
    remembers = method.aggregator.personal or method.reinit.own_factors
    mirrors = {}
    for client, said in introductions:
        mirror = state.mirror(client).reconciled(said.held, said.base_key, state.base)
        if remembers and mirror.accepted and mirror.accepted not in said.own_rounds:
            mirror = replace(mirror, accepted=0)
            detail = "it starts from the global factors again"
            exchange.emit("client_state_lost", {"client": client, "detail": detail})
        if mirror is not state.mirror(client):
            mirrors[client] = mirror
    return state.mirroring(mirrors)


def discovered(
    state: ServerState,
    method: Method,
    exchange: Exchange,
    deadline: float,
    wanted: Collection[int] = (),
    silent: Collection[int] = (),
) -> ServerState:
    """The state once nodes that appeared, or were started again in mid-run, have been greeted and their clients
    reconciled; deadline, wanted and silent as in Exchange.discover."""
    for client, introduction in exchange.discover(deadline, state.round, wanted, silent):
        state = reconcile(state, method, exchange, [(client, introduction)])
        exchange.emit("client_back", {"round": state.round + 1, "client": client})
        for facts in other_code({client: introduction}):
            exchange.emit("other_code", {"round": state.round + 1, **facts})
        if (had := state.roster.examples.get(client)) != (now := introduction.examples):
            roster = replace(state.roster, examples={**state.roster.examples, client: now})
            state = replace(state, roster=roster)
            exchange.emit("examples_changed", {"client": client, "before": had, "now": now})
    return state


def _others(
    method: Method, exchange: Exchange, round: int, attempt: int, wanted: int, asked: set[int], admitted: Admitted
) -> list[int]:
    """Whom to ask for what is missing of `wanted` updates, in order; empty when nobody is left. asked: everybody who
    was asked in this round."""
    silent = {r.client for r in admitted.refusals if r.code in ("no_reply", "client_error")}
    silent -= {update.client for update in admitted.updates}
    fresh = sorted(set(exchange.by_client) - asked) or sorted(silent & asked)
    count = min(len(fresh), wanted - len(admitted.updates))
    if not count:
        return []
    draw = numpy_generator(method.seed, "resampling", round, attempt)
    chosen = sorted(int(client) for client in draw.choice(fresh, size=count, replace=False))
    usable = len(admitted.updates)
    exchange.emit("resampled", {"round": round, "attempt": attempt, "usable": usable, "clients": chosen})
    return chosen


def _report(accepted: Accepted) -> ClientReport:
    """What a client says of its training; without the gate a number may be missing."""
    metrics = accepted.metrics
    return ClientReport(
        client=accepted.client,
        examples=accepted.examples,
        steps=int(metrics.get("steps", 0)),
        loss=float(metrics["loss"]) if "loss" in metrics else None,
        drift_factors=float(metrics.get("drift-factors", 0.0)),
        drift_product=float(metrics.get("drift-product", 0.0)),
        optimizer_state=int(metrics.get("optimizer-state", 0)),
        epsilon=float(metrics["epsilon"]) if "epsilon" in metrics else None,
    )
