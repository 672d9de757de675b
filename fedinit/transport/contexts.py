"""The Contexts of the nodes of one process, and where what they hold lies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, Context, RecordDict

from fedinit import wire
from fedinit.transport.client_files import ClientFiles

BY_ROUND = "@"  # in the name of what a client made in a round: its own, and nobody else's
FIRST_NODE_ID = 1000  # node ids are arbitrary in Flower; these only must not look like partition ids


class Contexts(MutableMapping[int, Context]):
    """{node id: its Context}, in the order of the partition ids. One is made when it is first asked for, since most of
    many thousands never are.

    What a client made in a round lies in its file from the end of the round on, and is in memory while it is asked.
    """

    def __init__(self, num_nodes: int, run_config: Mapping[str, str], files: ClientFiles | None) -> None:
        """files: where what clients made is put; None: it stays in memory."""
        self._contexts: dict[int, Context | None] = dict.fromkeys(range(FIRST_NODE_ID, FIRST_NODE_ID + num_nodes))
        self._num_nodes, self._run_config, self._files = num_nodes, run_config, files
        self._here: dict[int, dict[str, ArrayRecord]] = {}  # what the file had of each that was asked for since

    def __getitem__(self, node: int) -> Context:
        context = self.made(node)
        if self._files is not None and node not in self._here:
            kept = self._files.get(self.client(node))
            self._here[node] = {key: wire.record(kept, key, ArrayRecord) for key in kept}
            context.state = wire.of_records({**context.state, **kept})
        return context

    def __setitem__(self, node: int, context: Context) -> None:
        self._contexts[node], self._here[node] = context, {}
        if self._files is not None:
            self._files.put(self.client(node), {})

    def __delitem__(self, node: int) -> None:
        del self._contexts[node]
        self._here.pop(node, None)

    def __contains__(self, node: object) -> bool:
        return node in self._contexts  # a Mapping's own would make each that is looked for

    def __iter__(self) -> Iterator[int]:
        return iter(self._contexts)

    def __len__(self) -> int:
        return len(self._contexts)

    def there(self, node: int) -> Context | None:
        """A node's Context where it was made; None where nobody asked for it, so that it holds nothing. What it made in
        a round may be in its file alone."""
        return self._contexts[node]

    def made(self, node: int) -> Context:
        """A node's Context as `there`, made where nobody asked for it."""
        context = self._contexts[node]
        if context is None:
            facts: dict[str, Any] = {"partition-id": node - FIRST_NODE_ID, "num-partitions": self._num_nodes}
            context = self._contexts[node] = Context(1, node, facts, RecordDict(), dict(self._run_config))
        return context

    def holds(self, node: int) -> bool:
        """Whether a client holds anything from before."""
        context = self._contexts[node]
        in_memory = context is not None and bool(context.state)
        return in_memory or (self._files is not None and self.client(node) in self._files)

    def client(self, node: int) -> int:
        """The partition id of a node's client."""
        context = self._contexts[node]
        return node - FIRST_NODE_ID if context is None else int(context.node_config["partition-id"])

    def of_clients(self) -> dict[int, int]:
        """{partition id: the node id of the client}."""
        return {self.client(node): node for node in self._contexts}

    @contextmanager
    def lent(self, node: int) -> Iterator[Context]:
        """A node's Context, to be looked at: what it made is not left in memory for that."""
        was_here = node in self._here
        yield self[node]
        if not was_here:
            self._put_away(node)

    def put_away(self, nodes: Iterable[int] | None = None) -> None:
        """Have what clients made be in their files alone. nodes: theirs; None: everybody's. Raises OSError; what is not
        in its file stays in memory."""
        for node in [*(self._here if nodes is None else nodes)]:
            if node in self._here:
                self._put_away(node)

    def forget(self) -> None:
        """Have nobody hold anything in memory, whatever the files have."""
        for context in self._contexts.values():
            if context is not None:
                context.state = RecordDict()
        self._here.clear()

    def _put_away(self, node: int) -> None:
        context = self._contexts[node]
        if self._files is None or context is None:
            return
        own = {k: r for k, r in context.state.items() if BY_ROUND in k and isinstance(r, ArrayRecord)}
        before = self._here[node]
        if own.keys() != before.keys() or any(own[key] is not before[key] for key in own):
            self._files.put(self.client(node), own)
        context.state = wire.of_records({key: r for key, r in context.state.items() if key not in own})
        del self._here[node]
