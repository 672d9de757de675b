"""The mean of a round's updates, of which the server sees no single one (`secure_aggregation=secagg`).

Four exchanges in place of one: public keys, sealed shares for each other, masked updates, shares of what takes the
masks off (fedinit/secagg/messages.py). A client may be gone after any of them; who was left when the updates came is
in the sum, as long as `threshold` clients answer the last.

A client that lies within its words cannot be found, since nothing but the sum is seen, and asking again without one
would show that one's update, by the difference of two sums. So a sum that plausible updates do not have is refused as
a whole: the round is skipped, and the model stays as it was. So is one of which fewer than three clients are left, who
would read each other's updates from it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from flwr.app import ConfigRecord, Message

from fedinit import wire
from fedinit.config.secure_aggregation import SecAggConfig
from fedinit.message_limit import Limit
from fedinit.runs.observer import ClientReport
from fedinit.secagg.fixed_point import FixedPoint, Words, unflat
from fedinit.secagg.messages import EXTRA, MASKED, RECORD
from strategies.aggregator import Update
from strategies.server import requests
from strategies.server.collecting import Admitted, discovered
from strategies.server.exchange import Exchange
from strategies.server.gate import Gate
from strategies.server.method import Method
from strategies.server.replies import Asked, Refusal
from strategies.server.secure_cohort import Cohort, Sealed, Spoilt
from strategies.server.state import ServerState
from strategies.server.unmasking import unmask

SUM = -2  # in place of a partition id: the mean of a cohort
NEAR = 0.5  # of the clip, at which a mean says that some of its values may have been cut off


def collect_sum(
    state: ServerState, method: Method, exchange: Exchange, extra: requests.Settings = requests.NOTHING
) -> tuple[ServerState, Admitted]:
    """The mean of the updates of round `state.round + 1`, as one update, and the state once its messages have gone. Of
    a sum that is refused there is no update; the ledger says why (`sum_refused`).

    extra: settings that go into every message. Raises RunFailed for fewer clients than the threshold or the quorum, at
    any stage; nothing was unmasked then.
    """
    assert method.secure is not None
    round, began = state.round + 1, time.monotonic()
    clients = method.sample(round, exchange.clients)
    state = discovered(state, method, exchange, began + exchange.reply_timeout / 2)
    sums = Cohort.of(method, exchange, state, clients, began)
    try:
        keys, sealed = sums.agree(clients)
        weights = _weights(method, {client: exchange.examples[client] for client in sealed})
        point = point_of(method.secure, weights)
        words, like = _masked(sums, method, sealed, weights, extra)
        counted = {client: weights[client] for client in words}
        total = unmask(sums, words, keys, sealed)
        return sums.state, _admitted(point, total, counted, like, sums, method.gate)
    except Spoilt as why:
        sums.refuse(why)
        return sums.state, Admitted()


def _weights(method: Method, examples: Mapping[int, int]) -> dict[int, int]:
    """{client: what its update counts for}, none above the gate's limit."""
    if method.aggregator.weighting == "uniform":
        return dict.fromkeys(examples, 1)
    most = method.gate.most(examples.values())
    return {client: max(1, int(min(count, most))) for client, count in examples.items()}


def point_of(secure: SecAggConfig, weights: Mapping[int, int]) -> FixedPoint:
    """The numbers of a sum. Raises InputError where sums of these weights could wrap."""
    point = FixedPoint(secure.clip, secure.bits)
    point.check(max(weights.values()) * len(weights))
    return point


def _masked(
    sums: Cohort,
    method: Method,
    sealed: Sealed,
    weights: Mapping[int, int],
    extra: requests.Settings,
) -> tuple[dict[int, Words], Mapping[str, torch.Tensor]]:
    """{client: its masked vector} of those that are left, and {name: tensor of the start} of what is in it."""
    exchange, clients = sums.exchange, sorted(sealed)
    sums.state, messages, expected = requests.for_training(sums.state, method, exchange, clients, extra)
    first = next(iter(expected.values()))
    like = {name: first.sent[name] for name in first.trained}
    return ask_masked(sums, messages, expected, like, sealed, weights), like


def ask_masked(
    sums: Cohort,
    messages: Sequence[Message],
    expected: Mapping[int, Asked],
    like: Mapping[str, torch.Tensor],
    sealed: Sealed,
    weights: Mapping[int, int],
) -> dict[int, Words]:
    """The third stage: {client: its masked vector of tensors like these} of those that are left.

    messages: one a client, in order, to which the sealed shares for it and its weight are added. Raises Spoilt as
    `Cohort.go_on` does.
    """
    clients, exchange = sorted(sealed), sums.exchange
    for client, message in zip(clients, messages, strict=True):
        wire.config(message)["weight"] = weights[client]
        message.content[RECORD] = ConfigRecord({str(source): sealed[source][client] for source in clients})
    size = sum(tensor.numel() for tensor in like.values()) + EXTRA
    limit = Limit.of({MASKED: ((size,), torch.int64)})
    asked = {node: replace(wanted, limit=limit) for node, wanted in expected.items()}

    def judge(reply: Message, wanted: Asked) -> Words | Refusal:
        arrays, counts = wire.arrays(reply), wire.metrics(reply)
        if set(reply.content) != {wire.STATE, wire.METRICS} or list(arrays) != [MASKED]:
            return Refusal(wanted.client, "names", f"expected the one array {MASKED!r} of a secret sum")
        if tuple(arrays[MASKED].shape) != (size,) or arrays[MASKED].dtype != "int64":
            got = f"{arrays[MASKED].dtype} {tuple(arrays[MASKED].shape)}"
            return Refusal(wanted.client, "shape", f"{MASKED} is {got}, expected int64 ({size},)")
        if dict(counts) != {"num-examples": exchange.examples[wanted.client], "round": sums.round}:
            return Refusal(wanted.client, "metrics", f"{dict(counts)} are not its number of examples and the round")
        return wire.decode(arrays)[MASKED].numpy().view(np.uint64)

    words = sums.send(messages, asked, sums.end - time.monotonic(), "training", judge)
    sums.go_on(words, "training")
    return words


def _admitted(
    point: FixedPoint,
    words: Words,
    weights: Mapping[int, int],
    like: Mapping[str, torch.Tensor],
    sums: Cohort,
    gate: Gate,
) -> Admitted:
    """The mean as one update. Raises Spoilt for a sum that no plausible updates have."""
    total, state = sum(weights.values()), sums.state
    most = {name: gate.largest(tensor) for name, tensor in like.items()} if gate.enabled else {}
    tensors, loss = mean_of(point, words, weights, like, most, sums.round)
    if (largest := max(abs(loss), *(float(tensor.abs().max()) for tensor in tensors.values()))) > NEAR * point.clip:
        detail = (
            f"a mean is {largest:.3g}, near secure_aggregation.clip={point.clip:g}, beyond which values are cut off"
        )
        sums.exchange.emit("warning", {"round": sums.round, "detail": f"{detail}; give a larger one"})
    start = wire.to_tensors(state.model.layers, state.model.head)
    layers, head = wire.from_tensors({**start, **tensors})
    update = Update(SUM, total, layers, head)
    of_one = dict.fromkeys(("steps", "loss", "drift_factors", "drift_product", "optimizer_state"))  # which do not come
    reports = [ClientReport(client, sums.exchange.examples[client], **of_one) for client in weights]
    shares = {client: weight / total for client, weight in weights.items()}
    return Admitted([update], reports, shares=shares, loss=loss, threshold=sums.threshold)


def mean_of(
    point: FixedPoint,
    words: Words,
    weights: Mapping[int, int],
    like: Mapping[str, torch.Tensor],
    most: Mapping[str, float],
    round: int,
) -> tuple[dict[str, torch.Tensor], float]:
    """The weighted mean in the shapes and types of `like`, and that of the losses.

    weights: {client: its weight} of those in the sum. most: {name: the norm that a single client's may have}. Raises
    Spoilt for a sum that no plausible answers have.
    """
    total = sum(weights.values())
    mean = point.decode(words, total)
    tensors = unflat(mean[:-EXTRA], like)
    if why := _fault_of_sum(point, mean, int(words[-2]), total, tensors, most):
        raise Spoilt(
            f"the masked sum of round {round} is no sum of plausible updates of clients {sorted(weights)}: {why}"
        )
    return tensors, float(mean[-1])


def _fault_of_sum(
    point: FixedPoint,
    mean: torch.Tensor,
    weight: int,
    total: int,
    tensors: Mapping[str, torch.Tensor],
    most: Mapping[str, float],
) -> str:
    """Why a mean is none of plausible answers; empty where it may be one.

    weight: the sum of the weights that clients put in. total: of those that they were given.
    """
    if weight != total:
        return f"its weights are {weight} in all, those of its clients {total}"
    if (largest := float(mean.abs().max())) > point.clip + point.step:  # values are rounded by less than a step
        return f"a mean of {largest:.3g}, where no value is beyond {point.clip:g}"
    if mean[-1] < -point.step:
        return f"a mean loss of {float(mean[-1]):.3g}"
    for name, limit in most.items():
        size, high = float(tensors[name].norm()), limit + point.step * tensors[name].numel() ** 0.5
        if size > high:
            return f"the mean of {name} has norm {size:.3g}, of single updates it is {high:.3g} or less"
    return ""
