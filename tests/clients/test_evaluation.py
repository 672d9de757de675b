"""Counts of correct predictions, against a model evaluated by hand, for any batching and any number of lanes."""

from __future__ import annotations

import pytest
import torch

from clients import batches
from clients.cohort import Cohort
from clients.engine.threads import ThreadEngine
from clients.engine.worker import Settings, make_workers
from clients.evaluation import FrozenFeatures, judge, sums_record
from clients.site import Site
from clients.task import Job, Task
from fedinit.factors import Factors
from fedinit.models import select_targets
from fedinit.scores import Accuracy
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate
from tests.support.small import small_config

SCALE = 2.0


@pytest.fixture
def made(tiny_backbone, random_adapter, random_head):
    """(backbone, targets, adapter, head)"""
    targets = select_targets(tiny_backbone.module, None, 3)
    return tiny_backbone, targets, random_adapter(targets, 3, 0), random_head(5, tiny_backbone.features, 0)


@pytest.fixture
def engine_of(tiny_data, client_config):
    """engine_of(backbone, targets, lanes)"""

    def make(backbone, targets, lanes: int = 2) -> ThreadEngine:
        settings = Settings(client=client_config(), seed=0, scale=SCALE)
        return ThreadEngine(make_workers(backbone, targets, tiny_data, settings, "cpu", lanes))

    return make


def evaluated(engine, data, indices, adapter, head, size, features=None) -> dict[int, tuple[float, float]]:
    features = None if features is None else features[indices]
    task = Task(0, 1, indices, adapter, head, frozenset(), work="evaluate", features=features)
    return judge(engine, data, task, size)


def by_hand(model, data, indices, spec) -> dict[int, tuple[int, int]]:
    """One image at a time, in float64."""
    counts: dict[int, list[int]] = {}
    for i in indices.tolist():
        image = batches.normalise(data.images[i : i + 1], spec, torch.device("cpu")).double()
        row = counts.setdefault(int(data.domains[i]), [0, 0])
        row[0] += int(model(image).argmax()) == int(data.labels[i])
        row[1] += 1
    return {domain: (correct, images) for domain, (correct, images) in sorted(counts.items())}


def test_counts_equal_a_direct_evaluation(made, tiny_data, plain_client, engine_of) -> None:
    backbone, targets, adapter, head = made
    model = plain_client(backbone, adapter, head, SCALE).double()
    for indices in (tiny_data.test.nonzero().flatten(), torch.tensor([59, 3, 3, 17]), torch.arange(60)):
        ours = evaluated(engine_of(backbone, targets), tiny_data, indices, adapter, head, 8)
        assert ours == by_hand(model, tiny_data, indices, backbone.input)
    assert sum(images for _, images in ours.values()) == 60
    assert 0 < sum(correct for correct, _ in ours.values()) < 60


def test_adapter_and_head_both_count(made, tiny_data, random_adapter, random_head, engine_of) -> None:
    """Negative control: with another adapter or another head, other counts."""
    backbone, targets, adapter, head = made
    engine, indices = engine_of(backbone, targets), torch.arange(60)
    base = evaluated(engine, tiny_data, indices, adapter, head, 8)
    assert evaluated(engine, tiny_data, indices, random_adapter(targets, 3, 1, 3.0), head, 8) != base
    assert evaluated(engine, tiny_data, indices, adapter, random_head(5, backbone.features, 1), 8) != base
    assert evaluated(engine, tiny_data, indices, adapter, head, 8) == base


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_batches_and_lanes_change_nothing(lanes: int, made, tiny_data, engine_of) -> None:
    backbone, targets, adapter, head = made
    pool, indices = engine_of(backbone, targets, lanes), torch.arange(60)
    counts = [evaluated(pool, tiny_data, indices, adapter, head, size) for size in (1, 7, 60, 1000)]
    assert counts == [evaluated(engine_of(backbone, targets, 1), tiny_data, indices, adapter, head, 16)] * 4


def test_cached_features_give_the_same_logits(made, tiny_data, engine_of) -> None:
    """With B = 0: logits to 1e-5 of their size (the cache was made in other batches), counts exactly."""
    backbone, targets, adapter, head = made
    zero = {name: Factors(f.A, torch.zeros_like(f.B)) for name, f in adapter.items()}
    engine, indices = engine_of(backbone, targets), torch.arange(60)
    features = FrozenFeatures(engine, tiny_data, 9).of(torch.arange(60))
    assert features.shape == (60, backbone.features) and not features.is_inference()
    with engine.borrow() as bank:
        bank.fold(zero, head)
        direct = bank.forward(batches.normalise(tiny_data.images, backbone.input, torch.device("cpu")), 1)
        assert (bank.classify(features, 1) - direct).norm() <= 1e-5 * direct.norm()
    slow = evaluated(engine, tiny_data, indices, zero, head, 8)
    assert evaluated(engine, tiny_data, indices, zero, head, 8, features) == slow
    assert evaluated(engine, tiny_data, indices, adapter, head, 8) != slow  # negative: features ignore adapters


def test_features_are_computed_when_they_are_asked_for_and_whoever_asks_has_the_same_bits(made, tiny_data, engine_of):
    """The forty images of training come before the twenty of the test: seven passes of six, each made once."""
    backbone, targets, _, _ = made
    engine, done = engine_of(backbone, targets), []
    run = engine.run
    engine.run = lambda jobs: done.append([task.examples.tolist() for job in jobs for task in job.tasks]) or run(jobs)
    trained, tested = (~tiny_data.test).nonzero().flatten(), tiny_data.test.nonzero().flatten()
    all_at_once = FrozenFeatures(engine_of(backbone, targets), tiny_data, 6).of(torch.arange(60))
    features = FrozenFeatures(engine, tiny_data, 6)
    some = trained[torch.tensor([30, 2, 33])]
    assert torch.equal(features.of(some), all_at_once[some])
    assert done == [[trained[:6].tolist(), trained[30:36].tolist()]]
    assert torch.equal(features.of(tested), all_at_once[tested])
    assert torch.equal(features.of(torch.arange(60)), all_at_once)
    assert [len(passes) for passes in done] == [2, 4, 4] and sum(len(p) for passes in done for p in passes) == 60
    assert features.of(trained[:0]).shape == (0, backbone.features)


def test_evaluation_leaves_no_trace_in_training(made, tiny_data, engine_of) -> None:
    """A lane that evaluated, or computed features, trains to the same bits as a fresh one; and the other way round."""
    backbone, targets, adapter, head = made
    task = Task(0, 1, torch.arange(9), adapter, head, frozenset("AB"))

    def train(engine: ThreadEngine):
        ((result,),) = engine.run([Job("train", "", "", (task,))])
        return result

    fresh = train(engine_of(backbone, targets, 1))
    used = engine_of(backbone, targets, 1)
    counts = evaluated(used, tiny_data, torch.arange(60), adapter, head, 8)
    after_counts = train(used)
    features = FrozenFeatures(used, tiny_data, 8).of(torch.arange(60))
    after_features = train(used)
    for again in (after_counts, after_features):
        for name in targets:
            assert torch.equal(again.adapter[name].A, fresh.adapter[name].A)
            assert torch.equal(again.adapter[name].B, fresh.adapter[name].B)
    assert evaluated(used, tiny_data, torch.arange(60), adapter, head, 8) == counts
    assert torch.equal(FrozenFeatures(used, tiny_data, 8).of(torch.arange(60)), features)


def test_sums_record_lists_domains_side_by_side() -> None:
    record = sums_record({0: (3, 5), 2: (0, 4)}, Accuracy)
    assert dict(record) == {"domains": [0, 2], "correct": [3, 0], "num-examples": [5, 4]}


def test_what_the_server_judges_is_of_the_round_it_judges_after(monkeypatch) -> None:
    """By it the ledger says when an actor died at it."""
    site, rounds = Site(small_config("engine=inline")), set()
    run = site.engine.run

    def noted(jobs):
        rounds.update(task.round for job in jobs for task in job.tasks)
        return run(jobs)

    monkeypatch.setattr(site.engine, "run", noted)
    federate(site.config, LocalGrid(Cohort(site), 3), site.backbone, evaluate_fn=site.evaluate_round)
    assert rounds == {1, 2}
