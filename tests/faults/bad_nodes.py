"""Registered nodes of a real SuperLink that this process plays, so that they may answer it with anything.

They hold the keys of their sites and speak Flower's own protocol with TLS; what an honest client would answer is asked
of a cohort in this process. `Bad` spoils that answer by a seed, the client, the question and how often it was asked, so
the same bad answers can be given to a run in this process too, which is what the deployed one is compared with.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response

from clients.cohort import Cohort
from clients.site import Site
from fedinit.config.schema import Config
from fedinit.errors import Code
from tests.faults.hostile import mutate

POLL_SECONDS = 2.0
TRIES = 20  # of one request: a SuperLink's database is locked for a moment where many write at once
LIES: tuple[dict[str, object], ...] = (
    {"arraychunk_ids": [5]},
    {"arraychunk_ids": [-1]},
    {"arraychunk_ids": [0] * 100_000},
    {"arraychunk_ids": 7},
    {"arraychunk_ids": None},
    {"shape": "x"},
    {"shape": [10**12]},
    {"dtype": 7},
    {"stype": "\ud800"},
)
Result = TypeVar("Result")
Answer = Callable[[int, Message], Message]


class Lying(Array):
    """An array whose own words about its bytes are changed, which Flower reads where it puts the array together."""

    def __init__(self, array: Array, lie: dict[str, object]) -> None:
        super().__init__(array.dtype, array.shape, array.stype, array.data)
        self.lie = lie

    def deflate(self) -> bytes:
        body = json.loads(super().deflate().partition(b"\x00")[2])
        return add_header_to_object_body(json.dumps(body | self.lie).encode(), self)


Lying.__qualname__ = "Array"  # what it says that it is


class Honest:
    """The clients of a configuration, one by one and in any order, as their nodes would answer."""

    def __init__(self, config: Config) -> None:
        self.cohort, self.contexts = Cohort(Site(config)), {}
        self.lock = threading.Lock()

    def __call__(self, client: int, message: Message) -> Message:
        with self.lock:
            context = self.contexts.setdefault(client, Context(1, 1, {"partition-id": client}, RecordDict(), {}))
            return self.cohort([(message, context)])[0]


class Bad:
    """The same clients, some of which spoil what they answer.

    bad: clients that spoil every answer. polite: those of them that spoil none about who they are.
    faults: {(client, question, how often it was asked before): what was done to the answer, in words}.
    """

    def __init__(self, honest: Answer, seed: int, bad: Collection[int], polite: Collection[int], wired: bool) -> None:
        """wired: whether the answers go over a network. Where they do not, one that could not be put together is the
        Error that stands for it."""
        self.honest, self.seed, self.bad, self.polite, self.wired = honest, seed, bad, polite, wired
        self.asked: Counter[tuple[int, str]] = Counter()
        self.faults: dict[tuple[int, str, int], str] = {}

    def __call__(self, client: int, message: Message) -> Message:
        reply, kind = self.honest(client, message), message.metadata.message_type
        if client not in self.bad or (kind == "query.describe" and client in self.polite):
            return reply
        times = self.asked[client, kind]
        self.asked[client, kind] += 1
        draw = random.Random(f"wire/{self.seed}/{client}/{kind}/{times}")
        while True:
            try:
                spoilt, fault = self._spoil(message, reply, draw)
                get_all_nested_objects(spoilt)
                break
            except (TypeError, ValueError, AttributeError):  # what cannot be sent
                reply = self.honest(client, message)
        self.faults[client, kind, times] = fault
        return spoilt

    def _spoil(self, message: Message, reply: Message, draw: random.Random) -> tuple[Message, str]:
        arrays = [(record, key) for record in reply.content.array_records.values() for key in record]
        if arrays and draw.random() < 0.15:
            record, key = draw.choice(arrays)
            lie = draw.choice(LIES)
            if not self.wired:
                return Message(Error(Code.unreadable, "it cannot be put together"), reply_to=message), f"lie {lie}"
            record[key] = Lying(record[key], lie)
            return reply, f"lie {lie}"
        about = dict(reply.metadata.__dict__)
        fault = mutate(reply, draw)
        reply.metadata.__dict__.update(about)  # who answers what is the SuperLink's to say
        return reply, fault


class Node(threading.Thread):
    """A SuperNode in this process, of the site in `folder`, until `stop` is set."""

    sending = threading.Lock()  # one after the other: what is tried here is the server, not the database of Flower's

    def __init__(self, client: int, folder: Path, address: str, answer: Answer, stop: threading.Event) -> None:
        super().__init__(daemon=True, name=f"node {client}")
        self.client, self.folder, self.address, self.answer, self.ended = client, folder, address, answer, stop

    def run(self) -> None:
        key = load_ssh_private_key((self.folder / "node.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        keys, authority = (key, key.public_key()), str(self.folder / "ca.crt")
        with http_request_response(self.address, False, authority, keys) as (_, receive, send, _, _, pull, push, done):
            while not self.ended.wait(POLL_SECONDS):
                if (received := receive()) is None:
                    continue
                announced, tree = received
                run, name = announced.metadata.run_id, announced.metadata.message_id
                contents = pull_objects([*{part.object_id for part in iterate_object_tree(tree)}], partial(pull, run))
                message = inflate_object_from_contents(name, contents)
                assert isinstance(message, Message)
                message.__dict__["_metadata"] = announced.metadata
                done(run, name)
                self._send(self.answer(self.client, message), send, partial(push, run))

    @staticmethod
    def _send(reply: Message, send: Callable, push: Callable[[str, str, bytes], None]) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id  # Metadata has no setter
        objects = get_all_nested_objects(reply)
        with Node.sending:
            wanted, session = _insisting(send, reply, get_object_tree(reply), 0.0)
            for name, thing in objects.items():
                if name in wanted:
                    _insisting(push, session, name, thing.deflate())


def _insisting(request: Callable[..., Result], *words: object) -> Result:
    """What the request gives. Raises what it raises, in the end."""
    for _ in range(TRIES):
        try:
            return request(*words)
        except httpx.HTTPStatusError:
            time.sleep(0.5)
    return request(*words)


def start(clients: Sequence[int], folder: Path, address: str, answer: Answer) -> tuple[list[Node], threading.Event]:
    """The nodes of these clients, whose sites are below `folder`, and what ends them."""
    stop = threading.Event()
    nodes = [Node(client, folder / f"site-{client}", address, answer, stop) for client in clients]
    for node in nodes:
        node.start()
    return nodes, stop
