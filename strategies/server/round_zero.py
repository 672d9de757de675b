"""Round 0: what the clients measure becomes the start that round 1 begins from.

The server asks the clients that measure for the statistics of a request, judges each answer on its own, adds up those
it lets in (in client order, in float64) and gives the sum to whoever asked, which makes its part of the start or asks
again: first the head, then the initialiser, whose gradients are those under that head. A client that is missing, or
that erred, costs its own part and nothing else; the summary says so. Once the start is known, one more pass may fix the
step scales of the clients' optimisers at it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from fedinit import wire
from fedinit.errors import RunFailed
from fedinit.heads.head import Head, HeadContext
from fedinit.initializers import Initializer
from fedinit.initializers.initializer import InitContext
from fedinit.runs.observer import ClientReport
from fedinit.scores import MAX_EXAMPLES
from fedinit.state.start import StartState
from fedinit.statistics import Request, RunningSum, Sampling, Statistics, create_statistics
from fedinit.step_scale import scale_of
from strategies.server import requests
from strategies.server.collecting import drop
from strategies.server.exchange import Exchange
from strategies.server.gate import admit_statistics
from strategies.server.method import Method, needed
from strategies.server.placing import beside_clients
from strategies.server.replies import Asked, Refusal, match_replies
from strategies.server.state import ServerState

ANY: Mapping[int, int] = MappingProxyType({})
NAMED = 5  # of classes that nobody has, by a warning
Answers = tuple[dict[int, int], list[Refusal], Statistics]


@dataclass(frozen=True)
class Survey:
    """Questions to clients about the bare backbone, and what came of them.

    exchange: the way to the clients, which have registered.
    clients: who is asked, by partition id, in order.
    need: how many usable answers a question needs.
    measured: {client: examples of its last answer}.
    lost: {client: reason code} of those whose answer to some question is missing.
    """

    exchange: Exchange
    clients: Sequence[int]
    need: int
    measured: dict[int, int] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)

    def __call__(self, request: Request) -> Statistics:
        """The sum of the clients' answers. Raises RunFailed when fewer can be used than `need`."""
        exchange = self.exchange
        content = RecordDict(
            {
                wire.CONFIG: ConfigRecord({"request": request.to_json(), "backbone": exchange.backbone_digest}),
                wire.STATE: wire.encode({wire.HEAD + key: value for key, value in request.head.items()}),
                wire.ASKED: wire.encode(request.tensors),
            }
        )
        nodes = [exchange.by_client[client] for client in self.clients]
        messages = [Message(wire.clone(content), node, "query.statistics") for node in nodes]
        limit = requests.answer_limit(request)
        asked = requests.asked(exchange, self.clients, messages, 0, limit)
        answers, refusals, total = _answers(exchange, messages, asked, request, self.need)
        for refusal in refusals:
            if refusal.client in exchange.by_client.keys() - answers.keys():  # not for a second or a forged answer
                self.lost[refusal.client] = refusal.code
            exchange.log_refusal(0, refusal)
        self.measured.update(answers)
        return total

    @property
    def counted(self) -> dict[int, int]:
        """{client: examples} of those who answered every question."""
        return {client: examples for client, examples in self.measured.items() if client not in self.lost}


def make_start(
    exchange: Exchange,
    clients: Sequence[int],
    quorum: int | float,
    head: tuple[Head, HeadContext],
    initializer: tuple[Initializer, InitContext],
) -> tuple[StartState, list[ClientReport]]:
    """The start and its head, with the round's costs in its notes, and the reports of those who measured for it.

    clients: who measure for it, by partition id, in order.
    quorum: how many answers a question needs, a number (int) or a share of those clients (float).
    head, initializer: each with the context it works in; the head is made first, since gradients are taken under it.
    Raises RunFailed when fewer clients' statistics can be used than the quorum says.
    """
    began, up = time.perf_counter(), exchange.bytes_up
    ask = Survey(exchange, clients, max(needed(quorum, len(clients)), 1))
    head_state = head[0].run(head[1], ask)
    method, context = initializer
    start = method.run(dataclasses.replace(context, head=head_state.tensors), ask)
    notes, about = dict(start.notes), dict(head_state.notes)
    if method.needs == "gradients" and not about:
        about["warning"] = "gradients were measured under a head that no data went into; head=ridge makes one"
        exchange.emit("warning", {"round": 0, "detail": about["warning"]})
    if absent := about.get("missing"):
        named = ", ".join([*absent][:NAMED]) + f" and {len(absent) - NAMED} more" * (len(absent) > NAMED)
        detail = f"nobody who measured has images of the classes {named}; what the head begins with there is a guess"
        exchange.emit("warning", {"round": 0, "detail": detail})
    if about:
        notes["head"] = about
    if ask.measured:
        seconds, up = time.perf_counter() - began, exchange.bytes_up - up
        notes |= {"clients": len(ask.counted), "seconds": seconds, "bytes_up": up}
    if ask.lost:
        notes["lost"] = {str(client): code for client, code in sorted(ask.lost.items())}
    return dataclasses.replace(start, head=start.head or head_state.tensors, notes=notes), _reports(ask.counted)


def fix_step_scales(
    state: ServerState,
    method: Method,
    exchange: Exchange,
    clients: Sequence[int],
    rounds: int,
    loss: str = "auto",
) -> tuple[ServerState, dict[str, Any], list[ClientReport]]:
    """SGD-SaI's step scale of every tensor that is trained in some round, from the mean gradient of the
    clients' examples at the start: the state with the scales, what they took, for the start's notes, and who measured.

    clients: who are asked, by partition id, in order.
    A tensor whose gradient is exactly zero there, such as A under a zero B, has none: each client fixes it at its own
    first gradient that is not. rounds: of the run. loss: what clients minimise, `client.loss`. Raises RunFailed when
    fewer clients' gradients can be used than the quorum says.
    """
    up, model = exchange.bytes_up, state.model
    trainable = frozenset(part for round in range(1, rounds + 1) for part in method.trainable(round))
    names, tensors = wire.trained_names(model.layers, model.head, trainable), wire.to_tensors(model.layers, model.head)
    request = Request(
        source="adapters",
        layers=dict.fromkeys(names, "total"),
        shapes={name: tuple(tensors[name].shape) for name in names},
        seed=method.seed,
        options={"loss": loss},
        sampling=Sampling(examples=None, min_examples=1),  # they reveal what the first step of training would
    )
    state, messages, asked = requests.for_statistics(state, method, exchange, clients, trainable, request)
    need = max(method.needed(len(clients)), 1)
    answers, refusals, total = _answers(exchange, messages, asked, request, need)
    state = drop(state, exchange, 0, refusals)
    means = {name: total.of(name)["total"] / total.of(name)["count"] for name in names}
    step_scales = {name: scale for name, mean in means.items() if (scale := scale_of(mean))}
    left = [name for name in names if name not in step_scales]
    notes = {"clients": len(answers), "bytes_up": exchange.bytes_up - up, "left_to_clients": left}
    if refusals:
        notes["lost"] = {str(refusal.client): refusal.code for refusal in refusals}
    return dataclasses.replace(state, step_scales=step_scales), notes, _reports(answers)


def judge_of(request: Request, examples: Mapping[int, int] = ANY) -> Callable[[Message, Asked], Statistics | Refusal]:
    """The judge of one answer to a request: its sums, or why they are refused. examples: {client: how many it has}, of
    which a site may measure more than it is asked to, by limits of its own."""
    statistics = create_statistics(request)
    return lambda reply, asked: admit_statistics(reply, asked, statistics, examples.get(asked.client, MAX_EXAMPLES))


def _answers(
    exchange: Exchange, messages: list[Message], asked: Mapping[int, Asked], request: Request, need: int
) -> Answers:
    """({client: its examples} of the answers that can be used, refusals, the sum of those answers). Of clients of this
    process an answer is added as it comes, and not kept. Raises RunFailed for fewer than `need`, with the refusals in
    the ledger."""
    judged, total = judge_of(request, exchange.examples), RunningSum()

    def judge(reply: Message, wanted: Asked) -> int | Refusal:
        part = judged(reply, wanted)
        if isinstance(part, Refusal):
            return part
        total.add(part)
        return part.examples

    if exchange.is_prompt:
        replies = exchange.one_by_one(messages, asked)
    else:
        replies = exchange.send(messages, exchange.reply_timeout, asked)
    with beside_clients(exchange.grid):
        answers, refusals = match_replies(replies, asked, exchange.client_of, judge)
    if len(answers) >= need:
        return answers, refusals, total.total
    for refusal in refusals:
        exchange.log_refusal(0, refusal)
    why = f"{refusals[-1].code}: {refusals[-1].detail}" if refusals else "too few clients"
    if not answers:
        raise RunFailed(f"round 0: no usable statistics from any client ({why})")
    raise RunFailed(f"round 0: usable statistics of {len(answers)} clients, the quorum is {need} ({why})")


def _reports(measured: Mapping[int, int]) -> list[ClientReport]:
    return [ClientReport(client, examples, steps=0, loss=None) for client, examples in sorted(measured.items())]
