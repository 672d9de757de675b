"""The way to the clients: which node each is at, and every exchange of messages with them, over one grid.

Node ids are random in Flower and change when a node is started again; a client is its partition id.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedinit import wire
from fedinit.errors import RunFailed
from strategies.server.delivery import AWAY, activations
from strategies.server.introduction import Introduction
from strategies.server.replies import Asked, Refusal, match_replies

Emit = Callable[[str, Mapping[str, object]], None]


class Exchange:
    """by_client: {partition id: node id}. tests: {partition id: test images that it says it has}. bytes_up, bytes_down:
    of all messages, as serialised.

    The round that its methods are given is the last that was completed, -1 at the very beginning; a client that keeps
    its states by round goes back to that one.
    """

    def __init__(self, grid: Grid, *, timeout: float, emit: Emit, reply_timeout: float | None = None) -> None:
        """
        grid: Flower's, or one in this process.
        timeout: seconds to wait for the clients to appear.
        emit: told of what belongs in the ledger, kind and facts.
        reply_timeout: seconds that one request for replies takes at most; None: as `timeout`.
        """
        self.grid, self.timeout, self.emit = grid, timeout, emit
        self.reply_timeout = reply_timeout or timeout
        self.by_client: dict[int, int] = {}
        self.tests: dict[int, int] = {}
        self.backbone_digest = ""  # of the one backbone of the run
        self.bytes_up = self.bytes_down = 0
        self._greeted: dict[int, str] = {}  # node id -> when it came online, of those that said who they are
        self._first: Introduction | None = None  # what all clients must agree with

    @property
    def clients(self) -> list[int]:
        """The partition ids of all clients, in order."""
        return sorted(self.by_client)

    @property
    def run_id(self) -> int | None:
        """Of Flower's run; None for a grid without one."""
        return getattr(self.grid.run, "run_id", None)

    def register_clients(self, backbone_digest: str, round: int) -> dict[int, Introduction]:
        """Ask every node who it is, until all partitions are there; {partition id: what it says}, in order.

        Raises RunFailed after `timeout` seconds, for a partition id given twice, and for clients that disagree on
        the partitions, the classes, the domains, the score or the backbone.
        """
        self.backbone_digest = backbone_digest
        deadline = time.monotonic() + self.timeout
        facts: dict[int, Introduction] = {}
        while True:
            for node, reply in self._hello(round, max(deadline - time.monotonic(), 1.0)).items():
                fact = _introduced(reply)
                if isinstance(fact, str):
                    raise RunFailed(f"a client could not start: {fact}")
                client = fact.client
                if self.by_client.get(client, node) != node and self.by_client[client] in activations(self.grid):
                    raise RunFailed(f"partition-id {client} is given to two nodes; each needs one of its own")
                facts[client], self.by_client[client] = fact, node
            facts = dict(sorted(facts.items()))
            self._agree(facts)
            wanted = max((f.partitions for f in facts.values()), default=1)
            if len(facts) >= wanted:
                break
            if time.monotonic() > deadline:
                raise RunFailed(f"{len(facts)} of {wanted} clients were there after {self.timeout:g} s; start the rest")
            time.sleep(0.5)
        self._first = next(iter(facts.values()))
        self.tests = {client: fact.test_examples for client, fact in facts.items()}
        return facts

    def discover(
        self, deadline: float, round: int, wanted: Collection[int] = (), silent: Collection[int] = ()
    ) -> list[tuple[int, Introduction]]:
        """Greet nodes that appeared or were started again in mid-run, and wait until the `wanted` clients' are online,
        or until the `deadline`, a time.monotonic(). A client whose node is gone, or gave no answer (`silent`), moves to
        the node that says it is this client; while its node is there, nobody else is.

        Returns who came back, and what they say of themselves.
        """
        again, back = set(), []
        while True:
            for node, reply in self._hello(round, max(deadline - time.monotonic(), 0.0)).items():
                fact = _introduced(reply)
                fault = fact if isinstance(fact, str) else self._misfit(fact)
                if not isinstance(fact, str) and not fault:
                    known = self.by_client[fact.client]
                    if known != node and known in set(self.grid.get_node_ids()) and fact.client not in silent:
                        again.add(node)  # it may be this client's new node, and the old one about to be found dead
                        fault = f"partition-id {fact.client} is another node's"
                    else:
                        self.by_client[fact.client], self.tests[fact.client] = node, fact.test_examples
                        back.append((fact.client, fact))
                if fault:
                    self.emit("node_refused", {"round": round + 1, "detail": fault})
            online = set(self.grid.get_node_ids()) if wanted else set()
            if all(self.by_client[client] in online for client in wanted) or time.monotonic() >= deadline:
                for node in again:
                    del self._greeted[node]
                return back
            time.sleep(min(0.5, max(deadline - time.monotonic(), 0.0)))

    def client_of(self, reply: Message) -> int:
        """Whose node the reply is from; -1 for a node that is no client's."""
        node = reply.metadata.src_node_id
        return next((c for c, n in self.by_client.items() if n == node), -1)

    def send(self, messages: list[Message], timeout: float) -> list[Message]:
        """Send, receive, and count the bytes of both directions; timeout in seconds."""
        self.bytes_down += wire.nbytes(m.content for m in messages)
        replies = list(self.grid.send_and_receive(messages, timeout=timeout)) if messages else []
        self.bytes_up += wire.nbytes(r.content for r in replies if r.has_content())
        return replies

    def log_refusal(self, round: int, refusal: Refusal) -> None:
        """Put a refusal into the ledger."""
        self.emit("refused", {"round": round, **vars(refusal)})

    def _hello(self, round: int, timeout: float) -> dict[int, Message]:
        """{node: what it says of itself}, of those that were not asked yet, or came online again since."""
        online = activations(self.grid)
        fresh = [node for node, since in online.items() if self._greeted.get(node) != since]
        hello = ConfigRecord({"backbone": self.backbone_digest, "round": round})
        messages = {node: Message(RecordDict({wire.CONFIG: hello}), node, "query.describe") for node in fresh}
        asked = {node: Asked(node, round, run=self.run_id, message=message) for node, message in messages.items()}
        replies = self.send(list(messages.values()), timeout)
        heard, refusals = match_replies(
            replies, asked, lambda reply: reply.metadata.src_node_id, lambda reply, _: reply
        )
        for refusal in refusals:
            if refusal.code != "no_reply":
                detail = f"{refusal.code}: {refusal.detail}"
                self.emit("node_refused", {"round": max(round, 0) + 1, "detail": detail})
        heard = {node: r for node, r in heard.items() if not (r.has_error() and r.error.code in AWAY)}
        self._greeted |= {node: online[node] for node in heard}
        return heard

    def _agree(self, facts: Mapping[int, Introduction]) -> None:
        """Raise RunFailed where clients are not of one federation, or hold another backbone than the server."""
        first = next(iter(facts.values()), None)
        for client, fact in facts.items():
            for key in ("classes", "domains", "partitions", "score"):
                if first is not None and getattr(fact, key) != getattr(first, key):
                    said = f"{key} than client {first.client}: {getattr(fact, key)}"
                    raise RunFailed(f"client {client} has other {said}")
            if fact.backbone != self.backbone_digest:
                raise RunFailed(
                    f"client {client} holds another backbone ({fact.backbone[:12]}) than the server "
                    f"({self.backbone_digest[:12]}); give both the same model.checkpoint"
                )

    def _misfit(self, fact: Introduction) -> str:
        """Why a node that says who it is in mid-run is no client of this run; empty where it is one."""
        first = self._first
        if first is None or fact.client not in self.by_client:
            return f"partition-id {fact.client} is no client of this run"
        same = fact.classes, fact.domains, fact.score, fact.backbone
        if same != (first.classes, first.domains, first.score, self.backbone_digest):
            return f"client {fact.client} came back with other classes, domains, score or another backbone"
        return ""


def _introduced(reply: Message) -> Introduction | str:
    """What a node says of itself, or why it cannot be used."""
    if reply.has_error():
        return reply.error.reason or ""
    try:
        return Introduction.read(reply)
    except ValueError as error:
        return str(error)
