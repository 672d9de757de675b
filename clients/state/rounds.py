"""What a client made itself and remembers, by the round in which it made it: factors of its own, the step scales of its
optimiser.

A client cannot know whether its update will be let in. So it keeps what a round made beside what it went into the round
with, and every message says which round its last accepted update was of ("accepted", 0 for none): that is what it goes
on from. A round that is asked again starts from the same state, and so does the one after an update that was refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord

from fedinit import wire
from fedinit.factors import Factors

FACTORS = "own"  # the factors this client ended the round with
UPDATE = "update"  # the factors of its update, until the second phase of the round has asked about them
SCALES = "scales"  # its optimiser's step scales by leaf, fixed once

Record = TypeVar("Record", ArrayRecord, MetricRecord)


def remembered(context: Context, name: str) -> dict[int, ArrayRecord | ConfigRecord | MetricRecord]:
    """{round: what this client made in it}, in the order in which they were made."""
    keys = [key.partition("@") for key in context.state]
    return {int(round): context.state[f"{name}@{round}"] for prefix, _, round in keys if prefix == name and round}


def recall(context: Context, name: str, round: int, record_type: type[Record]) -> Record | None:
    """What this client made in a round, that of its last accepted update where it goes on from it; None where it has
    nothing. name: FACTORS or SCALES."""
    key = f"{name}@{round}"
    return wire.record(context.state, key, record_type) if key in context.state else None


def own_factors(context: Context, round: int) -> dict[str, Factors] | None:
    """{layer: the factors that this client ended a round with}; None where it has none."""
    record = recall(context, FACTORS, round, ArrayRecord)
    return None if record is None else wire.from_tensors(wire.decode(record))[0]


def remember(message: Message, context: Context, records: Mapping[str, ArrayRecord | MetricRecord]) -> None:
    """Remember what this round made, {name: record}, beside what it was made from; other rounds' are forgotten."""
    for name in (FACTORS, SCALES, UPDATE):
        for round in remembered(context, name):
            if round != accepted(message) or name == UPDATE:
                del context.state[f"{name}@{round}"]
    for name, record in records.items():
        context.state[f"{name}@{wire.value(wire.config(message), 'round', int)}"] = record


def accepted(message: Message) -> int:
    """The round of this client's last accepted update, as the message has it; 0 for none."""
    return wire.value(wire.config(message), "accepted", int)
