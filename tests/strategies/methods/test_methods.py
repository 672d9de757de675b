"""Each method beyond FedIT, FFA-LoRA and LoRA-FAIR: what it is exact in, and where it is not.

Values come from tests/support/oracles.py. 1e-9 relative where both sides are float64: sums of at most 6·24 terms agree
to 1e-14, and the spectra of small products to 1e-10 at the conditions drawn here; 1e-5 where factors went through
float32.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import brentq

from clients.cohort import Cohort
from clients.site import Site
from clients.state import rounds
from fedinit import wire
from fedinit.errors import InputError
from fedinit.factors import Factors, pad
from fedinit.spectra import spectrum, truncate
from fedinit.transport.local import LocalGrid
from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Aggregate, Update
from strategies.methods.fedrot_lora import rotate
from strategies.methods.spectral import omega, screenot, spread
from strategies.server.compatibility import check_method
from strategies.server.federation import federate
from tests.support import oracles
from tests.support.oracles import Clients, as_trained, draw_clients, layer_product
from tests.support.small import small_config

quick = settings(deadline=None, max_examples=20)


@st.composite
def mixed(draw, equal: bool = False) -> Clients:
    """Up to six clients on a layer that is not square, with ranks of their own or one for all."""
    count = draw(st.integers(1, 6))
    d, k = draw(st.sampled_from([(7, 12), (12, 7), (9, 20)]))
    rank = st.integers(1, 4)
    ranks = [draw(rank)] * count if equal else draw(st.lists(rank, min_size=count, max_size=count))
    examples = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    return draw_clients(draw(st.integers(0, 10_000)), d, k, ranks, examples)


def effective(made: Aggregate) -> np.ndarray:
    """Factors and residual together, what the effective weight gains."""
    total = layer_product(made)
    return total + made.residual["layer"].dense().numpy() if made.residual else total


# -- exact methods -------------------------------------------------------------------------------------------------


@quick
@given(mixed())
def test_flora_is_the_ideal_update_for_any_ranks(c):
    made = create_aggregator("flora").aggregate(c.updates(), 1)
    np.testing.assert_allclose(effective(made), oracles.ideal_update(c), rtol=1e-9, atol=1e-9)
    assert made.layers["layer"].rank == sum(len(a) for a in c.A) and not made.residual


@quick
@given(mixed(equal=True))
def test_fedex_residual_and_average_make_the_ideal_update(c):
    made = create_aggregator("fedex_lora").aggregate(c.updates(), 1)
    np.testing.assert_allclose(effective(made), oracles.ideal_update(c), rtol=1e-9, atol=1e-9)
    plain = create_aggregator("fedit").aggregate(c.updates(), 1)
    assert torch.equal(made.layers["layer"].A, plain.layers["layer"].A)


def test_without_its_residual_fedex_is_biased():
    """The negative control of the two above: the averaged factors alone miss the ideal update by a wide margin."""
    c = draw_clients(0, 7, 12, [3, 3, 3])
    made = create_aggregator("fedex_lora").aggregate(c.updates(), 1)
    ideal = oracles.ideal_update(c)
    assert np.linalg.norm(layer_product(made) - ideal) > 0.1 * np.linalg.norm(ideal)


@quick
@given(mixed(equal=True), st.sampled_from([1, 2]))
def test_rolora_is_exact_in_each_half_round(c, round):
    """B is trained in odd rounds, A in even ones; the other is one tensor on all clients."""
    assert create_aggregator("rolora").trainable(round) == {"B" if round % 2 else "A"}
    shared = (c.A[0],) * len(c.A), (c.B[0],) * len(c.B)
    half = Clients(shared[0], c.B, c.examples) if round % 2 else Clients(c.A, shared[1], c.examples)
    made = create_aggregator("rolora").aggregate(half.updates(), round)
    np.testing.assert_allclose(layer_product(made), oracles.ideal_update(half), rtol=1e-9, atol=1e-9)


def test_rolora_refuses_two_trained_factors():
    with pytest.raises(ValueError, match="neither factor is the same on all clients"):
        create_aggregator("rolora").aggregate(draw_clients(0, 7, 12, [3, 3]).updates(), 1)


@quick
@given(mixed(equal=True))
def test_fedsvd_keeps_the_product_and_makes_A_orthonormal(c):
    shared = Clients((c.A[0],) * len(c.A), c.B, c.examples)
    made = create_aggregator("fedsvd").aggregate(shared.updates(), 1)
    np.testing.assert_allclose(layer_product(made), oracles.ideal_update(shared), rtol=1e-9, atol=1e-9)
    A = made.layers["layer"].A
    torch.testing.assert_close(A @ A.T, torch.eye(len(A), dtype=A.dtype), rtol=0, atol=1e-10)


def gauged(c: Clients, seed: int) -> Clients:
    """Every client's product in a gauge of its own, (B_iR_i, R_i⁻¹A_i), of condition below ten or so."""
    rng, sizes = np.random.default_rng(seed), [len(a) for a in c.A]
    turns = [np.linalg.qr(rng.standard_normal((r, r)))[0] for r in sizes]
    return c.regauged([q * rng.uniform(0.5, 2, r) for q, r in zip(turns, sizes, strict=True)])


@quick
@given(mixed(), st.integers(0, 1000))
def test_methods_of_the_ideal_update_see_no_gauge(c, seed):
    """What is made of ΔW alone is the same however clients split their products; plain averages are not (below)."""
    other = gauged(c, seed)
    names = ["flora", "flexlora", "florist", "spectral"]
    for name in names + ["fedex_lora"] * (len({len(a) for a in c.A}) == 1):
        one, two = (effective(create_aggregator(name).aggregate(x.updates(), 1)) for x in (c, other))
        np.testing.assert_allclose(one, two, rtol=1e-7, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("name", ["fedit", "hetlora", "rbla", "fedrot_lora"])
def test_averages_of_factors_see_the_gauge(name):
    c = draw_clients(0, 7, 12, [3, 3])
    one, two = (effective(create_aggregator(name).aggregate(x.updates(), 1)) for x in (c, gauged(c, 1)))
    assert np.linalg.norm(one - two) > 0.1 * np.linalg.norm(one)


# -- best approximations -------------------------------------------------------------------------------------------


@quick
@given(mixed())
def test_flexlora_is_the_best_approximation_for_every_client(c):
    """Eckart–Young on the dense ideal update, for the global rank and for each client's leading components."""
    made = create_aggregator("flexlora").aggregate(c.updates(), 1).layers["layer"]
    U, S, Vh = np.linalg.svd(oracles.ideal_update(c), full_matrices=False)
    for rank in {len(a) for a in c.A}:
        part = (made.B[:, :rank] @ made.A[:rank]).numpy()
        miss = np.linalg.norm(oracles.ideal_update(c) - part)
        np.testing.assert_allclose(miss, np.linalg.norm(S[rank:]), rtol=1e-7, atol=1e-9)
    gram_b, gram_a = made.B.T @ made.B, made.A @ made.A.T
    torch.testing.assert_close(gram_b, gram_a, rtol=1e-8, atol=1e-9)  # balanced: √S on both sides


@quick
@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([(7, 12), (12, 7), (5, 5)]))
def test_spectrum_is_the_svd_of_the_product(seed, rank, shape):
    """From stacked factors, also where their rank exceeds min(d, k); signs are canonical."""
    d, k = shape
    c = draw_clients(seed, d, k, [rank])
    product = c.factors()[0]
    found = spectrum(product)
    np.testing.assert_allclose((found.U * found.S @ found.Vh).numpy(), c.B[0] @ c.A[0], rtol=1e-9, atol=1e-10)
    exact = np.linalg.svd(c.B[0] @ c.A[0], compute_uv=False)[: len(found.S)]
    np.testing.assert_allclose(found.S.numpy(), exact, rtol=1e-9, atol=1e-9)
    rows = found.Vh[torch.arange(len(found.S)), found.Vh.abs().argmax(1)]
    assert (rows > 0).all()


@pytest.mark.parametrize("gauge", ["balanced", "right"])
def test_truncate_above_the_rank_is_exact_and_filled(gauge):
    c = draw_clients(1, 7, 12, [2])
    made = truncate(c.factors()[0], 5, gauge)
    assert made.rank == 5
    np.testing.assert_allclose(made.dense().numpy(), c.B[0] @ c.A[0], rtol=1e-9, atol=1e-10)
    if gauge == "right":
        torch.testing.assert_close(made.A @ made.A.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("gauge", ["balanced", "right"])
def test_components_without_weight_have_a_direction(gauge):
    """Those beyond the rank of a product, of rounding alone, and of a product of zero: zero columns of B over rows of A
    that are orthogonal to each other and to the others, so that B gets a gradient."""
    f = draw_clients(1, 7, 12, [3]).factors()[0]
    lame = Factors(f.A, torch.cat([f.B[:, :2], f.B[:, :1] + f.B[:, 1:2]], 1))  # of rank two
    for product, weighty in ((lame, 2), (Factors(f.A, torch.zeros_like(f.B)), 0)):
        made = truncate(product, 5, gauge)
        torch.testing.assert_close(made.dense(), product.dense(), rtol=1e-9, atol=1e-10)
        assert made.B[:, :weighty].any(dim=0).all() and not made.B[:, weighty:].any()
        gram = made.A @ made.A.T
        last = gram[max(weighty - 1, 0), max(weighty - 1, 0)]
        torch.testing.assert_close(gram, gram.diagonal().diag(), rtol=0, atol=1e-9)
        torch.testing.assert_close(gram.diagonal()[weighty:], last.expand(5 - weighty), rtol=1e-9, atol=0)


# -- the others ----------------------------------------------------------------------------------------------------


@quick
@given(mixed())
def test_rbla_averages_each_slice_over_its_owners(c):
    made = create_aggregator("rbla").aggregate(c.updates(), 1).layers["layer"]
    for j in range(made.rank):
        owners = [i for i, a in enumerate(c.A) if len(a) > j]
        p = np.array([c.examples[i] for i in owners], dtype=float)
        p /= p.sum()
        row = sum(w * c.A[i][j] for w, i in zip(p, owners, strict=True))
        column = sum(w * c.B[i][:, j] for w, i in zip(p, owners, strict=True))
        np.testing.assert_allclose(made.A[j].numpy(), row, rtol=1e-9)
        np.testing.assert_allclose(made.B[:, j].numpy(), column, rtol=1e-9)


def test_rbla_does_not_dilute_and_padding_does():
    """A slice that one client owns comes back as it is; zero padding shrinks it (the negative control)."""
    c = draw_clients(0, 7, 12, [1, 1, 3])
    ours = create_aggregator("rbla").aggregate(c.updates(), 1).layers["layer"]
    padded = create_aggregator("fedit").aggregate(c.updates(), 1).layers["layer"]
    np.testing.assert_allclose(ours.A[2].numpy(), c.A[2][2], rtol=1e-12)
    np.testing.assert_allclose(padded.A[2].numpy(), c.A[2][2] / 3, rtol=1e-12)


def test_hetlora_weighs_by_the_size_of_the_update():
    c = draw_clients(3, 7, 12, [2, 4, 4], [1, 1, 100])
    made = create_aggregator("hetlora").aggregate(c.updates(), 1)
    sizes = np.array([np.linalg.norm(b @ a) for a, b in zip(c.A, c.B, strict=True)])
    p, whole = sizes / sizes.sum(), c.padded
    mean = sum(w * a for w, a in zip(p, whole.A, strict=True))
    np.testing.assert_allclose(made.layers["layer"].A.numpy(), mean, rtol=1e-9)
    np.testing.assert_allclose(made.head["weight"].numpy(), [p @ [0, 1, 2], p @ [0, 1, 4]], rtol=1e-9)


def test_the_norm_is_frobenius_over_all_layers():
    """√(Σ_l ‖B_lA_l‖²), as of one block-diagonal matrix; the sum of the layers' norms would weigh otherwise."""
    one, two = draw_clients(3, 7, 12, [2, 4], [1, 100]), draw_clients(4, 9, 5, [3, 3])
    other = two.updates()[1].layers["layer"]
    spread = [{"a": one.updates()[0].layers["layer"], "b": two.updates()[0].layers["layer"]},
              {"a": one.updates()[1].layers["layer"], "b": Factors(other.A, 0.01 * other.B)}]  # fmt: skip
    norms = np.array([[np.linalg.norm(f.dense().numpy()) for f in layers.values()] for layers in spread])
    updates = [Update(i, 1, layers, {}) for i, layers in enumerate(spread)]
    whole = np.sqrt((norms**2).sum(axis=1))
    for name in ("hetlora", "lora_fair"):
        p = create_aggregator(name, weighting="norm").weights(updates)
        np.testing.assert_allclose(p, whole / whole.sum(), rtol=1e-9)
        assert abs(p[0] - norms.sum(axis=1)[0] / norms.sum()) > 0.01


@pytest.mark.parametrize("start", [None, "previous"])
def test_rbla_owners_that_weigh_nothing_are_their_plain_mean(start):
    """By norm the only owner of two slices has weight zero; the slices are what it returned, not 0/0."""
    low, high = draw_clients(0, 7, 12, [2, 4]).factors()
    silent = Factors(high.A, torch.zeros_like(high.B))
    updates = [Update(0, 3, {"layer": low}, {}), Update(1, 1, {"layer": silent}, {})]
    previous = Aggregate(layers={"layer": high}) if start else None
    layer = create_aggregator("rbla", weighting="norm").aggregate(updates, 1, previous).layers["layer"]
    torch.testing.assert_close(layer.A, torch.cat([low.A, high.A[2:]]), rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.B, torch.cat([low.B, torch.zeros(7, 2)], 1).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["fedsa_lora", "head_alone"])
def test_no_norm_where_there_is_nothing_to_measure(name):
    with pytest.raises(InputError, match="weighting=norm: .*choose one of: auto, examples, uniform"):
        check_method(small_config(f"strategy={name}", "weighting=norm", "evaluation=clients"))


@pytest.mark.parametrize("weighting", ["auto", "examples", "uniform", "norm"])
def test_the_weights_of_a_run_are_the_configured_ones(weighting):
    """Through the configuration: the head after a round is the mean of what the clients sent, weighed so."""
    uneven = ("data.domains=[plain]", "partition=dirichlet", "partition.clients=3")
    config = small_config("strategy=hetlora", *uneven, "rounds=1", "evaluation=none", f"weighting={weighting}")
    site, back = Site(config), []

    class Watching(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            back.extend(wire.from_tensors(wire.decode(r.content["state"])) for r in replies if "state" in r.content)
            return replies

    outcome = federate(config, Watching(Cohort(site), 3), site.backbone)
    sizes = {
        "examples": [len(p.train) for p in site.partitions],
        "uniform": [1] * 3,
        "norm": [sum(f.dense().norm() ** 2 for f in layers.values()) ** 0.5 for layers, _ in back],
    }
    expected = {
        name: sum(n * head["bias"].double() for n, (_, head) in zip(shares, back, strict=True)) / sum(shares)
        for name, shares in sizes.items()
    }
    got = outcome.aggregate.head["bias"].double()
    for name, value in expected.items():
        same = name == (weighting if weighting != "auto" else "norm")  # hetlora's own
        assert ((got - value).norm() < 1e-5 * got.norm()) == same


@quick
@given(mixed(equal=True), st.integers(0, 1000))
def test_fedrot_undoes_rotations(c, seed):
    """Clients that are the global factors, each rotated by an orthogonal matrix of its own, aggregate to the global
    product exactly, whichever factor they are aligned by; plain averaging, as in the first round, does not."""
    start = c.factors()[0]
    draw = torch.Generator().manual_seed(seed)
    updates = []
    for i in range(4):
        R = torch.linalg.qr(torch.randn(start.rank, start.rank, generator=draw, dtype=torch.float64))[0]
        updates.append(Update(i, 1, {"layer": Factors(R.T @ start.A, start.B @ R)}, {}))
    for align, round in (("alternate", 2), ("alternate", 3), ("A", 3), ("B", 2), ("joint", 1)):
        method = create_aggregator("fedrot_lora", align=align)
        made = method.aggregate(updates, round, Aggregate(layers={"layer": start}))
        torch.testing.assert_close(made.layers["layer"].dense(), start.dense(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("align", ["alternate", "A", "B", "joint"])
def test_fedrot_aligns_to_a_and_to_b_in_turn(align):
    """As the authors' code: the plain mean in round 1, then R_i = UVᵀ from SciPy's Procrustes of A_iᵀ onto Aᵀ in even
    rounds and of B_i onto B in odd ones. The rotations of A, of B and of both differ (the negative control)."""
    c = draw_clients(3, 7, 12, [3, 3, 3], [1, 2, 5])
    start = draw_clients(4, 7, 12, [3]).factors()[0]
    onto = {
        "A": lambda a, b: orthogonal_procrustes(a.T, start.A.numpy().T)[0],
        "B": lambda a, b: orthogonal_procrustes(b, start.B.numpy())[0],
        "joint": lambda a, b: orthogonal_procrustes(
            np.vstack([b, a.T]), np.vstack([start.B.numpy(), start.A.numpy().T])
        )[0],
        "none": lambda a, b: np.eye(3),
    }
    rounds = {
        "alternate": ["none", "A", "B", "A", "B"],
        "A": ["none", "A", "A"],
        "B": ["none", "B", "B"],
        "joint": ["joint", "joint"],
    }
    method = create_aggregator("fedrot_lora", align=align)
    for round, turn in enumerate(rounds[align], 1):
        made = method.aggregate(c.updates(), round, Aggregate(layers={"layer": start})).layers["layer"]
        means = {}
        for name, rotation in onto.items():
            turned = [(rotation(a, b).T @ a, b @ rotation(a, b)) for a, b in zip(c.A, c.B, strict=True)]
            means[name] = [sum(p * f[i] for p, f in zip(c.p, turned, strict=True)) for i in (0, 1)]
        np.testing.assert_allclose(made.A.numpy(), means[turn][0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(made.B.numpy(), means[turn][1], rtol=1e-9, atol=1e-12)
        others = [m for name, m in means.items() if name != turn]
        assert all(np.linalg.norm(made.A.numpy() - m[0]) > 0.01 * np.linalg.norm(m[0]) for m in others)
    if align != "joint":
        plain = create_aggregator("fedit").aggregate(c.updates(), 1, Aggregate(layers={"layer": start}))
        first = method.aggregate(c.updates(), 1, Aggregate(layers={"layer": start}))
        assert torch.equal(first.layers["layer"].A, plain.layers["layer"].A) and first.diagnostics == plain.diagnostics


@quick
@given(mixed(equal=True), st.integers(0, 1000))
def test_fedrot_jointly_takes_the_best_rotation_of_what_no_rotation_undoes(c, seed):
    """`align=joint`. Unrelated clients and a start that is none of them: each is turned by the orthogonal R of least
    ‖B_iR − B‖² + ‖RᵀA_i − A‖², which is SciPy's for [B_i; A_iᵀ] onto [B; Aᵀ], and better than any drawn one; the mean
    of the turned factors is the aggregate."""
    start = draw_clients(seed + 1, *c.factors()[0].shape, [len(c.A[0])]).factors()[0]
    goal = np.vstack([start.B.numpy(), start.A.numpy().T])
    rng, A, B = np.random.default_rng(seed), 0, 0

    def miss(a, b, R):
        return np.sum((b @ R - start.B.numpy()) ** 2) + np.sum((R.T @ a - start.A.numpy()) ** 2)

    for a, b, p in zip(c.A, c.B, c.p, strict=True):
        R = orthogonal_procrustes(np.vstack([b, a.T]), goal)[0]
        turned = rotate(Factors(torch.tensor(a), torch.tensor(b)), start)
        np.testing.assert_allclose(turned.B.numpy(), b @ R, rtol=1e-7, atol=1e-9)
        least = np.sum((turned.B.numpy() - start.B.numpy()) ** 2) + np.sum((turned.A.numpy() - start.A.numpy()) ** 2)
        for _ in range(20):
            other = np.linalg.qr(rng.standard_normal(R.shape))[0]
            assert least <= miss(a, b, other) * (1 + 1e-12)
        assert least <= miss(a, b, np.eye(len(R))) * (1 + 1e-12) + 1e-12  # of entries of size one: the start itself
        A, B = A + p * R.T @ a, B + p * b @ R
    method = create_aggregator("fedrot_lora", align="joint")
    made = method.aggregate(c.updates(), 2, Aggregate(layers={"layer": start}))
    np.testing.assert_allclose(made.layers["layer"].A.numpy(), A, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(made.layers["layer"].B.numpy(), B, rtol=1e-7, atol=1e-9)


def test_rotations_harm_plain_averaging():
    start = draw_clients(0, 7, 12, [3]).factors()[0]
    turn = torch.diag(torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64))
    updates = [
        Update(0, 1, {"layer": start}, {}),
        Update(1, 1, {"layer": Factors(turn @ start.A, start.B @ turn)}, {}),
    ]
    made = create_aggregator("fedit").aggregate(updates, 2).layers["layer"]
    assert (made.dense() - start.dense()).norm() > 0.3 * start.dense().norm()


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_mixed_ranks_are_done_or_refused(name):
    """A method takes any ranks, or says that it takes one; none pads in silence."""
    c = draw_clients(0, 9, 12, [2, 4])
    method, start = create_aggregator(name), c.factors()[1]
    updates = [
        Update(u.client, u.examples, {"layer": as_trained(name, u.layers["layer"], start)}, u.head) for u in c.updates()
    ]
    if method.mixed_ranks:
        assert method.aggregate(updates, 1).layers["layer"].shape == (9, 12)
    else:
        with pytest.raises(ValueError, match=r"clients have ranks \[2, 4\]; expected one"):
            method.aggregate(updates, 1)


@pytest.mark.parametrize("name", ["fedit", "flexlora", "hetlora", "lora_fair", "flora"])
def test_padding_a_client_changes_nothing(name):
    """A client at rank 1 and the same client padded with zeros to rank 3 are one and the same, except for rbla."""
    c = draw_clients(0, 7, 12, [1, 3])
    padded = [Update(u.client, u.examples, {"layer": pad(u.layers["layer"], 3)}, u.head) for u in c.updates()]
    one, other = (layer_product(create_aggregator(name).aggregate(u, 1)) for u in (c.updates(), padded))
    np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9)


@quick
@given(mixed(), st.sampled_from([0.5, 0.9, 0.99]))
def test_florist_keeps_the_least_rank_that_holds_the_energy(c, energy):
    """Against the dense spectrum: the kept components hold the share, one fewer would not, and the rest has no weight
    but a direction in A."""
    made = create_aggregator("florist", energy=energy).aggregate(c.updates(), 1).layers["layer"]
    S = np.linalg.svd(oracles.ideal_update(c), compute_uv=False)
    share = np.cumsum(S**2) / np.sum(S**2)
    kept = min(int(np.searchsorted(share, energy * (1 - 1e-9))) + 1, made.rank)
    weighted = (made.B.norm(dim=0) > 1e-9).sum()
    assert int(weighted) == kept and bool((made.A.norm(dim=1) > 0).all())
    miss = np.linalg.norm(oracles.ideal_update(c) - made.dense().numpy())
    np.testing.assert_allclose(miss, np.linalg.norm(S[kept:]), rtol=1e-6, atol=1e-8)


def test_spectral_finds_the_signal_under_the_noise():
    """Two strong directions that all clients share and noise of their own: rank two is kept, and is nearer to the
    shared signal than the untouched ideal update (the negative control of denoising at all)."""
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 60)), rng.standard_normal((40, 2))
    noisy = [
        (np.vstack([A, 0.05 * rng.standard_normal((4, 60))]), np.hstack([B, rng.standard_normal((40, 4))]))
        for _ in range(5)
    ]
    c = Clients(tuple(a for a, _ in noisy), tuple(b for _, b in noisy), (1,) * 5)
    made = create_aggregator("spectral").aggregate(c.updates(), 1).layers["layer"]
    assert int((made.B.norm(dim=0) > 1e-9).sum()) == 2
    signal, ideal = B @ A, oracles.ideal_update(c)
    assert np.linalg.norm(made.dense().numpy() - signal) < 0.8 * np.linalg.norm(ideal - signal)


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_omega_is_that_of_gavish_and_donoho(beta):
    """Their λ(β) over the root of the Marchenko–Pastur median from quadrature, to 2e-4; their cubic approximation, to
    their 0.02; and 4/√3 over the square median, 2.858, for a square matrix."""
    low, high = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2

    def mass(top: float) -> float:
        density = lambda x: np.sqrt(max((high - x) * (x - low), 0)) / (2 * np.pi * beta * x)  # noqa: E731
        return quad(density, max(low, 1e-12), top, limit=200)[0]

    median = brentq(lambda x: mass(x) - 0.5, low + 1e-9, high)
    known = 2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1))
    np.testing.assert_allclose(omega(beta), np.sqrt(known / median), rtol=2e-4)
    np.testing.assert_allclose(omega(beta), 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43, atol=0.02)
    assert abs(omega(1.0) - 2.858) < 1e-3


@pytest.mark.parametrize("sizes", [(400, 300, 20), (200, 600, 40), (60, 300, 120), (60, 90, 4000)])
def test_a_product_of_noise_is_spread_as_a_white_matrix_of_that_beta(sizes):
    """Relative variance of the squared singular values, from twenty draws: m₁/m₂ + m₁/m₃ within a tenth. That of d and
    k alone, min/max, is another one unless R is large (the negative control)."""
    d, k, rank = sizes
    rng, found = np.random.default_rng(0), []
    for _ in range(20):
        left, right = rng.standard_normal((d, rank)), rng.standard_normal((rank, k))
        if rank < min(d, k):  # the singular values of Q₁ (R₁ R₂ᵀ) Q₂ᵀ are those of its middle
            left, right = np.linalg.qr(left, mode="r"), np.linalg.qr(right.T, mode="r").T
        s2 = np.linalg.svd(left @ right, compute_uv=False)[: min(sizes)] ** 2
        found.append(s2.var() / s2.mean() ** 2)
    assert abs(np.mean(found) / spread(sizes) - 1) < 0.1
    assert (abs(np.mean(found) / (min(d, k) / max(d, k)) - 1) < 0.1) == (rank == 4000)


def test_the_median_has_a_lower_threshold_for_flat_products():
    """Components of twice the median are signal on a layer of 400×300 at R = 20, β = 0.12, and noise at β = 1."""
    S = torch.tensor([2.0, 2.0, *[1.0] * 18], dtype=torch.float64)
    method = create_aggregator("spectral", rule="median")
    assert method.kept(S, (400, 300, 20)) == 2 and method.kept(S, (20, 20, 40)) == 1
    assert create_aggregator("spectral", threshold=2.858).kept(S, (400, 300, 20)) == 1


def threshold(S: np.ndarray, d: int, k: int, bound: int) -> float:
    """ScreeNOT's, from the paper: all min(d, k) singular values, D = φ·φ̃ with the Stieltjes transforms of both sides,
    its logarithm differentiated numerically and SciPy's root."""
    z = np.zeros(min(d, k))
    z[: len(S)] = S
    for i in range(bound):  # the edge of a density that ends as a square root
        z[i] = S[bound] + (1 - (i / bound) ** (2 / 3)) / (2 ** (2 / 3) - 1) * (S[bound] - S[2 * bound])
    other = np.concatenate([z, np.zeros(max(d, k) - min(d, k))])

    def log_d(x: float) -> float:
        y = np.exp(x)
        return np.log(np.mean(y / (y**2 - z**2))) + np.log(np.mean(y / (y**2 - other**2)))

    edge = np.log(z.max())
    slope = lambda x: (log_d(x + 1e-5) - log_d(x - 1e-5)) / 2e-5 + 4  # noqa: E731
    return float(np.exp(brentq(slope, edge + 1e-4, edge + 5)))


@pytest.mark.parametrize("sizes", [(96, 384, 48), (384, 96, 48), (40, 60, 24), (30, 30, 48), (768, 3072, 96)])
def test_screenot_is_that_of_its_authors(sizes):
    """On the steep spectra of clients' updates, at several bounds; and it has no scale."""
    d, k, rank = sizes
    S = 10.0 ** (-4 * np.linspace(0, 1, min(sizes)))
    for bound in (2, 5, min(sizes) // 4):
        np.testing.assert_allclose(screenot(torch.tensor(S), d, k, bound), threshold(S, d, k, bound), rtol=1e-5)
        kept = max(int((S > threshold(S, d, k, bound)).sum()), 1)
        for size in (1.0, 1e-9, 1e9):
            assert create_aggregator("spectral", bound=bound).kept(torch.tensor(size * S), sizes) == kept
    default = create_aggregator("spectral").kept(torch.tensor(S), sizes)
    assert default == int((S > threshold(S, d, k, min(sizes) // 4)).sum())
    assert create_aggregator("spectral", rule="median").kept(torch.tensor(S), sizes) > 2 * default  # the control


def test_screenot_finds_signal_in_correlated_noise():
    """Eight components in noise whose rows and columns are of very different sizes: what it keeps is within 5 % of the
    best that any hard threshold does, and the median's rule, which takes the noise for white, is not (the control)."""
    rng = np.random.default_rng(2)
    left, right = np.linspace(0.1, 2, 120) ** 1.5, np.linspace(0.1, 2, 200) ** 1.5
    noise = left[:, None] * rng.standard_normal((120, 200)) * right / 200**0.5
    U, V = (np.linalg.qr(rng.standard_normal((n, 8)))[0] for n in (120, 200))
    signal = U * np.linspace(20, 10, 8) @ V.T
    u, S, vh = np.linalg.svd(signal + noise, full_matrices=False)
    miss = [np.linalg.norm(u[:, :r] * S[:r] @ vh[:r] - signal) for r in range(120)]
    kept, white = (
        create_aggregator("spectral", **options).kept(torch.tensor(S), (120, 200, 120))
        for options in ({}, {"rule": "median"})
    )
    assert miss[kept] < 1.05 * min(miss) and miss[white] > 1.3 * min(miss)


def test_screenot_of_few_components():
    """Fewer than three cannot be told from noise, and are kept; a bound above what imputation needs is taken down to
    it; nothing but zeros counts as one component."""
    method = create_aggregator("spectral")
    few = torch.tensor([5.0, 0.01], dtype=torch.float64)
    assert method.kept(few, (9, 20, 2)) == 2 and method.kept(0 * few, (9, 20, 2)) == 1
    S = torch.tensor(10.0 ** (-4 * np.linspace(0, 1, 20)))
    kept = [create_aggregator("spectral", bound=bound).kept(S, (40, 60, 20)) for bound in (9, 10, 500)]
    assert len(set(kept)) == 1
    with pytest.raises(InputError, match="strategy.bound=0: expected 1 or more"):
        create_aggregator("spectral", bound=0)


# -- personal factors ----------------------------------------------------------------------------------------------


@quick
@given(mixed(equal=True))
def test_fedsa_is_the_weighted_mean_of_A(c):
    """For clients of unequal sizes; B stays as it was sent."""
    start = Factors(torch.zeros_like(c.factors()[0].A), c.factors()[0].B)
    made = create_aggregator("fedsa_lora").aggregate(c.updates(), 1, Aggregate(layers={"layer": start})).layers["layer"]
    np.testing.assert_allclose(made.A.numpy(), oracles.factor_means(c)[0], rtol=1e-9, atol=1e-12)
    assert torch.equal(made.B, start.B)


def test_fedsa_keeps_B_on_the_clients_and_averages_A():
    """B never goes up; each client's own B lasts in its state, differs from the others', and is what it is evaluated
    with. The head-to-head control: FedIT's clients hold nothing."""
    site = Site(small_config())
    up = set()

    class Watching(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            for m, r in zip(messages, replies, strict=True):
                if m.metadata.message_type == "train":
                    up.update(name[-1] for name in r.content["state"])
            return replies

    config = small_config("strategy=fedsa_lora", "evaluation=clients", "rounds=3")
    grid = Watching(Cohort(site), 3)
    outcome = federate(config, grid, site.backbone)
    assert up == {"A", "t", "s"} and outcome.score is not None  # A, head/weight, head/bias
    records = [rounds.remembered(context, rounds.FACTORS)[3] for context in grid.contexts.values()]
    kept = [wire.from_tensors(wire.decode(record))[0]["blocks.0.attn.proj"] for record in records]
    assert (kept[0].B - kept[1].B).norm() > 0 and kept[0].B.norm() > 0
    n = torch.tensor([len(p.train) for p in site.partitions], dtype=torch.float64)
    mean_a = sum(w * f.A.double() for w, f in zip(n / n.sum(), kept, strict=True)).float()
    torch.testing.assert_close(outcome.aggregate.layers["blocks.0.attn.proj"].A, mean_a)
    assert not outcome.aggregate.layers["blocks.0.attn.proj"].B.any()
    with pytest.raises(InputError, match="no global model to evaluate; use evaluation=clients"):
        check_method(small_config("strategy=fedsa_lora"))
