"""Clients whose answer to round 0 is not what it should be."""

from __future__ import annotations

from flwr.app import Error, Message, RecordDict

from fedinit import wire


def spoilt(cohort, client, spoil):
    """A handler whose `client` answers round 0 as `spoil` makes it."""

    def handle(deliveries):
        replies = cohort(deliveries)
        for i, (message, context) in enumerate(deliveries):
            if message.metadata.message_type == "query.statistics" and context.node_config["partition-id"] in client:
                replies[i] = spoil(message, replies[i])
        return replies

    return handle


def with_nan(message, reply):
    state = wire.decode(reply.content["state"])
    name = next(n for n in state if n.endswith("/sum"))
    state[name][0] = float("nan")
    reply.content = RecordDict({"state": wire.encode(state), "metrics": reply.content["metrics"]})
    return reply


def with_error(message, reply):
    return Message(Error(0, "gone"), reply_to=message)


def with_other_shape(message, reply):
    state = wire.decode(reply.content["state"])
    name = next(n for n in state if n.endswith("/sum"))
    state[name] = state[name][:1]  # would broadcast
    reply.content = RecordDict({"state": wire.encode(state), "metrics": reply.content["metrics"]})
    return reply
