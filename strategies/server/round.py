"""One round of a run: this page is what the server does in it, in order.

What is before the first round is in opening.py; what follows each, evaluation and checkpoint, in federated_lora.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from fedinit import wire
from fedinit.errors import RunFailed
from fedinit.norms import first_not_finite, norms
from fedinit.runs.observer import RoundReport
from fedinit.transforms import settle
from strategies.aggregator import Aggregate
from strategies.dora import effective_bias
from strategies.reinit import ReinitContext, Start
from strategies.server import requests
from strategies.server.collecting import Admitted, Pending, collect
from strategies.server.exchange import Exchange
from strategies.server.method import Method
from strategies.server.placing import brought_back, placed, room_for_updates
from strategies.server.projecting import project
from strategies.server.secure_projection import project_sum
from strategies.server.secure_sum import collect_sum
from strategies.server.state import ServerState
from strategies.server.weighing import Weighed, next_clip, weigh

LARGEST = float(torch.finfo(torch.float32).max)


def run_round(
    state: ServerState,
    method: Method,
    exchange: Exchange,
    last: bool = False,
    extra: requests.Settings = requests.NOTHING,
    asked: Pending | None = None,
) -> tuple[ServerState, RoundReport]:
    """Round `state.round + 1`: sample clients, send each its start, and let in what they return (`collect`); then
    aggregate, move by the server optimiser, and re-initialise (`advance`).

    last: whether nobody starts after this round any more.
    extra: settings that go into every message besides the run's own, such as those of a caller's ConfigRecord.

    asked: filled as clients are asked to train, for who has to know it though the round ends the run; None: nobody has.

    Returns the state after the round and its report, which has no score yet. Raises RunFailed when fewer updates can be
    used than the quorum.
    """
    began, up, down, round = time.perf_counter(), exchange.bytes_up, exchange.bytes_down, state.round + 1
    if method.secure is None:
        state, admitted = collect(state, method, exchange, extra, Pending() if asked is None else asked)
    else:
        state, admitted = collect_sum(state, method, exchange, extra)
    collected, before = time.perf_counter(), state
    counted: Mapping[int, float] = {}
    if admitted.updates or method.privacy is not None:
        with room_for_updates(method.device):
            weighed = weigh(admitted.updates, method, state.model, round, state.clip)
            state, aggregate = combined(state, method, exchange, admitted, weighed)
        if aggregate is not None:
            state = advance(state, method, admitted, weighed, aggregate, last)
            counted = admitted.shares or weights_of(method, admitted, weighed)
    if state.round < round:  # a secret sum that was refused: the model is what it was
        state = replace(state, round=round)
    state = replace(state, bytes_up=exchange.bytes_up, bytes_down=exchange.bytes_down)
    loss = method.gate.loss([(report.loss, report.examples) for report in admitted.reports])
    return state, RoundReport(
        round=round,
        seconds=time.perf_counter() - began,
        train_loss=loss if admitted.loss is None else admitted.loss,
        score=None,
        bytes_up=exchange.bytes_up - up,
        bytes_down=exchange.bytes_down - down,
        clients=[replace(r, weight=counted.get(r.client, 0.0)) for r in admitted.reports],
        diagnostics=state.model.diagnostics,
        by_layer=state.model.by_layer,
        phases={"clients": collected - began, "server": time.perf_counter() - collected},
        drift_factors=_drift(method, admitted, before, "drift_factors"),
        drift_product=_drift(method, admitted, before, "drift_product"),
        asked=admitted.asked,
        told=admitted.told,
    )


def _drift(method: Method, admitted: Admitted, before: ServerState, name: str) -> float | None:
    """The round's mean of what clients say by this name. before: the state that they started from."""
    told = {r.client: drift for r in admitted.reports if (drift := getattr(r, name)) is not None}
    known = {place for place, client in enumerate(told) if before.mirror(client).accepted}
    return method.gate.drift([*told.values()], known)


def combined(
    state: ServerState, method: Method, exchange: Exchange, admitted: Admitted, weighed: Weighed
) -> tuple[ServerState, Aggregate | None]:
    """What the method makes of the updates of round `state.round + 1`, after its second phase where it has one, and the
    state once that has been asked for; None where the second phase's secret sum is refused. weighed: what these updates
    count for."""
    round = state.round + 1
    (start,) = placed([state.model], method.device)
    aggregate = method.aggregator.aggregate(weighed.updates, round, start, weighed.weights)
    aggregate = brought_back(aggregate, method.device)
    aggregate = settle(method.transforms, aggregate, admitted.updates)
    refuse_not_finite(aggregate, f"round {round}: the aggregate of strategy={method.name}", method)
    if method.aggregator.two_phase:
        if method.secure is not None:
            state, images = project_sum(state, method, exchange, aggregate, admitted)
        else:
            state, images = project(state, method, exchange, aggregate, weights_of(method, admitted, weighed))
        if images is None:
            return state, None
        aggregate = method.aggregator.complete(aggregate, images, round)
        refuse_not_finite(aggregate, f"round {round}: the corrected aggregate of strategy={method.name}", method)
    if method.privacy is not None:
        counted = {"epsilon": method.privacy.epsilon(round)}
        if method.privacy.adaptive is not None:
            counted["clip"] = method.privacy.at(state.clip).clips["first"]
        aggregate = replace(aggregate, diagnostics={**aggregate.diagnostics, **counted})
    return state, aggregate


def weights_of(method: Method, admitted: Admitted, weighed: Weighed) -> Mapping[int, float]:
    """{client: p_i} of the updates that were let in; under privacy=clients 1/(q·N) each, whatever their sum."""
    if method.privacy is None:
        return weighed.weights
    return {update.client: 1 / method.privacy.expected for update in admitted.updates}


def advance(
    state: ServerState,
    method: Method,
    admitted: Admitted,
    weighed: Weighed,
    aggregate: Aggregate,
    last: bool = False,
) -> ServerState:
    """The state after round `state.round + 1`, from the updates that were let in.

    weighed: what these updates count for. aggregate: what they were `combined` to.
    last: whether nobody starts after this round any more; the global factors are then left as they were aggregated.
    """
    round, moments = state.round + 1, state.moments
    context = method.context.over(state.base.offset)  # re-initialisers see the weights as clients have them now
    aggregate = _with_effective_bias(aggregate, method, weighed, context)
    if method.server_optimizer is not None:
        moved = method.server_optimizer.step(state.model, aggregate, state.moments)
        aggregate, moments = moved, moved.moments  # an aggregate with the optimiser's moments beside it
    ended = Start(aggregate.layers, aggregate.residual)
    start = ended if last else method.reinit.after(aggregate, round, context)
    begun = Aggregate(layers=start.layers, residual=start.merge, head=aggregate.head)
    refuse_not_finite(begun, f"round {round}: what server_opt and reinit make of the aggregate", method)
    base = state.base.merged(start.merge)
    for name in start.merge:  # sums of many rounds, each of which was finite
        if not math.isfinite(float(base.offset[name].abs().amax())):
            raise RunFailed(f"round {round}: what was merged into {name} so far is more than float32 holds; "
                            "take a lower client.lr, or another strategy or reinit")  # fmt: skip
    return replace(
        state.accepting(admitted.clients, round),
        round=round,
        model=Aggregate(start.layers, {}, aggregate.head, aggregate.diagnostics, aggregate.by_layer),
        base=base,
        moments=moments,
        clip=next_clip(admitted.updates, method, state.model, round, state.clip),
    )


def refuse_not_finite(aggregate: Aggregate, what: str, method: Method) -> None:
    """Raises RunFailed, naming the tensor, before NaN, infinity, or factors whose product float32 does not hold, are
    sent to anybody: every update was finite, so it is the server's own arithmetic that failed, or, where the gate is
    off, updates that it would have refused."""
    advice = "change its options" if method.gate.enabled else "gate.enabled=true refuses updates as large"
    for layers, head in ((aggregate.layers, aggregate.head), (aggregate.residual, {})):
        sizes = norms(tensors := wire.to_tensors(layers, head))
        if odd := first_not_finite(tensors, sizes):
            raise RunFailed(f"{what} holds NaN or infinity in {odd}, though every update is finite; {advice}")
        for name in layers:
            # ‖B A‖ ≤ ‖B‖ ‖A‖, and what is near to the limit by this is nothing to train from either.
            if not sizes[f"{name}/B"] * sizes[f"{name}/A"] <= LARGEST:
                raise RunFailed(f"{what} has a product in {name} that float32 does not hold; {advice}")


def _with_effective_bias(aggregate: Aggregate, method: Method, weighed: Weighed, context: ReinitContext) -> Aggregate:
    """With DoRA's diagnostic, where clients train magnitudes."""
    if not method.aggregator.diagnostics or "m" not in method.kind.beside:
        return aggregate
    weights = [weighed.weights[update.client] for update in weighed.updates]
    measured = effective_bias(weighed.updates, weights, aggregate, context)
    return replace(aggregate, diagnostics={**aggregate.diagnostics, **measured})
