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
from strategies.aggregator import Update

MAX_EXAMPLES = 2**40  # beyond any data set; above it the float64 weights would lose digits


@dataclass(frozen=True)
class Refusal:
    """code: one of client_error, missing_record, names, shape, dtype, not_finite, weight, round."""

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
    if found.keys() != expected.trained:
        odd = sorted(found.keys() ^ expected.trained)
        return refuse("names", f"{odd[0]} is {'unexpected' if odd[0] in found else 'missing'}")
    for name, value in found.items():
        start = expected.sent[name]
        if value.shape != start.shape:  # equal, since a broadcastable shape would be summed without a word
            return refuse("shape", f"{name} is {tuple(value.shape)}, expected {tuple(start.shape)}")
        if value.dtype != start.dtype:
            return refuse("dtype", f"{name} is {value.dtype}, expected {start.dtype}")
        if not torch.isfinite(value).all():
            return refuse("not_finite", f"{name} holds NaN or infinity")
    if not isinstance(examples, int) or isinstance(examples, bool) or not 1 <= examples <= MAX_EXAMPLES:
        return refuse("weight", f"num-examples is {examples!r}, expected a whole number of 1 or more")
    if round != expected.round:
        return refuse("round", f"the reply is for round {round}, this is round {expected.round}")
    layers, head = wire.from_tensors({**expected.sent, **found})
    return Update(client=expected.client, examples=examples, layers=layers, head=head)
