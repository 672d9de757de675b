"""One round of a run: this page is what the server does, in order."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from fedinit import wire
from fedinit.errors import RunFailed
from fedinit.runs.observer import RoundReport
from fedinit.transforms import settle
from strategies.aggregator import Aggregate
from strategies.dora import effective_bias
from strategies.reinit import ReinitContext, Start
from strategies.server import requests
from strategies.server.collecting import Admitted, collect
from strategies.server.exchange import Exchange
from strategies.server.method import Method
from strategies.server.state import ServerState


def run_round(
    state: ServerState,
    method: Method,
    exchange: Exchange,
    last: bool = False,
    extra: requests.Settings = requests.NOTHING,
) -> tuple[ServerState, RoundReport]:
    """Round `state.round + 1`: sample clients, send each its start, and let in what they return (`collect`); then
    aggregate, move by the server optimiser, and re-initialise (`advance`).

    last: after this round nobody starts any more. extra: settings for every message. The report has no score yet.
    Raises RunFailed when too few updates can be used.
    """
    began, up, down = time.perf_counter(), exchange.bytes_up, exchange.bytes_down
    state, admitted = collect(state, method, exchange, extra)
    state = advance(state, method, admitted, last)
    state = replace(state, bytes_up=exchange.bytes_up, bytes_down=exchange.bytes_down)
    examples = sum(update.examples for update in admitted.updates)
    return state, RoundReport(
        round=state.round,
        seconds=time.perf_counter() - began,
        train_loss=sum(r.loss * r.examples for r in admitted.reports if r.loss is not None) / examples,
        score=None,
        bytes_up=exchange.bytes_up - up,
        bytes_down=exchange.bytes_down - down,
        clients=admitted.reports,
        diagnostics=state.model.diagnostics,
    )


def advance(state: ServerState, method: Method, admitted: Admitted, last: bool = False) -> ServerState:
    """The state after a round, from the updates that were let in."""
    round, updates, moments = state.round + 1, admitted.updates, state.moments
    over = method.context.over(state.base.offset)
    aggregate = method.aggregator.aggregate(updates, round, state.model)
    aggregate = settle(method.transforms, aggregate, updates)
    refuse_not_finite(aggregate, f"round {round}: the aggregate of strategy={method.name}")
    aggregate = _with_effective_bias(aggregate, method, admitted, over)
    if method.server_optimizer is not None:
        aggregate = moved = method.server_optimizer.step(state.model, aggregate, state.moments)
        moments = moved.moments
        refuse_not_finite(aggregate, f"round {round}: what server_opt makes of the aggregate")
    ended = Start(aggregate.layers, aggregate.residual)
    start = ended if last else method.reinit.after(aggregate, round, over)
    begun = Aggregate(layers=start.layers, residual=start.merge)
    refuse_not_finite(begun, f"round {round}: what reinit makes of it")
    return replace(
        state.accepting([update.client for update in updates], round),
        round=round,
        model=Aggregate(layers=start.layers, head=aggregate.head, diagnostics=aggregate.diagnostics),
        base=state.base.merged(start.merge),
        moments=moments,
    )


def refuse_not_finite(aggregate: Aggregate, what: str) -> None:
    """Raises RunFailed, naming the tensor, before NaN or infinity is sent to anybody: every update was finite, so it is
    the server's own arithmetic that failed, not the clients' training."""
    named = [*wire.to_tensors(aggregate.layers, aggregate.head).items()]
    named += wire.to_tensors(aggregate.residual, {}).items()
    for name, tensor in named:
        if not torch.isfinite(tensor).all():
            why = f"{what} holds NaN or infinity in {name}, though every update is finite"
            raise RunFailed(f"{why}; change its options")


def _with_effective_bias(aggregate: Aggregate, method: Method, admitted: Admitted, over: ReinitContext) -> Aggregate:
    """With DoRA's diagnostic, where clients train magnitudes."""
    if not method.aggregator.diagnostics or "m" not in method.kind.beside:
        return aggregate
    measured = effective_bias(admitted.updates, method.aggregator.weights(admitted.updates), aggregate, over)
    return replace(aggregate, diagnostics={**aggregate.diagnostics, **measured})
