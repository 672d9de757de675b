"""Bad updates, made by hypothesis from one round's good ones, and what the gate lets in of them.

`inject` spoils one client's reply; the campaign counts a fault as let in when an update of that client is accepted that
is not the honest one, and a round as lost when it would not go on with the others.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import hypothesis
import torch
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from clients.cohort import Cohort
from clients.site import Site
from fedinit import digest, wire
from fedinit.engines.local import LocalGrid
from fedinit.factors import Factors
from fedinit.initializers import create_initializer
from fedinit.initializers.initializer import Setting
from fedinit.metrics import Observer
from strategies import create_aggregator
from strategies.aggregator import Aggregate, Update
from strategies.federated_lora import FederatedLora
from strategies.federation import federate
from strategies.gate import Gate
from strategies.reinit import Ground, create_reinit
from tests.small import small_config

HUGE = st.floats(1e3, 1e30)
STRANGE = st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e308])
LOSSES = st.one_of(STRANGE, st.lists(st.floats(), min_size=1))
COUNTS = st.one_of(
    st.integers(-(2**62), 0), st.floats(), st.integers(2**41, 2**62), st.lists(st.integers(0, 9), min_size=1)
)

Reply = tuple[dict[str, torch.Tensor], dict[str, object]]


def _entry(tensors, draw, value):
    name = draw(st.sampled_from(sorted(tensors)))
    changed = tensors[name].clone()
    changed.view(-1)[draw(st.integers(0, changed.numel() - 1))] = torch.tensor(value, dtype=torch.float64).float()
    tensors[name] = changed


def _scaled(tensors, draw):
    name = draw(st.sampled_from(sorted(tensors)))
    tensors[name] = (tensors[name] + 1.0) * draw(HUGE)


def _gauge(tensors, draw):
    c = draw(st.floats(30, 1e4)) ** draw(st.sampled_from([-1, 1]))
    for name in tensors:
        if name[-2:] in ("/A", "/B"):
            tensors[name] = tensors[name] * (c if name[-1] == "B" else 1 / c)


def _shaped(tensors, draw):
    name = draw(st.sampled_from(sorted(tensors)))
    value = tensors[name]
    tensors[name] = draw(
        st.sampled_from([value[:1], value[..., :1], value[None], value.T[:, None], value[:0], value.flatten()[0]])
    )


def _typed(tensors, draw):
    name = draw(st.sampled_from(sorted(tensors)))
    kinds = [torch.float64, torch.float16, torch.int32, torch.bool, torch.uint8]
    tensors[name] = tensors[name].to(draw(st.sampled_from(kinds)))


def _named(tensors, draw):
    name = draw(st.sampled_from(sorted(tensors)))
    how = draw(st.sampled_from(["lost", "more", "other"]))
    value = tensors.pop(name) if how != "more" else tensors[name]
    if how != "lost":
        tensors[draw(st.text("abc/AB.", min_size=1)) + "/" + name] = value


TENSORS: dict[str, Callable] = {
    "value": lambda tensors, draw: _entry(tensors, draw, draw(STRANGE)),
    "scaled": _scaled,
    "gauge": _gauge,
    "shape": _shaped,
    "dtype": _typed,
    "names": _named,
}
METRICS: dict[str, Callable] = {
    "weight": lambda metrics, draw: metrics.__setitem__("num-examples", draw(COUNTS)),
    "no weight": lambda metrics, draw: metrics.pop("num-examples"),
    "round": lambda metrics, draw: metrics.__setitem__("round", draw(st.sampled_from([0, -1, 2, 2**60, 1.5]))),
    "loss": lambda metrics, draw: metrics.__setitem__("loss", draw(LOSSES)),
}
ADDRESS: dict[str, Callable[[Message, Message], None]] = {
    "run": lambda reply, other: reply.metadata.__dict__.__setitem__("_run_id", 77),
    "message": lambda reply, other: reply.metadata.__dict__.__setitem__("_reply_to_message_id", "x"),
    "sender": lambda reply, other: reply.metadata.__dict__.__setitem__("_src_node_id", 5),
    "records": lambda reply, other: reply.content.clear(),
    "record": lambda reply, other: reply.content.__setitem__(wire.STATE, ConfigRecord({"x": 1})),
    "error": lambda reply, other: reply.__dict__.update(_content=None, _error=Error(0, "died")),
    "misdirected": lambda reply, other: reply.metadata.__dict__.__setitem__(
        "_src_node_id", other.metadata.src_node_id
    ),
}
KINDS = ("duplicate", "replayed", *TENSORS, *METRICS, *ADDRESS)


class Round:
    """A strategy that waits for the replies of a round, and the honest replies."""

    def __init__(self, site: Site, gate: Gate | None = None) -> None:
        self.strategy = FederatedLora(
            aggregator=create_aggregator("fedit"),
            reinit=create_reinit("average"),
            ground=Ground(ranks={name: 4 for name in site.targets}, scale=1.0, draw=None, frozen=None),
            seed=0,
            gate=gate,
        )
        grid = LocalGrid(Cohort(site), len(site.partitions))
        self.strategy.meet(grid, site.backbone.digest)
        head = {"weight": torch.zeros(10, 24), "bias": torch.zeros(10)}
        self.strategy.state = Aggregate(layers=_start(site), head=head)
        messages = self.strategy.configure_train(1, None, ConfigRecord(), grid)
        self.replies = grid.send_and_receive(messages)
        for message in messages:
            node = message.metadata.dst_node_id
            expected = dataclasses.replace(self.strategy._expected[node], message=message.metadata.message_id)
            self.strategy._expected[node] = expected
        self.honest = self.accepted(self.replies)

    def accepted(self, replies: Sequence[Message]) -> dict[int, str]:
        """{client: hash of its update} of those let in."""
        updates, _ = self.strategy._judge(replies)
        return {update.client: _mark(update) for update, _ in updates}

    def copies(self) -> list[Message]:
        made = []
        for reply in self.replies:
            fresh = Message(wire.clone(reply.content), dst_node_id=1, message_type="train")
            fresh.__dict__["_metadata"] = copy.copy(reply.metadata)
            made.append(fresh)
        return made


def _start(site: Site) -> dict[str, Factors]:
    """Factors of which neither is zero, as after a round."""
    draw = torch.Generator().manual_seed(0)
    setting = Setting(targets=site.targets, rank=4, scale=1.0, seed=0)
    layers = create_initializer("kaiming", {}).plan(setting).layers
    return {n: dataclasses.replace(f, B=0.02 * torch.randn(f.B.shape, generator=draw)) for n, f in layers.items()}


def _mark(update: Update) -> str:
    return digest.of_tensors(wire.to_tensors(update.layers, update.head) | {"n": torch.tensor(update.examples)})


def campaign(site: Site, seed: int, count: int, gate: Gate | None = None) -> Counter:
    """{"injected", "let in", "lost", and each kind}: what became of `count` faults drawn from a seed."""
    round, tally = Round(site, gate), Counter()
    clients = sorted(round.honest)
    assert len(clients) == len(site.partitions)

    @hypothesis.seed(seed)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def inject(data) -> None:
        kind, victim = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(clients))
        replies = round.copies()
        reply = replies[victim]
        if kind in TENSORS or kind in METRICS or kind == "replayed":
            tensors, metrics = wire.decode(reply.content[wire.STATE]), dict(reply.content[wire.METRICS])
            if kind in TENSORS:
                TENSORS[kind](tensors, data.draw)
            elif kind in METRICS:
                METRICS[kind](metrics, data.draw)
            content = RecordDict({wire.STATE: wire.encode(tensors), wire.METRICS: MetricRecord(metrics)})
            if kind == "replayed":
                content[wire.METRICS]["round"] = 0
                replies.append(round.copies()[victim])
            reply.content = content
        elif kind == "duplicate":
            replies.append(round.copies()[victim])
        else:
            ADDRESS[kind](reply, replies[victim - 1])
        order = data.draw(st.permutations(replies))
        tally["injected"] += 1
        tally[kind] += 1
        try:
            found = round.accepted(order)
        except Exception:  # noqa: BLE001 (a fault that ends the run is the worst of all)
            tally["lost"] += 1
            return
        tally["let in"] += found.get(victim, round.honest[victim]) != round.honest[victim]
        others = {client for client in clients if client != victim}
        tally["lost"] += any(found.get(client) != round.honest[client] for client in others)

    inject()
    return tally


def honest(seed: int, count: int) -> Counter:
    """Updates of real training, in runs of random methods, rates and clients; all must be let in."""
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
        lr=st.sampled_from([1e-4, 0.01, 0.1, 0.3]),
        steps=st.sampled_from([1, 5, 20]),
        optimizer=st.sampled_from(["sgd", "adamw"]),
        root=st.integers(0, 10**6),
    )
    def run(method, lr, steps, optimizer, root) -> None:
        if tally["given"] >= count:
            return
        rate = lr if optimizer == "sgd" else lr / 10
        words = [f"strategy={method}", f"client={optimizer}", f"client.lr={rate}", f"client.max_steps={steps}"]
        config = small_config(*words, "client.clip_norm=10", f"seed={root}", "rounds=4", "evaluation=none")
        site = Site(config)
        federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[Watch()])

    run()
    return tally
