"""Which replies are judged at all: one of each client that was asked, of this run, to the message that it was sent.

The same for every kind of question: who a node is, statistics, training, evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message

from fedinit import wire

Judged = TypeVar("Judged")
SAID = 500  # characters of an Error


@dataclass(frozen=True)
class Refusal:
    """Why a client's reply, or its silence, counts for nothing.

    client: its partition id, -1 for a node that is no client's.
    code: one of client_error, no_reply, not_asked, misdirected, duplicate, too_few_examples, missing_record, names,
    slots, shape, dtype, not_finite, weight, round, run, metrics, factor_norm, product_norm, head_norm.
    detail: the reason, in one line.
    """

    client: int
    code: str
    detail: str


@dataclass(frozen=True)
class Asked:
    """What a client was asked in a round.

    run: Flower's id of the run; None for a grid without one.
    message: the one it was sent, which the grid gives its id; None where replies are taken at their word.
    """

    client: int
    round: int
    run: int | None = field(default=None, kw_only=True)
    message: Message | None = field(default=None, kw_only=True)


Waiting = TypeVar("Waiting", bound=Asked)


def said(reply: Message) -> str:
    """What an Error says, as one line of at most `SAID` characters: it goes into the ledger and onto a screen."""
    return " ".join((reply.error.reason or "")[: 4 * SAID].split())[:SAID]


def match_replies(
    replies: Iterable[Message],
    asked: Mapping[int, Waiting],
    client_of: Callable[[Message], int],
    admit: Callable[[Message, Waiting], Judged | Refusal],
) -> tuple[dict[int, Judged], list[Refusal]]:
    """{client: what `admit` made of its reply}, in client order; and the refusals, one for a client that gave no answer
    among them.

    asked: {node id: what its client was asked}.
    client_of: the client a reply is from, -1 for a node that is no client's.
    admit: judges one reply against what was asked.

    Of several good replies of a client one counts, the same one in whatever order they come.
    """
    admitted: dict[int, Judged] = {}
    refusals, silent = [], dict(asked)
    for reply in _in_order(replies, client_of):
        node = reply.metadata.src_node_id
        silent.pop(node, None)
        if node not in asked:
            judged = Refusal(client_of(reply), "not_asked", "its node was asked nothing")
        elif (judged := _misaddressed(reply, asked[node])) is None:
            twice = asked[node].client in admitted
            judged = Refusal(asked[node].client, "duplicate", "counted once") if twice else admit(reply, asked[node])
        if isinstance(judged, Refusal):
            refusals.append(judged)
        else:
            admitted[asked[node].client] = judged
    refusals += [Refusal(a.client, "no_reply", "nothing came in time") for a in silent.values()]
    return admitted, refusals


def _misaddressed(reply: Message, asked: Asked) -> Refusal | None:
    """Why the reply is of another run, or to another message than was sent; None where it is neither.

    An Error may be the SuperLink's own, and grids that give no ids are taken at their word.
    """
    metadata = reply.metadata
    if reply.has_error():
        return None
    if asked.run is not None and metadata.run_id != asked.run:
        return Refusal(asked.client, "run", f"the reply is of run {metadata.run_id}, this is run {asked.run}")
    sent = "" if asked.message is None else asked.message.metadata.message_id
    if sent and metadata.reply_to_message_id and metadata.reply_to_message_id != sent:
        return Refusal(asked.client, "misdirected", "it answers another message than the one this client was sent")
    return None


def _in_order(replies: Iterable[Message], client_of: Callable[[Message], int]) -> list[Message]:
    """Replies by client; where a client has several, by their bytes, so that which one counts does not depend on which
    came first."""
    replies = list(replies)
    several = {c for c, n in Counter(map(client_of, replies)).items() if n > 1}

    def key(reply: Message) -> tuple[int, bytes]:
        content = wire.to_bytes(reply.content) if client_of(reply) in several and reply.has_content() else b""
        return client_of(reply), content

    return sorted(replies, key=key)
