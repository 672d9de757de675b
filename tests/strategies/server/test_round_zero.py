"""Round 0 over the wire: statistics as query messages, what a client that fails costs, and what its result leaves."""

from __future__ import annotations

import csv
import gc
import json
import weakref

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.client_app import _cohort
from clients.client_app import app as client_app
from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.config.flower import to_run_config
from fedinit.errors import RunFailed
from fedinit.runs.observer import Observer
from fedinit.statistics import Request, Sampling
from fedinit.tensor_array import TensorArray
from fedinit.transport.local import LocalGrid
from run_sim import main
from strategies.server import round_zero
from strategies.server.federation import federate
from tests.support.round_zero_faults import spoilt, with_error, with_nan, with_other_shape
from tests.support.small import WORDS, small_config
from tests.support.watching import Watch

EVA = ("init=eva", "init.examples=32", "init.sketch=exact")


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config(*EVA))


@pytest.mark.parametrize(
    ("spoil", "code"), [(with_nan, "not_finite"), (with_error, "client_error"), (with_other_shape, "shape")]
)
def test_a_client_that_fails_in_round_0_costs_its_own_part(site, spoil, code):
    """The start is the one that the others' statistics give, the summary says who is missing."""
    config = small_config(*EVA, "rounds=1", "evaluation=none")
    watch = Watch()
    grid = LocalGrid(spoilt(Cohort(site), {1}, spoil), 3)
    outcome = federate(config, grid, site.backbone, observers=[watch])
    assert watch.events == [("refused", 0, 1, code)]
    assert outcome.start["lost"] == {"1": code} and outcome.start["clients"] == 2
    assert [c.client for c in watch.zero[0].clients] == [0, 2] and len(watch.rounds[0].clients) == 3
    absent = federate(config, LocalGrid(spoilt(Cohort(site), {1}, with_error), 3), site.backbone)
    assert outcome.final_hash == absent.final_hash
    everyone = federate(config, LocalGrid(Cohort(site), 3), site.backbone)
    assert everyone.final_hash != outcome.final_hash


def test_without_any_statistics_the_run_ends_with_a_reason(site):
    grid = LocalGrid(spoilt(Cohort(site), {0, 1, 2}, with_error), 3)
    with pytest.raises(RunFailed, match="round 0: no usable statistics from any client .client_error: gone"):
        federate(small_config(*EVA), grid, site.backbone)


def test_too_few_statistics_end_the_run_with_the_numbers(site):
    """The quorum is of round 0 too: of three clients one is none of the default half, and enough for quorum=1."""
    spoil = spoilt(Cohort(site), {0, 1}, with_error)
    said = "round 0: usable statistics of 1 clients, the quorum is 2 .client_error: gone"
    with pytest.raises(RunFailed, match=said):
        federate(small_config(*EVA), LocalGrid(spoil, 3), site.backbone)
    outcome = federate(small_config(*EVA, "quorum=1", "rounds=1"), LocalGrid(spoil, 3), site.backbone)
    assert outcome.start["clients"] == 1


def test_a_client_lost_in_the_second_pass_is_not_among_those_counted(site):
    """What it sent in the first pass was used; `clients` are those whose statistics are in every pass."""
    asked = []

    def second(message, reply):
        asked.append(1)
        return with_error(message, reply) if len(asked) == 2 else reply

    watch, config = Watch(), small_config(*EVA, "head=ridge", "rounds=1", "evaluation=none")
    grid = LocalGrid(spoilt(Cohort(site), {1}, second), 3)
    outcome = federate(config, grid, site.backbone, observers=[watch])
    assert len(asked) >= 2 and outcome.start["lost"] == {"1": "client_error"} and outcome.start["clients"] == 2
    assert [c.client for c in watch.zero[0].clients] == [0, 2]


def test_a_client_with_too_few_examples_refuses():
    """Its statistics never leave it, and the others' make the start."""
    words = (*EVA, "partition=dirichlet", "partition.clients=6", "partition.alpha=0.3", "rounds=1", "evaluation=none")
    skewed = Site(small_config(*words))
    sizes = [len(p.train) for p in skewed.partitions]
    least = sorted(sizes)[2]
    watch = Watch()
    config = small_config(*words, f"init.min_examples={least}", f"init.examples={least}")
    outcome = federate(config, LocalGrid(Cohort(skewed), 6), skewed.backbone, observers=[watch])
    few = {i for i, n in enumerate(sizes) if n < least}
    assert few and watch.events == [("refused", 0, i, "too_few_examples") for i in sorted(few)]
    assert outcome.start["lost"] == {str(i): "too_few_examples" for i in sorted(few)}


def test_round_0_is_in_the_bytes_and_the_files(site, tmp_path, capsys):
    words = [*WORDS, *EVA, f"output_dir={tmp_path}"]
    assert main(words) == 0
    assert "lora_fair: round 0, statistics of 3 clients" in capsys.readouterr().out
    (folder,) = (tmp_path / "digits").iterdir()
    rows = list(csv.DictReader(open(folder / "metrics.csv")))
    summary = json.loads((folder / "summary.json").read_text())
    assert [r["round"] for r in rows] == ["0", "1", "2"]
    assert sum(int(r["bytes_up"]) for r in rows) == summary["bytes_up"]
    assert sum(int(r["bytes_down"]) for r in rows) == summary["bytes_down"]
    assert sum(summary["start"]["ranks"].values()) == 4 * 4
    triangles = sum(k * (k + 1) // 2 * 4 for k in (24, 96, 24, 96))  # one for each adapted layer
    assert 3 * triangles < int(rows[0]["bytes_up"]) < 3 * triangles + 3 * 10_000


def test_cohort_and_client_app_measure_the_same(site):
    config = small_config(*EVA, "rounds=1", "evaluation=none", "init.tokens=5")
    run_config = to_run_config(config)

    def one_by_one(deliveries):
        for _, context in deliveries:
            context.node_config["limits"] = "off"  # the run says which images
        return [client_app(message, context) for message, context in deliveries]

    sums = []
    for handler in (Cohort(site), one_by_one):
        seen = {}

        class Watching(LocalGrid):
            def send_and_receive(self, messages, *, timeout=None, seen=seen):
                replies = super().send_and_receive(messages, timeout=timeout)
                if messages and messages[0].metadata.message_type == "query.statistics":
                    seen |= {r.metadata.src_node_id: wire.decode(r.content["state"]) for r in replies}
                return replies

        federate(config, Watching(handler, 3, run_config=run_config, strict=True), site.backbone)
        sums.append(seen)
    assert sums[0].keys() == sums[1].keys() and len(sums[0]) == 3
    for node, found in sums[0].items():
        assert all(torch.equal(found[name], sums[1][node][name]) for name in found)


def test_a_client_refuses_a_start_that_is_not_the_servers(site):
    """A tensor that changed on the way is found by the digest that travels with it."""

    def tampering(deliveries):
        for message, context in deliveries:
            if message.metadata.message_type == "train" and context.node_config["partition-id"] == 2:
                state = wire.decode(message.content["state"])
                name = next(n for n in state if n.endswith("/A"))
                state[name] = state[name] + 1e-3
                message.content["state"] = wire.encode(state)
        return cohort(deliveries)

    cohort, watch = Cohort(site), Watch()
    federate(small_config("rounds=1"), LocalGrid(tampering, 3), site.backbone, observers=[watch])
    assert watch.events == [("refused", 1, 2, "client_error")]


def test_noise_depends_on_the_sites_secret(site):
    """The same seed with another secret is another draw; without noise the secret changes nothing."""
    asked = Request(
        source="inputs",
        layers={"blocks.0.attn.proj": "gram"},
        shapes={"blocks.0.attn.proj": (24, 24)},
        seed=0,
        sampling=Sampling(examples=32, clip=1.0, noise=0.1),
    )
    answers = [answer(site, asked, secret) for secret in ("a", "b", "a")]
    assert not torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
    plain = Request.from_json(asked.to_json().replace('"noise": 0.1', '"noise": 0.0'), {}, {})
    assert torch.equal(answer(site, plain, "a"), answer(site, plain, "b"))


def test_no_two_sums_carry_the_same_noise(site):
    """Else a server that asks for all images and for a part of them takes the noise off by a subtraction."""
    layer, noises = "blocks.0.attn.proj", []
    for share in (1.0, 0.25):
        sampling = Sampling(examples=64, clip=1.0, noise=0.1, share=share)
        asked = Request(source="inputs", layers={layer: "gram"}, shapes={layer: (24, 24)}, seed=0, sampling=sampling)
        plain = Request.from_json(asked.to_json().replace('"noise": 0.1', '"noise": 0.0'), {}, {})
        noises.append(answer(site, asked, "a") - answer(site, plain, "a"))
    cosine = torch.dot(*(noise.flatten() / noise.norm() for noise in noises))
    assert len(noises[0]) == 24 * 25 // 2 and abs(cosine) < 0.3  # 1 for the same draw, 0.06 for independent ones


NOISY = ("init=eva", "init.examples=32", "init.clip=1.0", "init.noise=0.1", "rounds=1", "evaluation=none")


@pytest.mark.parametrize(
    ("simulated", "secret", "refused"),
    [(False, "", True), (False, None, True), (False, "s", False), (True, None, False)],
)
def test_a_deployed_site_adds_no_noise_that_the_server_can_draw(site, monkeypatch, simulated, secret, refused):
    """Without a secret it is a function of the run's seed. In a simulation there is nobody to keep it from."""
    monkeypatch.setattr("clients.client_app.simulated", lambda: simulated)
    _cohort.cache_clear()
    run_config = to_run_config(small_config(*NOISY))

    def handler(deliveries):
        own = {} if secret is None else {"noise-secret": secret}
        nodes = [(m, Context(c.run_id, c.node_id, c.node_config | own, c.state, run_config)) for m, c in deliveries]
        return [client_app(message, context) for message, context in nodes]

    grid = LocalGrid(handler, 3, run_config=run_config)
    try:
        if refused:
            with pytest.raises(RunFailed, match="start the node with --node-config 'noise-secret-file="):
                federate(small_config(*NOISY), grid, site.backbone)
        else:
            assert federate(small_config(*NOISY), grid, site.backbone).start["clients"] == 3
    finally:
        _cohort.cache_clear()


def answer(site, asked, secret):
    config = ConfigRecord({"request": asked.to_json(), "backbone": site.backbone.digest})
    content = RecordDict({"state": wire.encode({}), "asked": wire.encode({}), "config": config})
    grid = LocalGrid(Cohort(site), 3)
    node = grid.get_node_ids()[0]
    own = grid.contexts[node]
    context = Context(1, node, {**own.node_config, "noise-secret": secret}, RecordDict(), {})
    (reply,) = Cohort(site)([(Message(content, node, "query.statistics"), context)])
    return wire.decode(reply.content["state"])["blocks.0.attn.proj/gram"]


def scaled(ending, factor, key=None):
    """A client's sums of this ending, times a factor."""

    def spoil(message, reply):
        state = wire.decode(reply.content["state"])
        for name in [n for n in state if n.endswith(ending)][:1]:  # none in another question
            if key is None:
                state[name] = state[name] * factor
            else:
                state[name][key] = factor
        reply.content = RecordDict({"state": wire.encode(state), "metrics": reply.content["metrics"]})
        return reply

    return spoil


def drowned(message, reply):
    """No mean of its own, in whose place Σ x is a vector that no such rows have."""
    state = wire.decode(reply.content["state"])
    for name in [n for n in state if n.endswith("/rest")]:
        state[name.replace("/rest", "/sum")] *= 0
        state[name][:] = 1e6
    reply.content = RecordDict({"state": wire.encode(state), "metrics": reply.content["metrics"]})
    return reply


def fractional(message, reply):
    """Half an image more is right."""
    state = wire.decode(reply.content["state"])
    for name in [n for n in state if n.endswith("/correct")]:
        state[name] += 0.5
    reply.content = RecordDict({"state": wire.encode(state), "metrics": reply.content["metrics"]})
    return reply


def claiming(count):
    def spoil(message, reply):
        reply.content["metrics"]["num-examples"] = count
        return reply

    return spoil


@pytest.mark.parametrize(
    ("words", "spoil", "code"),
    [
        ("init=eva init.sketch=exact", scaled("/gram", -1e6), "sums"),
        ("init=eva init.sketch=exact", scaled("/gram", 1e30), "sums"),
        ("init=eva init.sketch=exact", scaled("/gram", 1e6, key=1), "sums"),
        ("init=eva init.sketch=exact", scaled("/count", -1.0), "sums"),
        ("init=eva init.sketch=exact", scaled("/count", 1.5), "sums"),
        ("init=eva init.sketch=nystrom", scaled("/sketch.scale", -1e6), "sums"),
        ("init=eva init.sketch=exact", scaled("/count", 2.0), "sums"),
        ("init=eva init.sketch=exact init.tokens=4", scaled("/count", 2.0), "sums"),
        ("init=eva init.sketch=nystrom", scaled("/trace", -1.0), "sums"),
        ("init=eva init.sketch=nystrom", scaled("/count", 1e12), "sums"),
        ("init=eva init.sketch=nystrom", scaled("/rest", 1e30, key=0), "sums"),
        ("init=eva init.sketch=nystrom", drowned, "sums"),
        ("init=eva init.sketch=nystrom init.weighting=uniform", drowned, "sums"),
        ("init=eva init.sketch=nystrom init.clip=1.0 init.noise=0.1", drowned, "sums"),
        ("init=eva init.sketch=exact init.clip=1.0 init.noise=0.1", drowned, "sums"),
        ("init=lora_ga init.sketch=exact head=ncm", scaled("/gradient", 1e30), "sums"),
        ("head=ridge", scaled("/counts", -1.0), "sums"),
        ("head=ridge", scaled("/counts", -40.0, key=3), "sums"),
        ("head=ridge", scaled("/counts", 1e6), "sums"),
        ("head=ridge", scaled("/gram", -1e6), "sums"),
        ("head=ridge", scaled("/gram", 1e-3), "sums"),
        ("head=ncm", scaled("/counts", 0.5), "sums"),
        ("head=ridge", scaled("/losses", 1e30), "sums"),
        ("head=ridge head.clip=1.0", scaled("/losses", 0.0), "sums"),
        ("head=ridge", fractional, "sums"),
        ("head=ridge", scaled("/losses", 1e3, key=7), "sums"),
        ("head=ncm", scaled("/sums", 1e30), "sums"),
        ("head=ridge", claiming(10**6), "weight"),
        ("init=eva init.sketch=exact", claiming(10**6), "weight"),
    ],
)
def test_sums_that_no_images_have_cost_their_client(words, spoil, code):
    """Finite, of the right shape, and absurd: added up, they cancelled the others' and ended the run."""
    group = words.partition("=")[0]
    config = small_config(*words.split(), f"{group}.examples=32", "rounds=1", "evaluation=none", "client.max_steps=1")
    site, watch = Site(config), Watch()
    outcome = federate(config, LocalGrid(spoilt(Cohort(site), {1}, spoil), 3), site.backbone, observers=[watch])
    assert watch.events[0] == ("refused", 0, 1, code)
    assert outcome.rounds == 1 and "1" in str(outcome.start)


@pytest.mark.parametrize(
    "words",
    [
        "init=eva init.sketch=exact",
        "init=eva init.sketch=exact init.weighting=uniform",
        "init=eva init.sketch=nystrom",
        "init=eva init.sketch=nystrom init.weighting=uniform",
        "init=eva init.sketch=nystrom init.tokens=4",
        "init=eva init.clip=1.0 init.noise=0.5",
        "init=eva init.sketch=nystrom init.clip=1.0 init.noise=0.5",
        "init=eva init.sketch=nystrom init.clip=1.0 init.noise=20.0",
        "init=eva init.sketch=exact init.clip=1.0 init.noise=0.5",
        "init=lora_ga init.clip=0.1 init.noise=0.1 head=ncm",
        "head=ridge",
        "head=ridge head.clip=1.0 head.noise=0.3",
        "head=ridge head.weighting=uniform",
        "head=mvn",
        "head=convex",
    ],
)
def test_sums_of_images_are_refused_of_nobody(words):
    """The control of the test above, with noise and without."""
    config = small_config(*words.split(), "rounds=1", "evaluation=none", "client.max_steps=1")
    site, watch = Site(config), Watch()
    federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[watch])
    assert not watch.events


def test_answers_that_are_added_as_they_come_make_the_start_of_those_that_are_kept(site, monkeypatch):
    """Of clients of this process an answer is gone once it was added; where all come together they are held at once."""
    here: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most: list[int] = []
    judge = round_zero.admit_statistics

    def watched(reply, *rest):
        found = judge(reply, *rest)
        arrays = [array.tensor for array in wire.arrays(reply).values() if isinstance(array, TensorArray)]
        here.add(max(arrays, key=torch.Tensor.numel))
        gc.collect()
        most.append(len(here))
        return found

    monkeypatch.setattr(round_zero, "admit_statistics", watched)
    config, cohort = small_config(*EVA, "rounds=1", "evaluation=none"), Cohort(site)
    gc.freeze()  # what is there by now, of which a collection takes most of a second
    try:
        streamed = federate(config, LocalGrid(cohort, 3), site.backbone)
        assert most == [1, 1, 1]
        most.clear()
        together = federate(config, LocalGrid(lambda deliveries: cohort(deliveries), 3), site.backbone)
    finally:
        gc.unfreeze()
    assert most == [1, 2, 3]
    assert streamed.final_hash == together.final_hash


class Warnings(Observer):
    """Keeps what a run warns of."""

    def __init__(self) -> None:
        self.details: list[str] = []

    def event(self, kind, fields):
        if kind == "warning":
            self.details.append(fields["detail"])


def test_classes_that_nobody_who_measured_has_are_told():
    """One client of a skewed partition measures; with all of them (the control) every class is somebody's."""
    words = ("partition=dirichlet", "partition.clients=9", "partition.alpha=0.3", "head=ridge", "quorum=1")
    for share, told in (("0.1", True), ("1", False)):
        few = (f"start_participation={share}", "rounds=1", "evaluation=none", "client.max_steps=1")
        site, lines = Site(small_config(*words, *few)), Warnings()
        federate(site.config, LocalGrid(Cohort(site), 9), site.backbone, observers=[lines])
        assert len(lines.details) == told
        assert all("nobody who measured has images of the classes " in detail for detail in lines.details)
