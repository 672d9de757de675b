"""client.gsnr_scope=global_once: the step scales that the server makes of all clients' gradients at the start.

The oracle is one plain model in float64 with the start's factors and head, the mean loss over all training images at
once, and ‖g‖/(std(g) + 1e-8) of autograd's gradients; clients measure in float32, hence rtol 1e-4.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from flwr.app import Error, Message
from torch.nn import functional as F

from clients import batches
from clients.cohort import Cohort
from clients.site import Site
from clients.state import rounds
from fedinit import wire
from fedinit.config.compose import compose_config
from fedinit.config.schema import Config
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.initializers.random import Gaussian
from fedinit.losses import choose_loss
from fedinit.models import Backbone
from fedinit.runs.observer import Observer
from fedinit.state.start import StartState
from fedinit.step_scale import scale_of
from fedinit.transport.local import LocalGrid
from run_sim import main
from strategies.server import opening, round_zero
from strategies.server.compatibility import check_method
from strategies.server.federation import federate
from tests.support.small import WORDS, small_config

ONCE = ("client=sgd_sai", "client.gsnr_scope=global_once", "client.weight_decay=0", "evaluation=none")


class TakenOut(Gaussian):
    """A start with B ≠ 0 whose product the base gives up, so that the model stays as it was."""

    def plan(self, setting) -> StartState:
        draw = torch.Generator().manual_seed(0)
        drawn = super().plan(setting).layers
        layers = {n: Factors(f.A, torch.randn(f.B.shape, generator=draw) / 10) for n, f in drawn.items()}
        return StartState(layers=layers, merge={n: Factors(f.A, -f.B) for n, f in layers.items()})


class Watching(LocalGrid):
    """Keeps the first message of a kind to each client, and the scales of all training messages."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.first: dict[str, dict] = {}
        self.scales: list[dict[str, float]] = []

    def send_and_receive(self, messages, *, timeout=None):
        for message in messages:
            config, kind = message.content["config"], message.metadata.message_type
            tensors = wire.decode(message.content["state"]) if "state" in message.content else {}
            self.first.setdefault(kind, {}).setdefault(message.metadata.dst_node_id, tensors)
            if kind == "train":
                names = sorted(n for n in tensors if n.startswith("head/") or n[-1] in config["trainable"])
                self.scales.append(dict(zip(names, config["scales"], strict=True)))
        return super().send_and_receive(messages, timeout=timeout)


def started(config: Config, site: Site, **options) -> Watching:
    grid = Watching(Cohort(site), len(site.partitions), **options)
    federate(config, grid, site.backbone)
    return grid


def oracle(site: Site, start: dict[str, torch.Tensor], plain_client, taken: bool) -> dict[str, float]:
    layers, head = wire.from_tensors({name: value.double() for name, value in start.items()})
    body = Backbone(site.backbone.module, site.backbone.features, site.backbone.input)
    scale = site.config.adapter.scale
    model = plain_client(body, layers, head, scale).double()
    if taken:
        for name, lora in model.loras.items():
            lora.linear.weight.data -= scale * layers[name].dense()
    train = (~site.data.test).nonzero().flatten()
    images = batches.normalise(site.data.images[train], site.backbone.input, torch.device("cpu")).double()
    F.cross_entropy(model(images), site.data.labels[train]).backward()
    found = {"head/weight": model.head.weight.grad, "head/bias": model.head.bias.grad}
    for name, lora in model.loras.items():
        found |= {f"{name}/A": lora.A.grad, f"{name}/B": lora.B.grad}
    return {n: float(g.norm() / (g.std() + 1e-8)) if g.any() else 0.0 for n, g in found.items()}


@pytest.mark.parametrize("start", ["orthogonal", "kaiming", "taken"])
def test_the_scales_are_those_of_one_model_with_all_images(start, plain_client, monkeypatch):
    """Also over a base that gave the start up; every client gets the same ones, and none where a gradient is zero."""
    if start == "taken":
        monkeypatch.setattr(opening, "create_initializer", lambda *_: TakenOut())
    config = small_config(*ONCE, f"init={start if start != 'taken' else 'gaussian'}")
    site = Site(config)
    grid = started(config, site)
    theirs = oracle(site, next(iter(grid.first["train"].values())), plain_client, start == "taken")
    assert len(grid.scales) == 2 * 3 and all(own == grid.scales[0] for own in grid.scales)
    assert grid.scales[0] == pytest.approx(theirs, rel=1e-4)
    zero = {name for name, scale in grid.scales[0].items() if scale == 0}
    assert zero == ({n for n in theirs if n.endswith("/A")} if start == "kaiming" else set())


def test_any_split_of_the_images_gives_the_same_scales():
    """Six clients, three, or one with everything; a client's own gradient gives others (the negative control)."""
    found = []
    for words in (("partition=pooled",), (), ("partition=dirichlet", "partition.clients=6")):
        config = small_config(*ONCE, "init=orthogonal", "rounds=1", *words)
        found.append(started(config, Site(config)).scales[0])
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)
    config = small_config(*ONCE, "init=orthogonal", "rounds=1", "data.domains=[plain]")
    alone = started(config, Site(config)).scales[0]
    assert any(abs(alone[name] / scale - 1) > 1e-3 for name, scale in found[0].items())


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_the_scales_are_those_of_the_loss_that_clients_minimise(name):
    """Where the targets are numbers: the l1 or the l2 loss, and no cross-entropy (the control)."""
    words = ["experiment=matrix_sensing_full", *ONCE[:2], f"client.loss={name}", "client.lr=1e-9", "rounds=1"]
    config = compose_config([*words, "evaluation=none", "logger=none", "client.weight_decay=0"])
    site = Site(config)
    grid = started(config, site)
    ((layer, start),) = wire.from_tensors(next(iter(grid.first["train"].values())))[0].items()
    weight = site.backbone.module.get_submodule(layer).weight.double()
    train = ~site.data.test
    inputs, targets = site.data.images[train].flatten(1).double(), site.data.labels[train].double()
    A, B = (tensor.double().requires_grad_(True) for tensor in (start.A, start.B))

    def scales(loss) -> list[float]:
        outputs = inputs @ (weight + config.adapter.scale * B @ A).T
        gradients = torch.autograd.grad(loss(outputs, targets).sum(), (A, B))
        return [float(g.norm() / (g.std() + 1e-8)) for g in gradients]

    found = [grid.scales[0][f"{layer}/{part}"] for part in "AB"]
    assert found == pytest.approx(scales(choose_loss(name, True)), rel=1e-4)
    assert found != pytest.approx(scales(torch.nn.functional.cross_entropy), rel=5e-4)


@pytest.mark.parametrize("deferred", [True, False])
def test_a_zero_gradient_at_the_start_freezes_nothing(deferred, monkeypatch):
    """A under a zero B has no gradient yet: each client fixes that scale once, at its own first one, and keeps it.
    Fixed at the start, A would not move in the whole run (the control, with the smallest number for zero)."""
    if not deferred:
        monkeypatch.setattr(round_zero, "scale_of", lambda gradient: scale_of(gradient) or 5e-324)
    config = small_config(*ONCE, "strategy=fedit", "rounds=2")
    site = Site(config)
    grid = Watching(Cohort(site), 3)
    outcome = federate(config, grid, site.backbone)
    left = outcome.start["step_scales"]["left_to_clients"]
    assert left == (sorted(f"{name}/A" for name in site.targets) if deferred else [])
    start, _ = wire.from_tensors(next(iter(grid.first["train"].values())))
    for name, layer in outcome.aggregate.layers.items():
        moved = float((layer.A - start[name].A).norm() / start[name].A.norm())
        assert layer.B.any() and (moved > 1e-5 if deferred else moved < 1e-6)
    if deferred:
        fixed = [dict(rounds.remembered(context, rounds.SCALES)[2]) for context in grid.contexts.values()]
        assert all(scales[name] > 1 for scales in fixed for name in left)
        assert any(fixed[0][name] != fixed[1][name] for name in left)
        federate(dataclasses.replace(config, rounds=1), again := LocalGrid(Cohort(site), 3), site.backbone)
        assert [dict(rounds.remembered(context, rounds.SCALES)[1]) for context in again.contexts.values()] == fixed


def test_what_is_frozen_goes_down_once_and_round_0_counts_it(tmp_path):
    """FFA-LoRA's A is sent with the question and not again; the row of round 0 holds the gradients' bytes."""
    config = small_config(*ONCE, "strategy=ffa_lora")
    grid = started(config, Site(config))
    asked, trained = (next(iter(grid.first[kind].values())) for kind in ("query.statistics", "train"))
    frozen = {name for name in asked if name.endswith("/A")}
    assert frozen and asked.keys() - trained.keys() == frozen
    assert main([*WORDS, *ONCE, "strategy=fedit", f"output_dir={tmp_path}"]) == 0
    (folder,) = (tmp_path / "digits").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    row = dict(zip(*(line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[:2]), strict=True))
    numbers = 4 * summary["trainable_parameters"] * 3
    assert row["round"] == "0" and numbers < summary["start"]["step_scales"]["bytes_up"] <= int(row["bytes_up"])
    assert int(row["bytes_up"]) < numbers + 3 * 5_000


class Events(Observer):
    def __init__(self):
        self.seen = []

    def event(self, kind, facts):
        self.seen.append((kind, facts["round"], facts["client"], facts["code"]))


def test_a_client_that_does_not_answer_costs_its_own_part():
    config = small_config(*ONCE, "init=orthogonal", "rounds=1", "strategy=ffa_lora")
    site, cohort, events = Site(config), None, Events()

    def silent(deliveries):
        replies = cohort(deliveries)
        for i, (message, context) in enumerate(deliveries):
            if message.metadata.message_type == "query.statistics" and context.node_config["partition-id"] == 1:
                replies[i] = Message(Error(0, "gone"), reply_to=message)
        return replies

    cohort = Cohort(site)
    grid = Watching(silent, 3)
    outcome = federate(config, grid, site.backbone, observers=[events])
    assert events.seen == [("refused", 0, 1, "client_error")]
    assert outcome.start["step_scales"]["lost"] == {"1": "client_error"}
    # It may have lost what it was sent: A goes to it again, and to nobody else.
    assert [any(n.endswith("/A") for n in sent) for sent in grid.first["train"].values()] == [False, True, False]


@pytest.mark.parametrize("words", [["strategy=lora_a2"], ["strategy=fedit", "adapter.ranks=[2,4]"]])
def test_blocks_of_several_sizes_have_no_one_scale(words):
    with pytest.raises(InputError, match="global_once: with .* blocks of different sizes, which have no one scale"):
        check_method(small_config(*ONCE, *words))
    check_method(small_config("client=sgd", *words))


def test_the_scale_of_a_block_that_does_not_vary():
    assert scale_of(torch.full((7,), 3.0)) == scale_of(torch.tensor([2.0])) == 1.0 and scale_of(torch.zeros(4)) == 0.0


def test_the_reference_run_trains_the_head_alone_by_its_own_scales(tmp_path):
    """With the default reference: adapters are none of what its clients are asked the gradients of."""
    words = [*WORDS, *ONCE[:3], "rounds=1", "evaluation.head_alone=true", f"output_dir={tmp_path}", "logger=none"]
    assert main(words) == 0
    assert main([*words, "strategy=head_alone"]) == 0
