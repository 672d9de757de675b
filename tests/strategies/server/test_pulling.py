"""Replies pulled from a SuperLink, object by object: what one node put there ends no run and fills no memory."""

from __future__ import annotations

import hashlib
import json
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import array as flower_array
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from fedinit import wire
from fedinit.errors import Code
from fedinit.message_limit import Limit
from fedinit.transport.local import LocalGrid
from strategies.server.delivery import WatchedGrid
from tests.support.small import small_config  # noqa: F401 (Flower is set up by its import)

LIMIT = Limit(values=10_000, rest=2**16)


class SuperLink:
    """What a runtime client answers: {message id: (its proto, its tree, {object id: bytes})}."""

    def __init__(self) -> None:
        self.there: dict[str, tuple] = {}
        self.confirmed: list[str] = []
        self.late: set[str] = set()

    def put(self, asked: str, reply: Message, spoil=lambda objects: objects) -> None:
        reply.metadata.__dict__["_reply_to_message_id"] = asked
        objects = spoil({name: thing.deflate() for name, thing in get_all_nested_objects(reply).items()})
        proto = message_to_proto(Message(RecordDict(), reply_to=reply) if reply.has_content() else reply)
        proto.metadata.CopyFrom(message_to_proto(reply).metadata)
        proto.metadata.message_id = reply.object_id
        self.there[asked] = proto, get_object_tree(reply), objects

    def PullMessages(self, request):
        found = [self.there[i] for i in request.message_ids if i in self.there]
        return PullAppMessagesResponse(messages_list=[f[0] for f in found], message_object_trees=[f[1] for f in found])

    def PullObject(self, request):
        for _, _, objects in self.there.values():
            if request.object_id in objects:
                late = request.object_id in self.late
                content = b"" if late else objects[request.object_id]
                return PullObjectResponse(object_found=True, object_available=not late, object_content=content)
        return PullObjectResponse(object_found=False)

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)


class Grid(HttpGrid):
    """Over a SuperLink in this process."""

    def __init__(self) -> None:
        super().__init__(token="x")
        self._client = self.link = SuperLink()
        self.set_run(Run.create_empty(1))

    def push_messages(self, messages):
        for i, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"message {i}"
        return [message.metadata.message_id for message in messages]

    def get_nodes(self):
        return []


def update(size: int = 4) -> RecordDict:
    """Objects have their ids by what they hold, so that two sizes share none."""
    arrays = ArrayRecord({"a": Array(np.arange(size, dtype="f4")), "b": Array(np.zeros(size, "f4"))})
    return RecordDict({"state": arrays, "metrics": MetricRecord({"loss": float(size)})})


def exchanged(spoil, content=None, limit=LIMIT, timeout=0.5) -> list[Message]:
    """The replies of two nodes, the first of which spoils its own."""
    LocalGrid(lambda pairs: [], 1)
    grid = Grid()
    messages = [Message(RecordDict(), node, "train") for node in (7, 8)]
    for i, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = f"message {i}"
        honest = Message((content or update()) if i == 0 else update(5), reply_to=message)
        grid.link.put(f"message {i}", honest, spoil if i == 0 else lambda objects: objects)
    return WatchedGrid(grid).send_and_receive(messages, timeout=timeout, limits={7: limit, 8: LIMIT})


def arrays(change):
    """Change the metadata of every array, under the ids that the tree has."""

    def spoil(objects):
        for name, content in objects.items():
            if content.startswith(b"Array,") or content.split(b" ", 1)[0] == b"Array":
                head, _, body = content.partition(b"\x00")
                values = json.loads(body)
                change(values)
                text = json.dumps(values).encode()
                kind, children, _ = head.decode().split(" ")
                objects[name] = f"{kind} {children} {len(text)}".encode() + b"\x00" + text
        return objects

    return spoil


def test_honest_replies_come_as_they_are():
    first, second = exchanged(lambda objects: objects)
    assert [m.metadata.src_node_id for m in (first, second)] == [7, 8]
    assert [wire.to_bytes(m.content) for m in (first, second)] == [wire.to_bytes(update(i)) for i in (4, 5)]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (arrays(lambda values: values.update(arraychunk_ids=[5])), Code.unreadable),
        (arrays(lambda values: values.update(arraychunk_ids=[-1])), Code.unreadable),
        (arrays(lambda values: values.update(arraychunk_ids=["0"])), Code.unreadable),
        (arrays(lambda values: values.update(arraychunk_ids=7)), Code.unreadable),
        (arrays(lambda values: values.update(arraychunk_ids=[0] * 2000)), Code.too_large),
        (arrays(lambda values: values.pop("arraychunk_ids")), Code.unreadable),
        (arrays(lambda values: values.update(shape="x")), Code.unreadable),
        (lambda objects: {name: b"nothing" for name in objects}, Code.unreadable),
        (lambda objects: {name: b"" for name in objects}, Code.unreadable),
        (lambda objects: {name: content[:-1] for name, content in objects.items()}, Code.unreadable),
        (lambda objects: dict([*objects.items()][1:]), Code.unreadable),
        (lambda objects: {name: content + bytes(2**20) for name, content in objects.items()}, Code.too_large),
    ],
)
def test_one_that_cannot_be_read_costs_its_own_node(spoil, code):
    """Flower's grid raises IndexError for the first, for both nodes."""
    first, second = exchanged(spoil)
    assert first.has_error() and first.error.code == code and first.metadata.src_node_id == 7
    assert wire.to_bytes(second.content) == wire.to_bytes(update(5))


def test_a_chunk_named_two_thousand_times_takes_no_memory():
    big = RecordDict({"state": ArrayRecord({"a": Array(np.random.default_rng(0).random(500_000))})})
    spoil = arrays(lambda values: values.update(arraychunk_ids=[0] * 2000))  # 8 GB
    tracemalloc.start()
    first, _ = exchanged(spoil, big, Limit(5_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first.error.code == Code.too_large and peak < 50e6


@pytest.mark.parametrize(
    "content",
    [
        update(100_000),
        RecordDict({"metrics": MetricRecord({"rows": [1.0] * 2 * 10**5})}),
        RecordDict({str(i): MetricRecord({"a": i}) for i in range(2000)}),
    ],
    ids=["arrays", "rows", "records"],
)
def test_one_that_is_larger_than_its_request_allows_is_not_put_together(content):
    first, second = exchanged(lambda objects: objects, content)
    assert first.error.code == Code.too_large and second.has_content()


def test_one_whose_objects_do_not_come_holds_up_nobody(monkeypatch):
    """It is looked at again until the deadline; Flower waits for hours."""
    LocalGrid(lambda pairs: [], 1)
    grid = Grid()
    messages = [Message(RecordDict(), node, "train") for node in (7, 8)]
    for i, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = f"message {i}"
        grid.link.put(f"message {i}", Message(update(4 + i), reply_to=message))
    grid.link.late = set(list(grid.link.there["message 0"][2])[:1])
    replies = WatchedGrid(grid).send_and_receive(messages, timeout=0.4, limits={7: LIMIT, 8: LIMIT})
    assert [reply.metadata.src_node_id for reply in replies] == [8]
    assert len(grid.link.confirmed) == 1


@pytest.mark.parametrize("forged", ["sender", "away"])
def test_a_node_speaks_for_itself_alone(forged):
    """Not as another node, and not as the SuperLink that says that it is away."""
    LocalGrid(lambda pairs: [], 1)
    grid = Grid()
    message = Message(RecordDict(), 7, "train")
    message.metadata.__dict__["_message_id"] = "message 0"
    reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)
    if forged == "sender":
        reply = Message(update(), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 8
    grid.link.put("message 0", reply)
    (got,) = WatchedGrid(grid).send_and_receive([message], timeout=0.4, limits={7: LIMIT})
    assert got.metadata.src_node_id == 7 and got.has_error() and got.error.code in set(Code)


def test_another_grid_that_raises_for_one_message_gives_the_others():
    class Raising(LocalGrid):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            if any(reply.metadata.src_node_id == 1000 for reply in replies):
                raise IndexError("list index out of range")
            return replies

    grid = WatchedGrid(Raising(lambda pairs: [Message(update(), reply_to=m) for m, _ in pairs], 2))
    replies = grid.send_and_receive([Message(RecordDict(), n, "train") for n in (1000, 1001)], timeout=5.0)
    assert [r.metadata.src_node_id for r in replies] == [1000, 1001] and replies[0].error.code == Code.unreadable
    assert replies[1].has_content()


def test_flowers_objects_are_as_this_is_written_for():
    """The names and the header that pulling.py reads."""
    chunk = flower_array.ArrayChunk(memoryview(b"abc"))
    content = chunk.deflate()
    assert content.startswith(b"ArrayChunk") and content == add_header_to_object_body(b"abc", chunk)
    assert hashlib.sha256(content).hexdigest() == chunk.object_id and isinstance(ObjectTree(), ObjectTree)
