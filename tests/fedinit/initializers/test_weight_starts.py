"""Starts made from the frozen weights, and from these and the second moment of the inputs: what each takes out of the
weight, against numpy in float64, and that the model stays as it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from clients.site import Site
from fedinit.adapters.bank import Bank
from fedinit.config.compose import compose_config
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.initializers.corda import invert
from fedinit.initializers.initializer import InitContext
from fedinit.models import init_head
from fedinit.state import base_offset as base
from fedinit.statistics import Statistics, add_up, create_statistics, pack, unpack
from tests.support.frozen_weights import RANK, SCALE, SHAPES, WEIGHTS, inputs, setting, spread
from tests.support.measuring import asking, begun, create, setting_of


def dense(product: Factors) -> np.ndarray:
    return product.to(torch.float64).dense().numpy()


def svd(name: str, weight=WEIGHTS):
    return np.linalg.svd(weight[name].double().numpy(), full_matrices=False)


# -- from the weights alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 3.0, 16.0])
@pytest.mark.parametrize("rank", [1, 4, 12])
def test_pissa_is_the_best_approximation_and_the_base_keeps_the_rest(rank, scale):
    """s·BA is W0 at rank r (Eckart–Young) for any s, BᵀB = AAᵀ, and ‖W_base‖₂ = σ_{r+1}."""
    state = begun(create("pissa"), setting(rank=rank, scale=scale), None)
    for name, factors in state.layers.items():
        U, S, Vh = svd(name)
        np.testing.assert_allclose(scale * dense(factors), U[:, :rank] * S[:rank] @ Vh[:rank], atol=1e-6)
        torch.testing.assert_close(factors.B.T @ factors.B, factors.A @ factors.A.T, rtol=1e-5, atol=1e-6)
        left = WEIGHTS[name].double().numpy() + scale * dense(state.merge[name])
        np.testing.assert_allclose(np.linalg.norm(left, 2), S[rank] if rank < len(S) else 0, atol=1e-6)


def test_milora_is_the_last_components_to_their_own_precision():
    """A weight with σ from 1 to 1e-7: what is taken out has the small ones to 1e-6 of themselves."""
    draw = np.random.default_rng(0)
    U, V = (np.linalg.qr(draw.standard_normal((n, 12)))[0] for n in (30, 12))
    S = np.logspace(0, -7, 12)
    weight = torch.tensor(U * S @ V.T)
    of_one = dataclasses.replace(setting(), targets={"tall": (30, 12)}, weight=lambda _: weight)
    factors = begun(create("milora"), of_one, None).layers["tall"]
    found = np.linalg.svd(SCALE * dense(factors), compute_uv=False)[:RANK]
    np.testing.assert_allclose(found, S[-RANK:], rtol=1e-6)
    np.testing.assert_allclose(SCALE * dense(factors), U[:, -RANK:] * S[-RANK:] @ V[:, -RANK:].T, atol=1e-13)
    first = begun(create("pissa"), of_one, None).layers["tall"]
    assert abs(dense(first).T @ dense(factors)).max() < 1e-6 < abs(dense(first)).max()  # and nothing of the principal


def test_milora_leaves_the_principal_components_in_the_base():
    state = begun(create("milora"), setting(), None)
    for name, factors in state.layers.items():
        U, S, Vh = svd(name)
        np.testing.assert_allclose(SCALE * dense(factors), U[:, -RANK:] * S[-RANK:] @ Vh[-RANK:], atol=1e-6)
        left = WEIGHTS[name].double().numpy() + SCALE * dense(state.merge[name])
        np.testing.assert_allclose(np.linalg.svd(left, compute_uv=False)[:-RANK], S[:-RANK], atol=1e-6)


def test_olora_is_the_qr_decomposition():
    """B orthonormal, B A the first r terms of Q R; A is zero below the diagonal, as no other basis would have it."""
    state = begun(create("olora"), setting(), None)
    for name, factors in state.layers.items():
        Q, R = np.linalg.qr(WEIGHTS[name].double().numpy())
        np.testing.assert_allclose(dense(factors), Q[:, :RANK] @ R[:RANK], atol=1e-6)
        np.testing.assert_allclose((factors.B.T @ factors.B).numpy(), np.eye(RANK), atol=1e-6)
        assert abs(np.tril(factors.A.numpy(), -1)).max() < 1e-6
        np.testing.assert_allclose(dense(state.merge[name]), -dense(factors))


def test_mica_is_the_minor_left_subspace_and_not_the_major():
    """Bases of one subspace have one projector; the sizes of W0ᵀB are the smallest singular values, rising."""
    state = begun(create("mica"), setting(), None)
    assert not state.merge
    for name, factors in state.layers.items():
        U, S, _ = svd(name)
        B = factors.B.double().numpy()
        np.testing.assert_allclose(B @ B.T, U[:, -RANK:] @ U[:, -RANK:].T, atol=1e-6)
        assert np.linalg.norm(B @ B.T - U[:, :RANK] @ U[:, :RANK].T) > 1
        np.testing.assert_allclose(np.linalg.norm(WEIGHTS[name].numpy().T @ B, axis=0), S[::-1][:RANK], atol=1e-6)
        assert not factors.A.any()


@pytest.mark.parametrize("name", ["pissa", "milora", "olora"])
def test_the_base_gives_up_the_scaled_product(name):
    one, small = (begun(create(name, scale=c), setting(), None) for c in (1.0, 0.1))
    for layer in SHAPES:
        np.testing.assert_allclose(dense(small.layers[layer]), 0.01 * dense(one.layers[layer]), atol=1e-7)
        np.testing.assert_array_equal(dense(small.merge[layer]), -dense(small.layers[layer]))
        assert (one.layers[layer].A.gather(1, one.layers[layer].A.abs().argmax(1, keepdim=True)) > 0).all()  # signs


def test_a_component_without_weight_can_still_learn():
    """Of a weight of rank 2 at r = 4: A keeps a direction, B is zero, the product is exact, and the notes count."""
    flat = {n: w.double()[:, :2] @ w.double()[:2] for n, w in WEIGHTS.items()} | {"square": torch.zeros(16, 16)}
    for name, dead in (("pissa", 2), ("milora", 4)):
        state = begun(create(name), setting(flat.__getitem__), None)
        assert state.notes["without_weight"] == {"wide": dead, "tall": dead, "square": 4}
        for factors in state.layers.values():
            assert (factors.A.norm(dim=1) > 1e-3).all() and int((~factors.B.any(0)).sum()) >= dead
    np.testing.assert_allclose(
        SCALE * dense(begun(create("pissa"), setting(flat.__getitem__), None).layers["wide"]), flat["wide"], atol=1e-6
    )


@pytest.mark.parametrize("name", ["pissa", "milora", "olora", "mica", "corda", "lora_null"])
def test_weights_that_are_missing_or_not_finite(name):
    torn = {n: w.clone() for n, w in WEIGHTS.items()}
    torn["tall"][3, 3] = float("nan")
    with pytest.raises(InputError, match="model.checkpoint: the weight of tall holds NaN or infinity"):
        begun(create(name), setting(torn.__getitem__), spread(inputs()))
    with pytest.raises(ValueError, match="made from the frozen weights, and there are none"):
        begun(create(name), setting(None), spread(inputs()))


# -- with the covariance of the inputs -------------------------------------------------------------------------------


def damped(x: np.ndarray) -> np.ndarray:
    C = x.T @ x
    C *= len(C) / np.trace(C)
    return C + 0.01 * np.eye(len(C))


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_is_the_weights_part_in_the_inputs_own_metric(mode):
    rows = inputs()
    state = begun(create("corda", mode=mode), setting(), spread(rows))
    for name, factors in state.layers.items():
        W, C = WEIGHTS[name].double().numpy(), damped(rows[name].numpy())
        U, S, Vh = np.linalg.svd(W @ C, full_matrices=False)
        part = slice(0, RANK) if mode == "ipm" else slice(len(S) - RANK, len(S))
        np.testing.assert_allclose(
            SCALE * dense(factors), U[:, part] * S[part] @ Vh[part] @ np.linalg.inv(C), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(dense(state.merge[name]), -dense(factors))
    assert not state.notes


def test_corda_takes_what_the_inputs_use_or_what_they_do_not():
    """Share of the calibration outputs' energy that goes through the adapter."""
    rows = inputs()
    shares = {}
    for mode in ("ipm", "kpm"):
        layers = begun(create("corda", mode=mode), setting(), spread(rows)).layers
        shares[mode] = [energy(rows[name], SCALE * dense(f), WEIGHTS[name]) for name, f in layers.items()]
    assert min(shares["ipm"]) > 0.6 and max(shares["kpm"]) < 0.02


def energy(rows, adapter, weight) -> float:
    x = rows.numpy()
    return (np.linalg.norm(x @ adapter.T) / np.linalg.norm(x @ weight.double().numpy().T)) ** 2


@pytest.mark.parametrize("name", ["corda", "lora_null"])
def test_larger_inputs_change_no_factor(name):
    """C has trace k: neither the size of the inputs nor their number is in the gauge."""
    one, other = (
        begun(create(name), setting(), spread({n: c * x for n, x in inputs().items()})).layers for c in (1.0, 50.0)
    )
    for layer in SHAPES:
        torch.testing.assert_close(one[layer].A, other[layer].A, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one[layer].B, other[layer].B, rtol=1e-5, atol=1e-6)


def test_corda_doubles_the_damping_where_noise_made_the_moment_indefinite():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(12, 12, generator=draw, dtype=torch.float64)
    moment = torch.eye(12, dtype=torch.float64) + 0.4 * (noise + noise.T)
    least = float(torch.linalg.eigvalsh(moment)[0])
    assert least < -0.1
    whole, inverse, damping = invert(moment, 0.01)
    assert damping / 0.01 == 2 ** round(np.log2(damping / 0.01)) and -least < damping
    np.testing.assert_allclose((whole @ inverse).numpy(), np.eye(12), atol=1e-8)
    with pytest.raises(InputError, match=r"init.damping=0.0: expected a number in \(0, inf\)"):
        create("corda", damping=0.0)


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_lora_null_lies_where_the_inputs_are_least(variant):
    rows = inputs(decay=0.8)  # of no direction that float32 would not see
    state = begun(create("lora_null", variant=variant), setting(), spread(rows))
    for name, factors in state.layers.items():
        x, W = rows[name].numpy(), WEIGHTS[name].double().numpy()
        _, vectors = np.linalg.eigh(x.T @ x)
        P = vectors[:, :RANK] @ vectors[:, :RANK].T
        if variant == "v1":
            np.testing.assert_allclose(SCALE * dense(factors), W @ P, atol=1e-6)
            assert energy(rows[name], SCALE * dense(factors), WEIGHTS[name]) < 0.02
        else:
            assert not factors.B.any() and not state.merge
            A = factors.A.double().numpy()
            np.testing.assert_allclose(A.T @ A, P, atol=1e-6)
        major = vectors[:, -RANK:] @ vectors[:, -RANK:].T
        assert energy(rows[name], W @ major, WEIGHTS[name]) > 0.5  # the negative control


def test_of_more_empty_directions_than_the_rank_those_with_most_weight_are_taken():
    """Inputs of rank 5 leave 25 of 30 directions empty: the adapter sees nothing of them, whatever rounding says."""
    draw = torch.Generator().manual_seed(1)
    rows = {
        n: torch.randn(200, 5, generator=draw, dtype=torch.float64) @ torch.randn(5, k, generator=draw).double()
        for n, (_, k) in SHAPES.items()
    }
    state = begun(create("lora_null"), setting(), spread(rows))
    assert state.notes["empty_directions"] == {"wide": 25, "tall": 7, "square": 11}
    for name, factors in state.layers.items():
        W, x = WEIGHTS[name].double().numpy(), rows[name].numpy()
        full = np.eye(x.shape[1]) - np.linalg.pinv(x, rcond=1e-10) @ x
        U, S, Vh = np.linalg.svd(W @ full)
        np.testing.assert_allclose(SCALE * dense(factors), U[:, :RANK] * S[:RANK] @ Vh[:RANK], atol=1e-6)
        assert energy(rows[name], SCALE * dense(factors), WEIGHTS[name]) < 1e-12


@pytest.mark.parametrize("name", ["corda", "lora_null"])
def test_a_layer_that_never_fires_gets_loras_start(name):
    """It says so, and nothing of its weight goes out of the base."""
    rows = inputs() | {"tall": torch.zeros(200, 12, dtype=torch.float64)}
    state = begun(create(name), setting(), spread(rows))
    assert state.notes["replaced"] == {"tall": "its input was zero everywhere: kaiming"}
    assert not state.layers["tall"].B.any() and state.layers["tall"].A.any()
    assert set(state.merge) == {"wide", "square"}


def test_corda_stands_inputs_of_low_rank():
    rows = {n: x[:3] for n, x in inputs().items()}
    state = begun(create("corda"), setting(), spread(rows))
    for name, factors in state.layers.items():
        assert torch.isfinite(factors.A).all() and energy(rows[name], SCALE * dense(factors), WEIGHTS[name]) > 0.99


# -- on a real backbone ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded() -> Site:
    """The pretrained ViT and the digits of two domains."""
    return Site(compose_config(["data.domains=[plain,texture]", "logger=none"]))


STARTS = [
    ("kaiming", {}),
    ("gaussian", {}),
    ("orthogonal", {}),
    ("lora_xs", {"std": 0.0}),
    ("random_core", {}),
    ("eva", {}),
    ("pissa", {}),
    ("pissa", {"scale": 0.3}),
    ("milora", {}),
    ("olora", {}),
    ("mica", {}),
    ("corda", {}),
    ("corda", {"mode": "kpm"}),
    ("lora_null", {}),
    ("lora_null", {"variant": "v2"}),
]


@pytest.mark.parametrize(("name", "options"), STARTS)
def test_the_model_stays_as_it_was(name, options, embedded):
    """Logits in float32, with the factors and the base as a client puts them together; 1e-5 of the largest."""
    backbone, data = embedded.backbone, embedded.data
    of = setting_of(backbone, 8, scale=2.0)
    state = begun(create(name, **options), of, asking(backbone, of.targets, data, [torch.arange(24)]))
    head = init_head("random", 10, backbone.features, 0)
    images = (data.images[100:108].float() / 255 - 0.5) / 0.5
    bank = Bank(backbone, of.targets, scale=2.0)
    blank = {n: Factors(torch.zeros(1, k), torch.zeros(d, 1)) for n, (d, k) in of.targets.items()}
    bank.load([blank], [head])
    before = bank.forward(images, 1).detach()
    offset = base.advance({}, state.merge)
    bank.rebase({n: of.weight(n) + 2.0 * o for n, o in offset.items()})
    bank.load([state.layers], [head])
    after = bank.forward(images, 1).detach()
    assert float((after - before).abs().max()) < 1e-5 * float(before.abs().max())
    if state.merge:  # and it does not where the base keeps what the adapter took
        bank.rebase({})
        assert float((bank.forward(images, 1).detach() - before).abs().max()) > 1e-3


def test_on_real_inputs_null_is_silent_and_corda_splits_by_use(embedded):
    """Energy of the outputs that goes through the adapter, over the examples that were measured: the least layer of
    CorDA's ipm, the most of its kpm and of LoRA-Null."""
    backbone, data, examples = embedded.backbone, embedded.data, torch.arange(24)
    of = setting_of(backbone, 8, scale=2.0)
    seen = {}
    hooks = [
        backbone.module.get_submodule(n).register_forward_pre_hook(lambda _, x, n=n: seen.__setitem__(n, x[0]))
        for n in of.targets
    ]
    images = (data.images[examples].float() / 255 - backbone.input.mean[0]) / backbone.input.std[0]
    with torch.no_grad():
        backbone.module(images)
    for hook in hooks:
        hook.remove()
    ask = asking(backbone, of.targets, data, [examples])
    shares = {}
    for name, options in (("corda", {}), ("corda", {"mode": "kpm"}), ("lora_null", {}), ("pissa", {})):
        layers = begun(create(name, **options), of, ask).layers
        shares[" ".join([name, *options.values()])] = [
            energy(seen[n].flatten(0, -2).double(), 2.0 * dense(f), of.weight(n)) for n, f in layers.items()
        ]
    assert min(shares["corda"]) > 0.5 and max(shares["corda kpm"]) < 0.05
    assert max(shares["lora_null"]) < 1e-4
    assert min(shares["corda"]) > min(shares["pissa"])  # what the inputs use, and not what the weight is largest in


@pytest.mark.parametrize("ratio", [0.0, 10.0])
def test_lora_null_leaks_no_more_than_float32_must(ratio):
    """Inputs of 96 directions over three and a half orders of size, in float32, with and without a mean: the leak
    ‖s·BAx‖/‖W0x‖ is that of the least directions of the float64 moment, to 5 %. Taking all that lies below float32's
    rounding of the largest for empty, and of it what the weight is largest in, leaks more (the control)."""
    draw = torch.Generator().manual_seed(0)
    k = 96
    basis = torch.linalg.qr(torch.randn(k, k, generator=draw, dtype=torch.float64)).Q
    x = torch.randn(3000, k, generator=draw, dtype=torch.float64) * 10 ** (-3.5 * torch.linspace(0, 1, k)) @ basis
    x = (x + ratio * basis[0]).float()
    W = torch.randn(40, k, generator=draw)
    context = InitContext(targets={"l": (40, k)}, rank=8, scale=SCALE, seed=0, weight={"l": W}.__getitem__, groups={})

    def ask(request):
        statistics, parts = create_statistics(request), []
        for client in x.split(1000):
            sums = {f"l/{n}": torch.zeros(s, dtype=torch.float64) for n, s in statistics["l"].shapes().items()}
            for batch in client.split(300):
                for key, value in statistics["l"].measure(batch).items():
                    sums[f"l/{key}"] += value.double()
            parts.append(Statistics(1, unpack(statistics, pack(statistics, sums))))
        return add_up(parts)

    rows, weight = x.double(), W.double()

    def leak(product) -> float:
        return float((rows @ product.T).norm() / (rows @ weight.T).norm())

    state = begun(create("lora_null"), context, ask)
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    least = vectors[:, :8] @ vectors[:, :8].T
    ours = leak(SCALE * state.layers["l"].to(torch.float64).dense())
    assert ours < 1.05 * leak(weight @ least)
    pooled = vectors[:, values <= values[-1] * k * torch.finfo(torch.float32).eps]
    assert pooled.shape[1] > 16
    U, S, Vh = torch.linalg.svd(weight @ pooled, full_matrices=False)
    assert leak(U[:, :8] * S[:8] @ Vh[:8] @ pooled.T) > 1.5 * ours
