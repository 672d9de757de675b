"""How much each client's update counts in a round: the method's own p_i, none of them above the gate's limit, and what
a rule against bad clients makes of them (`robust=`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedinit import wire
from fedinit.errors import RunFailed
from fedinit.privacy.mechanism import ClientMechanism
from strategies.aggregator import Aggregate, Update
from strategies.robust.contract import Changes
from strategies.robust.geometry import gram_of
from strategies.server.method import Method

START = -1  # in place of a partition id: the model that the round started from
# Medians that a client weighs at most where a rule judges. Rules need the greater part of the weight to be honest; it
# is, whatever m bad ones of K claim, as long as this is below (K − m)/m: up to 44 % of the clients.
JUDGED = 1.25
ROUNDING = 1e-12  # a weight of the start that is no more than this is none


@dataclass(frozen=True)
class Weighed:
    """What a round's aggregate is made of.

    updates: those that count, and the model that the round started from, as client START, where it has a weight.
    weights: {client: w_i} of these, Σ = 1.
    """

    updates: Sequence[Update]
    weights: Mapping[int, float]


def weigh(updates: Sequence[Update], method: Method, start: Aggregate, round: int = 0) -> Weighed:
    """The weights of a round's updates, which are in client order. start: what the clients started from.

    Under privacy=clients all that is left of them is one update, their noisy mean, as client START.

    Updates without a weight are left out, since some methods look at who is there besides. Raises RunFailed where the
    rule cannot judge so few, or these.
    """
    if method.privacy is not None:
        return _released(updates, method.privacy, start, method.returned(start, round), round)
    clients = [update.client for update in updates]
    gate, weights = method.gate, method.aggregator.weights(updates)
    if method.robust is None:
        weights = gate.capped(weights)
        return Weighed(updates, dict(zip(clients, weights, strict=True)))
    if fault := method.robust.fault(clients):
        raise RunFailed(f"the updates of clients {clients} cannot be judged: {fault}; a higher quorum asks others")
    weights = replace(gate, enabled=True, max_weight=min(gate.max_weight, JUDGED)).capped(weights)
    gram = gram_of(updates, start.layers, start.head, method.context.scale)
    judged = method.robust.weigh(Changes(clients, weights, gram)).tolist()
    rest = 1 - sum(judged)
    if rest <= ROUNDING:
        judged, rest = [weight / sum(judged) for weight in judged], 0.0
    counted = {client: weight for client, weight in zip(clients, judged, strict=True) if weight > 0}
    kept = [update for update in updates if update.client in counted]
    if not rest:
        return Weighed(kept, counted)
    begun = Update(client=START, examples=1, layers=start.layers, head=start.head)
    return Weighed([begun, *kept], {START: rest, **counted})


def _released(
    updates: Sequence[Update], privacy: ClientMechanism, start: Aggregate, returned: frozenset[str], round: int
) -> Weighed:
    """The mean with noise. returned: the names of what clients send; the rest is as it was."""
    tensors = wire.to_tensors(start.layers, start.head)
    known = {name: tensors[name] for name in returned}
    answers = [wire.to_tensors(update.layers, update.head) for update in updates]
    released = privacy.release(known, answers, "first", round)
    layers, head = wire.from_tensors(tensors | {n: v.to(known[n].dtype) for n, v in released.items()})
    return Weighed([Update(client=START, examples=1, layers=layers, head=head)], {START: 1.0})
