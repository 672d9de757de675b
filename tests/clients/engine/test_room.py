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
from clients.engine.cost import StepCost
from clients.engine.room import ACTOR, SHARE, within_room, without_room
from clients.site import Site
from tests.support.small import small_config

COST = StepCost(fixed=10**9, image=10**6, client=10**7, flops=0)
EACH = 3 * (10**7 + 20 * 10**6)  # three clients with batches of twenty


def engine(*words: str):
    return small_config("engine.device=cpu", *words).engine


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch) -> None:
    monkeypatch.setattr(room, "cores", lambda: 8)


def free(monkeypatch, size: int | None) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: size)


@pytest.mark.parametrize(("steps", "expected"), [(8, None), (7.99, 7), (3.5, 3), (1, 1), (0.2, 1)])
def test_lanes_are_as_many_as_have_room(steps, expected, monkeypatch) -> None:
    free(monkeypatch, int(steps * EACH / SHARE) + 1)
    made, said = within_room(engine(), COST, 3, 20)
    assert made.lanes == expected
    assert (said == "") == (expected is None)
    if expected:
        assert said.startswith(
            f"engine: room for {expected} of 8 lanes, since the steps of 3 clients take about 90.0 MB"
        )


@pytest.mark.parametrize(
    "words", [("engine.lanes=4",), ("engine=inline",), ("engine=ray", "engine.actors=2"), ("engine.threads=8",)]
)
def test_a_number_that_is_given_stays(words, monkeypatch) -> None:
    free(monkeypatch, 1)
    assert within_room(engine(*words), COST, 3, 20) == (engine(*words), "")


def test_a_system_that_does_not_say_has_room(monkeypatch) -> None:
    free(monkeypatch, None)
    assert within_room(engine(), COST, 3, 20) == (engine(), "")


def test_actors_of_this_machine_have_a_process_and_the_weights_each(monkeypatch) -> None:
    free(monkeypatch, int(3 * (EACH + ACTOR + COST.fixed) / SHARE) + 1)
    made, said = within_room(engine("engine=ray"), COST, 3, 20)
    assert made.actors == 3 and "room for 3 of 8 actors" in said
    elsewhere = engine("engine=ray", "engine.address=host:6379")
    assert within_room(elsewhere, COST, 3, 20) == (elsewhere, "")


def test_a_site_has_no_more_lanes_and_says_so(monkeypatch) -> None:
    """And what is computed is the same: a run's name and its words are."""
    console = Console(record=True, file=io.StringIO(), width=200)
    with contextlib.closing(Site(small_config("engine.device=cpu"))) as plain:
        cost = plain.cost
        assert cost is not None and cost.image > 0 and cost.flops == 0
    monkeypatch.setattr(room, "free_memory", lambda: int(2 * (cost.peak(3, 20) - cost.fixed) / SHARE) + 1)
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


def test_short_clients_are_no_reason_to_warn(monkeypatch) -> None:
    """A batch larger than all of a client's images costs what these do."""
    with contextlib.closing(Site(small_config("engine.device=cpu", "client.batch_size=100000"))) as site:
        _, largest = room.largest_step(site.config, site.partitions)
        needed = COST.peak(3, largest) - COST.fixed
        free(monkeypatch, needed)
        assert without_room(site.config, site.partitions, 8, COST) == ""
        free(monkeypatch, needed - 1)
        said = without_room(site.config, site.partitions, 8, COST)
        assert said.endswith(f"take a smaller one; no client has more than {largest} images")
        config = dataclasses.replace(site.config, engine=engine("engine=ray"))
        assert without_room(config, site.partitions, 8, COST) == ""
