"""Which replies become updates, and why the others do not.

Every reply is judged on its own before anything is summed: one wrong client must cost its own update and nothing
else. Stock Flower averages NaN, infinities, broadcastable shapes and negative weights; here each has a reason code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import Message
from torch import Tensor

from fedinit import wire
from fedinit.statistics import Statistics
from strategies.aggregator import Update

MAX_EXAMPLES = 2**40  # beyond any data set; above it the float64 weights would lose digits


@dataclass(frozen=True)
class Refusal:
    """code: one of client_error, too_few_examples, missing_record, names, shape, dtype, not_finite, weight, round."""

    client: int
    code: str
    detail: str


@dataclass(frozen=True)
class Expected:
    """What a reply to this round's message must hold. sent: every tensor of the client's start, by wire name;
    trained: the names that come back."""

    client: int
    round: int
    sent: Mapping[str, Tensor]
    trained: frozenset[str]


def admit(reply: Message, expected: Expected) -> Update | Refusal:
    """The reply as an Update, completed by what the client did not train, or the reason it is refused."""

    def refuse(code: str, detail: str) -> Refusal:
        return Refusal(expected.client, code, detail)

    if reply.has_error():
        return refuse("client_error", reply.error.reason)
    try:
        found = wire.decode(reply.content[wire.STATE])
        metrics = reply.content[wire.METRICS]
        examples, round = metrics["num-examples"], metrics["round"]
    except (KeyError, ValueError, TypeError) as error:
        return refuse("missing_record", f"{type(error).__name__}: {error}")
    wanted = {name: (tuple(expected.sent[name].shape), expected.sent[name].dtype) for name in expected.trained}
    fault = _fault(found, wanted) or _fault_of_counts(examples, round, expected.round)
    if fault is not None:
        return refuse(*fault)
    layers, head = wire.from_tensors({**expected.sent, **found})
    return Update(client=expected.client, examples=examples, layers=layers, head=head)


def admit_statistics(reply: Message, client: int, shapes: Mapping[str, tuple[int, ...]]) -> Statistics | Refusal:
    """The reply of round 0 as Statistics of these names and shapes, or the reason it is refused."""
    if reply.has_error():
        few = reply.error.reason.startswith("TooFew")
        return Refusal(client, "too_few_examples" if few else "client_error", reply.error.reason)
    try:
        found = wire.decode(reply.content[wire.STATE])
        examples, round = reply.content[wire.METRICS]["num-examples"], reply.content[wire.METRICS]["round"]
    except (KeyError, ValueError, TypeError) as error:
        return Refusal(client, "missing_record", f"{type(error).__name__}: {error}")
    wanted = {name: (shape, torch.float32 if shape else torch.float64) for name, shape in shapes.items()}
    fault = _fault(found, wanted) or _fault_of_counts(examples, round, 0)
    return Statistics(examples, found) if fault is None else Refusal(client, *fault)


def _fault(
    found: Mapping[str, Tensor], wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> tuple[str, str] | None:
    """(code, detail) of the first thing that is wrong with named tensors, or None."""
    if found.keys() != wanted.keys():
        odd = sorted(found.keys() ^ wanted.keys())
        return "names", f"{odd[0]} is {'unexpected' if odd[0] in found else 'missing'}"
    for name, value in found.items():
        shape, dtype = wanted[name]
        if tuple(value.shape) != shape:  # equal, since a broadcastable shape would be summed without a word
            return "shape", f"{name} is {tuple(value.shape)}, expected {shape}"
        if value.dtype != dtype:
            return "dtype", f"{name} is {value.dtype}, expected {dtype}"
        if not torch.isfinite(value).all():
            return "not_finite", f"{name} holds NaN or infinity"
    return None


def _fault_of_counts(examples: object, round: object, now: int) -> tuple[str, str] | None:
    if not isinstance(examples, int) or isinstance(examples, bool) or not 1 <= examples <= MAX_EXAMPLES:
        return "weight", f"num-examples is {examples!r}, expected a whole number of 1 or more"
    if round != now:
        return "round", f"the reply is for round {round}, this is round {now}"
    return None
