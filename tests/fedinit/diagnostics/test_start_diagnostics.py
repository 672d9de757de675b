"""The diagnostics of a start: each against float64 autograd or the formula, by its law, and failing where it must."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from torch.func import functional_call, jacrev

import run_sim
from fedinit.adapters.core import CoreFactors
from fedinit.diagnostics.capture import capture
from fedinit.diagnostics.imbalance import imbalance
from fedinit.diagnostics.kernel import alignment, directions, gram, jacobian
from fedinit.diagnostics.loss_drop import adapter_gradients, predicted
from fedinit.diagnostics.regime import effective_rank, parameter_change, stable_rank, update_spectrum, weight_change
from fedinit.diagnostics.variance import variances
from fedinit.factors import Factors, stack
from fedinit.losses import cross_entropy
from fedinit.models import select_targets
from strategies.reinit import Gauge
from tests.support.small import WORDS

SCALE = 1.7
DRAW = torch.Generator().manual_seed(3)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


@pytest.fixture(scope="module")
def setting(tiny_vit, random_adapter, random_head, plain_client):
    """(a textbook LoRA model in float64, its adapter, images, what was captured of them)."""
    targets = select_targets(tiny_vit.module, None, 3)
    adapter, head = random_adapter(targets, 3, 0), random_head(5, tiny_vit.features, 0)
    model = plain_client(tiny_vit, adapter, head, SCALE).double()
    for lora in model.loras.values():
        lora.A.requires_grad_(True)
    images = normal(4, 1, 16, 16)

    def forward(x):
        features = model.body(x)
        return features, model.head(features)

    blocks = {"0": model.body.blocks[0], "1": model.body.blocks[1]}
    with capture(forward, images, model.loras, blocks) as seen:
        pass
    doubled = {n: f.to(torch.float64) for n, f in adapter.items()}
    return model, doubled, images, seen


def closed_form(adapter, seen, part: str) -> torch.Tensor:
    n = len(seen.outputs)
    total = torch.zeros(n, n, dtype=torch.float64)
    for c in range(seen.outputs.shape[1]):
        gradients = seen.gradients(seen.outputs[:, c].sum())
        for name, product in adapter.items():
            total += gram(jacobian(part, seen.inputs[name], gradients[name].flatten(1, -2), product, SCALE))
    return total


def by_autograd(model, images, part: str) -> torch.Tensor:
    """Per-example Jacobians of every output by every A or B."""
    names = [n for n, _ in model.named_parameters() if n.endswith(f".{part}")]
    parameters = {n: p.detach() for n, p in model.named_parameters() if n in names}
    rows = []
    for image in images:
        found = jacrev(lambda p, x=image[None]: functional_call(model, p, (x,))[0])(parameters)
        rows.append(torch.cat([found[n].flatten(1) for n in names], dim=1))  # (outputs, numbers)
    return torch.stack([torch.stack([(a * b).sum() for b in rows]) for a in rows])


@pytest.mark.parametrize("part", ["A", "B"])
def test_the_kernel_is_that_of_per_example_jacobians(setting, part) -> None:
    model, adapter, images, seen = setting
    theirs = by_autograd(model, images, part)
    torch.testing.assert_close(closed_form(adapter, seen, part), theirs, rtol=1e-9, atol=1e-9)
    other = by_autograd(model, images.flip(0), part)  # negative control: the examples in another order
    assert (closed_form(adapter, seen, part) - other).norm() > 1e-3 * theirs.norm()


def test_the_kernel_of_a_is_zero_at_zero_b_and_that_of_b_is_not(setting) -> None:
    _, adapter, _, seen = setting
    zero = {n: Factors(f.A, torch.zeros_like(f.B)) for n, f in adapter.items()}
    assert not closed_form(zero, seen, "A").any() and closed_form(zero, seen, "B").trace() > 0


@pytest.mark.parametrize("blocks", [None, 2])
def test_the_jacobians_of_a_core(blocks) -> None:
    """Of B R A with a full core or one of two blocks, against autograd on the bare layer."""
    X, G = normal(3, 5, 6), normal(3, 5, 7)
    R = normal(4, 4) if blocks is None else normal(2, 2, 2)
    product = CoreFactors(normal(4, 6), normal(7, 4), R)

    def value(A, B, R, x, g):
        return SCALE * ((x @ CoreFactors(A, B, R).absorb().A.T @ CoreFactors(A, B, R).absorb().B.T) * g).sum()

    for part, place in (("A", 0), ("B", 1), ("R", 2)):
        ours = jacobian(part, X, G, product, SCALE)
        for i in range(3):
            found = torch.autograd.functional.jacobian(
                lambda A, B, R, i=i: value(A, B, R, X[i], G[i]), (product.A, product.B, product.R)
            )[place]
            torch.testing.assert_close(ours[i], found.flatten(), rtol=1e-9, atol=1e-9)


def test_alignment_is_that_of_the_formula_and_knows_no_rotation_or_scale() -> None:
    X, Y = normal(9, 4), normal(9, 3)
    x, y = X - X.mean(0), Y - Y.mean(0)
    cka = (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())  # Kornblith et al. 2019
    assert alignment(gram(X), gram(Y)) == pytest.approx(float(cka), rel=1e-12)
    turned = 3 * X @ torch.linalg.qr(normal(4, 4)).Q + normal(4)
    assert alignment(gram(turned), gram(Y)) == pytest.approx(float(cka), rel=1e-12)
    assert alignment(gram(X), gram(turned)) == pytest.approx(1.0, rel=1e-12)
    stretched = X * torch.tensor([5.0, 1, 1, 1])  # negative control: not an orthogonal map
    assert abs(alignment(gram(stretched), gram(Y)) - float(cka)) > 1e-3
    assert alignment(torch.ones(4, 4), gram(normal(4, 2))) == 0.0


def test_random_outputs_have_the_kernel_on_average() -> None:
    assert torch.equal(directions(5, 8, DRAW), torch.eye(5))
    many = torch.stack([(d := directions(6, 2, DRAW)).T @ d for _ in range(4000)]).mean(0)
    assert (many - torch.eye(6)).abs().max() < 0.06  # 1/√8000 a standard deviation, √2 on the diagonal


def test_imbalance_is_zero_after_a_balanced_gauge_alone() -> None:
    product = Factors(normal(3, 8), normal(6, 3))
    theirs = (product.B.T @ product.B - product.A @ product.A.T).norm()
    assert imbalance([product, product]) == pytest.approx(2 * float(theirs), rel=1e-12)
    U, S, Vh = torch.linalg.svd(product.dense(), full_matrices=False)
    balanced = Factors(S[:3].sqrt()[:, None] * Vh[:3], U[:, :3] * S[:3].sqrt())
    assert imbalance([balanced]) < 1e-12 * float(S[0])
    turned = torch.linalg.qr(normal(3, 3)).Q
    rotated = Factors(turned.T @ product.A, product.B @ turned)
    assert imbalance([rotated]) == pytest.approx(float(theirs), rel=1e-12)
    assert imbalance([Gauge().turn(product)]) != pytest.approx(float(theirs), rel=1e-2)  # negative: the left gauge


def test_ranks_of_an_update() -> None:
    assert effective_rank(torch.ones(5)) == pytest.approx(5) and stable_rank(torch.ones(5)) == pytest.approx(5)
    values = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    entropy = -(0.75 * torch.log(torch.tensor(0.75)) + 0.25 * torch.log(torch.tensor(0.25)))
    assert effective_rank(values) == pytest.approx(float(entropy.exp()))
    assert stable_rank(values) == pytest.approx(10 / 9)
    assert effective_rank(torch.zeros(3)) == stable_rank(torch.zeros(3)) == 0
    start, now = Factors(normal(3, 8), normal(6, 3)), Factors(normal(3, 8), normal(6, 3))
    dense = torch.linalg.svdvals(now.dense() - start.dense())
    torch.testing.assert_close(update_spectrum(start, now)[:6], dense)
    moved = start.dense() - now.dense()  # a re-initialiser that put everything into the base
    assert not update_spectrum(start, now, moved).any() and not update_spectrum(start, Gauge().turn(start)).any()
    assert parameter_change({"x": start}, {"x": Gauge().turn(start)}) > 0.1  # the parameters did move


def test_relative_changes() -> None:
    start = {"x": Factors(normal(2, 4), normal(3, 2))}
    assert parameter_change(start, {"x": Factors(2 * start["x"].A, 2 * start["x"].B)}) == pytest.approx(1)


def test_factors_of_a_higher_rank_have_moved_by_what_is_new(random_adapter) -> None:
    """As flora's have after a round: the start has components of zero where it has none."""
    start = random_adapter({"x": (5, 7)}, 2, 0)
    more = random_adapter({"x": (5, 7)}, 3, 1)["x"]
    grown = {"x": stack([start["x"], more], [1.0, 1.0])}
    expected = (more.A.norm() ** 2 + more.B.norm() ** 2) / (start["x"].A.norm() ** 2 + start["x"].B.norm() ** 2)
    assert parameter_change(start, grown) == pytest.approx(float(expected.sqrt()), rel=1e-6)
    weight = normal(3, 4)
    spectra = [torch.linalg.svdvals(0.1 * weight)]
    assert weight_change(spectra, [weight], 2.0) == pytest.approx(0.2)
    assert weight_change(spectra, [torch.zeros(3, 4)], 2.0) is None


def test_variances_of_blocks(setting) -> None:
    """Against a second pass of the model; a block's gradient against autograd on its own output."""
    model, _, images, seen = setting
    loss = cross_entropy(seen.outputs, torch.arange(4)).mean()
    found = variances({n: seen.gradients(loss)[n] for n in ("0", "1")})
    kept = {}
    for name, block in (("0", model.body.blocks[0]), ("1", model.body.blocks[1])):
        block.register_forward_hook(lambda _, __, out, name=name: kept.__setitem__(name, out))
    again = cross_entropy(model(images), torch.arange(4)).mean()
    for name, value in variances(seen.activations).items():
        assert value == pytest.approx(float(kept[name].detach().var(correction=0)), rel=1e-9)
        (gradient,) = torch.autograd.grad(again, kept[name], retain_graph=True)
        assert found[name] == pytest.approx(float(gradient.var(correction=0)), rel=1e-9)
    assert found["0"] != pytest.approx(found["1"], rel=1e-3)


def test_the_first_order_drop(setting, client_config) -> None:
    """The adapters' gradients are autograd's; a small step takes off what is predicted, a large one does not."""
    model, adapter, images, seen = setting
    labels = torch.arange(4)
    steps = seen.gradients(cross_entropy(seen.outputs, labels).mean())
    ours = {}
    for name, product in adapter.items():
        found = adapter_gradients(frozenset("AB"), seen.inputs[name], steps[name].flatten(1, -2), product, SCALE)
        ours |= {f"{name}/{part}": value for part, value in found.items()}
    leaves = {f"{n}/{p}": getattr(lora, p) for n, lora in model.loras.items() for p in "AB"}
    before = cross_entropy(model(images), labels).mean()
    theirs = dict(zip(leaves, torch.autograd.grad(before, list(leaves.values())), strict=True))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12)

    def drop(lr: float) -> float:
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.sub_(lr * theirs[name])
            after = cross_entropy(model(images), labels).mean()
            for name, leaf in leaves.items():
                leaf.add_(lr * theirs[name])
        return float(before - after)

    plain = client_config(momentum=0.0, lr=1e-5)
    assert predicted(ours, plain, 1) == pytest.approx(drop(1e-5), rel=1e-3)
    large = client_config(momentum=0.0, lr=30.0)
    assert predicted(ours, large, 1) != pytest.approx(drop(30.0), rel=0.1)  # negative: first order only
    # Two steps of a constant gradient with momentum ½ move 1 + 1½.
    assert predicted(ours, client_config(momentum=0.5, lr=1.0), 2) == pytest.approx(
        2.5 * predicted(ours, client_config(momentum=0.0, lr=1.0), 1)
    )
    size = sum(float(v.square().sum()) for v in ours.values()) ** 0.5
    clipped = client_config(momentum=0.0, lr=1.0, clip_norm=size / 4)
    assert predicted(ours, clipped, 1) == pytest.approx(size**2 / 4)
    assert predicted(ours, client_config(optimizer="adamw"), 1) is None


# -- over a run ----------------------------------------------------------------------------------------------------


def result(folder, *words: str) -> tuple[dict, list[dict[str, str]]]:
    assert run_sim.main([*WORDS, f"output_dir={folder}", *words]) == 0
    (path,) = (folder / "digits").iterdir()
    table = path / "diagnostics.csv"
    return json.loads((path / "summary.json").read_text()), list(csv.DictReader(open(table))) if table.exists() else []


def test_a_run_is_the_same_with_its_diagnostics(tmp_path) -> None:
    plain, none = result(tmp_path / "off")
    watched, rows = result(tmp_path / "on", "diagnostics=init", "diagnostics.examples=12")
    assert not none and plain["final_hash"] == watched["final_hash"] and plain["accuracy"] == watched["accuracy"]
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    first, second, last = ({k: float(v) for k, v in row.items() if v} for row in rows)
    assert first["ntk_A"] == 0 < first["ntk_B"] and last["ntk_A"] > 0  # kaiming: B = 0
    for key in ("ntk_drift", "representation_change", "parameter_change", "weight_change", "effective_rank"):
        assert first[key] == pytest.approx(0, abs=1e-9) and last[key] > 0, key
    assert second["loss_drop_measured"] == pytest.approx(first["loss"] - second["loss"])
    assert first["loss_drop_predicted"] > 0 and "loss_drop_predicted" not in second
    assert {"forward_variance_0", "backward_variance_1"} <= first.keys()


def test_a_backbone_in_bf16_has_the_figures_of_fp32(tmp_path) -> None:
    """As on a GPU; its layers' inputs met float32 factors, which ended the run."""
    exact, rounded = [], []
    for rows, precision in ((exact, "fp32"), (rounded, "bf16")):
        words = (f"engine.precision={precision}", "diagnostics=init", "diagnostics.examples=12", "rounds=1")
        rows += [{k: float(v) for k, v in row.items() if v} for row in result(tmp_path / precision, *words)[1]]
    assert [row.keys() for row in exact] == [row.keys() for row in rounded]
    for row, other in zip(exact, rounded, strict=True):
        assert other == pytest.approx(row, rel=0.1, abs=0.02) and other != row


def test_the_drop_is_that_of_what_round_1_trains(tmp_path) -> None:
    """RoLoRA trains B first, as FFA-LoRA does; LoRA-FAIR trains both factors, which at this start have gradients."""
    drops = {}
    for name in ("rolora", "ffa_lora", "lora_fair"):
        words = (f"strategy={name}", "init=orthogonal", "diagnostics=init", "diagnostics.examples=12", "rounds=1")
        drops[name] = float(result(tmp_path / name, *words)[1][0]["loss_drop_predicted"])
    assert drops["rolora"] == drops["ffa_lora"] < drops["lora_fair"]


def test_what_cannot_be_looked_at_is_refused(capsys, tmp_path) -> None:
    words = [*WORDS, f"output_dir={tmp_path}", "diagnostics=init"]
    assert run_sim.main([*words, "strategy=fedsa_lora", "evaluation=clients"]) == 2
    assert "no global model to look at" in capsys.readouterr().err
    assert run_sim.main([*words, "adapter=dora"]) == 2
    assert "its kernels and ranks are those of adapter=lora; with adapter=dora use" in capsys.readouterr().err
    assert run_sim.main([*words, "diagnostics.examples=1"]) == 2
    assert "diagnostics.examples=1: expected 2 or more" in capsys.readouterr().err
