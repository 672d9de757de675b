"""How much each client's update counts in a round: the method's own p_i, none of them above the gate's limit, and what
a rule against bad clients makes of them (`robust=`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fedinit import wire
from fedinit.errors import RunFailed
from strategies.aggregator import Aggregate, Update
from strategies.robust.contract import Changes, refuse_misjudged
from strategies.robust.geometry import gram_of
from strategies.server.method import Method
from strategies.server.placing import placed

Tensors = dict[str, Tensor]

START = -1  # in place of a partition id: the model that the round started from
# Medians that a client weighs at most where a rule judges. Rules need the greater part of the weight to be honest; it
# is, whatever m bad ones of K claim, as long as this is below (K − m)/m: up to 44 % of the clients.
JUDGED = 1.25
ROUNDING = 1e-12  # a weight of the start that is no more than this is none


@dataclass(frozen=True)
class Weighed:
    """What a round's aggregate is made of, on the method's device.

    updates: those that count, and the model that the round started from, as client START, where it has a weight.
    weights: {client: w_i} of these, Σ = 1.
    """

    updates: Sequence[Update]
    weights: Mapping[int, float]


def weigh(updates: Sequence[Update], method: Method, start: Aggregate, round: int = 0, clip: float = 0.0) -> Weighed:
    """The weights of a round's updates, which are in client order. start: what the clients started from. clip: as
    ServerState.clip.

    Under privacy=clients all that is left of them is one update, their noisy mean, as client START.

    Updates without a weight are left out, since some methods look at who is there besides. Raises RunFailed where the
    rule cannot judge so few, or these.
    """
    updates = placed(updates, method.device)
    if method.privacy is not None or method.robust is not None:
        (start,) = placed([start], method.device)
    if method.privacy is not None:
        tensors, known, answers = _changes(updates, method, start, round)
        released = method.privacy.at(clip).release(known, answers, "first", round)
        layers, head = wire.from_tensors(tensors | {n: v.to(known[n].dtype) for n, v in released.items()})
        return Weighed([Update(client=START, examples=1, layers=layers, head=head)], {START: 1.0})
    clients = [update.client for update in updates]
    gate, weights = method.gate, method.aggregator.weights(updates)
    if method.robust is None:
        weights = gate.capped(weights)
        return Weighed(updates, dict(zip(clients, weights, strict=True)))
    if fault := method.robust.fault(clients):
        raise RunFailed(f"the updates of clients {clients} cannot be judged: {fault}; a higher quorum asks others")
    weights = replace(gate, enabled=True, max_weight=min(gate.max_weight, JUDGED)).capped(weights)
    gram = gram_of(updates, start.layers, start.head, method.context.scale)
    changes = Changes(clients, weights, gram)
    judged = refuse_misjudged(method.robust.weigh(changes), len(clients), method.robust).tolist()
    rest = 1 - sum(judged)
    if rest <= ROUNDING:
        judged, rest = [weight / sum(judged) for weight in judged], 0.0
    counted = {client: weight for client, weight in zip(clients, judged, strict=True) if weight > 0}
    kept = [update for update in updates if update.client in counted]
    if not rest:
        return Weighed(kept, counted)
    begun = Update(client=START, examples=1, layers=start.layers, head=start.head)
    return Weighed([begun, *kept], {START: rest, **counted})


def next_clip(updates: Sequence[Update], method: Method, start: Aggregate, round: int, clip: float) -> float:
    """The clip of the round after, where it adapts; else as ServerState has it. Arguments as of `weigh`."""
    if method.privacy is None or method.privacy.adaptive is None:
        return clip
    _, known, answers = _changes(updates, method, start, round)
    return method.privacy.at(clip).next_clip(known, answers, round)


def _changes(
    updates: Sequence[Update], method: Method, start: Aggregate, round: int
) -> tuple[Tensors, Tensors, list[Tensors]]:
    """All tensors of the start, those of them that clients send, and each client's."""
    tensors = wire.to_tensors(start.layers, start.head)
    known = {name: tensors[name] for name in method.returned(start, round)}
    return tensors, known, [wire.to_tensors(update.layers, update.head) for update in updates]
