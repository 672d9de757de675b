"""What a site lets a server learn, by its own limits: which are on in a deployment without being asked for."""

from __future__ import annotations

import dataclasses
import json
import re
import stat
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients import client_app
from clients.cohort import Cohort
from clients.limits import Keeper
from clients.site import Site
from fedinit.config import limits
from fedinit.config.flower import to_run_config
from fedinit.config.limits import Limits
from fedinit.errors import Code, InputError
from fedinit.statistics import STATISTICS, Request
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.asking import LAYER, Asker, refused
from tests.support.small import small_config


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config("data.domains=[plain,inverted]", "evaluation=clients"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (dict(examples=1, min_examples=1), "over fewer distinct images than this site's limits"),
        (dict(examples=15, min_examples=1), "over fewer distinct images than this site's limits"),
        (dict(examples=64, share=0.01, min_examples=1), "over fewer distinct images than this site's limits"),
        (dict(examples=64, tokens=1), "over all tokens of an image, not over 1"),
        (
            dict(source="features", name="class_sums", examples=1, min_examples=1),
            "over fewer distinct images than this site's limits",
        ),
        (
            dict(source="gradients", name="gradient", examples=1, min_examples=1),
            "over fewer distinct images than this site's limits",
        ),
    ],
)
def test_what_is_about_a_few_images_is_not_answered(site, asked, said):
    """A server read an image to the last grey level out of Gram matrices of one token of one image."""
    refused(Asker(site)(**asked), said)


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (dict(min_examples=-5), "min_examples=-5: expected 1 or more"),
        (dict(min_examples=None), "min_examples=None: expected a whole number"),
        (dict(examples=-1, min_examples=1), "examples=-1: expected 1 or more"),
        (dict(examples=100.5), "examples=100.5: expected a whole number"),
        (dict(examples=64.0), "examples=64.0: expected a whole number"),
        (dict(examples=True), "examples=True: expected a whole number"),
        (dict(examples=10**300), "expected a whole number"),
        (dict(examples="64"), "examples='64': expected a whole number"),
        (dict(tokens=0), "tokens=0: expected 1 or more"),
        (dict(tokens=True), "tokens=True: expected a whole number"),
        (dict(weighting="x"), "weighting='x': expected samples or uniform"),
        (dict(weighting=["\x1b[2J" * 10**4]), "expected samples or uniform"),
        (dict(clip=-3.0), "clip=-3.0: expected a number in [1e-06, "),
        (dict(clip=True), "clip=True: expected a number"),
        (dict(clip="1"), "clip='1': expected a number"),
        (dict(clip=float("inf")), "clip=inf: expected a number in [1e-06, "),
        (dict(clip=1e300), "clip=1e+300: expected a number in [1e-06, "),
        (dict(noise=float("nan"), clip=1.0), "noise=nan: expected a number in [0, "),
        (dict(noise=-1.0, clip=1.0), "noise=-1.0: expected a number in [0, "),
        (dict(noise=1e308, clip=1.0), "noise=1e+308: expected a number in [0, "),
        (dict(noise=True, clip=1.0), "noise=True: expected a number"),
        (dict(noise=None), "noise=None: expected a number"),
        (dict(noise=1.0), "noise=1.0: needs sampling.clip"),
        (dict(share=0.0), "share=0.0: expected a number in (0, 1]"),
        (dict(share=float("nan")), "share=nan: expected a number in (0, 1]"),
        (dict(share=True), "share=True: expected a number"),
        (dict(share=1.5), "share=1.5: expected a number in (0, 1]"),
    ],
)
def test_numbers_that_are_none_are_not_asked_with(site, sampling, said):
    """And are refused by name, before they are counted."""
    ask = Asker(site, answers_per_run=1)
    reply = ask(**sampling)
    refused(reply, "asked for statistics with sampling.", Code.refused)
    reason = reply.error.reason or ""
    assert said in reason and len(reason) < 300 and reason.isprintable()
    assert ask().has_content()  # the one that it answers


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "x"}, "source='x': expected inputs, gradients, features, adapters"),
        ({"source": ["inputs"]}, "source=['inputs']: expected"),
        ({"seed": "x"}, "seed='x': expected a whole number"),
        ({"seed": True}, "seed=True: expected a whole number"),
        ({"layers": {LAYER: ["gram"]}}, "expected a statistic's name for each"),
        ({"options": [1]}, "options=[1]: expected values by name"),
    ],
)
def test_what_makes_no_request_is_not_asked(site, change, said):
    ask = Asker(site, answers_per_run=1)
    asked = {"source": "inputs", "layers": {LAYER: "gram"}, "shapes": {LAYER: [24, 24]}, "seed": 0, "options": {}}
    asked["sampling"] = {}
    refused(ask.ask(json.dumps({**asked, **change}), {}), said, Code.refused)
    assert ask.ask(json.dumps(asked), {}).has_content()  # the control


def test_whatever_a_server_varies_it_asks_about_the_same_images(site):
    """Seed, number, share: no two answers differ by a few images, so that no subtraction is about a few."""
    ask = Asker(site, noise_secret="s")
    first = ask.sums(examples=64)
    assert first[f"{LAYER}/count"] == 64 * 17 or float(first[f"{LAYER}/count"]) % 64 == 0
    for again in (dict(examples=64, seed=1), dict(examples=65), dict(examples=60), dict(examples=128, share=0.5)):
        assert all(torch.equal(value, first[name]) for name, value in ask.sums(**again).items()), again
    larger = ask.sums(examples=64 + 16)
    assert not torch.equal(larger[f"{LAYER}/gram"], first[f"{LAYER}/gram"])
    others = Asker(site, noise_secret="s").sums(examples=64)  # another book, another key
    assert not torch.equal(others[f"{LAYER}/gram"], first[f"{LAYER}/gram"])


def test_noise_is_the_same_for_the_same_sums_whatever_the_seed(site):
    """Else it averages off."""
    ask = Asker(site)
    answers = [ask.sums(examples=64, clip=1.0, noise=1.0, seed=seed)[f"{LAYER}/gram"] for seed in range(5)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize(
    ("own", "asked", "said"),
    [
        (dict(statistics="none"), {}, "does not answer statistics 'gram'"),
        (dict(statistics="class_sums,nystrom"), {}, "does not answer statistics 'gram'"),
        (dict(max_clip=2.0), {}, "a smaller clip, its max-clip, asked None"),
        (dict(max_clip=2.0), dict(clip=3.0), "a smaller clip, its max-clip, asked 3.0"),
        (dict(min_noise=1.0), dict(clip=1.0, noise=0.5), "more noise, its min-noise, asked 0.5"),
        (dict(min_images=100), dict(examples=64), "over fewer distinct images than this site's limits"),
        (dict(answers_per_run=0), {}, "answers no more questions for statistics in this run"),
        (dict(answers=0), {}, "answers no more questions for statistics in all runs"),
    ],
)
def test_a_site_sets_its_own_limits(site, own, asked, said):
    refused(Asker(site, **own)(**asked), said)


def test_limits_that_are_kept_to_are_answered(site):
    own = dict(statistics="gram", max_clip=2.0, min_noise=0.5, min_images=32, tokens="any")
    assert Asker(site, **own)(examples=64, clip=1.0, noise=0.5, tokens=3).has_content()
    assert Asker(site, limits="off")(examples=1, min_examples=1, tokens=1).has_content()
    simulated = Asker(site)
    simulated.cohort = Cohort(site)  # where server and clients are one
    assert simulated(examples=1, min_examples=1, tokens=1).has_content()


@pytest.mark.parametrize("folder", [True, False])
def test_answers_are_counted_in_a_run_and_in_all(site, folder, tmp_path):
    own = dict(answers_per_run=3, answers=5, **({"state_dir": str(tmp_path / "state")} if folder else {}))
    ask = Asker(site, **own)
    assert [ask(seed=seed).has_content() for seed in range(5)] == [True] * 3 + [False] * 2
    refused(ask(), "answers no more questions for statistics in this run")
    if folder:
        (book,) = (tmp_path / "state").glob("answers-client-0.json")
        assert stat.S_IMODE(book.stat().st_mode) == 0o600 and json.loads(book.read_text())["all"] == {"statistics": 3}
        other = Site(dataclasses.replace(site.config, seed=7))
        ask = Asker(other, **own)  # another run, another process
        assert [ask(seed=seed).has_content() for seed in range(3)] == [True, True, False]
        refused(ask(), "answers no more questions for statistics in all runs")
        book.write_text("{")
        refused(ask(), "site; the site's log says why", Code.site)


@pytest.mark.parametrize("kind", ["query.describe", "query.statistics", "train", "evaluate"])
def test_a_partition_that_leaves_a_site_too_few_images_is_refused(kind):
    """One image a client, whose label and feature one update gives away."""
    small = Site(small_config("data.domains=[plain,inverted]", "evaluation=clients", "partition.clients=200"))
    config = ConfigRecord({"backbone": small.backbone.digest, "round": 1})
    refused(Asker(small).send(RecordDict({"config": config}), kind), "the run's partition leaves this site ")
    lax = Asker(small, min_images=1).send(RecordDict({"config": config}), "query.describe")
    assert lax.has_content()


def test_a_few_test_images_are_not_evaluated_on_and_their_client_trains(site):
    from clients.limits import Keeper
    from fedinit.config.limits import Limited

    keeper = Keeper(site, Limits(min_test_images=8), Context(1, 1, {"partition-id": 0}, RecordDict(), {}))
    keeper.check_partition(site.partitions[0].train)
    with pytest.raises(Limited, match="leaves this site fewer test images than its min-test-images, of a domain"):
        keeper.evaluate(site.partitions[0].test[:7])


def test_evaluations_are_counted_and_over_as_many_images():
    words = ("data.domains=[plain,inverted]", "evaluation=clients", "rounds=3", "client.max_steps=1")
    site = Site(small_config(*words))

    def run(**own):
        cohort, errors = Cohort(site, persistent=True, deployed=True), []

        def handler(deliveries):
            for _, context in deliveries:
                context.node_config.update({key.replace("_", "-"): value for key, value in own.items()})
            replies = cohort(deliveries)
            errors.extend(reply.error for reply in replies if reply.has_error())
            return replies

        outcome = federate(site.config, LocalGrid(handler, 2), site.backbone)
        return outcome, errors

    outcome, errors = run()
    assert not errors and outcome.score is not None
    outcome, errors = run(evaluations=0)
    assert outcome.score is None and [e.code for e in errors] == [Code.limit] * 6  # three rounds of two clients
    assert "answers no more questions for evaluations in all runs" in errors[0].reason
    _, errors = run(evaluations_per_run=2)
    assert [e.code for e in errors] == [Code.limit] * 2 and "no more questions for evaluations in this run" in errors[
        0
    ].reason


@pytest.mark.parametrize(("kind", "a_run"), [("statistics", 20), ("evaluations", 200)])
def test_a_thousand_are_answered_in_all_runs(site, kind, a_run):
    """As the limits are without being set, of one run after another, each asked for as long as it is answered."""
    from clients.limits import Keeper
    from fedinit.config.limits import Limited

    part, answered, said = site.partitions[0], [], []
    request = Request(source="inputs", layers={LAYER: "gram"}, shapes={LAYER: (24, 24)}, seed=0)
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
    while not answered or answered[-1]:
        config = dataclasses.replace(site.config, seed=len(answered))
        keeper = Keeper(SimpleNamespace(config=config, data=site.data), Limits(), context)  # type: ignore[arg-type]
        answered.append(0)
        with pytest.raises(Limited) as refused_at:
            while True:
                keeper.measure(request, part.train[:16]) if kind == "statistics" else keeper.evaluate(part.test[:8])
                answered[-1] += 1
        said.append(str(refused_at.value))
    assert answered == [a_run] * (1000 // a_run) + [0]
    assert {*said[: 1000 // a_run - 1]} == {
        f"this site answers no more questions for {kind} in this run: that is its limit"
    }
    assert said[-1] == f"this site answers no more questions for {kind} in all runs: that is its limit"


def test_an_evaluation_of_nearly_the_same_images_is_refused(site):
    """The difference of two is about a few of them."""
    from clients.limits import Keeper
    from fedinit.config.limits import Limited

    keeper = Keeper(site, Limits(min_test_images=8), Context(1, 1, {"partition-id": 0}, RecordDict(), {}))
    test = site.partitions[0].test
    keeper.evaluate(test)
    keeper.evaluate(test)
    keeper.evaluate(test[8:])
    for near in (test[1:], test[:-7], test[9:], test[:7]):
        with pytest.raises(Limited):
            keeper.evaluate(near)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"min-images": "many"}, "--node-config min-images=many: expected a whole number of 0 or more"),
        ({"min-images": -1}, "expected a whole number of 0 or more"),
        ({"min-noise": "x"}, "--node-config min-noise=x: expected a number of 0 or more"),
        ({"require-secure-aggregation": 1}, "--node-config require-secure-aggregation=1: expected true or false"),
        ({"limits": "on"}, "--node-config limits=on: no such choice"),
        ({"tokens": "some"}, "--node-config tokens=some: no such choice"),
        ({"statistics": "grams"}, "--node-config statistics=grams: no such choice"),
    ],
)
def test_a_limit_that_is_none_is_said(own, said):
    with pytest.raises(InputError, match=said.replace("[", "\\[")):
        Limits.of(own)


def test_every_statistic_can_be_named():
    assert set(limits.STATISTICS) == set(STATISTICS)


def test_the_limits_are_printed_at_start(monkeypatch, capsys):
    LocalGrid(lambda pairs: [], 1)
    client_app._cohort.cache_clear()
    config = small_config("data.domains=[plain,inverted]")
    context = Context(1, 1000, {"partition-id": 0, "min-images": 20}, RecordDict(), to_run_config(config))
    client_app.app(Message(RecordDict(), 1000, "query.describe"), context)
    said = capsys.readouterr().err
    assert "limits: statistics=all min-images=20 min-test-images=8 min-class-images=4 tokens=all" in said
    client_app._cohort.cache_clear()


SET = {"min_images": 77, "min_class_images": 77, "min_test_images": 777, "max_clip": 0.77, "min_noise": 7.7}
SET |= dict.fromkeys(("answers", "answers_per_run", "evaluations", "evaluations_per_run", "refusals"), 0)
SET |= {"max_epsilon": 0.77, "projections_per_round": 0}


def test_a_refusal_says_no_value_that_the_site_set(site):
    """The limit's name leaves the site, and what the server asked; nothing of what it is set to."""
    images, said = site.partitions[0].train[:30], []
    asked = Request(source="inputs", layers=dict.fromkeys(site.targets, "gram"), shapes=site.targets, seed=0)
    for key, value in SET.items():
        keeper = Keeper(site, Limits(**{key: value}), Context(1, 1, {"partition-id": 0}, RecordDict(), {}))
        questions = {
            "measure": (asked, images), "evaluate": (images,), "check_partition": (images,), "check_batches": (images,),
            "check_privacy": (5.0, 1e-5, 30), "project": (1, "u", "m"),
        }  # fmt: skip
        for name, given in questions.items():
            try:
                getattr(keeper, name)(*given)
            except limits.Limited as refusal:
                said.append(str(refusal).replace("of round 1", "").replace("asked 0.0", ""))
    assert len(said) > 12 and not [text for text in said if re.search(r"\d", text)], said
