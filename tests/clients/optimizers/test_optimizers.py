"""SGD-SaI, LoRA+ and rsLoRA: against loops from their formulas, by law, with the naive forms as controls."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clients import optimizers
from clients.cohort import Cohort
from clients.optimizers import create_optimizer
from clients.optimizers.sgd import SGD
from clients.optimizers.sgd_sai import SGDSaI
from clients.site import Site
from clients.state import rounds
from clients.task import Task
from clients.training import train_bank
from fedinit.adapters.bank import Bank
from fedinit.errors import InputError, RunFailed
from fedinit.factors import Factors
from fedinit.models import select_targets
from fedinit.transport.local import LocalGrid
from strategies.server.compatibility import check_method
from strategies.server.federation import federate
from tests.support.small import small_config


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def snr(gradient: Tensor) -> float:
    """‖g‖ / (std(g) + 1e-8); 1 for one number."""
    return 1.0 if gradient.numel() == 1 else float(gradient.norm() / (gradient.std() + 1e-8))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_sai_equals_a_loop(momentum: float, client_config) -> None:
    """Four clients of three blocks, eight steps; rows stop early, and block "a" has no gradient for the first steps,
    for how many depends on the row."""
    settings = client_config(optimizer="sgd_sai", lr=0.01, momentum=momentum, weight_decay=0.1, lr_ratio_b=3.0)
    draw = torch.Generator().manual_seed(0)
    leaves = {"l/A": torch.randn(4, 3, 5, generator=draw), "l/B": torch.randn(4, 6, generator=draw)}
    leaves["one"] = torch.randn(4, 1, generator=draw)
    theirs = [{name: leaf[i].clone() for name, leaf in leaves.items()} for i in range(4)]
    scale: list[dict[str, float]] = [{} for _ in range(4)]
    buffer: list[dict[str, Tensor]] = [{} for _ in range(4)]
    ours = create_optimizer(leaves, settings)
    for step in range(8):
        active = 4 - (step >= 3) - (step >= 6)
        gradients = {name: torch.randn(active, *leaf.shape[1:], generator=draw) + 0.3 for name, leaf in leaves.items()}
        for i in range(active):
            if step < i:
                gradients["l/A"][i] = 0
            for name, parameter in theirs[i].items():
                g = gradients[name][i]
                lr = settings.lr * (3.0 if name == "l/B" else 1.0)
                if name not in scale[i] and g.any():
                    scale[i][name], buffer[i][name] = snr(g), g.clone()
                elif name in scale[i]:
                    buffer[i][name] = momentum * buffer[i][name] + (1 - momentum) * g
                parameter.mul_(1 - lr * settings.weight_decay)
                if name in scale[i]:
                    parameter.sub_(lr * scale[i][name] * buffer[i][name])
        ours.step(gradients, active)
    for i, row in enumerate(theirs):
        for name, parameter in row.items():
            torch.testing.assert_close(leaves[name][i], parameter, rtol=1e-12, atol=1e-13)
        assert ours.fixed_scales(i) == pytest.approx(scale[i], rel=1e-12)


def test_the_scale_is_about_the_root_of_the_blocks_size(client_config) -> None:
    """‖g‖/std = √((n − 1) + n·ḡ²/std²) ≥ √(n − 1), whatever the size of the gradient; 1 where nothing varies."""
    draw = torch.Generator().manual_seed(1)
    gradient = torch.randn(1, 8, 40, generator=draw) + 0.5
    for size in (1e-3, 1.0, 1e3):
        leaves = {"w": torch.zeros(1, 8, 40), "same": torch.zeros(1, 7)}
        made = create_optimizer(leaves, client_config(optimizer="sgd_sai"))
        made.step({"w": size * gradient, "same": torch.full((1, 7), size)}, 1)
        expected = math.sqrt(319 + 320 * float(gradient.mean() ** 2 / gradient.var()))
        assert made.fixed_scales(0)["w"] == pytest.approx(expected, rel=1e-4)
        assert made.fixed_scales(0)["same"] == 1.0


class Naive(SGDSaI):
    """Every scale fixed at the first step, as in the authors' code."""

    def _begin(self, gradient: Tensor, active: int) -> Tensor:
        first = ~self.begun[:active]
        parts = gradient.split(self.sizes, dim=1)
        self.step_scales[:active] = torch.stack([p.norm(dim=1) / (p.std(dim=1) + 1e-8) for p in parts], dim=1)
        self.begun[:active] = True
        return first


@pytest.mark.parametrize("kind", [SGDSaI, Naive])
def test_a_zero_b_does_not_freeze_a(kind, tiny_vit, tiny_data, client_config, random_head, monkeypatch) -> None:
    """From B = 0, A's first gradient is exactly zero: fixed then, its scale is 0 and A never moves (the control)."""
    monkeypatch.setitem(optimizers.OPTIMIZERS, "sgd_sai", kind)
    torch.set_default_dtype(torch.float32)
    targets = select_targets(tiny_vit.module, None, 4)
    draw = torch.Generator().manual_seed(0)
    start = {n: Factors(torch.randn(4, k, generator=draw) / k**0.5, torch.zeros(d, 4)) for n, (d, k) in targets.items()}
    task = Task(0, 1, torch.arange(20), start, random_head(5, tiny_vit.features, 0), frozenset("AB"))
    settings = client_config(optimizer="sgd_sai", lr=0.001, weight_decay=0.0)
    (result,) = train_bank(Bank(tiny_vit, targets, 2.0), [task], tiny_data, tiny_vit.input, settings, 1)
    for name, factors in result.adapter.items():
        moved = float((factors.A - start[name].A).norm() / start[name].A.norm())
        assert factors.B.any()
        assert moved == 0 if kind is Naive else moved > 1e-3


@pytest.mark.parametrize("scope", ["client_once", "per_round"])
def test_a_client_keeps_its_scales_between_rounds(scope: str) -> None:
    """Under client_once a second round changes no scale; under per_round nothing is kept."""
    torch.set_default_dtype(torch.float32)
    kept, hashes = [], []
    for count in (1, 2):
        config = small_config(
            "client=sgd_sai", "client.lr=0.002", f"client.gsnr_scope={scope}", f"rounds={count}", "evaluation=none"
        )
        site = Site(config)
        grid = LocalGrid(Cohort(site), 3)
        hashes.append(federate(config, grid, site.backbone).final_hash)
        kept.append([dict(rounds.remembered(c, rounds.SCALES).get(count, {})) for c in grid.contexts.values()])
    assert hashes[0] != hashes[1]
    assert kept[0] == kept[1]
    assert all(bool(scales) == (scope == "client_once") for scales in kept[0])
    if scope == "client_once":
        assert any(kept[0][0][name] != kept[0][1][name] for name in kept[0][0])
        assert all(name in kept[0][0] for name in ("blocks.0.mlp.fc2/A", "blocks.0.mlp.fc2/B", "head/bias"))


def test_scales_given_are_used(client_config) -> None:
    """What a client fixed in an earlier round replaces what its first gradient would give."""
    draw = torch.Generator().manual_seed(0)
    gradient = {"w": torch.randn(2, 9, generator=draw)}
    leaves = {"w": torch.zeros(2, 9)}
    made = create_optimizer(leaves, client_config(optimizer="sgd_sai", lr=1.0), None, [{"w": 0.5}, {}])
    made.step(gradient, 2)
    torch.testing.assert_close(leaves["w"][0], -0.5 * gradient["w"][0])
    torch.testing.assert_close(leaves["w"][1], -snr(gradient["w"][1]) * gradient["w"][1])


# LoRA+


def descend(name: str, A: Tensor, B: Tensor, client_config, lr: float, ratio: float) -> Tensor:
    """B A after twenty steps towards a fixed matrix, by the bank's optimiser."""
    goal = torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
    leaves = {"l/A": A.clone()[None], "l/B": B.clone()[None]}
    settings = client_config(optimizer=name, lr=lr, lr_ratio_b=ratio, weight_decay=0.0)
    made = create_optimizer(leaves, settings)
    for _ in range(20):
        A, B = leaves["l/A"], leaves["l/B"]
        error = B @ A - goal
        made.step({"l/A": B.mT @ error, "l/B": error @ A.mT}, 1)
    return (leaves["l/B"] @ leaves["l/A"])[0]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_ratio_is_a_gauge_under_sgd(name: str, client_config) -> None:
    """From (βB, A/β) at rate η, the products are those from (B, A) with rate ηβ² for A and η/β² for B, λ = β⁻⁴.

    Adam's step does not scale with the gradient, and the law fails: the control.
    """
    draw = torch.Generator().manual_seed(2)
    A, B, beta, lr = torch.randn(3, 6, generator=draw), torch.randn(7, 3, generator=draw), 1.3, 0.01
    turned = descend(name, A / beta, beta * B, client_config, lr, 1.0)
    plus = descend(name, A, B, client_config, lr * beta**2, beta**-4)
    gap = float((turned - plus).norm() / plus.norm())
    assert gap < 1e-12 if name == "sgd" else gap > 1e-3


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_lora_plus_equals_parameter_groups(name: str, client_config) -> None:
    draw = torch.Generator().manual_seed(0)
    leaves = {n: torch.randn(2, 4, 3, generator=draw) for n in ("l/A", "l/B", "head/weight")}
    settings = client_config(optimizer=name, lr=0.1, weight_decay=0.2, lr_ratio_b=8.0)
    ours = create_optimizer(leaves, settings)
    rows = [{n: nn.Parameter(leaf[i].clone()) for n, leaf in leaves.items()} for i in range(2)]
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    options = {"momentum": settings.momentum} if name == "sgd" else {"betas": settings.betas}
    theirs = []
    for row in rows:
        groups = [{"params": [row["l/B"]], "lr": 0.8}, {"params": [row["l/A"], row["head/weight"]]}]
        theirs.append(kind(groups, lr=0.1, weight_decay=0.2, **options))
    for _ in range(6):
        gradients = {n: torch.randn(2, 4, 3, generator=draw) for n in leaves}
        for i, row in enumerate(rows):
            for n, parameter in row.items():
                parameter.grad = gradients[n][i].clone()
            theirs[i].step()
        ours.step(gradients, 2)
    for i, row in enumerate(rows):
        for n, parameter in row.items():
            torch.testing.assert_close(leaves[n][i], parameter.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("word", "expected"), [("standard", 16 / 4), ("rslora", 16 / 2)])
def test_one_scale_for_all(word: str, expected: float) -> None:
    """adapter.scaling reaches the clients' banks; the server's scale is the same property."""
    torch.set_default_dtype(torch.float32)  # as every run has it
    config = small_config(f"adapter.scaling={word}")
    assert config.adapter.scale == expected
    assert {w.settings.scale for w in Site(config).engine.workers} == {expected}


@pytest.mark.parametrize(
    ("name", "momentum", "prox", "numbers"),
    [
        ("sgd", 0.0, 0.0, 0),
        ("sgd", 0.9, 0.0, 18),
        ("sgd", 0.9, 0.1, 36),
        ("adamw", 0.0, 0.0, 36),
        ("sgd_sai", 0.9, 0.0, 20),
    ],
)
def test_state_is_counted(name: str, momentum: float, prox: float, numbers: int, client_config) -> None:
    """Of 18 numbers in two blocks a client."""
    leaves = {"l/A": torch.zeros(3, 2, 5), "l/B": torch.zeros(3, 4, 2)}
    own = {} if name == "adamw" else {"momentum": momentum}
    settings = client_config(optimizer=name, prox=prox, **own)
    made = create_optimizer(leaves, settings)
    assert [made.state_size(row) for row in range(3)] == [numbers] * 3


class Forgetful(SGD):
    """Keeps its velocity, and tells nobody: on CUDA it would be what the next bank begins with."""

    def state(self) -> list[Tensor | None]:
        return []


class Scaled(SGD):
    """Has a rate for each number, which is no client's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rates = torch.ones_like(self.values[:1])


@pytest.mark.parametrize("kind", [SGD, Forgetful, Scaled])
def test_what_is_kept_and_not_told_of_ends_the_run(
    kind, tiny_vit, tiny_data, client_config, random_head, monkeypatch
) -> None:
    monkeypatch.setitem(optimizers.OPTIMIZERS, "sgd", kind)
    torch.set_default_dtype(torch.float32)
    targets = select_targets(tiny_vit.module, None, 4)
    start = {n: Factors(torch.ones(4, k), torch.zeros(d, 4)) for n, (d, k) in targets.items()}
    task = Task(0, 1, torch.arange(20), start, random_head(5, tiny_vit.features, 0), frozenset("AB"))
    said = "client=sgd: Forgetful keeps velocity from step to step, which its state"
    with pytest.raises(RunFailed, match=said) if kind is Forgetful else contextlib.nullcontext():
        settings = client_config(optimizer="sgd", momentum=0.9)
        train_bank(Bank(tiny_vit, targets, 2.0), [task], tiny_data, tiny_vit.input, settings, 1)


@pytest.mark.parametrize("name", ["sgd", "adamw", "sgd_sai"])
def test_padding_is_no_state(name: str, client_config) -> None:
    """A client of a lower rank keeps what it would keep alone."""
    own = {"prox": 0.1, "optimizer": name} | ({} if name == "adamw" else {"momentum": 0.9})
    alone = create_optimizer({"l/A": torch.zeros(1, 1, 5), "l/B": torch.zeros(1, 4, 1)}, client_config(**own))
    leaves = {"l/A": torch.zeros(2, 2, 5), "l/B": torch.zeros(2, 4, 2)}
    owned = {"l/A": torch.tensor([5, 10]), "l/B": torch.tensor([4, 8])}
    made = create_optimizer(leaves, client_config(**own), owned)
    assert made.state_size(0) == alone.state_size(0) < made.state_size(1)
    assert made.state_size(1) == create_optimizer(leaves, client_config(**own)).state_size(1)  # control: none is padded


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("client.lr_ratio_b=0", "client.lr_ratio_b=0.0: expected a number in"),
        ("client=sgd_sai client.gsnr_scope=once", "client.gsnr_scope=once: no such choice"),
        ("adapter.scaling=rs_lora", r"adapter.scaling=rs_lora: no such choice \(did you mean 'rslora'\?\)"),
    ],
)
def test_wrong_words(word: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        small_config(*word.split())


@pytest.mark.parametrize(
    "words",
    ["strategy=ffa_lora strategy.frozen=B init=orthogonal", "strategy=fed_sb init=lora_xs", "strategy=head_alone"],
)
def test_a_ratio_of_rates_needs_a_B_that_is_trained(words: str) -> None:
    name = words.split()[0]
    with pytest.raises(InputError, match=f"client.lr_ratio_b=4.0: {name} trains no B; use 1"):
        check_method(small_config(*words.split(), "client.lr_ratio_b=4"))
    check_method(small_config("strategy=rolora", "client.lr_ratio_b=4"))  # B and A in turn
