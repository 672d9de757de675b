"""Which reply is whose: told by what was asked of its node, so that a round does not look through all clients."""

from __future__ import annotations

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedinit import wire
from fedinit.errors import Code
from fedinit.transport.local import LocalGrid
from strategies.server.replies import Asked, Refusal, match_replies, unreadable
from tests.support.serving import exchange_over


def test_only_a_strangers_reply_is_looked_for_among_all_clients() -> None:
    LocalGrid(lambda deliveries: [], 1)  # tells Flower who sends
    asked, replies, looked_for = {}, [], []
    for client, node in enumerate((1007, 1003, 1005, 1001)):
        message = Message(RecordDict({"config": ConfigRecord({"client": client})}), node, "train")
        replies.append(Message(message.content, reply_to=message))
        if client != 3:
            asked[node] = Asked(client, 1, message=message)

    def client_of(reply: Message) -> int:
        looked_for.append(reply.metadata.src_node_id)
        return 3

    answers, refusals = match_replies(replies[::-1], asked, client_of, lambda reply, wanted: reply)
    assert list(answers) == [0, 1, 2] and [answers[client].content["config"]["client"] for client in answers] == [
        0,
        1,
        2,
    ]
    assert [(refusal.client, refusal.code) for refusal in refusals] == [(3, "not_asked")]
    assert set(looked_for) == {1001}


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (10**12,), wire.NUMPY, b"x"),
        Array("float32", (-(2**31) - 1, 0), wire.NUMPY, b"x"),
        Array("\ud800", (1,), wire.NUMPY, b"x"),
        Array("float32", (1,), "\udfff", b"x"),
    ],
    ids=["wide", "negative", "dtype", "stype"],
)
def test_an_array_that_says_what_no_message_holds_costs_its_own_node(array):
    """Pulled from a SuperLink object by object, it may; as a message, whose bytes are counted, it cannot be written."""

    def answers(deliveries):
        contents = (
            RecordDict({wire.STATE: ArrayRecord({"a": array})}),
            RecordDict({wire.CONFIG: ConfigRecord({"a": 1})}),
        )
        return [Message(content, reply_to=message) for (message, _), content in zip(deliveries, contents, strict=True)]

    exchange = exchange_over(LocalGrid(answers, 2))
    bad, good = exchange.send([Message(RecordDict(), node, "train") for node in (1000, 1001)], 1.0)
    assert bad.has_error() and bad.error.code == Code.unreadable and bad.metadata.src_node_id == 1000
    assert good.content[wire.CONFIG]["a"] == 1 and exchange.bytes_up == wire.nbytes([good.content])


def test_a_reply_that_there_is_no_memory_for_is_no_clients_fault():
    """It was missing in the round, and the run ended as any other."""
    with pytest.raises(MemoryError):
        unreadable(3, MemoryError("no room"))
    assert unreadable(3, ValueError("odd")) == Refusal(3, "missing_record", "ValueError: odd")
