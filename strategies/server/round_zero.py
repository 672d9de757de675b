"""Round 0: what the clients measure becomes the start that round 1 begins from.

The server asks every client for the statistics of a request, judges each answer on its own, adds up those it lets in
(in client order, in float64) and gives the sum to whoever asked, which makes its part of the start or asks again: first
the head, then the initialiser, whose gradients are those under that head. A client that is missing, or that erred,
costs its own part and nothing else; the summary says so. Once the start is known, one more
pass may fix the step scales of the clients' optimisers at it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedinit import wire
from fedinit.errors import RunFailed
from fedinit.heads.head import Head, HeadContext
from fedinit.initializers import Initializer
from fedinit.initializers.initializer import InitContext
from fedinit.runs.observer import ClientReport
from fedinit.state.start import StartState
from fedinit.statistics import Request, Sampling, Statistics, add_up, create_statistics
from fedinit.step_scale import scale_of
from strategies.server.federated_lora import FederatedLora
from strategies.server.gate import admit_statistics
from strategies.server.replies import Asked, Refusal


def begin(
    strategy: FederatedLora,
    grid: Grid,
    head: Head,
    head_setting: HeadContext,
    initializer: Initializer,
    setting: InitContext,
    timeout: float,
) -> StartState:
    """The start and its head, with the round's costs in its notes. The strategy has met its clients.

    timeout: seconds that every question waits. Raises RunFailed when fewer clients' statistics can be used than the
    quorum says.
    """
    began, up = time.perf_counter(), strategy.nodes.bytes_up
    measured: dict[int, int] = {}  # client -> examples
    lost: dict[int, str] = {}  # client -> code

    def ask(request: Request) -> Statistics:
        head = {wire.HEAD + key: value for key, value in request.head.items()}
        content = RecordDict(
            {
                wire.CONFIG: ConfigRecord({"request": request.to_json(), "backbone": strategy.nodes.backbone_digest}),
                wire.STATE: wire.encode(head),
                wire.ASKED: wire.encode(request.tensors),
            }
        )
        answers = strategy.ask(grid, content, "query.statistics", timeout, judge_of(request))
        found, refusals = _counted(strategy, *answers)
        for refusal in refusals:
            if refusal.client in strategy.roster.examples.keys() - found.keys():  # not for a second or a forged answer
                lost[refusal.client] = refusal.code
            strategy.refused(0, refusal)
        measured.update({client: part.examples for client, part in found.items()})
        return add_up(list(found.values()))

    found = head.run(head_setting, ask)
    made = initializer.run(dataclasses.replace(setting, head=found.tensors), ask)
    notes, about = dict(made.notes), dict(found.notes)
    if initializer.needs == "gradients" and not about:
        about["warning"] = "gradients were measured under a head that no data went into; head=ridge makes one"
        strategy.tell("warning", {"round": 0, "detail": about["warning"]})
    if about:
        notes["head"] = about
    in_all = {client: examples for client, examples in measured.items() if client not in lost}
    if measured:
        seconds, up = time.perf_counter() - began, strategy.nodes.bytes_up - up
        notes |= {"clients": len(in_all), "seconds": seconds, "bytes_up": up}
    if lost:
        notes["lost"] = {str(client): code for client, code in sorted(lost.items())}
    strategy.round_zero_clients = _rows(in_all)
    return dataclasses.replace(made, head=made.head or found.tensors, notes=notes)


def step_scales(
    strategy: FederatedLora, grid: Grid, trainable: frozenset[str], seed: int, timeout: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """SGD-SaI's scale of every trained tensor, from the mean gradient of all clients' examples at the start; and what
    it took, for the notes.

    A tensor whose gradient is exactly zero there, such as A under a zero B, has none: each client fixes it at its own
    first gradient that is not. trainable: the factors that are trained in some round. Raises RunFailed when fewer
    clients' gradients can be used than the quorum says.
    """
    up, whole = strategy.nodes.bytes_up, wire.to_tensors(strategy.state.layers, strategy.state.head)
    names = wire.trained_names(strategy.state.layers, strategy.state.head, trainable)
    request = Request(
        source="adapters",
        layers=dict.fromkeys(names, "total"),
        shapes={name: tuple(whole[name].shape) for name in names},
        seed=seed,
        sampling=Sampling(examples=None, min_examples=1),  # they reveal what the first step of training would
    )
    facts = {"request": request.to_json()}
    found, refusals = _counted(strategy, *strategy.ask_at_start(grid, facts, trainable, timeout, judge_of(request)))
    strategy.lost(0, refusals)
    total = add_up(list(found.values()))
    means = {name: total.of(name)["total"] / total.of(name)["count"] for name in names}
    scales = {name: scale for name, mean in means.items() if (scale := scale_of(mean))}
    strategy.round_zero_clients = _rows({client: part.examples for client, part in found.items()})
    left = [name for name in names if name not in scales]
    notes = {"clients": len(found), "bytes_up": strategy.nodes.bytes_up - up, "left_to_clients": left}
    if refusals:
        notes["lost"] = {str(refusal.client): refusal.code for refusal in refusals}
    return scales, notes


def judge_of(request: Request) -> Callable[[Message, Asked], Statistics | Refusal]:
    """How the answers to a request are judged, each on its own."""
    statistics = create_statistics(request)
    return lambda reply, asked: admit_statistics(reply, asked, statistics)


def _counted(
    strategy: FederatedLora, found: Mapping[int, Statistics], refusals: Sequence[Refusal]
) -> tuple[Mapping[int, Statistics], Sequence[Refusal]]:
    """The same. Raises RunFailed when too few can be counted on."""
    need = max(strategy.need(len(strategy.roster.examples)), 1)
    if len(found) < need:
        for refusal in refusals:
            strategy.refused(0, refusal)
        why = f"{refusals[-1].code}: {refusals[-1].detail}" if refusals else "too few clients"
        if not found:
            raise RunFailed(f"round 0: no usable statistics from any client ({why})")
        raise RunFailed(f"round 0: usable statistics of {len(found)} clients, the quorum is {need} ({why})")
    return found, refusals


def _rows(measured: Mapping[int, int]) -> list[ClientReport]:
    return [ClientReport(client, examples, steps=0, loss=None) for client, examples in sorted(measured.items())]
