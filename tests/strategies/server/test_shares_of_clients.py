"""A start, and an evaluation, of a share of the clients (`start_participation`, `evaluation.participation`)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from clients.cohort import Cohort
from clients.resident import Resident
from clients.site import Site
from fedinit.errors import InputError
from fedinit.transport.local import LocalGrid
from strategies.server.compatibility import check_method
from strategies.server.federation import Outcome, federate
from strategies.server.measuring import refuse_few_images, told, who_measure
from strategies.server.method import drawn
from tests.support.small import small_config

SIX = ("partition=iid", "partition.clients=6")
MEASURED = (*SIX, "rounds=1", "evaluation=none", "participation=0.2")


def federated(site: Site) -> tuple[Outcome, dict[str, list[list[int]]]]:
    """What came of the site's run, and {work: the clients of every question}."""
    cohort, asked = Cohort(site), {}
    answers = cohort.answers

    def noting(tasks):
        for work in dict.fromkeys(task.work for task in tasks):
            asked.setdefault(work, []).append([task.client for task in tasks if task.work == work])
        return answers(tasks)

    cohort.answers = noting
    grid = LocalGrid(cohort, len(site.partitions))
    return federate(site.config, grid, site.backbone), asked


@pytest.mark.parametrize(
    ("words", "questions"),
    [
        (("init=eva", "init.examples=8", "init.min_examples=4"), 1),
        (("head=ncm", "init=lora_ga", "init.examples=8", "init.min_examples=4"), 2),
        (("client=sgd_sai", "client.gsnr_scope=global_once"), 1),
    ],
)
def test_those_who_measure_are_one_draw_for_all_that_is_asked_for_a_start(words, questions):
    config = small_config(*MEASURED, "start_participation=0.5", *words)
    chosen = who_measure(config, range(6))
    assert len(chosen) == 3 and chosen != who_measure(dataclasses.replace(config, seed=1), range(6))
    outcome, asked = federated(Site(config))
    assert len(asked["measure"]) >= questions and all(clients == chosen for clients in asked["measure"])
    notes = outcome.start.get("step_scales", outcome.start)
    assert notes["clients"] == 3
    _, by_all = federated(Site(small_config(*MEASURED, *words)))
    assert all(clients == [0, 1, 2, 3, 4, 5] for clients in by_all["measure"])


def test_a_start_is_of_the_images_of_those_who_measure_alone():
    config = small_config(*MEASURED, "start_participation=0.5", "init=eva", "init.examples=8", "init.min_examples=4")
    measuring = who_measure(config, range(6))

    def begun(changed: int | None) -> str:
        """The hash after a round in which nobody moves, of a run in which a client's images are others."""
        still = dataclasses.replace(config, client=dataclasses.replace(config.client, lr=1e-30))
        site = Site(still)
        if changed is not None:
            images = site.data.images.clone()
            rows = site.partitions[changed].train
            images[rows] = 255 - torch.roll(images[rows], 5, -1)
            other = dataclasses.replace(site.data, images=images)
            site.data = other
            for worker in site.engine.workers:
                worker.resident = Resident(other, worker.device)
        return federated(site)[0].final_hash

    others = [client for client in range(6) if client not in measuring]
    assert begun(None) == begun(others[0]) == begun(others[-1])
    assert begun(None) != begun(measuring[0])


def test_a_quorum_is_of_those_who_measure():
    words = ("init=eva", "start_participation=0.5")
    sizes = dict.fromkeys(range(6), 40)
    refuse_few_images(small_config(*words, "quorum=3"), sizes)
    with pytest.raises(InputError, match="^start_participation=0.5: 3 of 6 clients .* quorum=4 .* or a lower quorum$"):
        refuse_few_images(small_config(*words, "quorum=4"), sizes)
    refuse_few_images(small_config("init=pissa", "start_participation=0.5", "quorum=4"), sizes)
    config = small_config(*words, "quorum=3")
    few = sizes | {who_measure(config, range(6))[1]: 5}
    with pytest.raises(InputError, match="2 of the 3 clients that measure have as many images, and 3 or more .*=5, or"):
        refuse_few_images(config, few)
    few = sizes | {client: 5 for client in range(6) if client not in who_measure(config, range(6))}
    refuse_few_images(config, few)


def test_how_many_measure_is_said():
    assert told([3], [3]) == "the client measures" and told([1, 2], [1, 2]) == "all 2 clients measure"
    assert told([1], [1, 2, 3]) == "1 of 3 clients measures"
    assert told(range(1000), range(100_000)) == "1,000 of 100,000 clients measure"


def test_a_share_of_the_clients_evaluates_another_one_every_round():
    words = (*SIX, "rounds=4", "evaluation=clients", "client.max_steps=1")
    outcome, asked = federated(Site(small_config(*words, "evaluation.participation=0.5")))
    rounds = asked["evaluate"]
    assert rounds == [drawn(range(6), 0.5, 0, "evaluating", round) for round in (1, 2, 3, 4)]
    assert {len(clients) for clients in rounds} == {3} and len(set(map(tuple, rounds))) > 1
    whole, by_all = federated(Site(small_config(*words)))
    assert by_all["evaluate"] == [[0, 1, 2, 3, 4, 5]] * 4
    assert whole.final_hash == outcome.final_hash, "who evaluates changes no model"
    assert sum(outcome.score.whole.values()) < sum(whole.score.whole.values())


@pytest.mark.parametrize("word", ["start_participation", "evaluation.participation"])
def test_shares(word):
    where = "evaluation=clients"
    for bad in ("0", "1.1", "-0.5"):
        with pytest.raises(InputError, match=rf"^{word}=.*: expected a number in \(0, 1\]$"):
            small_config(where, f"{word}={bad}")
    base = small_config(where)
    assert small_config(where, f"{word}=1.0").identity() == base.identity()
    assert small_config(where, f"{word}=0.5").identity() != base.identity()


def test_a_share_of_evaluators_where_the_server_evaluates_is_refused():
    with pytest.raises(InputError, match="^evaluation.participation=0.5: is for evaluation=clients"):
        small_config("evaluation=server", "evaluation.participation=0.5")


@pytest.mark.parametrize("words", [(), ("init=pissa", "head=zero"), ("client=sgd_sai",)])
def test_a_share_of_those_who_measure_where_nobody_does_is_refused(words):
    config = small_config("start_participation=0.5", *words)
    with pytest.raises(InputError, match="^start_participation=0.5: nobody measures for a start of .*; leave it out"):
        check_method(config)
    check_method(small_config(*words))
    check_method(dataclasses.replace(config, head=small_config("head=ncm").head))


def test_nobody_and_everybody_are_drawn_without_a_draw():
    assert drawn([], 0.5, 0, "evaluating", 1) == [] and drawn([4, 7], 1.0, 0, "sampling", 1) == [4, 7]
    assert drawn([4, 7, 9], 1e-9, 0, "sampling", 1) in ([4], [7], [9])
