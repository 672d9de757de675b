"""Which reply is whose: told by what was asked of its node, so that a round does not look through all clients."""

from __future__ import annotations

from flwr.app import ConfigRecord, Message, RecordDict

from fedinit.transport.local import LocalGrid
from strategies.server.replies import Asked, match_replies


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
