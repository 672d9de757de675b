"""Messages to real nodes: replies taken as soon as they are there, and no waiting for a node that lost its task.

Flower's grid for deployments looks for replies every three seconds, gives a reply that the SuperLink made itself no
node, and waits until the deadline for a node that was started again and knows nothing of what it was asked before.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeGuard

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedinit.message_limit import Limit
from strategies.server.pulling import Pulled, unreadable

if TYPE_CHECKING:
    from flwr.superlink.grid.http_grid import HttpGrid

AWAY = {ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE}
POLL_SECONDS = (0.2, 2.0)  # between two looks for replies, at first and at most
LOOK_SECONDS = 4.0  # between two looks at the nodes
SITE = re.compile(r"site-(\d{1,9})", re.ASCII)
UNLIMITED: Mapping[int, Limit] = MappingProxyType({})


def activations(nodes: Iterable[NodeInfo]) -> dict[int, str]:
    """{node id: when it last came online} of the nodes that are online."""
    return {int(node.node_id): str(node.last_activated_at) for node in nodes}


def registered(nodes: Iterable[NodeInfo]) -> dict[int, int]:
    """{node id: partition id} of the nodes whose keys `fedinit deploy` registered, under the names of their folders,
    site-<partition id>. The name is the server's, and a node cannot change it."""
    named = {int(node.node_id): SITE.fullmatch(str(node.name)) for node in nodes}
    return {node: int(found[1]) for node, found in named.items() if found}


def over_http(grid: Grid) -> TypeGuard[HttpGrid]:
    """Whether the grid is Flower's for deployments. Nobody has one whose process has not imported its module, which a
    simulation need not: it takes half a second."""
    module = sys.modules.get("flwr.superlink.grid.http_grid")
    return module is not None and isinstance(grid, module.HttpGrid)


def is_remote(grid: Grid) -> bool:
    """Whether its messages go over a network, as in a deployment."""
    return over_http(grid.inner if isinstance(grid, WatchedGrid) else grid)


class WatchedGrid(Grid):
    """Another grid, with a `send_and_receive` that returns once every node has answered, or can answer no more."""

    def __init__(self, grid: Grid) -> None:
        self.inner = grid

    def set_run(self, run: Run) -> None:
        self.inner.set_run(run)

    @property
    def run(self) -> Run:
        return self.inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return self.inner.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self.inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.inner.pull_messages(message_ids)

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        limits: Mapping[int, Limit] = UNLIMITED,
        waiting: Callable[[Collection[int]], None] = lambda nodes: None,
    ) -> list[Message]:
        """What came until all answered or `timeout` seconds were over; an Error for a node that was started again after
        it was asked, and for a reply that cannot be read. A message that the grid did not take is not waited for.

        limits: {node id: what its reply may hold}; of one that holds more an Error comes.
        waiting: called after every look with the nodes whose replies are missing.
        """
        messages = list(messages)
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        before = activations(self.inner.get_nodes())
        missing = {i: m for i, m in zip(self.push_messages(messages), messages, strict=False) if i}
        ways = {i: self._way(i, m, limits.get(m.metadata.dst_node_id)) for i, m in missing.items()}
        replies: list[Message] = []
        pause, looked = POLL_SECONDS[0], time.monotonic()
        while missing:
            for i, asked in [*missing.items()]:  # one by one: what one of them holds is no other's fault
                reply = ways[i]()
                if reply is not None:
                    replies.append(_from(asked, reply))
                    del missing[i], ways[i]
            if not missing or time.monotonic() >= deadline:
                break
            waiting([message.metadata.dst_node_id for message in missing.values()])
            time.sleep(pause)
            pause = min(1.5 * pause, POLL_SECONDS[1])
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                for key in _lost(missing, before, activations(self.inner.get_nodes())):
                    replies.append(_restarted(missing.pop(key)))
        return replies

    def _way(self, message_id: str, asked: Message, limit: Limit | None) -> Callable[[], Message | None]:
        """What gives the reply to a message, once it is there."""
        if over_http(self.inner) and limit is not None:
            return Pulled(self.inner, asked, message_id, limit).look

        def look() -> Message | None:
            try:
                return next(iter(self.pull_messages([message_id])), None)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                return unreadable(asked, error)  # not one of the connection's

        return look


def _lost(waiting: Mapping[str, Message], before: Mapping[int, str], online: Mapping[int, str]) -> list[str]:
    """The messages whose node was online when it was asked, and has come online again since."""
    return [
        key
        for key, message in waiting.items()
        if (node := message.metadata.dst_node_id) in before and online.get(node, before[node]) != before[node]
    ]


def _from(asked: Message, reply: Message) -> Message:
    """The reply, from the node that was asked also where the SuperLink answered in its place."""
    if reply.has_error() and reply.error.code in AWAY:
        # Metadata has no setter; Flower's own grids write the message's id the same way.
        reply.metadata.__dict__["_src_node_id"] = asked.metadata.dst_node_id
    return reply


def _restarted(asked: Message) -> Message:
    """The Error that stands for a reply that will not come."""
    reason = "its node was started again after it was asked"
    return Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=asked)
