"""A node's reply from Flower's SuperLink, object by object, and no more of it than its request allows.

Flower's grid for deployments pulls whatever replies there are in one call: an array that names a chunk it has not is an
exception for all of them, one that names a chunk a thousand times is a thousand chunks in memory, and one whose objects
never come is waited for. Here each reply is its own, sizes are known before anything is pulled or put together, and a
reply that is not all there is looked at again later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flwr.app import Error, Message
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_object_children_ids_from_object_content as children_of,
)
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content as head_of
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedinit.errors import Code, machine_failed
from fedinit.message_limit import Limit

if TYPE_CHECKING:
    from flwr.superlink.grid.http_grid import HttpGrid

CHUNK = "ArrayChunk"  # what Flower calls an object that holds an array's bytes


class TooLarge(ValueError):
    """What comes is more than the request allows."""


def unreadable(asked: Message, error: Exception) -> Message:
    """The Error that stands for a reply that could not be taken."""
    if isinstance(error, TooLarge):
        return Message(Error(Code.too_large, str(error)), reply_to=asked)
    return Message(Error(Code.unreadable, f"{type(error).__name__}: {error}"), reply_to=asked)


class Pulled:
    """The reply to one message, as far as it is there."""

    def __init__(self, grid: HttpGrid, asked: Message, message_id: str, limit: Limit) -> None:
        """asked: the message. message_id: that the grid gave it. limit: what the reply may hold."""
        self._grid, self._asked, self._id, self._limit = grid, asked, message_id, limit
        self._proto: ProtoMessage | None = None
        self._left: list[str] = []  # objects that are not here yet
        self._contents: dict[str, bytes] = {}
        self._values = self._rest = 0  # bytes of arrays, and of everything else, that are here

    def look(self) -> Message | None:
        """The reply; an Error where it is too large or cannot be read; None while not all of it is there.

        Raises what the connection to the SuperLink raises, which is no reply's fault."""
        try:
            if (self._proto is None and not self._announced()) or not self._complete():
                return None
        except (ValueError, LookupError) as error:
            return self._refused(error)
        try:
            reply = self._read()
        except Exception as error:  # bytes from outside: whatever putting them together raises
            if machine_failed(error):
                raise
            return self._refused(error)
        self._confirm()
        return reply

    def _announced(self) -> bool:
        """Whether the SuperLink has a reply; what it consists of is known from here on."""
        client = self._client(self._limit.rest)
        answer = client.PullMessages(PullAppMessagesRequest(message_ids=[self._id]))
        for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            if proto.metadata.reply_to_message_id == self._id:
                self._proto = proto
                self._left = list(dict.fromkeys(_ids(tree)))
        if self._proto is None:
            return False
        source = self._proto.metadata.src_node_id
        if source not in (self._asked.metadata.dst_node_id, SUPERLINK_NODE_ID):
            raise ValueError(f"node {source} answers for another")
        if 64 * len(self._left) > self._limit.rest:  # each is named by 64 characters
            raise TooLarge(f"it consists of {len(self._left)} objects")
        return True

    def _complete(self) -> bool:
        """Whether all objects are here, after pulling those that have come."""
        while self._left:
            room = self._limit.values - self._values + self._limit.rest - self._rest
            request = PullObjectRequest(node=self._grid.node, run_id=self._asked_run, object_id=self._left[-1])
            answer = self._client(room).PullObject(request)
            if answer.object_found and not answer.object_available:
                return False  # its node is at it
            if not answer.object_found:
                raise LookupError("an object of it is not there")
            self._take(self._left.pop(), answer.object_content)
        return True

    def _take(self, name: str, content: bytes) -> None:
        is_chunk = content[: len(CHUNK)] == CHUNK.encode()
        self._values += len(content) if is_chunk else 0
        self._rest += 0 if is_chunk else len(content)
        if self._values > self._limit.values or self._rest > self._limit.rest:
            raise TooLarge(f"{self._values} bytes of arrays and {self._rest} of other things, {self._limit} may come")
        self._contents[name] = content

    def _read(self) -> Message:
        """The reply, put together. Its metadata are the SuperLink's, not what its node wrote into it."""
        assert self._proto is not None
        values = sum(_inflated(self._contents))
        if values > self._limit.values:
            raise TooLarge(f"{values} bytes of arrays when its chunks are put together, {self._limit} may come")
        metadata = metadata_from_proto(self._proto.metadata)
        if self._proto.HasField("error") and self._proto.metadata.src_node_id == SUPERLINK_NODE_ID:
            return message_from_proto(self._proto)
        content: Any = inflate_object_from_contents(self._proto.metadata.message_id, self._contents)
        if not isinstance(content, Message):
            raise TypeError(f"it is {type(content).__name__}, expected a message")
        error = content.error if content.has_error() else None
        if error is not None and error.code < min(Code):  # Flower's own codes are the SuperLink's to use
            error = Error(Code.failed, error.reason)
        reply = make_message(metadata, None if error else content.content, error)
        reply.metadata.__dict__["_message_id"] = self._proto.metadata.message_id  # Metadata has no setter
        return reply

    def _refused(self, error: Exception) -> Message:
        """The Error that stands for the reply."""
        self._contents.clear()
        if self._proto is not None:
            self._confirm()
        return unreadable(self._asked, error)

    def _confirm(self) -> None:
        """Let the SuperLink drop the reply's objects."""
        assert self._proto is not None
        name = self._proto.metadata.message_id
        request = ConfirmMessageReceivedRequest(node=self._grid.node, run_id=self._asked_run, message_object_id=name)
        self._client(2**20).ConfirmMessageReceived(request)

    @property
    def _asked_run(self) -> int:
        return self._grid.run.run_id

    def _client(self, room: int) -> Any:
        """The grid's own client, which from here on takes no answer of more bytes than `room` and a little."""
        client = self._grid._runtime_client
        bound(client, room + 2**16)
        return client


def bound(client: Any, room: int) -> None:
    """Have Flower's client refuse an answer, before its body is read, that says it is longer than `room` bytes."""
    hooks = getattr(getattr(client, "_client", None), "event_hooks", None)
    if hooks is None:  # not over HTTP
        return

    def check(response: Any) -> None:
        if int(response.headers.get("content-length", 0)) > room:
            raise TooLarge(f"{response.headers['content-length']} bytes at once")

    others = [hook for hook in hooks.get("response", []) if getattr(hook, "__name__", "") != check.__name__]
    client._client.event_hooks = {**hooks, "response": [*others, check]}


def _ids(tree: ObjectTree) -> Iterator[str]:
    return (node.object_id for node in iterate_object_tree(tree))


def _inflated(contents: dict[str, bytes]) -> Iterator[int]:
    """The bytes of each array once its chunks are one after the other. Raises for one that names a chunk it has not."""
    for content in contents.values():
        if head_of(content)[0] != "Array":
            continue
        sizes = [head_of(contents[name])[2] for name in children_of(content)]
        # As Flower reads it, which is where a chunk that is not there would be found, too late.
        chunks = json.loads(content[-_body(content) :])["arraychunk_ids"] if _body(content) else []
        if not isinstance(chunks, list) or not all(type(i) is int and 0 <= i < len(sizes) for i in chunks):
            raise ValueError(f"an array names chunks of which it has {len(sizes)}")
        yield sum(sizes[i] for i in chunks)


def _body(content: bytes) -> int:
    return head_of(content)[2]
