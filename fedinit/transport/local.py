"""A Flower Grid inside this process: the whole list of messages goes to one handler, which may answer them together.

The strategy sees what it sees in a deployment: node ids, messages, replies, an Error where a client failed. Each
node has a Context of its own, whose `state` lasts for the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, overload, runtime_checkable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedinit import wire
from fedinit.devices import CPU
from fedinit.secagg import SECRETS
from fedinit.state.checkpoint import State
from fedinit.transport.client_files import ClientFiles
from fedinit.transport.contexts import BY_ROUND, FIRST_NODE_ID, Contexts

Handler = Callable[[Sequence[tuple[Message, Context]]], Sequence[Message]]


@runtime_checkable
class Holder(Protocol):
    """A handler that knows without a message to each what its clients hold."""

    def holdings(self, clients: Sequence[int]) -> list[tuple[int, int]]:
        """(training, test images) of each of these partition ids, as clients that hold nothing from rounds before have
        them, where their introductions differ in nothing else; else an empty list."""
        ...


@runtime_checkable
class Prompt(Protocol):
    """A handler that gives replies as they come."""

    def one_by_one(self, deliveries: Sequence[tuple[Message, Context]]) -> Iterator[Message]:
        """The replies, in the order of the messages, each as soon as it is there."""
        ...


FILES = "files/"  # before the names of a checkpoint's tensors that say which files clients have
PORTION = 1000  # clients that are asked something else than to train at once: the most that have their own in memory
HOLDERS = "holders/"  # before those that say which clients hold a record, by its number


class Nodes(Sequence[NodeInfo]):
    """What Flower says of nodes, made of an id when it is looked at: half a kilobyte each. Their names are those under
    which `fedinit deploy register` has the keys of sites: who a node of this process is, is known."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> NodeInfo: ...

    @overload
    def __getitem__(self, index: slice) -> Nodes: ...

    def __getitem__(self, index: int | slice) -> NodeInfo | Nodes:
        if isinstance(index, slice):
            return Nodes(self._ids[index])
        node = self._ids[index]
        return NodeInfo(node_id=node, name=f"site-{node - FIRST_NODE_ID}")


class LocalGrid(Grid):
    """Delivers to nodes with partition ids 0 … num_nodes − 1, by calling one handler."""

    def __init__(
        self,
        handler: Handler,
        num_nodes: int,
        *,
        run_config: Mapping[str, str] | None = None,
        strict: bool = False,
        checkpoints: Path | None = None,
    ) -> None:
        """
        handler: takes (message, context) pairs in the order of the messages, returns one reply each, in the same order.
        num_nodes: how many nodes there are, a client each.
        run_config: what every node's Context says of the run.
        strict: send every record through Flower's protocol buffers, so that what could not go over a network fails here
            too; otherwise the receiver gets fresh records over the same arrays, and may change no tensor in place.
        checkpoints: the folder of the run's, beside which what clients make in rounds of their own is kept by files;
            None: it stays in memory.
        """
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
        self._handler, self._strict = handler, strict
        self._run = Run.create_empty(1)
        self._replies: dict[str, Message] = {}
        self._ids = map(str, itertools.count(1))  # of messages, none of which outlives this grid
        self._shared = wire.Shared()
        self._met: dict[int, None] = {}  # the nodes that were sent something, which alone can hold anything
        self._files = None if checkpoints is None else ClientFiles(checkpoints)
        self.contexts = Contexts(num_nodes, run_config or {}, self._files)

    @property
    def device(self) -> torch.device:
        """The first that its clients work on; the CPU where the handler has none."""
        return getattr(self._handler, "device", CPU)

    def set_run(self, run: Run) -> None:
        """Replace what the grid says of the run; nothing else depends on it here."""
        self._run = run

    @property
    def run(self) -> Run:
        """What Flower knows of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """FIRST_NODE_ID and up, in the order of the partition ids."""
        return list(self.contexts)

    @cached_property
    def _nodes(self) -> Nodes:
        return Nodes(list(self.contexts))

    def get_nodes(self) -> Sequence[NodeInfo]:
        """All nodes, which are there from first to last; always the same object, so that nobody need look twice."""
        return self._nodes

    def holdings(self, nodes: Sequence[int]) -> dict[int, tuple[int, int, int]]:
        """{node id: (partition id, training, test images)}, where that is all in which the nodes' introductions differ;
        empty where it is not, or nobody can say."""
        if self._strict or not isinstance(self._handler, Holder) or not self.contexts.keys() >= set(nodes):
            return {}
        clients = []
        for node in nodes:
            if self.contexts.holds(node):
                return {}
            context = self.contexts.there(node)
            clients.append(node - FIRST_NODE_ID if context is None else context.node_config["partition-id"])
        counts = self._handler.holdings(clients)
        return {node: (client, *held) for node, client, held in zip(nodes, clients, counts, strict=False)}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver and answer at once; the replies wait for `pull_messages`.

        Raises TypeError for a generator: Flower's HttpGrid reads the list twice, so a strategy that yields its
        messages would work here and fail in deployment.
        """
        if not isinstance(messages, Sequence):
            raise TypeError(f"messages must be a list, got {type(messages).__name__}")
        for portion in self._portions(messages):
            deliveries = [self._delivered(message) for message in portion]
            replies = self._handler(deliveries)
            for message, reply, (_, context) in zip(portion, replies, deliveries, strict=True):
                self._replies[message.metadata.message_id] = self._returned(reply, context)
        return [message.metadata.message_id for message in messages]

    @property
    def is_prompt(self) -> bool:
        """Whether it has `one_by_one`: not where the handler answers all together, or a subclass delivers in a way of
        its own."""
        own = type(self).send_and_receive, type(self).push_messages, type(self).pull_messages
        usual = LocalGrid.send_and_receive, LocalGrid.push_messages, LocalGrid.pull_messages
        return isinstance(self._handler, Prompt) and own == usual

    def one_by_one(self, messages: Sequence[Message]) -> Iterator[Message]:
        """As `send_and_receive`, in the order of the messages; a reply is there as soon as its client is done, and
        nothing here keeps it."""
        assert isinstance(self._handler, Prompt)
        for portion in self._portions(messages):
            deliveries = [self._delivered(message) for message in portion]
            for reply, (_, context) in zip(self._handler.one_by_one(deliveries), deliveries, strict=True):
                yield self._returned(reply, context)

    def _portions(self, messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
        """Those that are delivered at once: all, where clients train, since banks are made of them. Else as many as
        may have what they made in memory at a time, which is put away when they have answered."""
        train = any(message.metadata.message_type == "train" for message in messages)
        if not self._files or train or len(messages) <= PORTION:
            yield from ([messages] if messages else [])
            return
        for first in range(0, len(messages), PORTION):
            portion = messages[first : first + PORTION]
            yield portion
            self.contexts.put_away(message.metadata.dst_node_id for message in portion)

    def _delivered(self, message: Message) -> tuple[Message, Context]:
        """What a node gets of a message, and its Context."""
        # Flower's own grids set the id the same way; Metadata has no setter for it.
        message.metadata.__dict__["_message_id"] = next(self._ids)
        inbox = make_message(message.metadata, self._carry(message.content))
        self._met[message.metadata.dst_node_id] = None
        return inbox, self.contexts[message.metadata.dst_node_id]

    def _returned(self, reply: Message, context: Context) -> Message:
        """What the server gets of a reply of the node with this Context."""
        # What a client made in a round is nobody else's, and is known by whose it was when it came from its file.
        self._shared.put(context.state, but=None if self._files is None else BY_ROUND)
        if reply.has_content():
            reply.content = self._carry(reply.content)
        reply.metadata.__dict__["_message_id"] = next(self._ids)
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages that were not pulled before, in the order of the ids."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """`timeout` has no meaning here: the replies are complete when the handler returns."""
        return self.pull_messages(self.push_messages(messages))

    def snapshot(self) -> State:
        """What the clients hold: the records of each one's Context.state, and which file has the rest. What several
        hold is one record, and a list of their partition ids. Keys of a secret sum are not in it: they never reach a
        disk. Raises OSError."""
        self.contexts.put_away()
        records: dict[tuple[str, type, int | str], ArrayRecord | ConfigRecord | MetricRecord] = {}
        holders: dict[tuple[str, type, int | str], list[int]] = {}
        for node in sorted(self._met):
            context, client = self.contexts.there(node), self.contexts.client(node)
            for key, record in ({} if context is None else context.state).items():
                if key != SECRETS:
                    arrays = isinstance(record, ArrayRecord)  # of which equal ones are one object
                    same = key, type(record), id(record) if arrays else str(wire.settings(record))
                    records.setdefault(same, record)
                    holders.setdefault(same, []).append(client)
        named = {f"{i}/{same[0]}": record for i, (same, record) in enumerate(records.items())}
        state = wire.to_state(wire.of_records(named))
        tensors = {HOLDERS + str(i): torch.tensor(clients) for i, clients in enumerate(holders.values())}
        tensors |= {} if self._files is None else {FILES + key: of for key, of in self._files.index().items()}
        return State({**state.tensors, **tensors}, state.facts)

    def restore(self, state: State) -> None:
        """Give every client the Context.state that `snapshot` had of it. Raises KeyError for a client that is not of
        this grid."""
        self.contexts.forget()
        nodes = self.contexts.of_clients()
        if self._files is not None:
            self._files.take(_index(state))
        held = {name: tensor for name, tensor in state.tensors.items() if not name.startswith((FILES, HOLDERS))}
        for name, record in wire.from_state(State(held, state.facts)).items():
            i, _, key = name.partition("/")
            for client in state.tensors[HOLDERS + i].tolist():
                self.contexts.made(nodes[client]).state[key] = record
                self._met[nodes[client]] = None

    def check(self, state: State) -> dict[int, str]:
        """{client: what is wrong with its file} of this snapshot."""
        return {} if self._files is None else self._files.check(_index(state))

    def lose(self, whose: Iterable[int]) -> None:
        """Go on without what these clients made."""
        if self._files is not None:
            self._files.lose(whose)

    def put_aside(self) -> None:
        """Keep the clients' files that are there under another name. Raises OSError."""
        if self._files is not None:
            self._files.put_aside()

    def saved(self, round: int, oldest: int) -> None:
        """A snapshot was written as the checkpoint of this round, and `oldest` is the first that is left."""
        if self._files is not None:
            self._files.saved(round, oldest)

    def _carry(self, content: RecordDict) -> RecordDict:
        if self._strict:
            return recorddict_from_proto(recorddict_to_proto(content))
        return wire.clone(content)


def _index(state: State) -> dict[str, torch.Tensor]:
    """Of a snapshot's tensors those that say which files clients have."""
    return {name[len(FILES) :]: tensor for name, tensor in state.tensors.items() if name.startswith(FILES)}
