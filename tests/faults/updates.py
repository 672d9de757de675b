"""Bad replies, made by hypothesis from one round's good ones, and what the server lets in of them.

`campaign` spoils one client's answer to a question of a real run: its update, its statistics, its evaluation. A spoilt
answer that is accepted is let in, whatever it holds; of two answers of a client the honest one counts. A fault is lost
when the round would not go on with the others.
"""

from __future__ import annotations

import copy
import io
from collections import Counter
from collections.abc import Callable, Sequence
from unittest import mock

import hypothesis
import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.runs.observer import Observer
from fedinit.state import digest
from fedinit.transport.introduction import Introduction
from fedinit.transport.local import LocalGrid
from strategies.aggregator import Update
from strategies.server import collecting, evaluating, federation, requests
from strategies.server.federated_lora import FederatedLora
from strategies.server.federation import federate
from strategies.server.replies import Asked, match_replies
from strategies.server.round_zero import judge_of
from tests.support.serving import request_of
from tests.support.small import small_config

HUGE = st.floats(1e3, 1e30)
STRANGE = st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e308])
COUNTS = st.one_of(
    st.integers(-(2**62), 0), st.floats(), st.integers(2**41, 2**62), st.lists(st.integers(0, 9), min_size=1)
)
LOSSES = st.one_of(STRANGE, st.floats(max_value=-1e-300), st.integers(0, 9), st.lists(st.floats(), min_size=1))


def _any(tensors, draw, floats: bool = False):
    names = sorted(n for n, t in tensors.items() if t.is_floating_point() or not floats)
    return draw(st.sampled_from(names))


def _entry(tensors, draw):
    name = _any(tensors, draw, floats=True)
    changed = tensors[name].clone()
    changed.view(-1)[draw(st.integers(0, changed.numel() - 1))] = torch.tensor(draw(STRANGE)).float()
    tensors[name] = changed


def _scaled(tensors, draw):
    name = _any(tensors, draw, floats=True)
    tensors[name] = (tensors[name] + 1.0) * draw(HUGE)


def _gauge(tensors, draw):
    c = draw(st.floats(30, 1e4)) ** draw(st.sampled_from([-1, 1]))
    for name in tensors:
        if name[-2:] in ("/A", "/B", "/b", "/d"):
            tensors[name] = tensors[name] * (c if name[-1] in "Bb" else 1 / c)


def _shaped(tensors, draw):
    name = _any(tensors, draw)
    value = tensors[name]
    if value.ndim == 0:
        tensors[name] = draw(st.sampled_from([value[None], value[None, None]]))
        return
    ways = [value[:1], value[..., :1], value[None], value.transpose(0, -1).unsqueeze(1), value[:0], value.flatten()[0]]
    tensors[name] = draw(st.sampled_from([way for way in ways if way.shape != value.shape]))


def _typed(tensors, draw):
    name = _any(tensors, draw)
    kinds = {torch.float64, torch.float16, torch.int32, torch.bool, torch.uint8} - {tensors[name].dtype}
    tensors[name] = tensors[name].to(draw(st.sampled_from(sorted(kinds, key=str))))


def _named(tensors, draw):
    name = _any(tensors, draw)
    how = draw(st.sampled_from(["lost", "more", "other"]))
    value = tensors.pop(name) if how != "more" else tensors[name]
    if how != "lost":
        tensors[draw(st.text("abc/AB.", min_size=1)) + "/" + name] = value


def _places(tensors, draw):
    """Of slots that the client chose itself."""
    name = draw(st.sampled_from(sorted(n for n in tensors if n.endswith("/slots"))))
    places = tensors[name]
    ways = [places - 1000, places + 1000, torch.full_like(places, -1), places.float(), torch.cat([places, places])]
    tensors[name] = draw(st.sampled_from(ways))


TENSORS: dict[str, Callable] = {
    "value": _entry,
    "scaled": _scaled,
    "gauge": _gauge,
    "shape": _shaped,
    "dtype": _typed,
    "names": _named,
    "places": _places,
}


def _metric(metrics, draw):
    key = draw(st.sampled_from(["steps", "optimizer-state", "drift-factors", "drift-product", "another"]))
    whole = key in ("steps", "optimizer-state")
    odd = st.one_of(st.integers(max_value=-1), st.integers(2**41, 2**62)) if whole else st.floats(max_value=-1e-300)
    metrics[key] = draw(st.one_of(STRANGE, odd, st.just([1.0])))


def _missing(metrics, draw):
    del metrics[draw(st.sampled_from(sorted(metrics)))]


ROUNDS = st.sampled_from([-1, 3, 2**60, 1.5, [1]])
METRICS: dict[str, Callable] = {
    "weight": lambda metrics, draw: metrics.__setitem__("num-examples", draw(COUNTS)),
    "missing": _missing,
    "round": lambda metrics, draw: metrics.__setitem__("round", draw(ROUNDS)),
    "loss": lambda metrics, draw: metrics.__setitem__("loss", draw(LOSSES)),
    "metric": _metric,
}


def _counted(metrics, draw):
    """Sums by domain that cannot be: more right than there are, a domain that is none, rows that do not fit."""
    rows = {
        "correct": [[-1], [2**50], [1.5], [0, 0], []],
        "num-examples": [[0], [-3], [2**41], [2.5], []],
        "domains": [[99], [-1], [0.5], [0, 0], []],
    }
    key = draw(st.sampled_from([*rows, "all"]))
    if key == "all":
        metrics.update(draw(st.sampled_from([
            {k: [] for k in rows},
            {k: metrics[k] * 2 for k in rows},
            {k: 3 for k in rows},
        ])))  # fmt: skip
    else:
        metrics[key] = draw(st.sampled_from(rows[key]))


ADDRESS: dict[str, Callable[[Message, Message], None]] = {
    "run": lambda reply, other: reply.metadata.__dict__.__setitem__("_run_id", 77),
    "message": lambda reply, other: reply.metadata.__dict__.__setitem__("_reply_to_message_id", "x"),
    "sender": lambda reply, other: reply.metadata.__dict__.__setitem__("_src_node_id", 5),
    "records": lambda reply, other: reply.content.clear(),
    "record": lambda reply, other: reply.content.__setitem__(wire.METRICS, ArrayRecord({"x": Array(np.zeros(2))})),
    "state": lambda reply, other: reply.content.__setitem__(wire.STATE, ConfigRecord({"x": 1})),
    "error": lambda reply, other: reply.__dict__.update(_content=None, _error=Error(0, "died")),
    "misdirected": lambda reply, other: reply.metadata.__dict__.__setitem__("_src_node_id", other.metadata.src_node_id),
}


def _raw(record: ArrayRecord, draw) -> None:
    """Bytes that are no array: none, cut short, a header of garbage, one that claims petabytes, another kind."""
    name = draw(st.sampled_from(sorted(record)))
    array, data = record[name], bytearray(record[name].data)
    vast = io.BytesIO()
    np.lib.format.write_array_header_1_0(vast, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**6)})
    garbage = draw(st.sampled_from([b"(", b"\xff", b"{", b"\0"])) * 30
    made = {
        "none": b"",
        "cut": bytes(data[: draw(st.integers(1, len(data) - 1))]),
        "header": bytes(data[:10] + garbage + data[40:]),
        "vast": vast.getvalue(),
        "pickle": b"\x80\x04N.",
    }
    how = draw(st.sampled_from([*made, "words", "kind"]))
    if how == "words":
        record[name] = Array(np.array(["x"]))
    elif how == "kind":
        record[name] = Array(array.dtype, array.shape, "x", bytes(data))
    else:
        record[name] = Array(array.dtype, array.shape, "numpy.ndarray", made[how])


METHODS = {
    "lora": "strategy=fedit",
    "core": "strategy=fed_sb init=random_core",
    "blocks": "strategy=ravan init=random_core",
    "vera": "strategy=fedex_lora adapter=vera init=vera",
    "dora": "strategy=fedit adapter=dora",
    "slots": "strategy=lora_a2 adapter.ranks=[1,2,4]",
}


class Played:
    """The end of a run of these words, in which each answer is judged again as often as is wanted."""

    def __init__(self, *words: str) -> None:
        made, played = [], self
        played.expected: dict[str, dict[int, Asked]] = {}
        played.sent: dict[str, list[Message]] = {}
        played.replies: dict[str, list[Message]] = {}

        class Spied(FederatedLora):
            def __init__(self, **options) -> None:
                super().__init__(**options)
                made.append(self)

        class Recording(LocalGrid):
            def holdings(self, nodes):  # so that each is asked by a message
                return {}

            def send_and_receive(self, messages, *, timeout=None):
                replies = super().send_and_receive(messages, timeout=timeout)
                if messages:
                    kind = messages[0].metadata.message_type
                    played.sent[kind], played.replies[kind] = messages, [_copy(reply) for reply in replies]
                return replies

        def noting(kind: str, make: Callable) -> Callable:
            def asking(*args):
                *rest, played.expected[kind] = make(*args)
                return *rest, played.expected[kind]

            return asking

        config = small_config("client.max_steps=1", "evaluation=clients", *words)
        site = Site(config)
        with (
            mock.patch.object(federation, "FederatedLora", Spied),
            mock.patch.object(requests, "for_training", noting("train", requests.for_training)),
            mock.patch.object(requests, "for_evaluation", noting("evaluate", requests.for_evaluation)),
            mock.patch.object(requests, "for_projection", noting("query.project", requests.for_projection)),
        ):
            federate(config, Recording(Cohort(site), len(site.partitions)), site.backbone)
        (self.strategy,) = made

    def accepted(self, kind: str, replies: Sequence[Message]) -> dict[int, str]:
        """{client: hash of what counts} of those let in."""
        if kind == "train":
            return {update.client: _mark(update) for update in self.admitted(replies)}
        if kind == "evaluate":
            asked = self.expected[kind]
            counts, _ = evaluating.admit(self.strategy.state.roster, self.strategy.exchange, replies, asked)
            return {client: repr(dict(found)) for client, found in counts.items()}
        sent = self.sent[kind]
        request = request_of(sent[0])
        asked = {m.metadata.dst_node_id: Asked(i, 0, run=1, message=m) for i, m in enumerate(sent)}
        found, _ = match_replies(replies, asked, self.strategy.exchange.client_of, judge_of(request))
        return {client: digest.of_tensors(one.sums) for client, one in found.items()}

    def admitted(self, replies: Sequence[Message]) -> Sequence[Update]:
        """The updates of the last round that are made of these replies."""
        strategy = self.strategy
        return collecting.admit(strategy.method, strategy.exchange, replies, self.expected["train"]).updates

    def copies(self, kind: str) -> list[Message]:
        return [_copy(reply) for reply in self.replies[kind]]


def _copy(reply: Message) -> Message:
    fresh = Message(wire.clone(reply.content), dst_node_id=1, message_type="train")
    fresh.__dict__["_metadata"] = copy.copy(reply.metadata)
    return fresh


def _mark(update: Update) -> str:
    return digest.of_tensors(wire.to_tensors(update.layers, update.head) | {"n": torch.tensor(update.examples)})


def kinds_of(kind: str, content: RecordDict) -> list[str]:
    """The faults that there can be in an answer of this kind."""
    made = ["duplicate", "replayed", *ADDRESS]
    if kind == "evaluate":
        return [*(m for m in made if m != "state"), "round", "missing", "counts"]
    made += ["bytes", "value", "shape", "dtype", "names", "weight", "round"]
    if kind == "train":
        ends = {name[-2:] for name in content[wire.STATE]}
        both = {"/A", "/B"} <= ends or {"/b", "/d"} <= ends
        made += ["scaled", "missing", "loss", "metric", *(["gauge"] if both else [])]
        made += ["places"] if any(name.endswith("/slots") for name in content[wire.STATE]) else []
    return made


def campaign(played: Played, kind: str, seed: int, count: int) -> Counter:
    """{"injected", "let in", "lost", and each fault}: what became of `count` faults drawn from a seed, in the answers
    to messages of this kind."""
    tally, honest = Counter(), played.accepted(kind, played.copies(kind))
    clients = sorted(honest)
    assert clients == list(range(len(played.replies[kind]))), "an honest answer is refused"

    @hypothesis.seed(seed)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def inject(data) -> None:
        victim = data.draw(st.sampled_from(clients))
        replies = played.copies(kind)
        reply = replies[victim]
        fault = data.draw(st.sampled_from(kinds_of(kind, reply.content)))
        if fault == "bytes":
            _raw(reply.content[wire.STATE], data.draw)
        elif fault == "counts" or fault in METRICS:
            metrics = dict(reply.content[wire.METRICS])
            (_counted if fault == "counts" else METRICS[fault])(metrics, data.draw)
            reply.content[wire.METRICS] = MetricRecord(metrics)
        elif fault in TENSORS:
            tensors = wire.decode(reply.content[wire.STATE])
            TENSORS[fault](tensors, data.draw)
            reply.content[wire.STATE] = wire.encode(tensors)
        elif fault == "duplicate":
            replies.append(played.copies(kind)[victim])
        elif fault == "replayed":
            reply.content[wire.METRICS]["round"] = 77
            replies.append(played.copies(kind)[victim])
        else:
            ADDRESS[fault](reply, replies[victim - 1])
        order = data.draw(st.permutations(replies))
        tally["injected"] += 1
        tally[fault] += 1
        try:
            found = played.accepted(kind, order)
        except Exception:  # noqa: BLE001 (a fault that ends the run is the worst of all)
            tally["lost"] += 1
            return
        if fault in ("duplicate", "replayed"):
            tally["let in"] += found.get(victim) != honest[victim]
        else:
            tally["let in"] += victim in found
        tally["lost"] += any(found.get(client) != honest[client] for client in clients if client != victim)

    inject()
    return tally


def strange_introductions(played: Played, seed: int, count: int) -> int:
    """How many of `count` answers to who a node is, each with one fact spoilt, are read all the same."""
    read = []

    @hypothesis.seed(seed)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def inject(data) -> None:
        reply = played.copies("query.describe")[0]
        Introduction.read(reply)  # which is honest
        facts = reply.content[wire.CONFIG]
        key = data.draw(st.sampled_from(sorted(facts)))
        wrong = {int: [-1, 1.5, "x", True, 2**60], str: [3, [1], b"x"], list: [5, [1.5], 1.5]}
        odd = wrong[type(facts[key])]
        how = data.draw(st.sampled_from(["lost", "odd", "records", "record"]))
        if how == "records":
            reply.content.clear()
        elif how == "record":
            reply.content[wire.CONFIG] = ArrayRecord()
        elif how == "lost":
            del facts[key]
        else:
            facts[key] = data.draw(st.sampled_from(odd))
        try:
            Introduction.read(reply)
            read.append((key, how))
        except ValueError as error:
            assert "\n" not in str(error)

    inject()
    return len(read)


def honest(seed: int, count: int) -> Counter:
    """Updates of real training, in runs of random methods, rates and clients; all must be let in.

    At a rate of 0.3 this model's training diverges (a loss of 2.8 after 20 steps, chance is 2.3): such an update is no
    good one, and the gate refuses those whose products are out of proportion.
    """
    tally = Counter()

    class Watch(Observer):
        def round_done(self, numbers):
            tally["given"] += len(numbers.clients)

        def event(self, kind, facts):
            tally[kind if kind != "refused" else f"refused {facts['code']}: {facts['detail']}"] += 1

    @hypothesis.seed(seed)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        method=st.sampled_from(
            "fedit lora_fair ffa_lora rolora flora frlora flexlora fedex_lora fedsvd spectral fedrot_lora rbla".split()
        ),
        lr=st.sampled_from([1e-4, 0.01, 0.03, 0.1]),
        steps=st.sampled_from([1, 5, 20]),
        optimizer=st.sampled_from(["sgd", "adamw"]),
        root=st.integers(0, 10**6),
    )
    def run(method, lr, steps, optimizer, root) -> None:
        if tally["given"] >= count:
            return
        rate = lr if optimizer == "sgd" else lr / 10
        words = [f"strategy={method}", f"client={optimizer}", f"client.lr={rate}", f"client.max_steps={steps}"]
        words += ["init=pissa"] if method == "frlora" else []
        config = small_config(*words, "client.clip_norm=10", f"seed={root}", "rounds=4", "evaluation=none")
        site = Site(config)
        federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[Watch()])

    run()
    return tally
