"""What a client made itself and keeps: factors of its own, the step scales of its optimiser; by the round it made them.

A client cannot know whether its update will be let in. So it keeps what a round made beside what it went into the round
with, and every message says which round its last accepted update was of ("accepted", 0 for none): that is what it goes
on from. A round that is asked again starts from the same state, and so does the one after an update that was refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord

from fedinit import wire

FACTORS = "own"  # the factors this client ended the round with
SCALES = "scales"  # its optimiser's step scales by leaf, fixed once

Record = ArrayRecord | ConfigRecord | MetricRecord


def held(context: Context, kind: str) -> dict[int, Record]:
    """{round: what this client made in it}, in the order they were made."""
    names = [name.partition("@") for name in context.state]
    return {int(round): context.state[f"{kind}@{round}"] for own, _, round in names if own == kind and round}


def recall(message: Message, context: Context, kind: str) -> Record | None:
    """What this client goes on from: of the round of its last accepted update."""
    return held(context, kind).get(_accepted(message))


def keep(message: Message, context: Context, made: Mapping[str, Record]) -> None:
    """Keep what this round made, by kind, beside what it was made from, and nothing else."""
    rounds = {kind: held(context, kind) for kind in (FACTORS, SCALES)}
    for kind, known in rounds.items():
        for round in known:
            if round != _accepted(message):
                del context.state[f"{kind}@{round}"]
    for kind, record in made.items():
        context.state[f"{kind}@{int(message.content[wire.CONFIG]['round'])}"] = record


def _accepted(message: Message) -> int:
    return int(message.content[wire.CONFIG]["accepted"])
