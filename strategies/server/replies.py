"""Which replies are judged at all: one of each client that was asked, of this run, to the message that it was sent.

The same for every kind of question: who a node is, statistics, training, evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message

from fedinit import wire
from fedinit.errors import Code, machine_failed
from fedinit.message_limit import Limit
from fedinit.said import said

Judged = TypeVar("Judged")


@dataclass(frozen=True)
class Refusal:
    """Why a client's reply, or its silence, counts for nothing.

    client: its partition id, -1 for a node that is no client's.
    code: one of client_error, no_reply, not_asked, misdirected, duplicate, size, too_few_examples, limit, spent,
    missing_record, names, slots, shape, dtype, not_finite, sums, weight, round, run, metrics, factor_norm,
    product_norm, head_norm, secagg.
    detail: the reason, in one printable line of at most `SAID` characters: it goes into the ledger and onto a screen.
    """

    client: int
    code: str
    detail: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", said(self.detail))


@dataclass(frozen=True)
class Asked:
    """What a client was asked in a round.

    run: Flower's id of the run; None for a grid without one.
    message: the one it was sent, which the grid gives its id; None where replies are taken at their word.
    limit: what its reply may hold; None: anything.
    """

    client: int
    round: int
    run: int | None = field(default=None, kw_only=True)
    message: Message | None = field(default=None, kw_only=True)
    limit: Limit | None = field(default=None, kw_only=True)


Waiting = TypeVar("Waiting", bound=Asked)


def of_error(reply: Message, client: int) -> Refusal:
    """The refusal that an Error comes to."""
    codes: dict[int, str] = {code: code.name for code in (Code.too_few_examples, Code.limit, Code.spent)}
    codes |= {Code.too_large: "size", Code.unreadable: "missing_record"}
    return Refusal(client, codes.get(reply.error.code, "client_error"), reply.error.reason or "")


def unreadable(client: int, error: Exception) -> Refusal:
    """The refusal of a reply that could not be read: whatever bytes from outside raise is their client's. What this
    machine fails at is nobody's, since no reply takes more memory than its own size: then `error` is raised."""
    if machine_failed(error):
        raise error
    return Refusal(client, "missing_record", f"{type(error).__name__}: {error}")


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

    The replies are an Exchange's, which has an Error in place of what is too large.

    Of several good replies of a client one counts, the same one in whatever order they come. An iterator is taken as it
    comes, and nothing kept of what it gave: it has one reply of a client, in client order.
    """
    admitted: dict[int, Judged] = {}
    refusals, silent = [], dict(asked)
    for reply in replies if isinstance(replies, Iterator) else _in_order(replies, asked, client_of):
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


def _in_order(
    replies: Iterable[Message], asked: Mapping[int, Asked], client_of: Callable[[Message], int]
) -> list[Message]:
    """Replies by client; where a client has several, by their bytes, so that which one counts does not depend on which
    came first."""
    replies = list(replies)
    nodes = Counter(reply.metadata.src_node_id for reply in replies)
    several = {node for node, count in nodes.items() if count > 1 and node in asked}

    def key(reply: Message) -> tuple[int, bytes]:
        node = reply.metadata.src_node_id
        counts = node in several and reply.has_content()
        # Of a stranger alone is it looked for among all clients.
        client = asked[node].client if node in asked else client_of(reply)
        return client, wire.to_bytes(reply.content) if counts else b""

    return sorted(replies, key=key)
