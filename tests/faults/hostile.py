"""One registered site that answers with whatever it likes, by seed, and what that costs the others.

A run is played once. Then one client's answer to a question (meet, round 0, train, the second phase of a round,
evaluate) is spoilt as often as is wanted, each time another way, and the server is given all the answers again. It must
not raise; the others' must count as they did; and it may take a second and 50 MB more than for the honest answers.
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
import time
import tracemalloc
import zipfile
from collections import Counter
from unittest import mock

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord

from fedinit import wire
from fedinit.errors import Code
from fedinit.state import digest
from fedinit.transport.local import LocalGrid
from strategies.server import evaluating
from strategies.server.exchange import Exchange
from strategies.server.gate import admit_images
from strategies.server.meeting import Meeting
from strategies.server.replies import match_replies
from strategies.server.requests import answer_limit
from strategies.server.requests import asked as asking
from strategies.server.round_zero import judge_of
from tests.faults.updates import Played
from tests.support.serving import request_of

SECONDS, BYTES = 1.0, 50e6
KINDS = ("query.describe", "query.statistics", "train", "query.project", "evaluate")


def bomb(draw: random.Random) -> bytes:
    """An .npz, which a careless reader unpacks to a hundred times its size."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", bytes(draw.randrange(10**5, 10**6)))
    return packed.getvalue()


def header(shape: tuple[int, ...], dtype: str = "<f4", fortran: bool = False) -> bytes:
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(text, {"descr": dtype, "fortran_order": fortran, "shape": shape})
    return text.getvalue()


def an_array(array: Array, draw: random.Random) -> Array:
    data, size = bytes(array.data), len(array.data)
    vast = tuple(draw.choice([0, -1, 1, 7, 10**6, 10**12]) for _ in range(draw.randrange(4)))
    wrong = np.ones(draw.choice([1, 3, 2**21]), draw.choice(["f4", "f8", "i8", "?", "f2"]))
    absurd = np.load(io.BytesIO(data), allow_pickle=False) * draw.choice([0, -1, -1e6, 1e30, np.nan, np.inf, -1e-30])
    choices = [
        lambda: (array.dtype, array.shape, array.stype, data[: draw.randrange(size)]),
        lambda: (array.dtype, array.shape, array.stype, data + bytes(draw.choice([1, 64, 2**23]))),
        lambda: (array.dtype, array.shape, array.stype, draw.randbytes(size)),
        lambda: (array.dtype, array.shape, array.stype, header(vast) + data[128:]),
        lambda: (array.dtype, array.shape, array.stype, header(tuple(array.shape), draw.choice(["<f8", "|O", "<U9"]))),
        lambda: (array.dtype, array.shape, array.stype, b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65000),
        lambda: (array.dtype, array.shape, array.stype, bomb(draw)),
        lambda: (array.dtype, vast, array.stype, data),
        lambda: (draw.choice(["float64", "O", "", "x" * 10**5]), array.shape, array.stype, data),
        lambda: (array.dtype, array.shape, draw.choice(["", "pickle", "x" * 10**6]), data),
    ]
    if draw.random() < 0.5:
        flipped = bytearray(data)
        for _ in range(draw.randrange(1, 9)):
            flipped[draw.randrange(size)] ^= 1 << draw.randrange(8)
        return Array(array.dtype, array.shape, array.stype, bytes(flipped))
    if draw.random() < 0.4:
        return Array(np.asarray(absurd, array.dtype)) if draw.random() < 0.8 else Array(wrong)
    return Array(*draw.choice(choices)())


def a_value(value: object, draw: random.Random) -> object:
    many = draw.choice([0, 1, 5, 10**6])
    return draw.choice(
        [
            lambda: [0] * many,
            lambda: [1.5] * many,
            lambda: [draw.randrange(-(2**62), 2**62)] * draw.randrange(1, 4),
            lambda: draw.choice([-1, 0, 2**40, 2**62, -(2**62)]),
            lambda: draw.choice([float("nan"), float("inf"), -0.0, 1e308, -1e-300, 5e-324]),
            lambda: value * 2 if isinstance(value, list) and value else value,
            lambda: True,
        ]
    )()


def a_word(value: object, draw: random.Random) -> object:
    text = draw.choice(["", "x", "\n", "\x1b[2J", "../../etc/passwd", "é" * 1000, "x" * 10**6, "y" * 10**7])
    return draw.choice([text, [text], [text] * 3, ["z"] * 10**6, b"\0" * 10**6, a_value(value, draw)])


def mutate(reply: Message, draw: random.Random) -> str:
    """Spoil the answer in one to three ways; what was done, in words."""
    if draw.random() < 0.04:
        reason = draw.choice(["", "gone\n" * 10**6, "x" * 10**7, "a: b: c"])
        # Flower's own codes are the SuperLink's to use: pulling.py.
        reply.__dict__.update(_content=None, _error=Error(draw.choice([0, 2, 99, *Code]), reason))
        return "error"
    done = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        done.append(_step(reply, draw))
    return " ".join(done)


def _step(reply: Message, draw: random.Random) -> str:
    content = reply.content
    name = draw.choice(sorted(content)) if content else ""
    record = content.get(name)
    how = draw.random()
    if record is None or how < 0.05:
        content[draw.choice(["", "x", wire.STATE, wire.METRICS, wire.CONFIG])] = draw.choice(
            [
                lambda: ArrayRecord(),
                lambda: MetricRecord({"a": [1.0] * 10**6}),
                lambda: ConfigRecord({"a": "b" * 10**6}),
            ]
        )()
        return "record"
    if how < 0.1:
        del content[name]
        return "lost"
    if how < 0.13:
        about = {"_run_id": 99, "_reply_to_message_id": "of another time", "_src_node_id": draw.choice([1000, 77])}
        key = draw.choice(sorted(about))
        reply.metadata.__dict__[key] = about[key]
        return key
    if not record or how < 0.16:
        extra = {str(i): i for i in range(draw.choice([1, 100, 10**5]))}
        content[name] = MetricRecord({**extra}) if draw.random() < 0.5 else type(record)()
        return "emptied"
    key = draw.choice(sorted(record))
    if how < 0.22:
        del record[key]
        return "key"
    if isinstance(record, ArrayRecord):
        if how < 0.28:
            for i in range(draw.choice([1, 1000])):
                record[f"{key}/{i}"] = record[key]
            return "names"
        with contextlib.suppress(Exception):  # of one that is spoilt already
            record[key] = an_array(record[key], draw)
        return "array"
    change = a_word if isinstance(record, ConfigRecord) else a_value
    with contextlib.suppress(TypeError):  # of what cannot be in a record, and so in no message
        record[key] = change(record[key], draw)  # type: ignore[assignment]
    return f"{name}.{key}"


class Server:
    """What the server makes of three answers to one question of a run that was played."""

    def __init__(self, played: Played) -> None:
        self.played, self.exchange = played, played.strategy.exchange

    def judged(self, kind: str, replies: list[Message]) -> dict[int, str]:
        """{client: a mark of what counts of its answer}. Raises whatever the server does."""
        if kind == "query.describe":
            return self._met(replies)
        replies = self._taken(kind, replies)
        if kind == "train":
            admitted = self.played.admitted(replies)
            return {u.client: digest.of_tensors(wire.to_tensors(u.layers, u.head)) for u in admitted}
        if kind == "query.project":
            return self._projected(replies)
        if kind == "evaluate":
            state = self.played.strategy.state
            counted, _ = evaluating.admit(state.roster, self.exchange, replies, self.played.expected[kind])
            evaluating.merge_replies(
                state, self.played.strategy.method, self.exchange, replies, self.played.expected[kind]
            )
            return {client: repr(dict(record)) for client, record in counted.items()}
        sent = self.played.sent[kind]
        request = request_of(sent[0])
        asked = asking(self.exchange, self.exchange.clients, sent, 0, answer_limit(request))
        found, _ = match_replies(replies, asked, self.exchange.client_of, judge_of(request, self.exchange.examples))
        return {client: digest.of_tensors(one.sums) for client, one in found.items()}

    def _taken(self, kind: str, replies: list[Message]) -> list[Message]:
        """The replies as they come from the grid."""

        class Canned(LocalGrid):
            def send_and_receive(self, messages, *, timeout=None):
                return replies

        asked, sent = self.played.expected.get(kind, {}), self.played.sent[kind]
        with mock.patch.object(self.exchange, "grid", Canned(lambda pairs: [], len(sent))):
            return self.exchange.send(sent, 0.0, asked)

    def _projected(self, replies: list[Message]) -> dict[int, str]:
        asked, gate = self.played.expected["query.project"], self.played.strategy.method.gate
        question = next(iter(asked.values())).message
        assert question is not None
        means, _ = wire.from_tensors(wire.decode(wire.arrays(question)))
        judge = functools.partial(admit_images, gate, means)
        found, _ = match_replies(replies, asked, self.exchange.client_of, judge)
        return {client: digest.of_tensors(images) for client, images in found.items()}

    def _met(self, replies: list[Message]) -> dict[int, str]:
        class Canned(LocalGrid):
            def send_and_receive(self, messages, *, timeout=None):
                known = {m.metadata.dst_node_id: m for m in messages}
                for node, reply in zip(known, replies, strict=True):  # a forged sender is found before: pulling.py
                    reply.metadata.__dict__["_src_node_id"] = node
                    asked = known.get(reply.metadata.src_node_id)
                    if asked is not None and reply.metadata.reply_to_message_id != "of another time":
                        reply.metadata.__dict__["_reply_to_message_id"] = asked.metadata.message_id
                return replies

        exchange = Exchange(Canned(lambda pairs: [], len(replies)), timeout=0.0, emit=lambda kind, facts: None)
        backbone = self.exchange.backbone_digest
        said = exchange.register_clients(backbone, -1, Meeting(quorum=0.5, clients=len(replies)))
        return {client: repr(introduction) for client, introduction in said.items()}


def campaign(played: Played, kind: str, seed: int, count: int, measured: bool = True) -> Counter:
    """What `count` spoilt answers came to: {"refused", "let in", "slow", "large", "others lost"}.

    measured: whether memory is looked at, which takes its time. Raises what the server raises, with the fault.
    """
    server, tally = Server(played), Counter()
    honest = server.judged(kind, played.copies(kind))
    assert sorted(honest) == [0, 1, 2], "an honest answer is refused"
    for i in range(count):
        draw = random.Random(f"hostile/{kind}/{seed}/{i}")
        replies = played.copies(kind)
        bad = draw.randrange(3)
        fault = mutate(replies[bad], draw)
        if measured:
            tracemalloc.start()
        began = time.process_time()
        try:
            judged = server.judged(kind, replies)
        except Exception as error:
            raise AssertionError(f"answer {i} of seed {seed} ({fault}) ends a run: {error!r}") from error
        tally["slow"] += time.process_time() - began > (5 if measured else SECONDS)  # tracing is slow itself
        if measured:
            tally["large"] += tracemalloc.get_traced_memory()[1] > BYTES
            tracemalloc.stop()
        others = {client: mark for client, mark in honest.items() if client != bad}
        tally["others lost"] += any(judged.get(client) != mark for client, mark in others.items())
        tally["let in" if bad in judged else "refused"] += 1
    return tally
