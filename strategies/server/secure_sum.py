"""The mean of a round's updates, of which the server sees no single one (`secure_aggregation=secagg`).

Four exchanges in place of one: public keys, sealed shares for each other, masked updates, shares of what takes the
masks off (fedinit/secagg/messages.py). A client may be gone after any of them; who was left when the updates came is
in the sum, as long as `threshold` clients answer the last.

A client that lies within its words cannot be found, since nothing but the sum is seen, and asking again without one
would show that one's update, by the difference of two sums. So a sum that plausible updates do not have is refused as
a whole: the round is skipped, and the model stays as it was.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedinit import wire
from fedinit.config.secure_aggregation import SecAggConfig
from fedinit.errors import RunFailed
from fedinit.runs.observer import ClientReport
from fedinit.secagg import masks, secrets
from fedinit.secagg.fixed_point import FixedPoint, Words, unflat
from fedinit.secagg.messages import EXTRA, LEAST, MASKED, QUERY, RECORD, fault_of_public
from strategies.aggregator import Update
from strategies.server import requests
from strategies.server.collecting import Admitted, discovered, drop
from strategies.server.exchange import Exchange
from strategies.server.gate import Gate
from strategies.server.method import Method
from strategies.server.replies import Asked, Refusal, match_replies, of_error
from strategies.server.state import ServerState

SUM = -2  # in place of a partition id: the mean of a cohort
SHARE = 0.125  # of reply_timeout that each exchange beside training has
SEALED = 2048  # bytes of the two sealed shares for one client, at most

Answer = TypeVar("Answer")


class Spoilt(Exception):
    """What came cannot be a sum of plausible updates, or cannot be unmasked. The message says why."""


@dataclass
class Cohort:
    """One secret sum, as far as it is. Raises RunFailed, one line, as soon as fewer than `need` clients are there."""

    exchange: Exchange
    round: int
    threshold: int
    need: int
    end: float  # a time.monotonic() by which it must be through
    state: ServerState

    def ask(
        self, stage: str, contents: Mapping[int, RecordDict], judge: Callable[[Message, Asked], Answer | Refusal]
    ) -> dict[int, Answer]:
        """What clients answer to a stage, {client: its records}. judge: what a reply comes to."""
        clients = sorted(contents)
        about = {"backbone": self.exchange.backbone_digest, "round": self.round, "stage": stage}
        messages = []
        for client in clients:
            content = contents[client]
            known = wire.record(content, wire.CONFIG, ConfigRecord) if wire.CONFIG in content else {}
            content[wire.CONFIG] = ConfigRecord({**about, **known})
            messages.append(Message(content, self.exchange.by_client[client], QUERY))
        limit = wire.Limit(rest=2**16 + SEALED * len(clients))
        asked = requests.asked(self.exchange, clients, messages, self.round, limit)
        seconds = SHARE * self.exchange.reply_timeout
        return self.send(messages, asked, seconds, f"stage {stage}", judge)

    def send(
        self,
        messages: Sequence[Message],
        asked: Mapping[int, Asked],
        seconds: float,
        what: str,
        judge: Callable[[Message, Asked], Answer | Refusal],
    ) -> dict[int, Answer]:
        """The answers to these messages that came within so many seconds and are good."""

        def read(reply: Message, wanted: Asked) -> Answer | Refusal:
            if reply.has_error():
                return of_error(reply, wanted.client)
            try:
                return judge(reply, wanted)
            except Exception as error:  # noqa: BLE001 (bytes from outside: whatever reading them raises)
                return Refusal(wanted.client, "missing_record", f"{type(error).__name__}: {error}")

        replies = self.exchange.send(list(messages), min(seconds, self.end - time.monotonic()), asked)
        answers, refusals = match_replies(replies, asked, self.exchange.client_of, read)
        self.state = drop(self.state, self.exchange, self.round, refusals)
        if len(answers) < self.need:
            why = "".join(f" ({refusal.code}: {refusal.detail})" for refusal in refusals[:1])
            there = f"{len(answers)} clients at {what} of the secret sum, {self.need} are needed"
            raise RunFailed(f"round {self.round}: too few clients, {there}{why}")
        return answers


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
    threshold = math.ceil(method.secure.threshold * len(clients) - 1e-9)
    state = discovered(state, method, exchange, began + exchange.reply_timeout / 2)
    sums = Cohort(exchange, round, threshold, max(threshold, method.needed(len(clients))), 0.0, state)
    sums.end = began + exchange.reply_timeout * (1 - SHARE)
    keys = _of_one_each(sums, sums.ask("keys", {client: RecordDict() for client in clients}, _keys))
    if len(keys) < LEAST:
        raise RunFailed(f"round {round}: too few clients, {len(keys)} gave keys, {LEAST} are the least of a secret sum")
    public = ConfigRecord({str(client): pair for client, (pair, _) in keys.items()})
    limits = {client: _records(public, threshold=threshold) for client in keys}
    sealed = sums.ask("shares", limits, lambda reply, asked: _sealed(reply, asked, set(keys)))
    weights = _weights(method, {client: exchange.examples[client] for client in sealed})
    point = _point(method.secure, weights)
    words, like = _masked(sums, method, sealed, weights, extra)
    sums.end = time.monotonic() + SHARE * exchange.reply_timeout
    shares = _shares(sums, list(words), sealed)
    counted = {client: weights[client] for client in words}
    try:
        total = _unmasked(sums, words, shares, keys, list(sealed))
        return sums.state, _admitted(point, total, counted, like, sums, method.gate)
    except Spoilt as why:
        exchange.emit("sum_refused", {"round": round, "clients": sorted(words), "detail": str(why)})
        return sums.state, Admitted()


def _records(entries: ConfigRecord, **settings: int | list[int]) -> RecordDict:
    return RecordDict({RECORD: entries, wire.CONFIG: ConfigRecord(dict(settings))})


def _weights(method: Method, examples: Mapping[int, int]) -> dict[int, int]:
    """{client: what its update counts for}, none above the gate's limit."""
    if method.aggregator.weighting == "uniform":
        return dict.fromkeys(examples, 1)
    most = method.gate.most(examples.values())
    return {client: max(1, int(min(count, most))) for client, count in examples.items()}


def _point(secure: SecAggConfig, weights: Mapping[int, int]) -> FixedPoint:
    point = FixedPoint(secure.clip, secure.bits)
    point.check(max(weights.values()) * len(weights))
    return point


def _keys(reply: Message, asked: Asked) -> tuple[bytes, bytes] | Refusal:
    record = wire.record(reply.content, RECORD, ConfigRecord)
    public, commitment = wire.value(record, "public", bytes), wire.value(record, "commitment", bytes)
    why = fault_of_public(public) or ("" if len(commitment) == 32 else "its commitment is not 32 bytes")
    return Refusal(asked.client, "secagg", why) if why else (public, commitment)


def _of_one_each(sums: Cohort, keys: Mapping[int, tuple[bytes, bytes]]) -> dict[int, tuple[bytes, bytes]]:
    """Without clients that gave the same keys, which no other client would take."""
    given = Counter(pair for pair, _ in keys.values())
    twice = [client for client, (pair, _) in keys.items() if given[pair] > 1]
    refusals = [Refusal(client, "secagg", f"clients {twice} gave the same public keys") for client in twice]
    sums.state = drop(sums.state, sums.exchange, sums.round, refusals)
    return {client: entry for client, entry in keys.items() if client not in twice}


def _sealed(reply: Message, asked: Asked, cohort: set[int]) -> dict[int, bytes] | Refusal:
    record = wire.record(reply.content, RECORD, ConfigRecord)
    if set(record) != {str(client) for client in cohort}:
        return Refusal(asked.client, "secagg", "its sealed shares are not one for each client that gave keys")
    sealed = {client: wire.value(record, str(client), bytes) for client in sorted(cohort)}
    if any(len(content) > SEALED for content in sealed.values()):
        return Refusal(asked.client, "secagg", f"a sealed share of more than {SEALED} bytes")
    return sealed


def _masked(
    sums: Cohort,
    method: Method,
    sealed: Mapping[int, Mapping[int, bytes]],
    weights: Mapping[int, int],
    extra: requests.Settings,
) -> tuple[dict[int, Words], Mapping[str, torch.Tensor]]:
    """{client: its masked vector} of those that are left, and {name: tensor of the start} of what is in it."""
    exchange, clients = sums.exchange, sorted(sealed)
    sums.state, messages, expected = requests.for_training(sums.state, method, exchange, clients, extra)
    for client, message in zip(clients, messages, strict=True):
        wire.config(message)["weight"] = weights[client]
        message.content[RECORD] = ConfigRecord({str(source): sealed[source][client] for source in clients})
    first = next(iter(expected.values()))
    like = {name: first.sent[name] for name in first.trained}
    size = sum(tensor.numel() for tensor in like.values()) + EXTRA
    limit = wire.Limit.of({MASKED: ((size,), torch.int64)})
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

    return sums.send(messages, asked, sums.end - time.monotonic(), "training", judge), like


def _shares(sums: Cohort, left: Sequence[int], sealed: Mapping[int, object]) -> dict[int, dict[int, bytes]]:
    """{client that answers: {client: a share of its seed where it is left, of its key where it is not}}."""
    lengths = {c: secrets.share_length(masks.SEED if c in left else secrets.KEY) for c in sealed}

    def judge(reply: Message, wanted: Asked) -> dict[int, bytes] | Refusal:
        record = wire.record(reply.content, RECORD, ConfigRecord)
        if not set(record) <= {str(client) for client in lengths}:
            return Refusal(wanted.client, "secagg", "it gave shares of clients that are not in the sum")
        shares = {client: wire.value(record, str(client), bytes) for client in lengths if str(client) in record}
        # A share of another length may be what it was given: it counts as none, and the others of this client do.
        return {client: share for client, share in shares.items() if len(share) == lengths[client]}

    asks = {client: RecordDict({wire.CONFIG: ConfigRecord({"left": sorted(left)})}) for client in left}
    return sums.ask("unmask", asks, judge)


def _unmasked(
    sums: Cohort,
    words: Mapping[int, Words],
    shares: Mapping[int, Mapping[int, bytes]],
    keys: Mapping[int, tuple[bytes, bytes]],
    cohort: Sequence[int],
) -> Words:
    """The sum of the vectors with all masks off. cohort: the clients whose masks are in them. Raises Spoilt."""
    doubted: set[int] = set()
    total = np.zeros_like(next(iter(words.values())))
    for vector in words.values():
        total += vector
    for client in cohort:
        of_client = {holder: given[client] for holder, given in shares.items() if client in given}
        public, commitment = keys[client]
        if client in words:
            seed = _secret(sums, client, of_client, lambda s, c=commitment: masks.commitment(s) == c, doubted)
            total -= masks.expand(seed, total.size)
        else:
            mine = public[: secrets.PUBLIC]
            key = _secret(sums, client, of_client, lambda s, p=mine: _is_key(s, p), doubted)
            left = {other: secrets.public_key(keys[other][0][: secrets.PUBLIC]) for other in words}
            total += masks.pairwise(client, secrets.private_key(key), left, total.size)
    return total


def _is_key(secret: bytes, public: bytes) -> bool:
    return secrets.public_bytes(secrets.private_key(secret)) == public


def _secret(
    sums: Cohort, client: int, shares: Mapping[int, bytes], is_right: Callable[[bytes], bool], doubted: set[int]
) -> bytes:
    """A client's secret; the ledger names who gave a wrong share of it, and `doubted` has them from then on."""
    try:
        secret, liars = secrets.joined(shares, sums.threshold, is_right, doubted)
    except ValueError as error:
        raise Spoilt(f"the masks of client {client} cannot be taken off: {error}") from error
    doubted |= set(liars)
    for liar in liars:
        sums.exchange.log_refusal(sums.round, Refusal(liar, "secagg", f"its share of client {client} is wrong"))
    return secret


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
    mean = point.decode(words, total)
    tensors = unflat(mean[:-EXTRA], like)
    if why := _fault_of_sum(point, mean, int(words[-2]), total, tensors, like, gate):
        what = f"the masked sum of round {sums.round} is no sum of plausible updates of clients {sorted(weights)}"
        raise Spoilt(f"{what}: {why}")
    start = wire.to_tensors(state.model.layers, state.model.head)
    layers, head = wire.from_tensors({**start, **tensors})
    update = Update(SUM, total, layers, head)
    reports = [ClientReport(client, sums.exchange.examples[client], 0, None) for client in weights]
    shares = {client: weight / total for client, weight in weights.items()}
    return Admitted([update], reports, shares=shares, loss=float(mean[-1]))


def _fault_of_sum(
    point: FixedPoint,
    mean: torch.Tensor,
    weight: int,
    total: int,
    tensors: Mapping[str, torch.Tensor],
    like: Mapping[str, torch.Tensor],
    gate: Gate,
) -> str:
    """Why a mean is none of plausible updates; empty where it may be one.

    weight: the sum of the weights that clients put in. total: of those that they were given.
    """
    if weight != total:
        return f"its weights are {weight} in all, those of its clients {total}"
    if (largest := float(mean.abs().max())) > point.clip + point.step:  # values are rounded by less than a step
        return f"a mean of {largest:.3g}, where no value is beyond {point.clip:g}"
    if mean[-1] < -point.step:
        return f"a mean loss of {float(mean[-1]):.3g}"
    for name, value in tensors.items() if gate.enabled else ():
        size, most = float(value.norm()), gate.largest(like[name]) + point.step * value.numel() ** 0.5
        if size > most:
            return f"the mean of {name} has norm {size:.3g}, of single updates it is {most:.3g} or less"
    return ""
