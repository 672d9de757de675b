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

Made = TypeVar("Made")


@dataclass(frozen=True)
class Refusal:
    """code: one of client_error, no_reply, not_asked, misdirected, duplicate, too_few_examples, missing_record, names,
    slots, shape, dtype, not_finite, weight, round, run, metrics, factor_norm, product_norm, head_norm."""

    client: int
    code: str
    detail: str


@dataclass(frozen=True)
class Asked:
    """What a client was asked in a round. run: of Flower. message: the one it was sent, which the grid gives its id;
    None where replies are taken at their word."""

    client: int
    round: int
    run: int | None = field(default=None, kw_only=True)
    message: Message | None = field(default=None, kw_only=True)


Waiting = TypeVar("Waiting", bound=Asked)


def match_replies(
    replies: Iterable[Message],
    asked: Mapping[int, Waiting],
    client_of: Callable[[Message], int],
    admit: Callable[[Message, Waiting], Made | Refusal],
) -> tuple[dict[int, Made], list[Refusal]]:
    """{client: what `admit` made of its reply}, in client order; and refusals, of which a client that did not answer is
    one. asked: by node id. client_of: of a reply, -1 for a node that is no client's.

    Of several good replies of a client one counts, the same one in whatever order they come.
    """
    made: dict[int, Made] = {}
    refusals, silent = [], dict(asked)
    for reply in _in_order(replies, client_of):
        node = reply.metadata.src_node_id
        silent.pop(node, None)
        if node not in asked:
            judged = Refusal(client_of(reply), "not_asked", "its node was asked nothing")
        elif (judged := _misaddressed(reply, asked[node])) is None:
            twice = asked[node].client in made
            judged = Refusal(asked[node].client, "duplicate", "counted once") if twice else admit(reply, asked[node])
        if isinstance(judged, Refusal):
            refusals.append(judged)
        else:
            made[asked[node].client] = judged
    refusals += [Refusal(a.client, "no_reply", "nothing came in time") for a in silent.values()]
    return made, refusals


def _misaddressed(reply: Message, asked: Asked) -> Refusal | None:
    """Whether the reply is of this run, and to the message that was sent. An Error may be the SuperLink's own; grids
    that give no ids are taken at their word."""
    about = reply.metadata
    if reply.has_error():
        return None
    if asked.run is not None and about.run_id != asked.run:
        return Refusal(asked.client, "run", f"the reply is of run {about.run_id}, this is run {asked.run}")
    sent = "" if asked.message is None else asked.message.metadata.message_id
    if sent and about.reply_to_message_id and about.reply_to_message_id != sent:
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
