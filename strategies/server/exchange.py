"""The way to the clients: which node each is at, and every exchange of messages with them, over one grid.

Node ids are random in Flower and change when a node is started again; a client is its partition id.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from fedinit import wire
from fedinit.errors import Code, RunFailed
from fedinit.message_limit import Limit, excess
from fedinit.transport.introduction import Introduction
from fedinit.transport.local import LocalGrid
from strategies.server.claims import Claims, sorted_out
from strategies.server.counting import aloud
from strategies.server.delivery import WatchedGrid, activations, registered
from strategies.server.meeting import Meeting, absent, divided, introduced, missing
from strategies.server.placing import beside_clients
from strategies.server.replies import Asked, Refusal, match_replies

Emit = Callable[[str, Mapping[str, object]], None]
SAY_SECONDS = 10.0  # between two words of what a run waits for
SLOW_SECONDS = 2.0  # that nodes take to say who they are before it is said that they are waited for
INTRODUCTION = Limit(rest=2**20)  # of what a node says of itself: names of classes, digests of what it holds
NOBODY: Mapping[int, Asked] = MappingProxyType({})


class Exchange:
    """The server's way to its clients, over one grid.

    by_client: {partition id: node id}.
    examples, tests: {partition id: number of training, of test images that it says it has}.
    backbone_digest: of the one backbone of the run; empty until clients are registered.
    bytes_up, bytes_down: of all messages so far, as serialised.

    The round that its methods are given is the last that was completed, -1 at the very beginning; a client that keeps
    its states by round goes back to that one.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        timeout: float,
        emit: Emit,
        reply_timeout: float | None = None,
        waiting: Callable[[str], None] = lambda text: None,
        domain_of: Callable[[int, Sequence[str]], str | None] = lambda client, domains: None,
    ) -> None:
        """
        grid: Flower's, or one in this process.
        timeout: seconds to wait for the clients to appear.
        emit: told of what belongs in the ledger, kind and facts.
        reply_timeout: seconds that one request for replies takes at most; None: as `timeout`.
        waiting: told what the run waits for while clients are missing.
        domain_of: the name of a client's one domain, of these names, as the partition has it; None: any may be its own.
        """
        self.waiting, self.domain_of = waiting, domain_of
        self.grid, self.timeout, self.emit = grid, timeout, emit
        self.reply_timeout = reply_timeout or timeout
        self.by_client: dict[int, int] = {}
        self.examples: dict[int, int] = {}
        self.tests: dict[int, int] = {}
        self.backbone_digest = ""
        self.bytes_up = self.bytes_down = 0
        self._claims = Claims()
        self._greeted: dict[int, str] = {}  # node id -> when it came online, of those that said who they are
        self._all_greeted: Iterable[NodeInfo] | None = None  # what the grid gave when everybody had said who they are
        self._first: Introduction | None = None  # what all clients must agree with

    @property
    def clients(self) -> list[int]:
        """The partition ids of all clients, in order."""
        return sorted(self.by_client)

    @property
    def is_prompt(self) -> bool:
        """Whether it has `one_by_one`."""
        return isinstance(self.grid, LocalGrid) and self.grid.is_prompt

    @property
    def run_id(self) -> int | None:
        """The id of Flower's run; None for a grid without one."""
        return getattr(self.grid.run, "run_id", None)

    def register_clients(
        self,
        backbone_digest: str,
        round: int,
        meeting: Meeting = Meeting(),  # noqa: B008 (it is immutable)
    ) -> dict[int, Introduction]:
        """Ask every node who it is, until all partitions are there; {partition id: what it says}, in order.

        A node that cannot be used costs its own client: one whose answer cannot be read, that has another backbone, a
        partition id of another's, or other classes, domains, score or number of partitions than the configuration or
        most of the others. The ledger names it, and the run begins without it where the rest are a quorum. Of two that
        say at once that they are the same client neither is used, since nobody can say which is.
        meeting: what the configuration knows of the clients, and how many are enough.

        Raises RunFailed after `timeout` seconds, or as soon as too few nodes are left that could be used.
        """
        self.backbone_digest = backbone_digest
        deadline = time.monotonic() + self.timeout
        spoken = float("-inf")
        heard: dict[int, Introduction] = {}
        useless: dict[int, str] = {}  # node: why
        said: dict[int, Introduction] = {}
        refused: list[tuple[int, str]] = []
        wanted = meeting.clients or 1

        def say() -> None:
            nonlocal spoken
            if time.monotonic() - spoken >= SAY_SECONDS:
                spoken = time.monotonic()
                self.waiting(missing(said, wanted, deadline - spoken) + "".join(f"; {why}" for _, why in refused[:1]))

        while True:
            answers = self._hello(round, max(deadline - time.monotonic(), 1.0), say)
            fitting, unfit = sorted_out(answers, lambda _, answer: meeting.misfit(answer, backbone_digest))
            for node in self._take(answers, fitting, heard):
                unfit[node] = f"partition-id {fitting[node].client} is given to two nodes; each needs one of its own"
            useless = {node: why for node, why in useless.items() if node not in fitting} | unfit
            said, odd = divided(heard)
            refused = list({**useless, **{self.by_client[client]: why for client, why in odd.items()}}.items())
            wanted = meeting.clients or max((f.partitions for f in said.values()), default=1)
            if len(said) + len(refused) >= wanted:  # whoever is missing has been heard of
                if len(said) >= wanted or meeting.enough(len(said), wanted):
                    break
                several = "a client" if len(refused) == 1 else f"{len(refused)} clients"
                whys = "; ".join([why for _, why in refused[:10]])
                raise RunFailed(f"{several} could not start: {whys}{'; …' * (len(refused) > 10)}")
            if time.monotonic() > deadline:
                there = f"{len(said)} of {wanted} clients were there after {self.timeout:g} s"
                raise RunFailed(f"{there}; start the rest, partition-id {absent(said, wanted)}")
            say()
            time.sleep(0.5)
        for node, why in refused:
            self.emit("node_refused", {"round": max(round, 0) + 1, "detail": f"node {node}: {why}"})
        self.by_client = {client: self.by_client[client] for client in said}
        self._first = next(iter(said.values()))
        self.examples = {client: introduction.examples for client, introduction in said.items()}
        self.tests = {client: introduction.test_examples for client, introduction in said.items()}
        return said

    def _take(
        self, answers: Collection[int], fitting: Mapping[int, Introduction], heard: dict[int, Introduction]
    ) -> list[int]:
        """Give the nodes that fit their places, in `heard` too; those that get none, since another says the same.
        answers: the nodes of this greeting. A node that was started again may be somebody else."""
        for node, was in self._claims.withdrawn(answers, fitting).items():
            if self.by_client.get(was) == node:
                del self.by_client[was], heard[was]
        left, rivals = [], self._claims.rivals(fitting, self._is_online)
        for node, answer in fitting.items():
            if rivals.get(node) and self.by_client.get(answer.client) != node:
                left.append(node)
            else:
                heard[answer.client], self.by_client[answer.client] = answer, node
        return left

    def discover(
        self, deadline: float, round: int, wanted: Collection[int] = (), silent: Collection[int] = ()
    ) -> list[tuple[int, Introduction]]:
        """Greet nodes that appeared or were started again in mid-run; (partition id, what it says) of who came back.

        A client whose node is gone or silent moves to the one node that says it is this client; while its node is
        there, nobody else is, and while two say so, neither is. A node that is one client becomes no other.

        deadline: a time.monotonic() until which to wait for the `wanted` clients' nodes to be online.
        round: the last that was completed.
        wanted: partition ids. silent: the partition ids of those that gave no answer.
        """
        again, back = set(), []
        while True:
            answers = self._hello(round, max(deadline - time.monotonic(), 0.0))
            fitting, unfit = sorted_out(answers, self._misfit)
            dead = {self.by_client[client] for client in silent if client in self.by_client}
            rivals = self._claims.rivals(fitting, self._is_online, dead)
            for node, introduction in fitting.items():
                client, known = introduction.client, self.by_client[introduction.client]
                if node != known and rivals.get(node):
                    again.add(node)  # it may be this client's new node, and the old one about to be found dead
                    unfit[node] = f"partition-id {client} is another node's"
                    if known not in rivals[node]:
                        unfit[node] = f"node {node}: partition-id {client} is given to two nodes; neither is used"
                else:
                    self.by_client[client], self.tests[client] = node, introduction.test_examples
                    self.examples[client] = introduction.examples
                    back.append((client, introduction))
            for fault in unfit.values():
                self.emit("node_refused", {"round": round + 1, "detail": fault})
            online = set(self.grid.get_node_ids()) if wanted else set()
            if all(self.by_client[client] in online for client in wanted) or time.monotonic() >= deadline:
                for node in again:
                    del self._greeted[node]
                    self._all_greeted = None
                return back
            time.sleep(min(0.5, max(deadline - time.monotonic(), 0.0)))

    def client_of(self, reply: Message) -> int:
        """The partition id of the client whose node the reply is from; -1 for a node that is no client's."""
        node = reply.metadata.src_node_id
        return next((c for c, n in self.by_client.items() if n == node), -1)

    def domains_of(self, client: int, names: Sequence[str]) -> Collection[int]:
        """The indices into the run's domain names of those that this client may have images of."""
        only = self.domain_of(client, names)
        return range(len(names)) if only is None else (names.index(only),)

    def send(
        self,
        messages: list[Message],
        timeout: float,
        asked: Mapping[int, Asked] = NOBODY,
        waiting: Callable[[Collection[int]], None] = lambda nodes: None,
    ) -> list[Message]:
        """The replies that came within `timeout` seconds; the bytes of both directions are counted, of replies those
        that are no larger than they may be. asked: {node id: what its client is asked}. waiting: called now and then
        with the nodes whose replies are missing, where they come over a network."""
        if messages and self.is_prompt:
            with beside_clients(self.grid):
                return list(self.one_by_one(messages, asked))
        self.bytes_down += wire.nbytes(m.content for m in messages)
        limits = {node: wanted.limit for node, wanted in asked.items() if wanted.limit is not None}
        how = {"limits": limits, "waiting": waiting} if isinstance(self.grid, WatchedGrid) else {}
        replies = list(self.grid.send_and_receive(messages, timeout=timeout, **how)) if messages else []
        return [self._counted(reply, asked) for reply in replies]

    def one_by_one(self, messages: list[Message], asked: Mapping[int, Asked]) -> Iterator[Message]:
        """As `send`, in the order of the messages, each reply as soon as it is there."""
        assert isinstance(self.grid, LocalGrid)
        self.bytes_down += wire.nbytes(m.content for m in messages)
        replies = (self._counted(reply, asked) for reply in self.grid.one_by_one(messages))
        round = next((wanted.round for wanted in asked.values()), 0)
        return aloud(replies, len(messages), round, self.waiting)

    def _counted(self, reply: Message, asked: Mapping[int, Asked]) -> Message:
        """The reply, whose bytes are counted; the Error that stands for it, where it holds more than it may, or says of
        itself what no message holds: pulled object by object, an array may declare any whole numbers and any text."""
        if not reply.has_content():
            return reply
        wanted = asked.get(reply.metadata.src_node_id)
        if wanted and wanted.limit and (why := excess(reply.content, wanted.limit)):
            return make_message(reply.metadata, None, Error(Code.too_large, why))
        try:
            self.bytes_up += wire.nbytes([reply.content])
        except (ValueError, TypeError) as error:
            return make_message(reply.metadata, None, Error(Code.unreadable, f"{type(error).__name__}: {error}"))
        return reply

    def log_refusal(self, round: int, refusal: Refusal, kind: str = "refused") -> None:
        """Put a refusal of this round into the ledger. kind: of the event; another where no update is lost by it."""
        self.emit(kind, {"round": round, **vars(refusal)})

    def _is_online(self, node: int) -> bool:
        return node in self.grid.get_node_ids()

    def _hello(
        self, round: int, timeout: float, waiting: Callable[[], None] = lambda: None
    ) -> dict[int, Introduction | str]:
        """{node: what it says of itself, or why that cannot be used}, of those that were not asked yet, or came online
        again since. waiting: as of `_greet`."""
        nodes = self.grid.get_nodes()
        if nodes is self._all_greeted:  # as a grid in this process gives them
            return {}
        online = activations(nodes)
        fresh = [node for node, since in online.items() if self._greeted.get(node) != since]
        known = self.grid.holdings(fresh) if isinstance(self.grid, LocalGrid) else {}
        first = list(known)[:1]
        said = self._greet(first or fresh, round, timeout, waiting)
        if known and isinstance(like := said.get(first[0]), Introduction):
            said |= self._as_the_first(like, known, round)
        elif known:
            said |= self._greet(fresh[1:], round, timeout, waiting)
        self._greeted |= {node: online[node] for node in said}
        for node, client in ({} if known else registered(nodes)).items():
            answer = said.get(node)
            if isinstance(answer, Introduction) and answer.client != client:
                said[node] = f"it is registered as site-{client}, and says that it is client {answer.client}"
        if not isinstance(nodes, list) and self._greeted.keys() >= online.keys():
            self._all_greeted = nodes
        return said

    def _greet(
        self, nodes: Sequence[int], round: int, timeout: float, waiting: Callable[[], None]
    ) -> dict[int, Introduction | str]:
        """What these nodes say of themselves, each asked by a message; those that are away are left out.

        waiting: called now and then once they have taken SLOW_SECONDS, as nodes do that first read their images."""
        slow = time.monotonic() + SLOW_SECONDS
        messages = {node: Message(self._question(round), node, "query.describe") for node in nodes}
        asked = {
            node: Asked(node, round, run=self.run_id, message=message, limit=INTRODUCTION)
            for node, message in messages.items()
        }
        replies = self.send(
            list(messages.values()), timeout, asked, lambda nodes: waiting() if time.monotonic() >= slow else None
        )
        heard, refusals = match_replies(replies, asked, lambda reply: reply.metadata.src_node_id, introduced)
        said = {node: answer for node, answer in heard.items() if answer is not None}
        for refusal in refusals:
            detail = f"{refusal.code}: {refusal.detail}"
            if refusal.code in ("not_asked", "duplicate"):
                self.emit("node_refused", {"round": max(round, 0) + 1, "detail": detail})
            elif refusal.code != "no_reply":
                said.setdefault(refusal.client, detail)
        return said

    def _question(self, round: int) -> RecordDict:
        return RecordDict({wire.CONFIG: ConfigRecord({"backbone": self.backbone_digest, "round": round})})

    def _as_the_first(
        self, like: Introduction, known: Mapping[int, tuple[int, int, int]], round: int
    ) -> dict[int, Introduction | str]:
        """What nodes of this process would say, of which the first was asked: of a hundred thousand, the rest take a
        second instead of minutes. Their messages are counted as if they had been sent."""
        said: dict[int, Introduction | str] = {}
        sizes: dict[tuple[int, ...], int] = {}
        for node, (client, examples, tests) in list(known.items())[1:]:
            said[node] = own = like.of_another(client, examples, tests)
            widths = client.bit_length(), examples.bit_length(), tests.bit_length()  # all that a size depends on
            if widths not in sizes:
                sizes[widths] = wire.nbytes([own.record()])
            self.bytes_up += sizes[widths]
        self.bytes_down += len(said) * wire.nbytes([self._question(round)])
        return said

    def _misfit(self, node: int, introduction: Introduction) -> str:
        """Why a node that says who it is in mid-run is no client of this run; empty where it is one."""
        first, was = self._first, self._claims.of(node)
        if was != introduction.client and self.by_client.get(was) == node:
            return f"node {node}: it is client {was}, and says that it is client {introduction.client}"
        if first is None or introduction.client not in self.by_client:
            return f"partition-id {introduction.client} is no client of this run"
        same = introduction.classes, introduction.domains, introduction.score, introduction.backbone
        if same != (first.classes, first.domains, first.score, self.backbone_digest):
            return f"client {introduction.client} came back with other classes, domains, score or another backbone"
        return ""
