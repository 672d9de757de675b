"""Private training, clients/private.py: each example's gradient is clipped by itself, and the noise is what is said.

Three ways: against a loop over the examples in ordinary PyTorch, in float64, and against Opacus; by laws; and by the
control of clipping a batch's gradient as one, which must fail where the examples' own clipping holds.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from clients import batches, clipping
from clients.clipping import norms_of
from clients.private import PrivateRound, poisson, train_privately
from clients.resident import Resident
from clients.task import Result, StepFailed, Task
from clients.training import load, train_bank
from fedinit.adapters.bank import Bank
from fedinit.adapters.core import CoreFactors
from fedinit.adapters.dora import DoRAFactors
from fedinit.adapters.vera import VeRAFactors
from fedinit.config.privacy import ExamplePrivacyConfig
from fedinit.data.dataset import Dataset
from fedinit.draws import draws
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.models import Backbone, select_targets
from tests.support.bank_runs import in_float64

SCALE, RANK, CLIP = 2.0, 4, 0.7
EXAMPLES = torch.tensor([3, 59, 17, 4, 28, 41, 8])
QUIET = ExamplePrivacyConfig(clip=30, noise=1e-9, epsilon=None)


@pytest.fixture
def make(tiny_data: Dataset, random_adapter, random_head, client_config) -> Callable[..., PrivateRound]:
    """make(backbone, dtype, kind, clip, dropout, **settings): a client's private round, its bank loaded."""

    def build(backbone: Backbone, exact=False, kind="lora", clip: float = CLIP, dropout: float = 0.0, **changes):
        targets = select_targets(backbone.module, None, RANK)
        adapter, trainable = random_adapter(targets, RANK, 3), frozenset("AB")
        if kind != "lora":
            adapter, trainable = _of_kind(kind, adapter)
        head, bank = (
            random_head(5, backbone.features, 3),
            Bank(in_float64(backbone) if exact else backbone, targets, SCALE, dropout),
        )
        if exact:
            adapter = {name: f.to(torch.float64) for name, f in adapter.items()}
            head = {name: value.double() for name, value in head.items()}
        task = Task(3, 2, EXAMPLES, adapter, head, trainable)
        load(bank, [task], None, [])
        return PrivateRound(
            bank, task, Resident(tiny_data, bank.device), backbone.input, client_config(**changes), clip, 1
        )

    return build


def _of_kind(kind: str, adapter: dict[str, Factors]) -> tuple[dict[str, Factors], frozenset[str]]:
    draw = torch.Generator().manual_seed(9)
    if kind == "core":
        cores = {n: CoreFactors(f.A, f.B, torch.randn(RANK, RANK, generator=draw)) for n, f in adapter.items()}
        return cores, frozenset("R")
    if kind == "dora":
        return {n: DoRAFactors(f.A, f.B, m=1 + torch.rand(f.shape[0], generator=draw)) for n, f in adapter.items()}, (
            frozenset("ABm")
        )
    vectors = {
        n: (torch.randn(f.shape[0], generator=draw), torch.randn(RANK, generator=draw)) for n, f in adapter.items()
    }
    return {n: VeRAFactors(f.A, f.B, b=vectors[n][0], d=vectors[n][1]) for n, f in adapter.items()}, frozenset("bd")


def _places(count: int = len(EXAMPLES)) -> Tensor:
    return torch.arange(count)


def _by_loop(round: PrivateRound, plain: nn.Module, names: dict[str, Tensor], clip: float) -> Tensor:
    """Σ g_i min(1, C/‖g_i‖) from the formula, an example at a time, as ordinary autograd has the gradients."""
    total = torch.zeros(sum(p.numel() for p in names.values()), dtype=torch.float64)
    for example in round.task.examples:
        image = round.resident.data.images[example][None].double()
        image = (image / 255 - 0.5) / 0.5
        loss = nn.functional.cross_entropy(plain(image), round.resident.data.labels[example][None])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(names.values()))])
        total += gradient * min(1.0, clip / float(gradient.norm()))
    return total


def _plain(plain_client: type, round: PrivateRound, backbone: Backbone) -> tuple[nn.Module, dict[str, Tensor]]:
    """The client in ordinary PyTorch, float64, and its trained tensors in the order of the bank's leaves."""
    adapter = {name: f.to(torch.float64) for name, f in round.task.adapter.items()}
    head = {name: value.double() for name, value in round.task.head.items()}
    model = plain_client(in_float64(backbone), adapter, head, SCALE).double()
    leaves = {f"{name}/{part}": getattr(lora, part) for name, lora in model.loras.items() for part in "AB"}
    return model, leaves | {f"head/{key}": getattr(model.head, key) for key in ("weight", "bias")}


def test_the_clipped_sum_is_that_of_a_loop_over_the_examples(make, plain_client, tiny_backbone: Backbone) -> None:
    round = make(tiny_backbone, exact=True)
    model, leaves = _plain(plain_client, round, tiny_backbone)
    for clip in (CLIP, 1e9):
        expected = _by_loop(round, model, leaves, clip)
        # the images are normalised in float32 before the bank has them in float64
        sum_ = dataclasses.replace(round, clip=clip).clipped_sum(_places(), 0)
        torch.testing.assert_close(sum_, expected, rtol=1e-5, atol=1e-7)


def test_a_gradient_whose_squares_underflow_is_clipped_too(make, tiny_vit: Backbone, monkeypatch) -> None:
    """In float32 its norm was zero, and nothing of it was clipped: a server reads what it likes under a small clip."""
    round = make(tiny_vit)
    small = torch.full((len(EXAMPLES), 21698), 1e-25)
    assert float(small[0].norm()) == 0.0, "as float32 has it"
    monkeypatch.setattr(PrivateRound, "gradients", lambda self, places, step: small[places])
    for clip in (1e-30, 1e-24):
        found = dataclasses.replace(round, clip=clip).clipped_sum(_places(), 0)
        assert float(found.double().norm()) == pytest.approx(len(EXAMPLES) * min(clip, 1.473e-23), rel=1e-3)


@pytest.mark.parametrize("length", [1.3e39, 2.8e38, 1e30])
def test_a_gradient_as_long_as_float32_goes_adds_no_more_than_the_clip(make, tiny_vit: Backbone, monkeypatch, length):
    """Its factor is below float32's normal numbers, where rounding made the length 1.8 times the clip."""
    round = dataclasses.replace(make(tiny_vit), clip=1e-6)
    long = torch.full((len(EXAMPLES), 4096), length / 64)
    naive = long * (1e-6 / long.double().norm(dim=1)).to(torch.float32)[:, None]
    monkeypatch.setattr(PrivateRound, "gradients", lambda self, places, step: long[places])
    found = float(round.clipped_sum(_places(), 0).double().norm())
    assert found <= len(EXAMPLES) * 1e-6 * (1 + 1e-5)
    if length == 1e30:
        assert found == pytest.approx(len(EXAMPLES) * 1e-6, rel=1e-5), "what float32 can scale down stays"
    else:  # the control
        assert float(naive.double().norm(dim=1).max()) > 1e-6 * 1.1


def test_norms_are_taken_a_few_rows_at_a_time_and_are_the_same_bits(make, tiny_vit: Backbone, monkeypatch) -> None:
    """torch makes a float64 copy of what it takes norms of; of all rows it would be twice the gradients."""
    round, taken, norm = make(tiny_vit), [], torch.linalg.vector_norm
    gradients = torch.cat([round.gradients(_places(), 0)] * 3)
    expected = norm(gradients, dim=1, dtype=torch.float64)

    def watched(rows: Tensor, **how):
        taken.append(len(rows))
        return norm(rows, **how)

    monkeypatch.setattr(torch.linalg, "vector_norm", watched)
    monkeypatch.setattr(clipping, "NUMBERS", 8 * gradients.shape[1])
    monkeypatch.setattr(PrivateRound, "gradients", lambda self, places, step: gradients[places])
    round.clipped_sum(_places(len(gradients)), 0)
    assert sum(taken) == len(gradients) and max(taken) <= 8
    assert torch.equal(norms_of(gradients), expected)


def test_clipping_the_batch_as_one_is_not_the_clipped_sum(make, plain_client, tiny_vit: Backbone) -> None:
    round = make(tiny_vit, exact=True)
    model, leaves = _plain(plain_client, round, tiny_vit)
    whole = round.gradients(_places(), 0).sum(0)
    of_batch = whole * min(1.0, CLIP * len(EXAMPLES) / float(whole.norm()))
    expected = _by_loop(round, model, leaves, CLIP)
    assert float((of_batch - expected).norm() / expected.norm()) > 0.05


class OpacusLora(nn.Module):
    """One adapted layer of modules that Opacus knows by itself."""

    def __init__(self, linear: nn.Linear, factors: Factors) -> None:
        super().__init__()
        (r, k), d = factors.A.shape, factors.shape[0]
        self.linear, self.down, self.up = linear, nn.Linear(k, r, bias=False), nn.Linear(r, d, bias=False)
        self.down.weight.data.copy_(factors.A)
        self.up.weight.data.copy_(factors.B)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + SCALE * self.up(self.down(x))


@pytest.mark.parametrize("clip", [CLIP, 1e6])
def test_the_clipped_sum_is_that_of_opacus(make, tiny_vit: Backbone, clip: float) -> None:
    pytest.importorskip("opacus", reason="the [oracle] extra is not installed")
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    round = make(tiny_vit, clip=clip)
    body, head = copy.deepcopy(tiny_vit.module).requires_grad_(False), nn.Linear(tiny_vit.features, 5)
    head.load_state_dict(dict(round.task.head))
    trained: list[nn.Parameter] = []
    for name, factors in round.task.adapter.items():
        parent, _, leaf = name.rpartition(".")
        layer = OpacusLora(body.get_submodule(name), factors)
        setattr(body.get_submodule(parent), leaf, layer)
        trained += [layer.down.weight, layer.up.weight]
    trained += [head.weight, head.bias]
    model = GradSampleModule(nn.Sequential(body, head))
    optimizer = DPOptimizer(
        torch.optim.SGD(trained, lr=0.1),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=len(EXAMPLES),
    )
    images = batches.normalise(round.resident.data.images[EXAMPLES], tiny_vit.input, torch.device("cpu"))
    nn.functional.cross_entropy(model(images), round.resident.data.labels[EXAMPLES]).backward()
    optimizer.clip_and_accumulate()
    expected = torch.cat([p.summed_grad.flatten() for p in trained])
    torch.testing.assert_close(round.clipped_sum(_places(), 0), expected, rtol=1e-5, atol=1e-5)
    whole = round.gradients(_places(), 0).sum(0)
    assert clip > 1 or not torch.allclose(
        whole * (clip * 7 / whole.norm()).clamp(max=1), expected, rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("kind", ["lora", "dora", "vera", "core"])
def test_an_examples_gradient_is_that_of_a_client_that_has_it_alone(make, tiny_vit: Backbone, kind: str) -> None:
    round = make(tiny_vit, exact=True, kind=kind)
    together = round.gradients(_places(), 0)
    alone = torch.cat([round.gradients(torch.tensor([i]), 0) for i in range(len(EXAMPLES))])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)
    leaves = load(round.bank, [round.task], None, [])
    images = round._images(_places(), 0)
    loss = nn.functional.cross_entropy(
        round.bank.forward(images, 1)[0], round.resident.data.labels[EXAMPLES], reduction="sum"
    )
    ordinary = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))])
    torch.testing.assert_close(together.sum(0), ordinary, rtol=1e-9, atol=1e-11)


def test_the_bank_is_as_it_was_after_a_pass_of_examples(make, tiny_vit: Backbone) -> None:
    round = make(tiny_vit)
    before = [layer.leaves for layer in round.bank.layers.values()], round.bank.head
    round.gradients(_places(), 0)
    assert ([layer.leaves for layer in round.bank.layers.values()], round.bank.head) == before


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_no_example_moves_the_sum_by_more_than_the_clip(make, tiny_vit: Backbone, dropout: float) -> None:
    """Nor a later step's, which it is not in: masks that were drawn one after another did both."""
    round = make(tiny_vit, clip=0.05, dropout=dropout)
    whole, later = round.clipped_sum(_places(), 0), round.clipped_sum(_places()[1:4], 1)
    for left_out in range(len(EXAMPLES)):
        others = round.clipped_sum(torch.cat([_places()[:left_out], _places()[left_out + 1 :]]), 0)
        assert float((whole - others).norm()) <= 0.05 * (1 + 1e-5)
        assert torch.equal(round.clipped_sum(_places()[1:4], 1), later)


@pytest.mark.parametrize("changes", [{"augment": "crop_flip"}, {"dropout": 0.5}])
def test_who_knows_the_seed_does_not_know_how_an_image_is_shown(make, tiny_vit: Backbone, changes: dict) -> None:
    """With an example less all behind it have other places, and were drawn anew by the seed alone."""
    steps = []
    for secret in ("", "a", "a", "b"):
        round = make(tiny_vit, **changes)
        hidden = dataclasses.replace(round, task=dataclasses.replace(round.task, secret=secret))
        steps.append(hidden.gradients(_places(), 0))
    seeded, one, again, other = steps
    assert torch.equal(one, again) and not torch.allclose(one, other) and not torch.allclose(one, seeded)


def test_examples_drop_inputs_of_their_own_in_every_step(make, tiny_vit: Backbone) -> None:
    one, other = (make(tiny_vit, dropout=p).gradients(torch.tensor([2, 2, 3]), 0) for p in (0.5, 0.0))
    later = make(tiny_vit, dropout=0.5).gradients(torch.tensor([2, 2, 3]), 1)
    assert torch.equal(one[0], one[1]) and not torch.allclose(one, other) and not torch.allclose(one, later)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_passes_of_fewer_examples_make_the_same_sum(make, tiny_vit: Backbone, dropout: float) -> None:
    in_one, in_many = (make(tiny_vit, exact=True, batch_size=n, dropout=dropout) for n in (7, 2))
    torch.testing.assert_close(
        in_many.clipped_sum(_places(), 0), in_one.clipped_sum(_places(), 0), rtol=1e-9, atol=1e-11
    )


def test_an_example_whose_gradient_is_not_finite_has_none(make, tiny_vit: Backbone, monkeypatch) -> None:
    round = make(tiny_vit)
    real = PrivateRound.gradients
    expected = round.clipped_sum(_places()[1:], 0)

    def broken(self: PrivateRound, places: Tensor, step: int) -> Tensor:
        gradients = real(self, places, step)
        gradients[places == 0] = math.nan
        return gradients

    monkeypatch.setattr(PrivateRound, "gradients", broken)
    torch.testing.assert_close(round.clipped_sum(_places(), 0), expected)


def test_without_clip_and_noise_a_step_of_all_examples_is_the_ordinary_one(
    make, tiny_data: Dataset, tiny_backbone: Backbone, client_config
) -> None:
    round = make(tiny_backbone)
    task = round.task
    for optimizer, changes in (("sgd", {}), ("adamw", {"betas": (0.9, 0.99)}), ("sgd_sai", {}), ("sgd", {"prox": 0.1})):
        settings = client_config(optimizer, batch_size=7, epochs=2, **changes)
        private = train_privately(round.bank, task, round.resident, tiny_backbone.input, settings, QUIET, 1, 1)
        (ordinary,) = train_bank(round.bank, [task], tiny_data, tiny_backbone.input, settings, 1)
        assert isinstance(ordinary, Result) and private.steps == ordinary.steps == 2 and private.loss is None
        for ours, theirs in zip(_tensors(private), _tensors(ordinary), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5)


def _tensors(result: Result) -> list[Tensor]:
    return [p for f in result.adapter.values() for p in f.parts.values()] + list(result.head.values())


@pytest.mark.parametrize("secret", ["", "a secret"])
def test_batches_are_drawn_example_by_example(secret) -> None:
    draw = draws(0, secret, "privacy.batches")
    drawn = [poisson(50, 0.1, draw) for _ in range(2000)]
    sizes = torch.tensor([float(len(b)) for b in drawn])
    # Binomial(50, 0.1): mean 5, variance 4.5; four standard errors of 2,000 draws
    assert abs(float(sizes.mean()) - 5) < 4 * (4.5 / 2000) ** 0.5
    assert abs(float(sizes.var()) - 4.5) < 4 * 4.5 * (2 / 2000) ** 0.5
    often = torch.bincount(torch.cat(drawn), minlength=50) / 2000
    assert float((often - 0.1).abs().max()) < 5 * (0.1 * 0.9 / 2000) ** 0.5
    assert torch.equal(poisson(50, 1.0, draw), torch.arange(50))


def test_the_noise_has_the_stated_deviation_and_no_batch_is_noise_alone(
    make, tiny_data: Dataset, tiny_vit: Backbone, client_config, monkeypatch
) -> None:
    """One step of plain SGD, of which nobody is in the batch: what it moved is −lr·N(0, (σC)²)/b, tensor by tensor."""
    round = make(tiny_vit)
    monkeypatch.setattr("clients.private.poisson", lambda *_: torch.zeros(0, dtype=torch.long))
    settings = client_config(batch_size=7, epochs=1, momentum=0.0, weight_decay=0.0, lr=0.5)
    privacy = ExamplePrivacyConfig(clip=0.3, noise=1.5, epsilon=None)
    result = train_privately(round.bank, round.task, round.resident, tiny_vit.input, settings, privacy, 1, 1)
    start = Result(3, round.task.adapter, round.task.head, None, 1)
    std = 0.5 * 1.5 * 0.3 / 7
    for after, before in zip(_tensors(result), _tensors(start), strict=True):
        drawn = (after - before).flatten() / std
        assert abs(float(drawn.square().mean()) - 1) < 5 * (2 / len(drawn)) ** 0.5
        assert abs(float(drawn.mean())) < 5 / len(drawn) ** 0.5


def test_a_secret_hides_the_noise_and_the_batches_from_who_knows_the_seed(
    make, tiny_data: Dataset, tiny_vit: Backbone, client_config
) -> None:
    round, settings = make(tiny_vit), client_config(batch_size=4, epochs=1)
    privacy = ExamplePrivacyConfig(noise=1.0, epsilon=None)

    def run(seed: int, secret: str) -> Tensor:
        task = dataclasses.replace(round.task, secret=secret)
        result = train_privately(round.bank, task, round.resident, tiny_vit.input, settings, privacy, 1, seed)
        return torch.cat([t.flatten() for t in _tensors(result)])

    assert torch.equal(run(1, ""), run(1, "")) and not torch.equal(run(1, ""), run(2, ""))
    assert not torch.equal(run(1, "a"), run(1, "")) and not torch.equal(run(1, "a"), run(1, "b"))


def test_more_examples_in_a_batch_than_there_are_is_one_line(
    make, tiny_data: Dataset, tiny_vit: Backbone, client_config
) -> None:
    round = make(tiny_vit)
    with pytest.raises(InputError, match=r"client.batch_size=8: .* a client has 7; use 7 or less"):
        train_privately(
            round.bank, round.task, round.resident, tiny_vit.input, client_config(batch_size=8), QUIET, 1, 1
        )


def test_a_step_that_fails_says_which(make, tiny_data: Dataset, tiny_vit: Backbone, client_config) -> None:
    round = make(tiny_vit)
    task = dataclasses.replace(round.task, examples=EXAMPLES + 1000)
    with pytest.raises(StepFailed) as failed:
        train_privately(round.bank, task, round.resident, tiny_vit.input, client_config(batch_size=7), QUIET, 1, 1)
    assert failed.value.step == 1


def test_a_head_alone_trains_on_features(make, tiny_data: Dataset, tiny_vit: Backbone, client_config) -> None:
    """As on images, where no adapter is in play."""
    round, settings = make(tiny_vit), client_config(batch_size=4, epochs=2)
    adapter = {name: Factors(f.A, torch.zeros_like(f.B)) for name, f in round.task.adapter.items()}
    task = dataclasses.replace(round.task, adapter=adapter, trainable=frozenset())
    images = batches.normalise(tiny_data.images[EXAMPLES], tiny_vit.input, torch.device("cpu"))
    privacy = ExamplePrivacyConfig(noise=0.5, epsilon=None)
    on_images = train_privately(round.bank, task, round.resident, tiny_vit.input, settings, privacy, 1, 1)
    task = dataclasses.replace(task, features=tiny_vit.module(images))
    on_features = train_privately(round.bank, task, round.resident, tiny_vit.input, settings, privacy, 1, 1)
    for ours, theirs in zip(_tensors(on_features), _tensors(on_images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
