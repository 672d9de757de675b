"""Runs with privacy=clients: what they equal without noise, what they count, and what they refuse."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import re

import pytest
import torch
from flwr.app import Error, Message
from rich.console import Console

from clients.cohort import Cohort
from clients.site import Site
from clients.task import Task
from fedinit import wire
from fedinit.errors import InputError, RunFailed
from fedinit.privacy.accounting import Rounds
from fedinit.runs.observer import Observer
from fedinit.runs.progress import ProgressObserver
from fedinit.scores import Accuracy
from fedinit.transforms import Payload
from fedinit.transforms.client_clip import ClientClip
from fedinit.transport.local import LocalGrid
from strategies.server.compatibility import check_method
from strategies.server.components import Components
from strategies.server.federation import check_clients, federate
from strategies.server.private import mechanism_of
from strategies.server.state import ServerState
from tests.support.serving import registered
from tests.support.small import small_config

pytest.importorskip("dp_accounting", reason="ε is counted by dp-accounting: pip install fedinit[privacy]")

PRIVATE = ("privacy=clients", "evaluation=none")
OPEN = ("privacy.epsilon=null", "privacy.noise=1e-9", "privacy.clip=1e3")  # next to no noise, and no clip
TWO = ("strategy=lora_fair", "strategy.phases=2", "strategy.lam_scale=absolute")


class Reports(Observer):
    def __init__(self) -> None:
        self.rounds, self.events = [], []

    def round_done(self, report) -> None:
        self.rounds.append(report)

    def event(self, kind, facts) -> None:
        self.events.append((kind, facts))


@functools.cache
def run(*words):
    config, reports = small_config(*words), Reports()
    check_method(config)
    site = Site(config)
    return federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[reports]), reports


def apart(ours, theirs) -> float:
    """The largest relative difference of a layer's product, or of the head."""
    pairs = [(f.dense(), theirs.aggregate.layers[n].dense()) for n, f in ours.aggregate.layers.items()]
    pairs += [(v, theirs.aggregate.head[n]) for n, v in ours.aggregate.head.items()]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.parametrize("strategy", [("strategy=fedit",), ("strategy=rolora", "init=gaussian_pair"), TWO])
def test_without_noise_and_clip_it_is_the_plain_run(strategy):
    plain = run(*strategy, "weighting=uniform", "evaluation=none")[0]
    private, _ = run(*strategy, *PRIVATE, *OPEN)
    assert apart(private, plain) < 1e-3
    assert apart(run(*strategy, *PRIVATE)[0], plain) > 0.1  # the control: with noise it is not


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("words", [("strategy=fedit",), ("strategy=fedit", "gate.enabled=false"), TWO])
def test_a_client_that_does_not_clip_is_refused(words, second, monkeypatch):
    """The clip would bind the honest alone: no robust rule goes with it, and within the gate's limits one client of
    thirty decided the model. second: it clips its update, and not its answer in the second phase."""
    if second and words != TWO:
        pytest.skip("there is no second phase")
    clipped = ClientClip.on_client

    def lie(self: ClientClip, task: Task, result: Payload) -> Payload:
        is_second = any(name.endswith(wire.IMAGE) for name in result.tensors)
        return result if task.client == 0 and is_second == second else clipped(self, task, result)

    config, reports = small_config(*words, *PRIVATE, "privacy.clip=0.001", "rounds=1", "client.lr=0.1"), Reports()
    site = Site(config)
    federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[reports])
    assert not [facts for kind, facts in reports.events if kind == "refused"]  # the honest are within it, rounding too
    monkeypatch.setattr(ClientClip, "on_client", lie)
    federate(config, LocalGrid(Cohort(site), 3), site.backbone, observers=[reports])
    refused = [facts for kind, facts in reports.events if kind == "refused"]
    assert refused and {(facts["client"], facts["code"]) for facts in refused} == {(0, "clip")}
    assert "from what was sent, expected 0.001 or less (privacy.clip)" in refused[0]["detail"]


def test_epsilon_is_in_every_round_in_the_ledger_and_in_the_summary():
    outcome, reports = run("strategy=fedit", "rounds=3", *PRIVATE)
    spent = [report.diagnostics["epsilon"] for report in reports.rounds]
    assert len(spent) == 3 and 0 < spent[0] < spent[1] < spent[2] <= 8
    told = outcome.summary()["privacy"]
    assert told["epsilon"] == spent[2] and told["delta"] == 1e-5 and told["unit"] == "client"
    config = small_config("rounds=3", *PRIVATE)
    mechanism = mechanism_of(config, Components.of(config).aggregator, 3)
    assert mechanism is not None and told["noise"] == mechanism.noise
    assert ("privacy", told) in reports.events and "not the losses" in told["detail"]
    assert "privacy" not in run("strategy=fedit", "evaluation=none", "weighting=uniform")[0].summary()


def test_a_run_stops_before_it_passes_epsilon():
    outcome, reports = run("strategy=fedit", "rounds=4", "privacy.noise=2", "privacy.epsilon=3.5", *PRIVATE)
    assert 0 < outcome.rounds < 4 and reports.rounds[-1].diagnostics["epsilon"] <= 3.5
    with pytest.raises(InputError, match="privacy.epsilon=0.5: one round with privacy.noise=2 has ε = "):
        run("strategy=fedit", "privacy.noise=2", "privacy.epsilon=0.5", *PRIVATE)
    few = small_config("strategy=fedit", "privacy.noise=2", "privacy.epsilon=0.5", *PRIVATE)
    with pytest.raises(InputError, match="privacy.epsilon=0.5: one round with privacy.noise=2 has ε = "):
        check_clients(few, {0: 60, 1: 60, 2: 60})  # before a run has a folder


def test_a_run_that_epsilon_ends_early_says_so_before_it_begins():
    """And one that it does not end says nothing of the kind."""
    words = ("strategy=fedit", *PRIVATE, "rounds=5", "privacy.noise=1.5")
    whole = run(*words, "privacy.epsilon=1e3")[1]
    assert len(whole.rounds) == 5 and not [kind for kind, _ in whole.events if kind == "stops_early"]
    most = whole.rounds[2].diagnostics["epsilon"] + 1e-6
    cut = run(*words, f"privacy.epsilon={most}")[1]
    (said,) = [facts for kind, facts in cut.events if kind == "stops_early"]
    assert len(cut.rounds) == 3 and (said["after_round"], said["of"]) == (3, 5) and "is spent" in said["detail"]


def test_epsilon_is_said_on_the_line_of_a_round_with_what_it_compares():
    out = io.StringIO()
    progress = ProgressObserver(Console(file=out, width=200), "fedit")
    report = run("strategy=fedit", "privacy=clients")[1].rounds[-1]
    progress.round_done(dataclasses.replace(report, score=Accuracy({"x": 1}, {"x": 2})))
    assert ", ε " in out.getvalue()
    outcome, watch = run("strategy=fedit", "privacy=clients")
    progress.event("privacy", next(facts for kind, facts in watch.events if kind == "privacy"))
    said = re.search(
        r"^privacy of clients: (\d+) rounds with noise of .* clips spend ε 8 at δ 1e-05$", out.getvalue(), re.M
    )
    assert said is not None and int(said[1]) == len(watch.rounds)
    told = outcome.summary()["privacy"]
    assert told["neighbours"] == "with and without one client"
    some = Rounds(0.5, "fixed", 1e-5, "rdp"), Rounds(1.0, "fixed", 1e-5, "rdp"), Rounds(0.5, "poisson", 1e-5, "rdp")
    assert [rounds.neighbours for rounds in some] == ["with one client replaced"] + 2 * ["with and without one client"]


def test_a_delta_that_tells_all_about_a_client_is_refused():
    with pytest.raises(InputError, match="privacy.delta=0.5: expected less than one over the 3 clients"):
        run("strategy=fedit", *PRIVATE, "privacy.delta=0.5")


def test_a_round_of_nobody_is_noise_and_the_run_goes_on():
    words = ("strategy=fedit", "rounds=2", "participation=0.01", *PRIVATE)
    outcome, reports = run(*words)
    assert outcome.rounds == 2 and any(not report.clients for report in reports.rounds)
    assert all(torch.isfinite(f.dense()).all() for f in outcome.aggregate.layers.values())


def test_the_same_words_make_the_same_bytes_unless_noise_is_secure():
    words = ("strategy=fedit", *PRIVATE)
    again = run(*words, "name=again")[0]
    assert again.final_hash == run(*words)[0].final_hash
    assert run(*words, "privacy.secure=true")[0].final_hash != again.final_hash


def test_runs_of_one_seed_have_no_noise_in_common():
    """Of two with other clips it could be reckoned, whoever knows the seed."""
    base = small_config("strategy=fedit", *PRIVATE)
    seeds = {base.private_seed("w"), base.private_seed("other weights, wherever their file lies")}
    for words in (
        ["engine.precision=bf16"],
        ["privacy.clip=2"],
        ["client.lr=0.5"],
        ["privacy.noise=3", "privacy.epsilon=null"],
        ["rounds=3"],
        ["seed=7"],
    ):
        seeds.add(small_config("strategy=fedit", *PRIVATE, *words).private_seed("w"))
    assert len(seeds) == 8
    for words in (["name=again"], ["engine.clients_per_bank=1"], ["engine=inline"], ["evaluation=none"]):
        assert small_config("strategy=fedit", *PRIVATE, *words).private_seed("w") == base.private_seed("w"), words


ADAPTIVE = ("strategy=fedit", "rounds=3", "privacy.clip_quantile=0.5", *PRIVATE)


def test_a_clip_that_adapts_costs_what_a_round_costs_and_is_in_the_ledger():
    fixed, adaptive = run("strategy=fedit", "rounds=3", *PRIVATE)[0], run(*ADAPTIVE)
    told, clips = adaptive[0].summary()["privacy"], [report.diagnostics["clip"] for report in adaptive[1].rounds]
    assert told["epsilon"] == fixed.summary()["privacy"]["epsilon"] and told["noise"] < told["update_noise"]
    assert clips[0] == 1.0 and len(set(clips)) == 3
    assert told["update_noise"] ** -2 + (2 * told["count_noise"]) ** -2 == pytest.approx(told["noise"] ** -2)
    assert run(*ADAPTIVE, "name=again")[0].final_hash == adaptive[0].final_hash != fixed.final_hash


def test_clients_clip_to_what_the_round_says():
    """With next to no noise a clip of 1e-3 moves the model a hundredth of what it does at the tenth round."""
    words = (*ADAPTIVE, "rounds=4", "privacy.epsilon=null", "privacy.noise=1e-9", "privacy.clip_rate=4")
    _, reports = run(*words, "privacy.clip=1e-3", "privacy.count_noise=1e-8")
    clips = [report.diagnostics["clip"] for report in reports.rounds]
    assert clips[1] == pytest.approx(1e-3 * math.exp(2), rel=1e-6)  # nobody of three was within: ± 1/2
    assert clips[2] == pytest.approx(1e-3 * math.exp(4), rel=1e-6)


def test_the_clip_goes_through_a_checkpoint(tmp_path):
    site = Site(small_config(*ADAPTIVE))
    state = registered(site)[1]
    assert ServerState.restored(dataclasses.replace(state, clip=0.3).snapshot()).clip == 0.3
    assert ServerState.restored(state.snapshot()).clip == 0.0


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_client_takes_no_clip_that_is_none(clip):
    site, seen = Site(small_config(*ADAPTIVE)), []

    def handler(deliveries):
        for message, _ in deliveries:
            if message.metadata.message_type == "train":
                message.content["config"]["clip"] = clip
        replies = Cohort(site)(deliveries)
        seen.extend(reply.error.reason for reply in replies if reply.has_error())
        return replies

    federate(small_config(*ADAPTIVE), LocalGrid(handler, 3), site.backbone)
    assert seen and all("the server sent the clip" in reason for reason in seen)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("strategy=lora_fair strategy.phases=2 privacy.clip_quantile=0.5", "clip_quantile=0.5: adapts one clip by one"),
        ("strategy=flora", "strategy=flora needs BA of the clients"),
        ("strategy=flexlora", "strategy=flexlora needs BA of the clients"),
        ("strategy=lora_fair", "strategy=lora_fair needs BA of the clients, .* lora_fair with strategy.phases=2"),
        ("strategy=fedsa_lora", "strategy=fedsa_lora has clients go on from factors of their own"),
        ("strategy=fedrot_lora", "strategy=fedrot_lora needs each client's update: each client's factors are turned"),
        ("strategy=lora_a2 init=gaussian_pair", "needs each client's update: the slots that it chose"),
        ("strategy=fedit reinit=local", "reinit=local: with privacy=clients: clients go on from factors of their own"),
        ("strategy=fedit head=ridge", "head=ridge: is made of the clients' data, without noise"),
        ("strategy=fedit init=eva", "init=eva: is made of the clients' data, without noise"),
        ("strategy=fedit evaluation=clients", "evaluation=clients: is made of the clients' data, without noise"),
        ("strategy=fedit client=sgd_sai client.gsnr_scope=global_once", "gsnr_scope=global_once: is made of"),
        ("strategy=fedit robust=bounded", "robust=bounded: weighs clients by their updates"),
        ("strategy=fedit adapter.ranks=halving", "adapter.ranks: has entries of a factor be sums over different"),
        ("strategy=hetlora", "strategy=hetlora: is its weighting=norm, without which it is strategy=fedit"),
        ("strategy=fedit weighting=examples", "weighting=examples: a weight by what a client has or made tells"),
    ],
)
def test_what_is_not_sums_or_not_counted_is_refused(words, why):
    with pytest.raises(InputError, match=why):
        check_method(small_config(*PRIVATE, *words.split()))


@pytest.mark.parametrize("words", ["fedit", "ffa_lora", "rolora init=gaussian_pair", "lora_fair strategy.phases=2"])
def test_methods_that_are_sums_go(words):
    check_method(small_config(*PRIVATE, *f"strategy={words}".split()))


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_a_run_of_another_number_of_clients_is_not_gone_on_with(tmp_path, sampling):
    """Its ε is of a share of them, and its sums are divided by their number; of the same number it goes on."""
    words = ["strategy=fedit", *PRIVATE, "privacy.noise=2", "privacy.epsilon=null", f"privacy.sampling={sampling}"]
    short = small_config(*words, "partition=iid", "partition.clients=4", "rounds=1", "quorum=0.5", "participation=0.5")
    longer, site = dataclasses.replace(short, rounds=2), Site(short)
    cohort = Cohort(site)

    def handler(bad):
        def answer(deliveries):
            return [
                Message(Error(1, "another backbone"), reply_to=message)
                if message.metadata.message_type == "query.describe" and context.node_config["partition-id"] in bad
                else cohort([(message, context)])[0]
                for message, context in deliveries
            ]

        return answer

    def go(config, bad):
        return federate(config, LocalGrid(handler(bad), 4), site.backbone, checkpoints=tmp_path / "c")

    class Killed(Exception):
        pass

    class Kills(Observer):
        def round_done(self, report):
            raise Killed

    with pytest.raises(Killed):
        federate(longer, LocalGrid(handler({3}), 4), site.backbone, observers=[Kills()], checkpoints=tmp_path / "c")
    with pytest.raises(RunFailed, match="begun with 3 clients, and there are 4: what its ε counts"):
        go(longer, set())
    assert go(longer, {3}).rounds == 2
