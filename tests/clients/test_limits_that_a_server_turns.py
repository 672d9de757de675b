"""What a server might change in a question, a run or a site's book so that the site's limits do not see it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from PIL import Image

from clients import batches, guard
from clients.limits import Keeper
from clients.resident import Resident
from clients.site import Site
from clients.statistics import disturb, measure
from fedinit import wire
from fedinit.config.limits import Limited, Limits
from fedinit.draws import Keyed, draws
from fedinit.errors import Code, InputError, Refused
from fedinit.statistics import Request, Sampling, create_statistics
from tests.support.asking import LAYER, Asker, refused
from tests.support.small import small_config


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config("data.domains=[plain,inverted]", "evaluation=clients"))


def keeper(site: Site, folder, **limits: object) -> Keeper:
    node = {"partition-id": 0, "state-dir": str(folder)}
    return Keeper(site, Limits(**limits), Context(1, 1, node, RecordDict(), {}))  # type: ignore[arg-type]


@pytest.fixture(params=["as it is", "one draw"])
def shared(request, monkeypatch) -> bool:
    """Whether all noise of a site is of one draw, as it must not be: the control."""
    if request.param == "one draw":
        monkeypatch.setattr("clients.statistics.draws", lambda seed, secret, *_: Keyed(secret, "one"))
    return request.param == "one draw"


SIZES = {"noise": (dict(clip=1.0, noise=1.2), dict(clip=1.0, noise=1.8)),
         "clip": (dict(clip=1e3, noise=1e-6), dict(clip=2e3, noise=1e-6))}  # fmt: skip


@pytest.mark.parametrize("by", SIZES)
def test_two_answers_of_other_noise_do_not_share_a_draw(site, by, shared):
    """With one draw z, of s + a z and s + b z both s and z can be reckoned, whether the noise that was asked for is
    another or the clip, by which it is measured, and which nothing reaches."""
    ask, name = Asker(site), f"{LAYER}/gram"
    exact = ask.sums(clip=SIZES[by][0]["clip"])[name].double()
    few, more = (ask.sums(**sampling)[name].double() for sampling in SIZES[by])
    a, b = (sampling["noise"] * sampling["clip"] ** 2 for sampling in SIZES[by])
    reckoned = few - (more - few) * a / (b - a)
    off = (reckoned - exact).norm() / (few - exact).norm()
    assert off < 0.02 if shared else off > 0.5  # of half precision


def test_two_sums_do_not_share_a_draw_in_another_order(site, shared):
    """Else the difference of two layers' sums has no noise, from two questions that name them in either order."""
    ask, sampling = Asker(site), Sampling(clip=1e3, noise=1.0)
    names = [LAYER, "blocks.1.attn.proj"]

    def told(order: list[str], sampling: Sampling) -> dict[str, torch.Tensor]:
        layers, shapes = dict.fromkeys(order, "gram"), dict.fromkeys(order, (24, 24))
        reply = ask.ask(Request(source="inputs", layers=layers, shapes=shapes, seed=0, sampling=sampling).to_json(), {})
        assert reply.has_content(), reply.error.reason
        return {name: value.double() for name, value in wire.decode(reply.content["state"]).items()}

    exact, first, second = told(names, Sampling(clip=1e3)), told(names, sampling), told(names[::-1], sampling)
    one, other = (f"{name}/gram" for name in names)
    apart = (first[one] - second[other]) - (exact[one] - exact[other])
    noise = (first[one] - exact[one]).norm()
    assert apart.norm() < 0.02 * noise if shared else apart.norm() > noise
    if not shared:
        assert torch.equal(first[one], second[one])  # asked beside others, or in another order, a sum is as it was


def test_one_sum_that_two_layers_have_is_given_with_one_noise(site):
    """Else the mean of both, in one answer, has less than was asked for: of layers with the same inputs, as a SwiGLU's
    two are."""
    draws_of = functools.partial(draws, 0, "s", "init.noise", 0)
    names, sampling = ("fc1_g", "fc1_x", "fc2"), Sampling(clip=1.0, noise=1.0)
    request = Request(
        source="inputs",
        layers=dict.fromkeys(names, "gram"),
        shapes=dict.fromkeys(names, (4, 4)),
        seed=0,
        sampling=sampling,
    )
    sums = {f"{name}/gram": torch.eye(4, dtype=torch.float64) * (1 + (name == "fc2")) for name in names}
    sums |= {f"{name}/sum": torch.ones(4, dtype=torch.float64) for name in names}
    disturb(sums, create_statistics(request), dict.fromkeys(names, 5), sampling, draws_of)
    first, same, other = (sums[f"{name}/gram"] for name in names)
    assert torch.equal(first, same) and not torch.allclose(other - first, torch.eye(4, dtype=torch.float64))


def test_a_site_that_is_not_evaluated_measures_no_losses(site):
    head = {"head/weight": torch.zeros(10, 24), "head/bias": torch.zeros(10)}
    options = {"scales": [1.0]}
    request = Request(
        source="features",
        layers={"head": "losses"},
        shapes={"head": (10, 24)},
        seed=0,
        sampling=Sampling(),
        options=options,
    )
    refused(Asker(site, evaluations=0).ask(request.to_json(), head), "the statistic 'losses' is an evaluation")
    assert Asker(site).ask(request.to_json(), head).has_content()


def test_two_heads_that_a_server_makes_up_show_the_gradient_of_one_image(site):
    """As docs/trust.md says: limits do not keep it from that. Between two thresholds on a feature lies one image, whose
    part of the sum alone another head changes."""
    ask, worker = Asker(site), site.engine.workers[0]
    train = site.partitions[0].train
    along = torch.randn(24, generator=torch.Generator().manual_seed(0))
    worker.bank.bare()

    def head(threshold: float) -> dict[str, torch.Tensor]:
        weight, bias = torch.zeros(10, 24), torch.zeros(10)
        weight[0], bias[0] = 1e5 * along, -1e5 * threshold
        bias[2:] = -1e9
        return {"head/weight": weight, "head/bias": bias}

    request = Request(
        source="gradients", layers={LAYER: "gradient"}, shapes={LAYER: (24, 24)}, seed=0, sampling=Sampling()
    )

    def told(threshold: float) -> torch.Tensor:
        reply = ask.ask(request.to_json(), head(threshold))
        assert reply.has_content(), reply.error.reason
        return wire.decode(reply.content["state"])[f"{LAYER}/gradient"].double()

    def alone(image: int, threshold: float) -> torch.Tensor:
        given = {name.partition("/")[2]: value for name, value in head(threshold).items()}
        one = dataclasses.replace(request, head=given, sampling=Sampling(min_examples=1))
        data, spec = site.data, site.backbone.input
        return measure(worker.bank, one, torch.tensor([image]), 0, Resident(data, worker.device), spec, 32, "").sums[
            f"{LAYER}/gradient"
        ]

    images = batches.normalise(site.data.images[train], site.backbone.input, worker.bank.device)
    with torch.no_grad():
        places = worker.bank.embed(images).double() @ along.double()
    order = places.argsort(descending=True)
    high, low = float(places[order[0]]) + 0.01, float(places[order[:2]].mean())
    difference, own = told(low) - told(high), alone(int(train[order[0]]), low) - alone(int(train[order[0]]), high)
    assert torch.cosine_similarity(difference.flatten(), own.flatten(), dim=0) > 0.99


def test_an_image_is_the_same_one_however_it_is_decoded(tmp_path):
    """Else a set that leaves out one image is answered over other pixels of the same images."""
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images/d" / name).mkdir(parents=True)
        for i in range(40):
            pixels = draw.integers(0, 2**16, (32, 32)).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / "images/d" / name / f"{i}.png")
    words = ["data=image_folder", f"data.root={tmp_path}/images", "data.domains=[d]", "data.classes=[a,b]"]
    first, other = (Site(small_config(*words, f"data.grey_range=[0,{white}]")) for white in (65535, 65600))
    train = first.partitions[0].train
    assert not torch.equal(first.data.images[train], other.data.images[train])
    keeper(first, tmp_path / "s").check_partition(train)
    with pytest.raises(Limited, match="training over images that differ from earlier ones by fewer images"):
        keeper(other, tmp_path / "s").check_partition(train[1:])
    keeper(other, tmp_path / "s").check_partition(train)
    # The control: by their pixels they are others.
    for site in (first, other):
        site.data = dataclasses.replace(site.data, marks=None)
    keeper(first, tmp_path / "t").check_partition(train)
    keeper(other, tmp_path / "t").check_partition(train[1:])


def test_refusals_that_tell_something_are_counted(site, tmp_path):
    """Whether a file is there can be asked by splits that differ in it: each refusal is an answer."""
    asked = keeper(site, tmp_path, refusals=3)
    train = site.partitions[0].train
    asked.measure(request := Request(
        source="inputs", layers={LAYER: "gram"}, shapes={LAYER: (24, 24)}, seed=0, sampling=Sampling()
    ), train)  # fmt: skip
    for left_out in range(1, 4):
        with pytest.raises(Limited, match="that differ from earlier ones by fewer images than this site's limits"):
            asked.measure(request, train[left_out:])
    for again in (asked, keeper(site, tmp_path, refusals=3)):
        with pytest.raises(Limited, match="has refused so many sets of images .* it answers nothing more"):
            again.measure(request, train)
    other = keeper(site, tmp_path / "other", refusals=3)
    other.limits = dataclasses.replace(other.limits, answers_per_run=0)
    for _ in range(5):  # what says nothing of images is none of them
        with pytest.raises(Limited, match="answers no more questions"):
            other.measure(request, train)


def test_a_second_phase_of_one_update_is_answered_once_in_all_runs(site, tmp_path):
    longer = Site(dataclasses.replace(site.config, rounds=site.config.rounds + 1))
    keeper(site, tmp_path).project(1, "update", "means")
    with pytest.raises(Limited, match="the update of round 1 for other means"):
        keeper(longer, tmp_path).project(1, "update", "others")
    keeper(longer, tmp_path).project(1, "update", "means")


def test_the_name_of_a_run_in_the_book_is_its_whole_hash(site, tmp_path):
    """Of forty bits two runs of one name are found in seconds."""
    keeper(site, tmp_path).check_partition(site.partitions[0].train)
    (run,) = json.loads((tmp_path / "answers-client-0.json").read_text())["runs"]
    assert run == f"{site.config.identity(digits=64)}-s{site.config.seed}" and len(run) > 64


@pytest.mark.parametrize(
    "damage",
    [
        lambda book: {},
        lambda book: [],
        lambda book: None,
        lambda book: {**book, "runs": "x"},
        lambda book: {key: value for key, value in book.items() if key != "cells"},
        lambda book: {key: value for key, value in book.items() if key != "key"},
        lambda book: {**book, "key": ""},
        lambda book: {**book, "all": {"statistics": float("nan")}},
        lambda book: {**book, "all": {"statistics": -5}},
        lambda book: {**book, "all": {"statistics": "x"}},
        lambda book: {**book, "sizes": [None]},
    ],
)
def test_a_book_that_is_none_is_not_begun_anew(site, tmp_path, damage):
    train, file = site.partitions[0].train, tmp_path / "answers-client-0.json"
    keeper(site, tmp_path).check_partition(train)
    text = json.dumps(damage(json.loads(file.read_text())))
    file.write_text(text)
    with pytest.raises(InputError, match="the book of this site's answers cannot be used"):
        keeper(site, tmp_path).check_partition(train)
    assert file.read_text() == text


def test_a_link_to_a_book_that_is_gone_begins_none(site, tmp_path):
    os.symlink(tmp_path / "gone.json", tmp_path / "answers-client-0.json")
    with pytest.raises(InputError, match="cannot be used"):
        keeper(site, tmp_path).check_partition(site.partitions[0].train)


def test_a_damaged_book_leaves_as_a_matter_of_the_site(site, tmp_path):
    (tmp_path / "answers-client-0.json").write_text("[]")
    reply = Asker(site, state_dir=str(tmp_path))()
    assert reply.has_error() and reply.error.code == Code.site and str(tmp_path) not in reply.error.reason


@pytest.mark.parametrize("kept", [True, False])
def test_refusals_are_counted_where_the_book_is_in_memory_too(site, tmp_path, monkeypatch, kept):
    """An Error leaves what a client keeps as it was, but for what it has answered."""
    monkeypatch.setattr("secrets.token_hex", lambda size: "00" * size)  # the key by which the site draws its images
    own = {"refusals": 2} | ({"state_dir": str(tmp_path)} if kept else {})
    ask = Asker(site, **own)
    assert ask(source="features", name="class_sums").has_content()
    replies = [ask(source="features", name="class_sums", examples=count) for count in range(110, 30, -5)]
    said = [reply.error.reason for reply in replies if reply.has_error()]
    tell = [reason for reason in said if "a class over images that differ from earlier ones by fewer images" in reason]
    assert len(tell) == 2 and "has refused so many sets of images" in said[-1], said


def test_a_refusal_says_no_number_and_the_same_one_again_tells_nothing_new(site, tmp_path):
    """Of a class of three images, a question over fewer and fewer of all of them told how many are in it."""
    few = {"refusals": 3, "min_class_images": 60, "state_dir": str(tmp_path)}
    ask = Asker(site, **few)
    said = [ask(source="features", name="class_sums", examples=count).error.reason for count in (110, 110, 110, 80, 50)]
    assert {reason.partition(": ")[2] for reason in said[:4]} == {
        "statistics of a class over fewer distinct images than this site's limits allow (min-class-images)"
    }
    (book,) = tmp_path.glob("answers-client-0.json")
    assert json.loads(book.read_text())["all"] == {"refusals": 3}
    refused(ask(), "this site has refused so many sets of images that are a few or differ by a few")


def test_one_set_of_images_is_refused_once_for_all_runs(site, tmp_path):
    """A sweep over a key that deals no images otherwise would use a site up."""
    train = site.partitions[0].train
    for lr in (0.1, 0.2, 0.3):
        other = Site(dataclasses.replace(site.config, client=dataclasses.replace(site.config.client, lr=lr)))
        with pytest.raises(Limited, match="fewer images than its min-images$"):
            keeper(other, tmp_path).check_partition(train[:9])
    with pytest.raises(Limited, match="fewer images than its min-images$"):
        keeper(site, tmp_path).check_partition(train[:8])  # the control: another set
    (book,) = tmp_path.glob("answers-client-0.json")
    assert json.loads(book.read_text())["all"] == {"refusals": 2}


def test_layers_with_one_input_count_as_so_many_answers(site, tmp_path, monkeypatch):
    """Each has noise of its own where their sums are of other kinds or bases, and their mean has less than one."""
    names = [name for name in site.targets if name.endswith("attn.proj")][:2]
    request = Request(
        source="inputs",
        layers=dict.fromkeys(names, "gram"),
        shapes=dict.fromkeys(names, (24, 24)),
        seed=0,
        sampling=Sampling(clip=1.0, noise=2.0),
    )
    asked, train = keeper(site, tmp_path, min_noise=1.0), site.partitions[0].train
    asked.measure(request, train)  # one of four: these layers have inputs of their own
    monkeypatch.setattr("clients.limits.shared_inputs", lambda _, targets: dict.fromkeys(targets, names[0]))
    asked.measure(request, train)
    (book,) = tmp_path.glob("answers-client-0.json")
    assert json.loads(book.read_text())["all"] == {"statistics": 2, "precision": 0.75}
    with pytest.raises(Limited, match="answers together would have less noise than its min-noise"):
        asked.measure(request, train)


def test_statistics_of_inputs_bring_no_start(site):
    """It would count, and then fail."""
    request = Request(source="inputs", layers={LAYER: "gram"}, shapes={LAYER: (24, 24)}, seed=0, sampling=Sampling())
    for source, has_start in (("inputs", True), ("adapters", False)):
        with pytest.raises(Refused, match=f"statistics of {source}, with"):
            guard.check_request(dataclasses.replace(request, source=source), site, has_start)
