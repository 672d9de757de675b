"""Starts from the clients' gradients: what clients measure, and what LoRA-GA, LoRA-One and LoRA-SB make of it.

Oracles: autograd on an ordinary copy of the backbone for the gradients; dense numpy SVDs in float64 for the starts,
written from the papers' formulas. Factors are float32, so products are compared at 1e-5 of their size.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.batches import normalise
from clients.cohort import Cohort
from clients.resident import Resident
from clients.site import Site
from clients.statistics import clip, clip_gradients, measure
from fedinit.adapters.bank import Bank
from fedinit.errors import InputError
from fedinit.initializers import INITIALIZERS, create_initializer
from fedinit.initializers.from_gradients import FromGradients
from fedinit.initializers.initializer import InitContext
from fedinit.models import select_targets
from fedinit.runs.observer import Observer
from fedinit.state.start import StartState
from fedinit.statistics import Request, Sampling, Statistics, add_up, create_statistics, shapes_of
from fedinit.transport.local import LocalGrid
from strategies.server.compatibility import check_method
from strategies.server.federation import federate
from tests.support.round_zero_faults import spoilt, with_error
from tests.support.small import small_config
from tests.support.watching import SentTensors, Watch

quick = settings(deadline=None, max_examples=8)
STARTS = sorted(name for name, kind in INITIALIZERS.items() if issubclass(kind, FromGradients))
R, S = 3, 2.0  # rank and scale of the pools below


class Pool:
    """Images on clients by `cuts`, each with t rows of inputs x and output gradients y a layer; G = Σ yᵀx / images,
    with singular values that fall."""

    SHAPES = {"wide": (14, 22), "high": (24, 13)}

    def __init__(self, seed: int, images: int = 40, cuts: Sequence[int] = (), t: int = 3) -> None:
        rng = np.random.default_rng(seed)
        falling = {n: 1 / (1 + np.arange(size)) for n in self.SHAPES for size in [max(self.SHAPES[n])]}
        self.x = {n: rng.standard_normal((images, t, k)) * falling[n][:k] for n, (_, k) in self.SHAPES.items()}
        mix = {n: rng.standard_normal((k, d)) for n, (d, k) in self.SHAPES.items()}
        self.y = {n: self.x[n] @ mix[n] + 0.1 * rng.standard_normal((images, t, mix[n].shape[1])) for n in self.SHAPES}
        self.cuts, self.images = cuts, images
        weights = {n: torch.tensor(rng.standard_normal(shape)).float() for n, shape in self.SHAPES.items()}
        self.setting = InitContext(targets=self.SHAPES, rank=R, scale=S, seed=0, weight=weights.__getitem__)

    def gradient(self, name: str) -> np.ndarray:
        return np.einsum("ntd,ntk->dk", self.y[name], self.x[name]) / self.images

    def ask(self, request: Request) -> Statistics:
        parts = []
        for index in np.split(np.arange(self.images), self.cuts):
            sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes_of(request).items()}
            for layer, statistic in create_statistics(request).items():
                found = statistic.measure(torch.tensor(self.x[layer][index]), torch.tensor(self.y[layer][index]))
                for key, value in found.items():
                    sums[f"{layer}/{key}"] += value
            parts.append(Statistics(len(index), sums))
        return add_up(parts)

    def start(self, name: str, **options) -> StartState:
        return create_initializer(name, options).run(self.setting, self.ask)

    def direction(self, layer: str, update: str) -> np.ndarray:
        G = self.gradient(layer)
        return np.sign(G) if update == "sign" else G


def best(matrix: np.ndarray, rank: int) -> np.ndarray:
    U, sizes, Vh = np.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank] * sizes[:rank] @ Vh[:rank]


def close(ours: torch.Tensor, theirs: np.ndarray, rtol: float = 1e-5) -> None:
    ours = ours.detach().double().numpy()
    assert np.linalg.norm(ours - theirs) <= rtol * np.linalg.norm(theirs)


# -- what clients measure --------------------------------------------------------------------------------------------

TARGETS = {"vit": ["attn.qkv", "attn.proj", "mlp.fc2"], "mixer": ["mlp_tokens.fc1", "mlp_channels.fc2"]}


def measured(backbone, data, head, kind, examples, client=0, sampling=None, size=7, **more):
    """What one client answers, for all targets of the backbone."""
    targets = more.pop("targets")
    request = Request(
        source="gradients",
        layers=dict.fromkeys(targets, kind),
        shapes=targets,
        seed=3,
        sampling=sampling or Sampling(examples=None, min_examples=1),
        options={"width": 6},
        head=head,
        **more,
    )
    bank = Bank(backbone, targets, 2.0)
    bank.bare()
    return request, measure(bank, request, examples, client, Resident(data, bank.device), backbone.input, size, "")


def weight_gradients(backbone, data, head, targets, examples) -> dict[str, torch.Tensor]:
    """d(summed loss)/dW of an ordinary copy of the network whose weights are trained."""
    module = copy.deepcopy(backbone.module)
    weights = {name: module.get_submodule(name).weight.requires_grad_(True) for name in targets}
    pooled = module(normalise(data.images[examples], backbone.input, torch.device("cpu")))
    F.cross_entropy(F.linear(pooled, head["weight"], head["bias"]), data.labels[examples], reduction="sum").backward()
    return {name: weight.grad for name, weight in weights.items()}


@pytest.mark.parametrize("kind", ["vit", "mixer"])
def test_clients_measure_the_gradient_of_the_frozen_weights(kind, request, tiny_data, random_head):
    """Whole, by columns, by rows; in batches of any size; on one client or two. And no tensor is left a gradient."""
    backbone = request.getfixturevalue(f"tiny_{kind}")
    targets = select_targets(backbone.module, TARGETS[kind], 2)
    head, examples = random_head(5, backbone.features, 0), torch.arange(20)
    oracle = weight_gradients(backbone, tiny_data, head, targets, examples)
    asked, found = measured(backbone, tiny_data, head, "gradient", examples, targets=targets)
    _, first = measured(backbone, tiny_data, head, "gradient", examples[:1], targets=targets, size=20)
    _, rest = measured(backbone, tiny_data, head, "gradient", examples[1:], client=1, targets=targets)
    both = add_up([first, rest])
    basis = {f"{n}/basis": torch.linalg.qr(g[:, :4]).Q for n, g in oracle.items()}
    _, columns = measured(backbone, tiny_data, head, "gradient_range", examples, targets=targets)
    _, rows = measured(backbone, tiny_data, head, "gradient_rows", examples, targets=targets, tensors=basis)
    for name, gradient in oracle.items():
        assert gradient.norm() > 1e-3
        tolerance = {"rtol": 1e-4, "atol": 1e-5 * float(gradient.norm())}
        torch.testing.assert_close(found.of(name)["gradient"].float(), gradient, **tolerance)
        torch.testing.assert_close(both.of(name)["gradient"].float(), gradient, **tolerance)
        omega = create_statistics(dataclasses.replace(asked, layers={name: "gradient_range"}))[name]
        ones = torch.eye(gradient.shape[1])[None]
        projection = omega.measure(ones, gradient.T[None].contiguous())["range"]  # G Ω, from the rows of G itself
        torch.testing.assert_close(columns.of(name)["range"].float(), projection, **tolerance)
        torch.testing.assert_close(rows.of(name)["rows"].float(), basis[f"{name}/basis"].T @ gradient, **tolerance)
        assert float(found.of(name)["count"]) == 20
    assert not any(p.requires_grad or p.grad is not None for p in backbone.module.parameters())


def test_an_image_adds_no_more_than_the_clip(tiny_vit, tiny_data, random_head):
    """Each image's gradient in each layer is scaled down by itself; without a clip nothing is."""
    targets = select_targets(tiny_vit.module, TARGETS["vit"], 2)
    head, examples = random_head(5, tiny_vit.features, 0), torch.arange(6)
    alone = [weight_gradients(tiny_vit, tiny_data, head, targets, examples[i : i + 1]) for i in range(6)]
    for name in targets:
        sizes = sorted(float(g[name].norm()) for g in alone)
        limit = (sizes[2] + sizes[3]) / 2  # three are clipped, three are not
        clipped = sum(g[name] * min(1.0, limit / float(g[name].norm())) for g in alone)
        sampling = Sampling(examples=None, min_examples=1, clip=limit)
        only = {name: targets[name]}
        _, found = measured(tiny_vit, tiny_data, head, "gradient", examples, sampling=sampling, targets=only)
        torch.testing.assert_close(found.of(name)["gradient"].float(), clipped, rtol=1e-3, atol=1e-4 * limit)
    x, y = torch.randn(4, 3, 5), torch.randn(4, 3, 2)
    assert clip_gradients(x, y, None) is y
    longest = torch.einsum("btd,btk->bdk", clip_gradients(x, y, 0.1), x).flatten(1).norm(dim=1)
    assert float(longest.max()) <= 0.1 * (1 + 1e-5)


@pytest.mark.parametrize("clip_", [clip_gradients, lambda x, y, limit: clip(y.flatten(0, 1), limit).view_as(y)])
def test_what_float32_has_no_squares_of_is_clipped_too(clip_):
    """A head that a server makes up has gradients of 1e-25, whose norm was zero: noise for the clip hid nothing."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.ones(4, 1, 1), 1e-25 * torch.randn(4, 1, 9, generator=draw)
    assert float(y.norm()) == 0.0, "as float32 has it"
    found = clip_(x, y, 1e-30).double().flatten(1).norm(dim=1)
    torch.testing.assert_close(found, torch.full((4,), 1e-30, dtype=torch.float64), rtol=1e-3, atol=0)


@pytest.mark.parametrize("size", [3e38, 1e37, 1e36])
@pytest.mark.parametrize("clip_", [clip_gradients, lambda x, y, limit: clip(y.flatten(0, 1), limit).view_as(y)])
def test_what_float32_scales_down_by_no_normal_number_is_no_longer_than_the_clip(clip_, size):
    x, y = torch.ones(4, 1, 1), torch.full((4, 1, 9), size)
    assert (clip_(x, y, 1e-6).double().flatten(1).norm(dim=1) <= 1e-6 * (1 + 1e-6)).all()
    rounded = y.double() * (1e-6 / y.double().norm(dim=-1, keepdim=True)).float().double()  # the control
    assert (rounded.norm(dim=-1) > 1e-6 * (1 + 1e-5)).any()


@pytest.mark.parametrize("kind", ["gradient", "gradient_range", "gradient_rows"])
def test_sensitivity_of_a_gradient_is_the_clip(kind):
    draw = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(9, 4, generator=draw)).Q
    request = Request(
        source="gradients",
        layers={"l": kind},
        shapes={"l": (9, 7)},
        seed=0,
        options={"width": 4},
        tensors={"l/basis": basis},
    )
    (statistic,) = create_statistics(request).values()
    ((key, limit),) = statistic.sensitivity(0.5, 1).items()
    for _ in range(100):
        x, y = torch.randn(1, 3, 7, generator=draw), torch.randn(1, 3, 9, generator=draw)
        found = statistic.measure(x, clip_gradients(x, y, 0.5))
        assert float(found[key].norm()) <= limit * (1 + 1e-5)


# -- laws of every start -----------------------------------------------------------------------------------------------

WAYS = [(name, {"sketch": "exact"}) for name in STARTS] + [
    (name, {"sketch": "sketch", **({"update": "sgd"} if name == "lora_sb" else {})}) for name in STARTS
]


@quick
@given(st.integers(0, 1000), st.lists(st.integers(0, 40), max_size=3), st.sampled_from(WAYS))
def test_any_split_gives_the_pooled_start(seed, cuts, way):
    """With an empty client and one of a single image. The sums to 1e-8 in float64; the factors are float32."""
    name, options = way
    split, pooled = Pool(seed, cuts=sorted([0, 1, *cuts])), Pool(seed)
    asked = create_initializer(name, options).plan(pooled.setting)
    ours, theirs = split.ask(asked), pooled.ask(asked)
    for key, value in theirs.sums.items():
        torch.testing.assert_close(ours.sums[key], value, rtol=1e-8, atol=1e-8)
    one, other = split.start(name, **options), pooled.start(name, **options)
    for layer, factors in other.layers.items():
        close(one.layers[layer].dense(), factors.dense().double().numpy())
        close(one.layers[layer].A, factors.A.double().numpy(), 1e-4)


@pytest.mark.parametrize("name", STARTS)
def test_scale_multiplies_both_factors(name):
    one, small = Pool(0).start(name), Pool(0).start(name, scale=0.1)
    for layer, factors in one.layers.items():
        torch.testing.assert_close(small.layers[layer].A, 0.1 * factors.A)
        torch.testing.assert_close(small.layers[layer].B, 0.1 * factors.B)
        if name == "lora_ga":
            torch.testing.assert_close(small.merge[layer].dense(), -0.01 * factors.dense())


@pytest.mark.parametrize("name", STARTS)
def test_a_layer_without_a_gradient_is_replaced_and_none_at_all_is_refused(name):
    p = Pool(0)
    p.y["high"] = 0 * p.y["high"]
    start = p.start(name)
    assert start.notes["replaced"] == {"high": "its gradient was zero"}
    assert not start.layers["high"].dense().any() and "high" not in start.merge
    assert start.layers["high"].A.norm() > 0 and start.layers["wide"].dense().any()
    p.y["wide"] = 0 * p.y["wide"]
    with pytest.raises(InputError, match=f"init={name}: every gradient is exactly zero.*head.init=ridge"):
        p.start(name)
    zero = dataclasses.replace(p.setting, head={"weight": torch.zeros(4, 6), "bias": torch.zeros(4)})
    with pytest.raises(InputError, match="under a head of zeros every gradient is zero; use head.init=ridge"):
        create_initializer(name).plan(zero)


@pytest.mark.parametrize("name", STARTS)
def test_components_that_the_gradient_lacks_are_completed(name):
    """One image of one row: a gradient of rank one."""
    p = Pool(0, images=1, t=1)
    start = p.start(name, **({"update": "sgd", "eta": 1.0} if name == "lora_sb" else {}))
    components = INITIALIZERS[name].components * R
    assert start.notes["completed"] == {"wide": components - 1, "high": components - 1}
    for factors in start.layers.values():
        rows = factors.A / factors.A.norm(dim=1, keepdim=True)
        torch.testing.assert_close(rows @ rows.T, torch.eye(R), rtol=0, atol=1e-5)


def test_the_sketch_is_within_a_twentieth_of_the_best():
    """‖G − G_r‖ of the two passes against the best of that rank, l = 2r + 8, on singular values that fall as i^−1.5 (as
    1/i it would be 1.07 times the best); and averaging the clients' own truncations, which is not linear, is worse."""
    rng = np.random.default_rng(0)
    d, k, r, clients = 60, 90, 6, 5
    left, right = (np.linalg.qr(rng.standard_normal((n, d)))[0] for n in (d, k))
    G = left * (1 + np.arange(d)) ** -1.5 @ right.T
    parts = [G + 0.05 * rng.standard_normal((d, k)) for _ in range(clients)]
    parts[0] += clients * G - sum(parts)  # their mean is G

    class Given(Pool):
        SHAPES = {"l": (d, k)}

        def __init__(self):
            self.x = {"l": np.tile(np.eye(k), (clients, 1, 1))}  # k rows, whose gradients are the columns of G_k
            self.y = {"l": np.stack([part.T for part in parts])}
            self.cuts, self.images = range(1, clients), clients
            self.setting = InitContext(targets=self.SHAPES, rank=r, scale=1.0, seed=0)

    start = Given().start("lora_one", sketch="sketch", normalize="none", gamma=1.0).layers["l"]
    optimal = np.linalg.norm(G - best(G, r))
    assert np.linalg.norm(G + start.dense().double().numpy()) < 1.05 * optimal
    averaged = best(sum(best(part, r) for part in parts) / clients, r)
    assert np.linalg.norm(G - averaged) > np.linalg.norm(G + start.dense().double().numpy())


# -- LoRA-GA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sketch", ["exact", "sketch"])
def test_lora_ga_spans_the_best_step_of_rank_2r(sketch):
    """G AᵀA + B BᵀG = best_2r(G), and the base gives up what the adapter starts with."""
    p = Pool(0)
    start = p.start("lora_ga", size="unit", sketch=sketch)
    for name in p.SHAPES:
        A, B, G = start.layers[name].A.double().numpy(), start.layers[name].B.double().numpy(), p.gradient(name)
        step, wanted = G @ A.T @ A + B @ B.T @ G, best(G, 2 * R)
        # The sketch of 4r + 8 = 20 columns holds all of these layers' 14 and 13 components.
        assert np.linalg.norm(step - wanted) <= 1e-5 * np.linalg.norm(wanted)
        assert np.linalg.norm(B @ B.T @ G) > 0.01 * np.linalg.norm(G)
        assert np.linalg.norm(G @ A.T @ A - wanted) > 1e-3 * np.linalg.norm(wanted)  # neither factor does it alone
        close(start.merge[name].dense(), -B @ A)


def test_one_step_of_lora_ga_is_a_step_of_full_fine_tuning():
    """With size=gd, s·(B A) moves by −η·best_2r(G), whatever s, up to η²."""
    p, eta = Pool(0), 1e-6
    start = p.start("lora_ga", size="gd")
    for name in p.SHAPES:
        A, B, G = start.layers[name].A.double().numpy(), start.layers[name].B.double().numpy(), p.gradient(name)
        moved = S * ((B - eta * S * G @ A.T) @ (A - eta * S * B.T @ G) - B @ A)
        np.testing.assert_allclose(moved / -eta, best(G, 2 * R), rtol=1e-3, atol=1e-4 * np.linalg.norm(G))


def test_sizes_of_lora_ga():
    p = Pool(0)
    for name, (d, _) in p.SHAPES.items():
        top = np.linalg.svd(p.setting.weight(name).double().numpy(), compute_uv=False)
        tail = np.linalg.svd(p.gradient(name), compute_uv=False)[R : 2 * R]
        stable = d**0.25 / 9.0**0.5
        for options, on_a, on_b in (
            ({"size": "stable", "gamma": 9.0}, stable, np.full(R, stable)),
            ({"size": "gd"}, 1 / S, np.full(R, 1 / S)),
            ({"size": "weightS"}, np.sqrt(top[:R] / S).mean(), np.full(R, np.sqrt(top[:R] / S).mean())),
            ({"size": "stable", "gamma": 9.0, "variant": "peft"}, 1, stable * tail),
            ({"size": "gd", "variant": "peft"}, 1 / S, tail / S),
            ({"size": "weightS", "variant": "peft"}, 1, top[0] * tail / tail[0]),
        ):
            made = p.start("lora_ga", **options).layers[name]
            np.testing.assert_allclose(made.A.norm(dim=1).numpy(), np.full(R, on_a), rtol=1e-5)
            np.testing.assert_allclose(made.B.norm(dim=0).numpy(), on_b, rtol=1e-5)


@pytest.mark.parametrize(("size", "theirs"), [("stable", "stable"), ("gd", "gd_scale"), ("weightS", "weight_svd")])
def test_the_variant_peft_is_pefts(size, theirs):
    """AᵀA and BBᵀ, since a component of A and one of B have signs of their own; 2e-3 for PEFT's randomised SVD."""
    peft = pytest.importorskip("peft", reason="needs peft")
    if not hasattr(peft, "LoraGAConfig"):
        pytest.skip("this peft has no LoRA-GA")
    p = Pool(1)
    made = p.start("lora_ga", variant="peft", size=size)
    model = torch.nn.Sequential()
    for name, (d, k) in p.SHAPES.items():
        linear = torch.nn.Linear(k, d, bias=False)
        linear.weight.data = p.setting.weight(name).clone()
        linear._peft_loraga_grad = torch.tensor(p.gradient(name)).float()
        model.add_module(name, linear)
    config = peft.LoraConfig(
        r=R,
        lora_alpha=int(S * R),
        target_modules=list(p.SHAPES),
        init_lora_weights="lora_ga",
        lora_ga_config=peft.LoraGAConfig(direction="ArB2r", scale=theirs, stable_gamma=16),
    )
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, config)
    for name in p.SHAPES:
        layer = wrapped.base_model.model.get_submodule(name)
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        ours = made.layers[name]
        close(ours.A.T @ ours.A, (A.T @ A).detach().double().numpy(), 2e-3)
        close(ours.B @ ours.B.T, (B @ B.T).detach().double().numpy(), 2e-3)
        offset = layer.base_layer.weight.detach() - p.setting.weight(name)
        close(offset, (-S * B @ A).detach().double().numpy(), 1e-4)


# -- LoRA-One and LoRA-SB ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["none", "sigma1"])
def test_lora_one_is_one_step_of_gradient_descent(normalize):
    """s B A = −(s/γ)·best_r(G), over S_1 where it is normalised; balanced; nothing is taken out of the base."""
    p = Pool(0)
    start = p.start("lora_one", normalize=normalize, gamma=50.0)
    moved = 0.0
    for name, factors in start.layers.items():
        G = p.gradient(name)
        unit = 50.0 * (np.linalg.norm(G, 2) if normalize == "sigma1" else 1)
        close(S * factors.dense(), -S / unit * best(G, R))
        torch.testing.assert_close(factors.A @ factors.A.T, factors.B.T @ factors.B, rtol=1e-4, atol=1e-6)
        moved += np.linalg.norm(S / unit * best(G, R)) ** 2
    weights = sum(float(p.setting.weight(n).square().sum()) for n in p.SHAPES)
    assert not start.merge and start.notes["moved"] == pytest.approx((moved / weights) ** 0.5, rel=1e-4)
    if normalize == "sigma1":  # and then the size of the loss says nothing
        p.y = {name: 1000 * y for name, y in p.y.items()}
        for name, factors in p.start("lora_one", gamma=50.0).layers.items():
            close(factors.dense(), start.layers[name].dense().double().numpy())


@pytest.mark.parametrize("gauge", ["paper", "projected"])
@pytest.mark.parametrize("update", ["sign", "sgd"])
def test_lora_sb_starts_at_the_best_of_the_update(update, gauge):
    """W(0) = W0 + best_r(Δ); with r_init=zero the same factors around nothing."""
    p = Pool(0)
    start = p.start("lora_sb", update=update, gauge=gauge, eta=0.1)
    bare = p.start("lora_sb", update=update, gauge=gauge, r_init="zero")
    unit = 1.0 if gauge == "paper" else S**-0.5
    for name, factors in start.layers.items():
        wanted = best(-0.1 * p.direction(name, update), R)
        close(S * factors.dense(), wanted)
        for rows in (factors.A, factors.B.T):
            torch.testing.assert_close(rows @ rows.T, unit**2 * torch.eye(R), rtol=0, atol=1e-5)
        assert torch.equal(factors.R, factors.R.diag().diag()) and (factors.R.diag() > 0).all()
        torch.testing.assert_close(bare.layers[name].A, factors.A, rtol=0, atol=1e-6)  # whatever eta is
        assert not bare.layers[name].R.any()
    assert "moved" not in bare.notes and start.notes["moved"] > 0 and not start.merge


@pytest.mark.parametrize(("gauge", "times"), [("paper", S**2), ("projected", 1.0)])
def test_a_step_on_the_core_is_the_projected_step(gauge, times):
    """s B (∂L/∂R) A = U Uᵀ g V Vᵀ, at s² times its length in the paper's gauge; by autograd, for another gradient."""
    factors = Pool(0).start("lora_sb", gauge=gauge, r_init="zero").layers["wide"]
    draw = torch.Generator().manual_seed(0)
    g = torch.randn(factors.shape, generator=draw)
    core = factors.R.clone().requires_grad_(True)
    (S * (factors.B @ core @ factors.A) * g).sum().backward()  # a loss whose gradient in the weight is g
    left, right = (torch.linalg.qr(m).Q.double().numpy() for m in (factors.B, factors.A.T))
    projected = left @ left.T @ g.double().numpy() @ right @ right.T
    close(S * (factors.B @ core.grad @ factors.A), times * projected)


def test_the_sign_is_taken_after_the_sum():
    """The negative control: the mean of the clients' signs is another matrix, and a sketch has none to give."""
    p = Pool(0, cuts=[10, 20])
    G = p.gradient("wide")
    parts = [np.einsum("ntd,ntk->dk", p.y["wide"][i], p.x["wide"][i]) for i in np.split(np.arange(40), [10, 20])]
    averaged = sum(n / 40 * np.sign(part) for n, part in zip((10, 10, 20), parts, strict=True))
    assert np.linalg.norm(averaged - np.sign(G)) > 0.2 * np.linalg.norm(np.sign(G))
    core = p.start("lora_sb", eta=1.0).layers["wide"].R
    ours, theirs = np.linalg.svd(np.sign(G))[1][:R] / S, np.linalg.svd(averaged)[1][:R] / S
    np.testing.assert_allclose(core.diag().numpy(), ours, rtol=1e-5)
    assert np.abs(theirs - ours).max() > 0.05 * ours.max()
    with pytest.raises(InputError, match="init.sketch=sketch: a sketch of the gradient lacks its signs"):
        create_initializer("lora_sb", {"sketch": "sketch"})
    assert create_initializer("lora_sb").sends_whole({"large": (3072, 768)})
    assert not create_initializer("lora_sb", {"update": "sgd"}).sends_whole({"large": (3072, 768)})


# -- options and runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init=lora_ga", "head=zero"], "init=lora_ga: under head.init=zero.*head.init=convex, mvn, ncm"),
        (["init=lora_sb", "init.sketch=sketch"], "init.sketch=sketch: a sketch of the gradient lacks its signs"),
        (["init=lora_one", "init.noise=1"], "init.noise=1.0: needs init.clip"),
        (["init=lora_ga", "init.width=7"], "init.width=7: expected 8 or more"),
        (["init=lora_ga", "init.sketch=exact", "init.width=30"], "init.width=30: is not read with init.sketch=exact"),
        (["init=lora_ga", "init.size=gd", "init.gamma=9"], "init.gamma=9.0: is not read with init.size=gd, but with"),
        (["init=lora_sb", "init.width=30"], "init.width=30: is not read with init.update=sign, but with sgd"),
        (["init=lora_sb", "init.r_init=zero", "init.eta=1"], "init.eta=1.0: is not read with init.r_init=zero"),
        (["init=eva", "init.sketch=exact", "init.pilot=0"], "init.pilot=0.0: is not read with init.sketch=exact"),
        (["init=lora_one", "strategy=fed_sb"], "init=lora_one has none; choose one of: lora_sb"),
        (["init=lora_ga", "strategy=flexlora", "adapter.ranks=[2,4]"], "leading components of init=lora_ga, whose"),
    ],
)
def test_pairs_that_make_no_sense(words, message):
    with pytest.raises(InputError, match=message):
        check_method(small_config(*words))


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


def test_lora_ga_needs_twice_its_rank(site):
    config = small_config("init=lora_ga", "head=ridge", "adapter.rank=13", "rounds=1")
    with pytest.raises(InputError, match="adapter.rank=13: init=lora_ga takes 26 components of a gradient, and layer"):
        federate(config, LocalGrid(Cohort(site), 3), site.backbone)


def test_a_client_that_fails_in_round_0_costs_its_own_part(site):
    """Head and gradients are made of the others', and the run goes on with everyone."""
    config = small_config("init=lora_ga", "head=ridge", "init.examples=32", "rounds=1", "evaluation=none")
    watch = Watch()
    grid = LocalGrid(spoilt(Cohort(site), {1}, with_error), 3)
    outcome = federate(config, grid, site.backbone, observers=[watch])
    assert watch.events == [("refused", 0, 1, "client_error")] * 3  # features, losses, gradients
    assert outcome.start["lost"] == {"1": "client_error"} and outcome.start["clients"] == 2
    assert len(watch.rounds[0].clients) == 3 and outcome.start["head"]["accuracy"] > 0


def test_a_head_that_no_data_went_into_is_told(site):
    class Ledger(Observer):
        lines = []

        def event(self, kind, facts):
            self.lines.append((kind, facts["round"], facts["detail"]))

    words = ("init=lora_one", "init.sketch=sketch", "init.examples=32", "rounds=1", "evaluation=none")
    outcome = federate(small_config(*words), LocalGrid(Cohort(site), 3), site.backbone, observers=[Ledger()])
    warning = outcome.start["head"]["warning"]
    assert warning == "gradients were measured under a head that no data went into; head=ridge makes one"
    assert Ledger.lines == [("warning", 0, warning)]
    assert 0 < outcome.start["moved"] < 0.1


def test_lora_sb_under_fed_sb_through_a_run(site):
    """The first message holds the start, A and B stay, only cores come back, and their mean is that of what came."""
    grid = SentTensors(Cohort(site), 3)
    config = small_config("strategy=fed_sb", "init=lora_sb", "head=ridge", "init.examples=32", "client.batch_size=20")
    outcome = federate(config, grid, site.backbone, evaluate_fn=site.evaluate_round)
    first, last = grid.rounds[1][0][0], grid.rounds[2]
    examples = torch.tensor([float(len(p.train)) for p in site.partitions], dtype=torch.float64)
    for name, factors in outcome.aggregate.layers.items():
        assert torch.equal(factors.A, first[f"{name}/A"]) and torch.equal(factors.B, first[f"{name}/B"])
        assert first[f"{name}/R"].diag().min() > 0
        cores = torch.stack([up[f"{name}/R"].double() for _, up in last])
        mean = torch.einsum("c,cij->ij", examples / examples.sum(), cores)
        torch.testing.assert_close(factors.R.double(), mean, rtol=1e-6, atol=1e-9)
    assert outcome.aggregate.diagnostics["bias"] < 1e-6
    assert not any(name.endswith(("/A", "/B")) for _, up in last for name in up)
