"""No more lanes than memory has room for; and a line where one step alone has none."""

from __future__ import annotations

import contextlib
import dataclasses
import io

import pytest
import torch
from rich.console import Console

import run_sim
from clients.engine import room
from clients.engine.cost import COPIES, StepCost
from clients.engine.room import ACTOR, RAY, SHARE, Passes, largest, within_room, without_room
from clients.site import Site
from fedinit.data.image_cache import MappedImages
from tests.support.small import small_config

COST = StepCost(fixed=10**9, image=10**6, client=10**7, flops=0)
EACH = 3 * (10**7 + 20 * 10**6)  # three clients with batches of twenty
PASSES = Passes(step=EACH, clients=3, asked=24, judging=EACH // 2, judged=8)


def engine(*words: str):
    return small_config("engine.device=cpu", *words).engine


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch) -> None:
    monkeypatch.setattr(room, "cores", lambda: 8)


def free(monkeypatch, size: int | None) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: size)


@pytest.mark.parametrize(("steps", "expected"), [(8, None), (7.99, 7), (3.5, 3), (1, 1)])
def test_lanes_are_as_many_as_have_room(steps, expected, monkeypatch) -> None:
    free(monkeypatch, int(steps * EACH / SHARE) + 1)
    made, said = within_room(engine(), COST, PASSES)
    assert made.lanes == expected
    assert (said == "") == (expected is None)
    if expected:
        assert said.startswith(
            f"engine: room for {expected} of 8 lanes, since a lane takes about 90.0 MB of memory, and"
        )


@pytest.mark.parametrize(
    "words", [("engine.lanes=4",), ("engine=inline",), ("engine=ray", "engine.actors=2"), ("engine.threads=8",)]
)
def test_a_number_that_is_given_stays(words, monkeypatch) -> None:
    free(monkeypatch, 1)
    assert within_room(engine(*words), COST, PASSES) == (engine(*words), "")


def test_a_system_that_does_not_say_has_room(monkeypatch) -> None:
    free(monkeypatch, None)
    assert within_room(engine(), COST, PASSES) == (engine(), "")


def test_actors_of_this_machine_have_a_process_and_the_weights_each(monkeypatch) -> None:
    free(monkeypatch, RAY + int(3 * (EACH + ACTOR + COST.fixed) / SHARE) + 1)
    made, said = within_room(engine("engine=ray"), COST, PASSES)
    assert made.actors == 3 and "room for 3 of 8 actors" in said
    images = torch.zeros(1000, 3, 8, 8, dtype=torch.uint8)
    mapped = MappedImages(torch.arange(1000), (3, 8, 8), lambda rows: images[rows])
    assert within_room(engine("engine=ray"), COST, PASSES, mapped)[0].actors == 3
    assert within_room(engine("engine=ray"), COST, PASSES, images)[0].actors == 2, "Ray holds a copy"
    assert within_room(engine(), COST, PASSES, images) == within_room(engine(), COST, PASSES)
    elsewhere = engine("engine=ray", "engine.address=host:6379")
    assert within_room(elsewhere, COST, PASSES) == (elsewhere, "")


def test_a_site_has_no_more_lanes_and_says_so(monkeypatch) -> None:
    """And what is computed is the same: a run's name and its words are."""
    console = Console(record=True, file=io.StringIO(), width=200)
    with contextlib.closing(Site(small_config("engine.device=cpu"))) as plain:
        cost = plain.cost
        assert cost is not None and cost.image > 0 and cost.flops == 0
        most = Passes.of(plain.config, cost, plain.partitions, plain.data.test).most
    monkeypatch.setattr(room, "free_memory", lambda: int(2 * most / SHARE) + 1)
    with contextlib.closing(Site(small_config("engine.device=cpu"), console=console)) as site:
        assert site.engine.lanes == 2 and site.config == plain.config
    text = console.export_text()
    assert "engine: room for 2 of 8 lanes" in text and "engine: 2 lanes on CPU" in text


def test_the_pass_that_asks_leaves_nothing(tiny_vit) -> None:
    """The module is the run's own."""
    before = {name: value.clone() for name, value in tiny_vit.module.state_dict().items()}
    state = torch.get_rng_state()
    with contextlib.closing(Site(small_config("engine.device=cpu"))) as site:
        names = dict(site.backbone.module.named_modules())
        again = room.cost_of(site.config, site.backbone, site.targets, 10, torch.device("cpu"))
        assert again == site.cost and dict(site.backbone.module.named_modules()) == names
        assert not any(value.requires_grad or value.grad is not None for value in site.backbone.module.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in tiny_vit.module.state_dict().items())


def test_a_run_says_that_its_steps_have_no_room_and_goes_on(monkeypatch, tmp_path, capsys) -> None:
    """It may be wrong, and what was done is kept: a preview alone does not try."""
    monkeypatch.setattr(room, "free_memory", lambda: 2**16)
    assert run_sim.main(["experiment=quick", "rounds=1", "client.max_steps=1", "evaluation=none", "report=none",
                         "evaluation.head_alone=false", f"output_dir={tmp_path}"]) == 0  # fmt: skip
    text = " ".join(capsys.readouterr().out.split())
    assert "the steps of 3 clients at once take about" in text and "65.5 kB are free" in text
    assert "the system may end the run" in text and "1 round, 6 clients" in text


def passes_of(*words: str, cost: StepCost = COST) -> tuple[Site, Passes]:
    site = Site(small_config("engine.device=cpu", "engine=inline", *words))
    return site, Passes.of(site.config, cost, site.partitions, site.data.test)


def test_short_clients_are_no_reason_to_warn(monkeypatch) -> None:
    """A batch larger than all of a client's images costs what these do."""
    site, passes = passes_of("client.batch_size=100000")
    most = largest(site.partitions)
    assert passes.step == COST.peak(3, most) - COST.fixed
    free(monkeypatch, passes.step)
    assert without_room(site.config, site.partitions, 1, COST, passes) == ""
    free(monkeypatch, passes.step - 1)
    said = without_room(site.config, site.partitions, 1, COST, passes)
    assert said.endswith(f"take a smaller one; no client has more than {most} images")
    config = dataclasses.replace(site.config, engine=engine("engine=ray"))
    assert without_room(config, site.partitions, 8, COST, passes) == ""


def test_lanes_that_have_no_bank_need_no_room(monkeypatch) -> None:
    """Three clients are one bank, whatever the lanes; of one that is asked a step is one client's."""
    site, passes = passes_of("client.batch_size=20")
    assert passes.clients == 3 and passes.at_once(8) == passes.at_once(1) == passes.step
    _, one = passes_of("client.batch_size=20", "participation=0.3")
    assert one.clients == 1 and one.step == passes.step // 3
    _, none = passes_of("client.batch_size=20", "strategy=head_alone", "reinit=auto")
    assert none.step == 0
    apart = dataclasses.replace(passes, clients=1, step=passes.step // 3)
    assert apart.at_once(8) == passes.step and apart.at_once(2) == 2 * passes.step // 3
    free(monkeypatch, 2 * passes.step // 3)
    said = without_room(site.config, site.partitions, 8, COST, apart)
    assert "the steps of 3 clients at once take about" in said
    assert said.endswith("engine.lanes=2 has room, and changes no result")


def test_a_private_step_has_a_gradient_of_every_example_and_one_client() -> None:
    with contextlib.closing(Site(small_config("engine.device=cpu"))) as plain:
        usual = plain.cost
    words = ("privacy=examples", "privacy.noise=1", "privacy.epsilon=null")
    with contextlib.closing(Site(small_config("engine.device=cpu", "client.batch_size=20", *words))) as site:
        passes = Passes.of(site.config, site.cost, site.partitions, site.data.test)
        numbers = usual.client // (4 * COPIES)
        assert site.cost.image == usual.image + 3 * 4 * numbers
        assert passes.clients == 1 and passes.step == usual.client + 20 * site.cost.image


@pytest.mark.parametrize(
    ("words", "through"),
    [
        ((), False),
        (("client.augment=flip",), True),
        (("init=pissa",), True),
        (("init=mica",), False),
        (("init=orthogonal",), True),
        (("adapter=dora",), True),
    ],
)
def test_heads_alone_are_free_where_images_do_not_go_through_in_every_step(words, through) -> None:
    _, passes = passes_of("client.batch_size=20", "strategy=head_alone", "reinit=auto", *words)
    assert passes.step == (EACH if through else 0)


def test_passes_in_which_nothing_is_trained_need_room_too(monkeypatch) -> None:
    """Where batches of training are small they are the largest."""
    cost = dataclasses.replace(COST, image=10, client=10, passing=10**6)
    site, passes = passes_of("evaluation.batch_size=200", cost=cost)
    quiet = "evaluation.batch_size=200", "evaluation.head_alone=false"
    assert passes_of(*quiet, "evaluation=none", cost=cost)[1].judging == 0
    tests, images = int(site.data.test.sum()), len(site.data.test)
    _, alone = passes_of("evaluation.batch_size=200", "evaluation.head_alone=true", cost=cost)
    _, judged = passes_of(*quiet, cost=cost)
    assert (judged.judging, judged.judged) == (min(200, tests) * 10**6, -(-tests // 200)), "of the tests alone"
    assert tests < images and (alone.judging, alone.judged) == (passes.judging, -(-images // 200))
    _, alone = passes_of(*quiet, "strategy=head_alone", "reinit=auto", "evaluation=none", cost=cost)
    assert alone.judged == -(-images // 200), "features are of all images"
    few = dataclasses.replace(passes, step=0, judged=2)
    assert few.at_once(8) == few.at_once(2) == 2 * few.judging, "no more passes than there are"
    assert passes.judging == 200 * 10**6 == passes.most
    free(monkeypatch, int(3 * passes.judging / SHARE) + 1)
    made, _ = within_room(engine(), cost, passes)
    assert made.lanes == 3
    assert within_room(engine(), cost, dataclasses.replace(passes, judged=3))[0].lanes is None, "three passes at most"
    free(monkeypatch, passes.judging - 1)
    said = without_room(site.config, site.partitions, 1, cost, passes)
    assert said.startswith("evaluation.batch_size=200: passes of as many images take about 0.2 GB of memory, and")
    assert said.endswith("take a smaller one")
    assert within_room(engine(), cost, passes)[1] == "" and within_room(engine(), cost, passes)[0].lanes == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("init=kaiming",), 0),
        (("init=eva",), 50 * 10**6),
        (("init=corda", "evaluation.batch_size=10"), 25 * 10**6),
        (("init=lora_ga", "head=zero", "client.batch_size=8"), 8 * (10 + 2 * 10**6)),
        (("head=ridge",), 20 * 10**6),
        (("client=sgd_sai", "client.gsnr_scope=global_once"), 20 * 10),
    ],
)
def test_what_clients_measure_in_round_0_needs_room_too(words, expected, monkeypatch) -> None:
    cost = dataclasses.replace(COST, image=10, client=10, passing=10**6)
    small = "evaluation=none", "evaluation.head_alone=false", "strategy=fedex_lora"
    site, passes = passes_of("evaluation.batch_size=20", *small, *words, cost=cost)
    assert passes.measuring == expected and passes.judging == 0 and passes.measured == 3
    if expected > passes.step:
        assert passes.most == expected and passes.at_once(8) == 3 * expected
        free(monkeypatch, expected - 1)
        said = without_room(site.config, site.partitions, 1, cost, passes)
        assert said.startswith(f"{words[0]}, head=") or words[0] == "head=ridge"
        assert "passes in which clients measure take about" in said
