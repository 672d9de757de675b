"""A rule against bad clients goes with every method: what is clipped goes to the start, who is out is not there."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
import torch
from flwr.app import Array

import fedinit
from clients.cohort import Cohort
from clients.site import Site
from fedinit.errors import InputError, RunFailed
from fedinit.factors import Factors
from fedinit.runs.observer import Observer
from fedinit.transport.local import LocalGrid
from strategies import AGGREGATORS
from strategies.aggregator import Aggregate, Update
from strategies.methods.choosing import Choosing
from strategies.robust import ROBUST, create_robust
from strategies.robust.contract import Changes
from strategies.robust.geometry import gram_of
from strategies.server.compatibility import check_method
from strategies.server.federation import check_clients, federate
from strategies.server.weighing import START, weigh
from tests.support.oracles import as_trained, draw_clients
from tests.support.serving import method_of
from tests.support.small import WORDS, small_config

EXACT = ("ffa_lora", "fedex_lora", "fedsvd", "flora", "fed_sb", "ravan", "rolora", "lora_a2")
METHODS = sorted(set(AGGREGATORS) - {"fedsa_lora"})  # whose products the server does not know


def round_of(name: str, ranks=(3, 3, 3, 3)) -> tuple[list[Update], Aggregate]:
    """Four clients' updates as the method's clients send them, the last one far off, and what they started from."""
    drawn = draw_clients(0, 12, 9, (3, *ranks), spread=0.3)
    options = {"heads": 1} if name == "ravan" else {}
    start, *own = drawn.factors()
    begun = as_trained(name, start, start, **options)
    layers = [as_trained(name, f, begun, **options) for f in own]
    updates = [Update(i, 10, {"layer": f}, {"bias": torch.tensor([1.0, i])}) for i, f in enumerate(layers)]
    updates[-1] = dataclasses.replace(updates[-1], head={"bias": torch.tensor([-50.0, 90.0])})
    return updates, Aggregate(layers={"layer": begun}, head={"bias": torch.zeros(2)})


def model(made: Aggregate) -> np.ndarray:
    residual = made.residual["layer"].dense() if made.residual else 0
    return (made.layers["layer"].dense() + residual).double().numpy()


@pytest.mark.parametrize("rule", [name for name in sorted(ROBUST) if name != "none"])
@pytest.mark.parametrize("name", METHODS)
def test_every_rule_goes_with_every_method(name, rule):
    """Exact methods have Σ w_i B_iA_i + w_0 B_0A_0, the start's share with it, and every head is that mean."""
    updates, start = round_of(name)
    options = {"root": 0} if rule == "trust" else {}
    method = method_of(name, robust=create_robust(rule, options))
    weighed = weigh(updates, method, start)
    w = weighed.weights
    assert sum(w.values()) == pytest.approx(1, abs=1e-12) and w.get(3, 0.0) < 0.15
    made = method.aggregator.aggregate(weighed.updates, 1, start, w)
    heads = {u.client: u.head["bias"] for u in weighed.updates}
    expected_head = sum(w[client] * head for client, head in heads.items())
    torch.testing.assert_close(made.head["bias"], expected_head, rtol=1e-6, atol=1e-6)
    if name in EXACT:
        ideal = sum(w[u.client] * u.layers["layer"].dense() for u in weighed.updates).numpy()
        np.testing.assert_allclose(model(made), ideal, rtol=1e-9, atol=1e-9)
    assert np.isfinite(model(made)).all()


MIXED = [n for n in METHODS if AGGREGATORS[n].mixed_ranks and not AGGREGATORS[n].cuts]


@pytest.mark.parametrize("name", [n for n in MIXED if not issubclass(AGGREGATORS[n], Choosing)])
def test_mixed_ranks_and_a_share_of_the_start(name):
    """What every client of a round has lost to the bound goes to the start, whatever their ranks."""
    updates, start = round_of(name, ranks=(3, 1, 2, 3))
    weighed = weigh(updates, method_of(name, robust=create_robust("bounded", {"tau": 1e-9})), start)
    assert weighed.weights[START] == pytest.approx(1, abs=1e-6)
    made = method_of(name).aggregator.aggregate(weighed.updates, 1, start, weighed.weights)
    np.testing.assert_allclose(model(made), start.layers["layer"].dense().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["fedit", "lora_fair", "flora", "rbla"])
def test_who_is_thrown_out_is_as_if_it_had_not_answered(name):
    updates, start = round_of(name)
    method = method_of(name, robust=create_robust("multi_krum", {"bad": 1}))
    weighed = weigh(updates, method, start)
    assert set(weighed.weights) == {0, 1, 2}
    made = method.aggregator.aggregate(weighed.updates, 1, start, weighed.weights)
    without = method.aggregator.aggregate(updates[:3], 1, start)
    np.testing.assert_allclose(model(made), model(without), rtol=1e-12, atol=1e-14)


def test_without_a_rule_the_weights_are_the_methods_to_the_bit():
    updates, start = round_of("fedit")
    weighed = weigh(updates, method_of("fedit"), start)
    assert weighed.updates is updates and list(weighed.weights.values()) == method_of("fedit").aggregator.weights(
        updates
    )


def test_claims_give_bad_clients_no_majority_of_the_weight():
    """Two of six that claim 2^40 and agree with each other: at three medians each they are most of the weight, and the
    geometric median is theirs; a rule sees them at 1.25."""
    draw = torch.Generator().manual_seed(0)
    start = Factors(torch.randn(3, 9, generator=draw), torch.randn(12, 3, generator=draw))
    far = Factors(start.A, start.B - 5)
    layers = [far, far, *(Factors(start.A, start.B + torch.rand(12, 3, generator=draw)) for _ in range(4))]
    examples = [2**40, 2**40, 10, 10, 10, 10]
    updates = [Update(i, n, {"layer": f}, {}) for i, (f, n) in enumerate(zip(layers, examples, strict=True))]
    begun = Aggregate(layers={"layer": start})
    method = method_of("ffa_lora", robust=create_robust("geometric_median"))
    judged = weigh(updates, method, begun).weights
    assert judged[0] + judged[1] < 0.35
    capped = method.gate.capped(method.aggregator.weights(updates))
    assert capped[0] + capped[1] == pytest.approx(0.6)
    changes = Changes(range(6), capped, gram_of(updates, begun.layers, {}, 1.0))
    assert float(method.robust.weigh(changes)[:2].sum()) > 0.95  # the control


def test_too_few_updates_for_a_rule_end_the_run_in_one_line():
    updates, start = round_of("fedit")
    method = method_of("fedit", robust=create_robust("multi_krum", {"bad": 1}))
    with pytest.raises(
        RunFailed, match="the updates of clients .0, 1, 2. cannot be judged: robust.bad=1: .* 4 or more"
    ):
        weigh(updates[:3], method, start)


# -- whole runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


class Weights(Observer):
    def __init__(self):
        self.rounds = []

    def round_done(self, report):
        self.rounds.append([client.weight for client in report.clients])


@pytest.mark.parametrize(
    "words", [("adapter=dora",), ("adapter=vera", "init=vera"), ("strategy=fed_sb", "init=lora_xs")]
)
def test_a_poisoned_client_counts_less_in_a_run(site, words):
    """One of three sends its change a hundred times over, with the gate off: clipped, and reported by its weight."""
    cohort = Cohort(site)

    def poisoned(deliveries):
        replies = cohort(deliveries)
        if deliveries[0][0].metadata.message_type == "train":
            for name, array in (record := replies[1].content["state"]).items():
                record[name] = Array(array.numpy() * 100)
        return replies

    def weights(*more: str) -> list[list[float]]:
        seen, own = Weights(), small_config("strategy=fedit", "gate.enabled=false", "rounds=1", *words, *more)
        federate(own, LocalGrid(poisoned, 3), site.backbone, observers=[seen])
        return seen.rounds

    ((first, bad, third),) = weights("robust=bounded")
    assert 0 < bad < 0.05 < 0.2 < min(first, third)
    ((first, bad, third),) = weights()
    assert [first, bad, third] == pytest.approx([1 / 3] * 3, abs=0.02)


def test_the_weights_are_a_column_of_the_clients_table(tmp_path):
    words = [*WORDS, "rounds=1", f"output_dir={tmp_path}"]
    robust, plain = (fedinit.run(*words, *more) for more in (["robust=geometric_median"], []))
    with open(robust.folder / "clients.csv") as file:
        weights = [float(row["weight"]) for row in csv.DictReader(file)]
    assert sum(weights) == pytest.approx(1, abs=1e-9) and len(set(weights)) == 3
    assert "weight" not in (plain.folder / "clients.csv").read_text().splitlines()[0].split(",")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("robust=bounded", "strategy=fedsa_lora", "evaluation=clients"),
            "robust=bounded: compares .* products, of which",
        ),
        (("robust=trust",), "robust=trust: the server trains nothing itself, .*; name its partition id, robust.root=0"),
        (("robust=trust", "robust.root=0", "participation=0.5"), "participation=0.5: robust=trust: every round needs"),
    ],
)
def test_what_does_not_go_together_is_refused(words, said):
    with pytest.raises(InputError, match=said):
        check_method(small_config(*words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("robust=trust", "robust.root=3"), "robust.root=3: expected one of the partition ids 0 to 2"),
        (("robust=multi_krum", "robust.bad=1"), "robust=multi_krum cannot judge a round of 3 clients: .* 4 or more"),
        (("robust=multi_krum", "participation=0.3"), "cannot judge a round of 1 clients"),
        (("robust=multi_krum", "robust.bad=2"), "with 2 bad updates among them it needs 5 or more"),
        (("attack=sign_flip", "attack.clients=[0,0]"), r"attack.clients=\[0,0\]: names a client twice"),
        (
            ("attack=sign_flip", "attack.clients=[0]", "attack.count=2"),
            r"count=2: attack.clients=\[0\] says who",
        ),
    ],
)
def test_too_few_clients_for_a_rule_are_refused_before_the_run(words, said):
    with pytest.raises(InputError, match=said):
        check_clients(small_config(*words), {0: 10, 1: 10, 2: 10})
