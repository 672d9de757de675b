"""The laws that every aggregation method keeps, also one that is added to AGGREGATORS; FedIT and FFA-LoRA by value.

Values come from tests/support/oracles.py. rtol 1e-9 where both sides are float64: the sums have at most 6·24 terms, so
they agree to 1e-14, and up to 1e-10 where a system of condition 1e3 is solved. LoRA-FAIR's own mathematics is in
test_lora_fair.py, the diagnostics in ../test_aggregation_bias.py.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedinit.adapters.core import CoreFactors
from fedinit.errors import InputError
from fedinit.factors import Factors
from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Aggregate, Aggregator, Update
from strategies.methods.choosing import Choosing
from tests.support import oracles
from tests.support.oracles import Clients, as_trained, clients, draw_clients, layer_product, well_posed

quick = settings(deadline=None, max_examples=15)

EVERY: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in AGGREGATORS},
    "ravan": ("ravan", {"heads": 1}),  # which any rank is a multiple of
    "uniform": ("fedit", {"weighting": "uniform"}),
    "fair_A": ("lora_fair", {"side": "A"}),
    "fair_both": ("lora_fair", {"side": "both"}),
    "fair_gram": ("lora_fair", {"solver": "gram_sgd", "steps": 5}),
    "fair_dense": ("lora_fair", {"solver": "dense_sgd", "steps": 5}),
    "fair_xavier": ("lora_fair", {"solver": "gram_sgd", "steps": 5, "delta_init": "xavier"}),
}
SPLIT = ("fedsvd", "flexlora", "florist", "spectral")
every = pytest.mark.parametrize("method", EVERY)


def make(method: str) -> Aggregator:
    name, options = EVERY[method]
    return create_aggregator(name, **options)


def sent(c: Clients, method: str, dtype: torch.dtype = torch.float64) -> list[Update]:
    """The updates as this method's clients send them: of one rank where it takes one, around what it freezes."""
    name, options = EVERY[method]
    kind = AGGREGATORS[name]
    c = c if kind.mixed_ranks and not issubclass(kind, Choosing) else c.padded
    start = max(c.factors(dtype), key=lambda f: f.rank)
    return [
        dataclasses.replace(u, layers={n: as_trained(name, f, start, **options) for n, f in u.layers.items()})
        for u in c.updates(dtype)
    ]


def share_A(c: Clients) -> Clients:
    c = c.padded
    return dataclasses.replace(c, A=(c.A[0],) * len(c.A))


def tensors(made: Aggregate) -> list[torch.Tensor]:
    products = [*made.layers.values(), *made.residual.values()]
    return [t for f in products for t in f.parts.values()] + list(made.head.values())


def effective(made: Aggregate) -> np.ndarray:
    """Factors and residual together."""
    residual = made.residual["layer"].dense() if made.residual else 0
    return (made.layers["layer"].dense() + residual).double().numpy()


# -- every method ------------------------------------------------------------------------------------------------------


@every
@quick
@given(c=clients(min_clients=2), seed=st.integers(0, 2**31))
def test_any_order_of_the_updates_gives_the_same_bits(method: str, c: Clients, seed: int) -> None:
    updates = sent(c, method, torch.float32)
    shuffled = random.Random(seed).sample(updates, len(updates))
    one, other = make(method).aggregate(updates, 1), make(method).aggregate(shuffled, 1)
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))
    assert one.diagnostics == other.diagnostics


def test_the_order_of_a_float_sum_matters() -> None:
    """The negative control of the test above: other ids for the same updates, other last bits in some of them."""
    c = draw_clients(0, 24, 20, [8] * 6, [3, 7, 50, 1, 9, 20])
    updates = c.updates()
    turned = [dataclasses.replace(u, client=5 - u.client) for u in updates]
    one, other = make("fedit").aggregate(updates, 1), make("fedit").aggregate(turned, 1)
    assert not torch.equal(one.layers["layer"].A, other.layers["layer"].A)
    assert torch.allclose(one.layers["layer"].A, other.layers["layer"].A, rtol=1e-12, atol=1e-12)


@every
@quick
@given(c=clients(), times=st.integers(2, 1000))
def test_rescaled_examples_change_nothing(method: str, c: Clients, times: int) -> None:
    assume(well_posed(c))
    scaled = dataclasses.replace(c, examples=tuple(times * n for n in c.examples))
    one, other = (make(method).aggregate(sent(x, method), 1) for x in (c, scaled))
    np.testing.assert_allclose(effective(one), effective(other), rtol=1e-9, atol=1e-9)
    if EVERY[method][0] not in SPLIT:  # whose factors are as ill-conditioned as singular vectors are
        for a, b in zip(tensors(one), tensors(other), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_has_the_dtype_of_the_updates_and_is_computed_in_float64(method: str, dtype: torch.dtype) -> None:
    """float32 in, float32 out, to 1e-6 of the largest entry: one rounding (6e-8) of a float64 result."""
    updates = sent(draw_clients(1, 20, 13, [4] * 5, [3, 1, 40, 12, 9]), method, dtype)
    widened = [dataclasses.replace(u, layers={n: f.to(torch.float64) for n, f in u.layers.items()}) for u in updates]
    ours, theirs = make(method).aggregate(updates, 1), make(method).aggregate(widened, 1)
    assert {t.dtype for t in tensors(ours)} == {dtype}
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        assert (a.double() - b.double()).abs().max() <= 1e-6 * b.abs().max()


def test_a_float32_sum_would_show() -> None:
    """One client with 2²⁵ examples and 64 with one: float32 accumulation would drop every one of the small ones."""
    big, count = 2**25, 64
    c = Clients((np.ones((1, 2)),) * (count + 1), (np.ones((3, 1)),) + (np.full((3, 1), 2.0**24),) * count,
                (big,) + (1,) * count)  # fmt: skip
    made = make("fedit").aggregate(c.updates(torch.float32), 1)
    theirs = oracles.factor_means(c)[1]
    np.testing.assert_allclose(made.layers["layer"].B.numpy(), theirs, rtol=1e-7)


@every
@quick
@given(c=clients())
def test_the_head_is_the_weighted_mean(method: str, c: Clients) -> None:
    updates = sent(c, method)
    made = make(method).aggregate(updates, 1)
    sizes = {"examples": c.examples, "uniform": [1] * len(updates),
             "norm": [np.linalg.norm(u.layers["layer"].dense().numpy()) for u in updates]}  # fmt: skip
    p = np.array(sizes[make(method).weighting]) / sum(sizes[make(method).weighting])
    ids = np.arange(len(p))
    np.testing.assert_allclose(made.head["weight"].numpy(), [p @ ids, p @ ids**2], rtol=1e-9)


@every
def test_the_updates_are_left_as_they_were(method: str) -> None:
    c = draw_clients(2, 6, 9, [3, 3, 3])
    updates, fresh = sent(c, method), sent(c, method)
    make(method).aggregate(updates, 1)
    for kept, same in zip(updates, fresh, strict=True):
        one, other = kept.layers["layer"].parts, same.layers["layer"].parts
        assert one.keys() == other.keys() and all(torch.equal(one[part], other[part]) for part in one)
        assert torch.equal(kept.head["weight"], same.head["weight"])


def returns_one(method: str) -> bool:
    """Not those that cut, whose server does not know the product, or that start from noise."""
    kind = AGGREGATORS[EVERY[method][0]]
    return not (kind.cuts or kind.personal or method == "fair_xavier")


@pytest.mark.parametrize("method", filter(returns_one, EVERY))
@quick
@given(c=clients())
def test_one_client_alone_comes_back(method: str, c: Clients) -> None:
    """Its product, residual included."""
    (update,) = sent(Clients(c.A[:1], c.B[:1], c.examples[:1]), method)
    product = update.layers["layer"].dense().numpy()
    np.testing.assert_allclose(effective(make(method).aggregate([update], 1)), product, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), [("florist", {"energy": 0.5}), ("spectral", {"threshold": 1.5})])
def test_methods_that_cut_do_not_give_a_client_back(name: str, options: dict[str, Any]) -> None:
    c = draw_clients(1, 20, 13, [4])
    made = create_aggregator(name, **options).aggregate(c.updates(), 1)
    ideal = oracles.ideal_update(c)
    assert np.linalg.norm(effective(made) - ideal) > 0.1 * np.linalg.norm(ideal)


@pytest.mark.parametrize("method", [m for m, (name, _) in EVERY.items() if not AGGREGATORS[name].cores])
def test_a_core_is_absorbed(method: str) -> None:
    """B R A is the product of B R and A."""
    core = torch.diag(torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64))
    cored, plain = [], []
    for u in sent(draw_clients(3, 6, 9, [3, 3, 3]), method):
        A, B = u.layers["layer"].A, u.layers["layer"].B
        cored.append(dataclasses.replace(u, layers={"layer": CoreFactors(A, B, core)}))
        plain.append(dataclasses.replace(u, layers={"layer": Factors(A, B @ core)}))
    ours, theirs = make(method).aggregate(cored, 1), make(method).aggregate(plain, 1)
    assert all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(theirs), strict=True))


# -- FedIT, FFA-LoRA, the head alone -----------------------------------------------------------------------------------


@quick
@given(clients())
def test_fedit_is_the_mean_of_each_factor(c: Clients) -> None:
    layer = make("fedit").aggregate(c.updates(), 1).layers["layer"]
    A, B = oracles.factor_means(c)
    np.testing.assert_allclose(layer.A.numpy(), A, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(layer.B.numpy(), B, rtol=1e-9, atol=1e-12)


@quick
@given(clients())
def test_uniform_weights_ignore_the_examples(c: Clients) -> None:
    one = make("uniform").aggregate(c.updates(), 1)
    equal = dataclasses.replace(c, examples=(1,) * len(c.A))
    np.testing.assert_allclose(one.layers["layer"].A.numpy(), oracles.factor_means(equal)[0], rtol=1e-9, atol=1e-12)


def test_weights_differ_where_the_sizes_do() -> None:
    c = draw_clients(4, 5, 7, [2, 2], [1, 9])
    one, other = (make(m).aggregate(c.updates(), 1).layers["layer"].A for m in ("fedit", "uniform"))
    assert (one - other).abs().max() > 0.01


@quick
@given(clients())
def test_one_client_alone_comes_back_as_it_is(c: Clients) -> None:
    alone = Clients(c.A[:1], c.B[:1], c.examples[:1])
    for dtype in (torch.float32, torch.float64):
        (update,) = alone.updates(dtype)
        layer = make("fedit").aggregate([update], 1).layers["layer"]
        assert torch.equal(layer.A, update.layers["layer"].A) and torch.equal(layer.B, update.layers["layer"].B)


@quick
@given(clients(min_clients=2))
def test_shared_A_makes_averaging_exact(c: Clients) -> None:
    shared = share_A(c)
    ideal = oracles.ideal_update(shared)
    for method in ("fedit", "ffa_lora"):
        ours = layer_product(make(method).aggregate(shared.updates(), 1))
        np.testing.assert_allclose(ours, ideal, rtol=1e-9, atol=1e-9)


@quick
@given(clients(min_clients=2))
def test_averaging_is_wrong_by_the_covariance(c: Clients) -> None:
    """The identity ΔW = B̄Ā + C, and, as negative control, that C is there when no factor is shared."""
    made = layer_product(make("fedit").aggregate(c.updates(), 1))
    bias = oracles.covariance_bias(c)
    np.testing.assert_allclose(oracles.ideal_update(c) - made, bias, rtol=1e-9, atol=1e-9)
    assert np.linalg.norm(bias) > 1e-6


def test_ffa_refuses_a_redrawn_A() -> None:
    """Each client's own A, one client's A off by one bit, and an A that is not the one they were sent."""
    c = draw_clients(5, 6, 8, [3, 3, 3])
    with pytest.raises(ValueError, match="frozen A"):
        make("ffa_lora").aggregate(c.updates(), 1)
    shared = share_A(c)
    updates = shared.updates()
    make("ffa_lora").aggregate(updates, 1)
    sent = Aggregate(layers={"layer": Factors(torch.tensor(c.A[1]), torch.zeros(6, 3, dtype=torch.float64))})
    with pytest.raises(ValueError, match="frozen A"):
        make("ffa_lora").aggregate(updates, 2, previous=sent)
    updates[1].layers["layer"].A[0, 0] = np.nextafter(float(updates[1].layers["layer"].A[0, 0]), 10)
    with pytest.raises(ValueError, match="frozen A"):
        make("ffa_lora").aggregate(updates, 1)


@quick
@given(clients(min_clients=2))
def test_ffa_with_B_frozen_is_the_transposed_problem(c: Clients) -> None:
    shared = share_A(c).turned  # a B that all share
    made = create_aggregator("ffa_lora", frozen="B").aggregate(shared.updates(), 1)
    np.testing.assert_allclose(layer_product(made), oracles.ideal_update(shared), rtol=1e-9, atol=1e-9)
    assert made.diagnostics["bias"] < 1e-6
    with pytest.raises(ValueError, match="frozen A"):
        make("ffa_lora").aggregate(shared.updates(), 1)


def test_ffa_refuses_mixed_ranks() -> None:
    A, rng = np.eye(3, 8), np.random.default_rng(0)
    c = Clients((A, A[:2]), (rng.standard_normal((6, 3)), rng.standard_normal((6, 2))), (1, 1))
    with pytest.raises(ValueError, match=r"clients have ranks \[2, 3\]; expected one"):
        make("ffa_lora").aggregate(c.updates(), 1)


def test_head_alone_keeps_the_start() -> None:
    c = draw_clients(6, 6, 8, [3, 3])
    start = draw_clients(7, 6, 8, [3]).factors()[0]
    kept = make("head_alone").aggregate(c.updates(), 1, Aggregate(layers={"layer": start})).layers["layer"]
    assert torch.equal(kept.A, start.A) and torch.equal(kept.B, start.B)


@pytest.mark.parametrize(
    ("name", "trained"), [("fedit", "AB"), ("lora_fair", "AB"), ("ffa_lora", "B"), ("head_alone", "")]
)
def test_what_the_clients_train(name: str, trained: str) -> None:
    assert create_aggregator(name).trainable(1) == frozenset(trained)


# -- wrong input -------------------------------------------------------------------------------------------------------


def changed(updates: Sequence[Update], place: int, **fields: Any) -> list[Update]:
    updates = list(updates)
    updates[place] = dataclasses.replace(updates[place], **fields)
    return updates


@every
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"client": 0}, "client 0 has two updates"),
        ({"examples": 0}, "client 1 has 0 examples"),
        ({"examples": -3}, "client 1 has -3 examples"),
        ({"examples": float("nan")}, "client 1 has nan examples"),
        ({"layers": {}}, "client 1 has other layers than client 0"),
        ({"layers": {"layer": Factors(torch.zeros(2, 9), torch.zeros(5, 2))}}, r"a \(5, 9\) product, expected"),
        ({"head": {}}, "client 1 has other layers than client 0"),
        ({"head": {"weight": torch.zeros(1)}}, r"client 1, head weight: shape \(1,\), expected \(2,\)"),
    ],
)
def test_updates_that_do_not_belong_together(method: str, fields: dict[str, Any], message: str) -> None:
    updates = sent(draw_clients(10, 5, 7, [2, 2, 2]), method)
    make(method).aggregate(updates, 1)
    with pytest.raises(ValueError, match=message):
        make(method).aggregate(changed(updates, 1, **fields), 1)


@every
def test_no_updates(method: str) -> None:
    with pytest.raises(ValueError, match="no updates"):
        make(method).aggregate([], 1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lora_fai", {}, "strategy=lora_fai: no such choice .did you mean 'lora_fair'"),
        ("fedit", {"lam": 0.1}, "strategy.lam: strategy=fedit does not read it; strategy=lora_fair does"),
        ("lora_fair", {"lamb": 0.1}, "strategy.lamb: no such key .did you mean 'lam'"),
        ("lora_fair", {"lam": -0.01}, "strategy.lam=-0.01: expected a number in"),
        ("lora_fair", {"lam": float("nan")}, "strategy.lam=nan: expected a number in"),
        ("lora_fair", {"lam": float("inf")}, "strategy.lam=inf: expected a number in"),
        ("lora_fair", {"lam": "much"}, "strategy.lam=much: expected a number"),
        ("lora_fair", {"solver": "closed"}, "strategy.solver=closed: no such choice .did you mean 'closed_form'"),
        ("lora_fair", {"side": "C"}, "strategy.side=C: no such choice"),
        ("lora_fair", {"lam_scale": "relativ"}, "strategy.lam_scale=relativ: no such choice"),
        ("lora_fair", {"lr": 0.5}, "strategy.lr=0.5: is not read with strategy.solver=closed_form, but by gram_sgd"),
        ("lora_fair", {"steps": 7}, "strategy.steps=7: is not read with strategy.solver=closed_form, but by gram_sgd"),
        ("lora_fair", {"delta_init": "xavier"}, "strategy.delta_init=xavier: is not read with strategy.solver=closed"),
        ("ravan", {"choice": "random", "probe": 2}, "strategy.probe=2: is not read with strategy.choice=random"),
        ("lora_a2", {"choice": "weight", "probe": 2}, "strategy.probe=2: is not read with strategy.choice=weight"),
        ("spectral", {"rule": "median", "bound": 3}, "strategy.bound=3: is not read with strategy.rule=median"),
        ("spectral", {"rule": "median", "threshold": 2.0}, "strategy.rule=median: is not read with strategy.threshold"),
        ("lora_fair", {"steps": 0}, "strategy.steps=0: expected 1 or more"),
        ("lora_fair", {"lr": 0.0}, "strategy.lr=0.0: expected a number in"),
        ("fedit", {"weighting": "sizes"}, "strategy.weighting=sizes: no such choice"),
    ],
)
def test_options_that_cannot_be(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_aggregator(name, **options)
