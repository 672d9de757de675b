"""Which replies become updates, statistics or counts, and why the others do not.

Every reply is judged on its own before anything is summed: one wrong client must cost its own update and nothing
else. Stock Flower averages NaN, infinities, broadcastable shapes and negative weights; here each has a reason code.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flwr.app import Message, MetricRecord
from torch import Tensor

from fedinit import wire
from fedinit.factors import Factors, norm
from fedinit.norms import norms
from fedinit.scores import MAX_EXAMPLES, Score
from fedinit.statistics import Statistic, Statistics, wire_format
from fedinit.transforms import UPDATES, HalfPrecision, Malformed, UpdateTransform, receive
from strategies.aggregator import Update
from strategies.server.bounds import Bounds, KnownBounds
from strategies.server.faults import (
    fault_of_claim,
    fault_of_counts,
    fault_of_declared,
    fault_of_distance,
    fault_of_format,
    fault_of_metrics,
    fault_of_norms,
    fault_of_products,
    fault_of_round,
    fault_of_training,
    fault_of_values,
    fault_of_work,
    refuse_unsummable,
)
from strategies.server.replies import Asked, Refusal, of_error, unreadable

NOTHING: Mapping[str, Tensor] = MappingProxyType({})
MOST_DRIFT = 10.0  # of a client's drift over the median of a round's
MOST_LOSS = 1000.0  # of a client's loss over the median of a round's; honest ones differ by much less


@dataclass(frozen=True)
class Expected(Asked):
    """What a reply to this round's message must hold.

    sent: every tensor of the client's start, by wire name.
    trained: the names of those that come back.
    slots: how many slots of the trained factor, chosen by the client, come back at most; None: all of them.
    examples: how many training images the client registered with, which is what it claims; None: not known.
    steps: how many steps it takes with these in a round, at most; None: not known.
    clip: how far from its start it may be (privacy=clients), with the gate off too; None: nobody clips.
    """

    sent: Mapping[str, Tensor]
    trained: frozenset[str]
    slots: int | None = None
    examples: int | None = None
    steps: int | None = None
    clip: float | None = None


@dataclass(frozen=True)
class Accepted:
    """What a reply comes to that is let in.

    client, examples: as of an Update. tensors: by wire name, those that the client did not train as it was sent them.
    metrics: what it says of its training.
    """

    client: int
    examples: int
    tensors: Mapping[str, Tensor]
    metrics: Mapping[str, Any]

    @property
    def update(self) -> Update:
        """The same as factors and a head."""
        layers, head = wire.from_tensors(self.tensors)
        return Update(client=self.client, examples=self.examples, layers=layers, head=head)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What an update may not exceed. Limits, with unit(X) = √min(d, k), the norm of an orthonormal map of X's shape:

    product  ‖B A‖ ≤ max_product_ratio · max(unit, ‖B A‖ at the start)
    factor   ‖X‖ ≤ max_factor_ratio · max(unit, ‖X‖ at the start); and ‖X‖ ≥ ‖X‖ at the start / max_factor_ratio, where
             the client trained both factors: (cB, A/c) has the product of (B, A) and wrecks an average of factors; the
             same for VeRA's b and d
    head     as a factor, without a lower limit
    weight   p_i ≤ max_weight · the lower median of the round's weights; what is above is cut off (`capped`)

    private: clients hide their examples, so that they tell no loss, and say their ε.
    untrainable: why a client with so many examples cannot have trained; empty where it can.
    own_starts: clients go on from factors of their own, which are not what they are sent: no lower limit.

    A start of zero has no lower limit, and a small one may grow up to the unit: B starts at zero, and an average of
    many clients' factors is small before the next round makes them large again.
    """

    enabled: bool = True
    max_factor_ratio: float = 10.0
    max_product_ratio: float = 10.0
    max_weight: float = 3.0
    private: bool = False
    untrainable: Callable[[int], str] = lambda examples: ""
    own_starts: bool = False

    def most(self, claimed: Iterable[float]) -> float:
        """What one client's number counts for at most, of these of all clients: `max_weight` times their median;
        infinity with the gate off.

        The median is the lower of the two in the middle of an even number, so that it is an honest client's or less as
        long as fewer than half of them lie.
        """
        return self.max_weight * statistics.median_low(claimed) if self.enabled else math.inf

    def loss(self, told: Sequence[tuple[float | None, int]]) -> float | None:
        """The mean of a round's losses, each with a client's examples, of those who told theirs; None where nobody did.

        One client decides it by neither: its examples count for `most` at most, and its loss for MOST_LOSS times the
        lower median, or MOST_LOSS where that is below 1.
        """
        losses = [loss for loss, _ in told if loss is not None]
        if not losses:
            return None
        most, highest = self.most([examples for _, examples in told]), math.inf
        if self.enabled:
            highest = MOST_LOSS * max(statistics.median_low(losses), 1.0)
        parts = [(min(loss, highest), min(examples, most)) for loss, examples in told if loss is not None]
        return sum(loss * n for loss, n in parts) / sum(n for _, n in parts)

    def drift(self, told: Sequence[float], before: Collection[int] | None = None) -> float | None:
        """The mean of what a round's clients say that they drifted; None of none. One of them decides it as little:
        what it says counts for MOST_DRIFT times the lower median at most.

        before: places in `told` of clients that the run had before, of whom the median is, as the others have nothing
        that could have drifted; None: of all."""
        if not told:
            return None
        judged = [drift for place, drift in enumerate(told) if before is None or place in before]
        most = MOST_DRIFT * statistics.median_low(judged or [0.0]) if self.enabled else math.inf
        return sum(min(drift, most) for drift in told) / len(told)

    def capped(self, weights: Sequence[float]) -> list[float]:
        """The weights of a round's updates, Σ = 1, none above `most` of them. Weights that are within it come back as
        they are, to the bit."""
        limit = self.most(weights)
        if not 0 < limit < max(weights) * (1 - 1e-12):  # not for the rounding of their division
            return list(weights)
        cut = [min(weight, limit) for weight in weights]
        return [weight / sum(cut) for weight in cut]

    def largest(self, start: Tensor, size: float | None = None) -> float:
        """The most that ‖X‖ may be of what a client makes of this tensor; so it is of means of such. size: ‖start‖."""
        unit = (start.shape[:-1].numel() if start.ndim == 3 else min(start.shape)) ** 0.5  # 3: blocks of a core
        return self.max_factor_ratio * max(unit, float(start.norm()) if size is None else size)

    def largest_image(self, mean: Factors) -> float:
        """The most that ‖B(AĀᵀ)‖ may be of an update that was let in; mean: Ā, B̄."""
        return self.max_product_ratio * max(min(mean.shape) ** 0.5, norm(mean)) * float(mean.A.double().norm())

    def bounds(self, sent: Mapping[str, Tensor], trained: frozenset[str]) -> Bounds:
        """What updates from a start may be; trained: the names of the tensors that come back."""
        shrinking = math.inf if self.own_starts else self.max_factor_ratio
        return Bounds.of(sent, trained, self.largest, shrinking, self.max_product_ratio)

    def admit(
        self,
        reply: Message,
        expected: Expected,
        transforms: Sequence[UpdateTransform] = UPDATES,
        known: KnownBounds | None = None,
    ) -> Accepted | Refusal:
        """What the reply comes to, or the reason it is refused.

        transforms: what was done to the update on its way out, in that order; undone before its tensors are judged.
        known: the bounds of a round's starts, kept for all clients. Raises RunFailed as `refuse_unsummable` does.
        """

        def refuse(code: str, detail: str) -> Refusal:
            return Refusal(expected.client, code, detail)

        if reply.has_error():
            return of_error(reply, expected.client)
        sent, trained = expected.sent, expected.trained
        bounds = (known or KnownBounds()).of(sent, trained, lambda: self.bounds(sent, trained))
        try:
            arrays, metrics = wire.arrays(reply), wire.settings(wire.metrics(reply))
            examples, round = metrics["num-examples"], metrics["round"]
            # Before a byte is decoded; of chosen slots it is the transform that knows the shapes.
            if self.enabled and expected.slots is None and (odd := fault_of_declared(arrays, bounds)):
                return refuse(*odd)
            decoded: Mapping[str, Tensor] = wire.decode(arrays)
        except Exception as error:  # noqa: BLE001 (bytes from outside: whatever reading them raises is the client's)
            return unreadable(expected.client, error)
        try:
            tensors = receive(transforms, expected, decoded)
        except Malformed as error:
            return refuse(error.code, error.detail)
        except Exception as error:  # noqa: BLE001 (the tensors are not validated yet)
            return unreadable(expected.client, error)
        if not self.enabled:
            if expected.clip is not None and (
                odd := fault_of_format(tensors, bounds.formats) or fault_of_distance(tensors, sent, expected.clip)
            ):
                return refuse(*odd)
            refuse_unsummable(expected, tensors, sent, bounds.formats, metrics)
            return Accepted(expected.client, examples, {**sent, **tensors}, metrics)
        looked_at = tensors is decoded and expected.slots is None  # as arrays, which are decoded to what they declare
        fault = (
            (None if looked_at else fault_of_format(tensors, bounds.formats))
            or fault_of_values(tensors, sizes := norms(tensors))
            or fault_of_counts(examples, round, expected.round)
            or fault_of_claim(examples, expected.examples)
            or fault_of_training(examples, self.untrainable)
            or fault_of_metrics(metrics, self.private)
            or fault_of_work(metrics, expected.steps, bounds.numbers)
            or fault_of_distance(tensors, sent, expected.clip)
            or fault_of_norms(sizes, bounds)
        )
        if fault is not None:
            return refuse(*fault)
        whole = {**sent, **tensors}
        if fault := fault_of_products(whole, sizes, sent, bounds, self.max_product_ratio):
            return refuse(*fault)
        return Accepted(expected.client, examples, whole, metrics)


def admit_images(
    gate: Gate,
    means: Mapping[str, Factors],
    reply: Message,
    asked: Asked,
    known: Mapping[str, Tensor] = NOTHING,
    clip: float | None = None,
) -> Mapping[str, Tensor] | Refusal:
    """The reply of a round's second phase, {"<layer>/S": B(AĀᵀ)}, or the reason it is refused.

    means: {layer: Ā, B̄}. known: what these themselves would answer. clip: how far from that it may be
        (privacy=clients); None: nobody clips.

    With the gate on ‖B(AĀᵀ)‖ is held to the product's own limit times ‖Ā‖: an update that was let in has no larger one.
    """
    if reply.has_error():
        return of_error(reply, asked.client)
    formats = {wire.image_name(name): (tuple(f.B.shape), f.B.dtype) for name, f in means.items()}
    try:
        arrays, round = wire.arrays(reply), wire.metrics(reply)["round"]
        if odd := fault_of_format(arrays, formats):
            return Refusal(asked.client, *odd)
        tensors = wire.decode(arrays)
    except Exception as error:  # noqa: BLE001 (as in Gate.admit)
        return unreadable(asked.client, error)
    fault = (
        fault_of_format(tensors, formats)
        or fault_of_values(tensors)
        or fault_of_round(round, asked.round)
        or fault_of_distance(tensors, known, clip)
    )
    if fault:
        return Refusal(asked.client, *fault)
    for name, mean in means.items() if gate.enabled else ():
        size, high = float(tensors[wire.image_name(name)].double().norm()), gate.largest_image(mean)
        if not size <= high:
            return Refusal(
                asked.client, "product_norm", f"{name}: B(AĀᵀ) of norm {size:.3g}, expected {high:.3g} or less"
            )
    return tensors


def admit_statistics(
    reply: Message, asked: Asked, statistics: Mapping[str, Statistic], most: int = MAX_EXAMPLES
) -> Statistics | Refusal:
    """The reply of round 0 as the sums of what was asked, {layer: statistic}, or the reason it is refused.

    most: the examples that this client may have measured: no more than it said it has.
    """
    client = asked.client
    if reply.has_error():
        return of_error(reply, client)
    try:
        arrays, metrics = wire.arrays(reply), dict[str, Any](wire.metrics(reply))
        examples, round = metrics["num-examples"], metrics["round"]
        if odd := fault_of_format(arrays, wire_format(statistics)):
            return Refusal(client, *odd)
        tensors = wire.decode(arrays)
    except Exception as error:  # noqa: BLE001 (as in Gate.admit)
        return unreadable(client, error)
    fault = (
        fault_of_format(tensors, wire_format(statistics))
        or fault_of_values(tensors)
        or fault_of_counts(examples, round, asked.round)
    )
    if fault is not None:
        return Refusal(client, *fault)
    sums = HalfPrecision(statistics).received(None, tensors)
    if fault := fault_of_values(sums):  # a finite column times a finite scale may overflow
        return Refusal(client, *fault)
    if examples > most:
        return Refusal(client, "weight", f"statistics of {examples} examples, of a client that has {most} for them")
    measured = Statistics(examples, sums)
    for layer, statistic in statistics.items():
        if why := statistic.fault(measured.of(layer), examples):
            return Refusal(client, "sums", why)
    return measured


def admit_counts(
    reply: Message, asked: Asked, domains: Collection[int], score: type[Score], examples: int
) -> MetricRecord | Refusal:
    """The reply to an evaluation, a row of sums for each of its domains, or the reason it is refused.

    domains: the indices of those it may have images of. score: whose sums they are.
    examples: the test images that this client said it has.
    """
    client = asked.client
    if reply.has_error():
        return of_error(reply, client)
    try:
        record = wire.metrics(reply)
        counts: dict[str, Any] = dict(record)
        round, (parts, wholes) = counts["round"], (counts[key] for key in score.wire)
        if max(map(len, (counts["domains"], parts, wholes))) > len(domains):
            return Refusal(client, "metrics", f"more rows than it has domains, {len(domains)}")
        rows = list(zip(counts["domains"], parts, wholes, strict=True))
    except Exception as error:  # noqa: BLE001 (as in Gate.admit)
        return unreadable(client, error)
    if (fault := fault_of_round(round, asked.round)) is not None:
        return Refusal(client, *fault)
    if not all(type(d) is int and d in domains and score.admits(part, whole) for d, part, whole in rows):
        what = score.title.partition(",")[0]
        return Refusal(client, "metrics", f"what it says are no sums of its own domains for {what}")
    if not rows or len({d for d, _, _ in rows}) < len(rows):  # who is asked has test images
        return Refusal(client, "metrics", "expected one row for each domain of its test images")
    if score.counts_examples and (counted := sum(whole for _, _, whole in rows)) != examples:
        return Refusal(client, "metrics", f"sums over {counted} examples, of a client with {examples} to test on")
    return record
