"""Starts with products that are not zero, and the base that gave them up, through the whole path: which methods they go
with, that no honest update is refused, that nothing is lost, and what is exported."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import Array

from clients.cohort import Cohort
from clients.site import Site
from fedinit import wire
from fedinit.errors import InputError
from fedinit.factors import Factors, norm
from fedinit.initializers import INITIALIZERS
from fedinit.initializers.pissa import PiSSA
from fedinit.runs.export import load_adapter, save_adapter
from fedinit.runs.observer import Observer
from fedinit.state import base_offset as base
from fedinit.transport.local import LocalGrid
from strategies import create_aggregator
from strategies.aggregator import Aggregate, Update
from strategies.reinit import ReinitContext, create_reinit
from strategies.server.compatibility import check_method
from strategies.server.federation import federate
from tests.support.small import slow, small_config

TAKING = ["pissa", "milora", "olora", "corda", "corda init.mode=kpm", "lora_null"]


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config())


class Ledger(Observer):
    def __init__(self):
        self.lines = []

    def event(self, kind, facts):
        self.lines.append((kind, dict(facts)))


def words(start: str, *more: str) -> tuple[str, ...]:
    name = start.split()[0]
    sampling = ("init.examples=32",) if INITIALIZERS[name].needs != "none" else ()
    return (*f"init={start}".split(), *sampling, "evaluation=none", *more)


def run(site, *overrides: str):
    ledger = Ledger()
    outcome = federate(small_config(*overrides), LocalGrid(Cohort(site), 3), site.backbone, observers=[ledger])
    return outcome, ledger.lines


def effective(outcome, name: str) -> torch.Tensor:
    """O + BA of a layer."""
    product = outcome.aggregate.layers[name].to(torch.float64).dense()
    return product + outcome.offset[name] if name in outcome.offset else product


@pytest.mark.parametrize("start", TAKING)
def test_honest_updates_are_let_in(start, site):
    """Of two factors, for three rounds: no refusal, and the run learns."""
    outcome, lines = run(site, *words(start, "strategy=fedit", "rounds=3"))
    assert not lines and set(outcome.offset) == set(site.targets)
    moved = [effective(outcome, n).norm() / outcome.offset[n].norm() for n in site.targets]
    assert min(moved) > 1e-6


def test_the_gate_still_refuses_what_a_start_does_not_explain(site):
    """The negative control: a client that sends its principal components a thousand times as large."""

    def grown(deliveries):
        replies = cohort(deliveries)
        for (message, context), reply in zip(deliveries, replies, strict=True):
            if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
                for name, array in list(reply.content["state"].items()):
                    if name.endswith("/B"):
                        value = torch.from_numpy(array.numpy().copy()) * 1000
                        reply.content["state"][name] = Array(value.numpy())
        return replies

    cohort, ledger = Cohort(site), Ledger()
    config = small_config(*words("pissa", "strategy=fedit", "rounds=1"))
    federate(config, LocalGrid(grown, 3), site.backbone, observers=[ledger])
    assert [(kind, facts["client"], facts["code"]) for kind, facts in ledger.lines] == [("refused", 1, "factor_norm")]


@pytest.fixture(scope="module")
def plain_heads(site):
    """What heads alone come to over an adapter that is zero."""
    return run(site, *words("kaiming", "strategy=head_alone", "rounds=1"))[0]


@pytest.mark.parametrize("start", TAKING)
def test_with_adapters_that_stay_the_head_learns_as_without_them(start, site, plain_heads):
    """The base lacks what the adapter holds and nothing else: training through both gives the same head."""
    split, _ = run(site, *words(start, "strategy=head_alone", "rounds=1"))
    for name in site.targets:
        assert split.offset[name].norm() > 0
        assert effective(split, name).norm() < 1e-6 * split.offset[name].norm()
    for key, value in plain_heads.aggregate.head.items():
        torch.testing.assert_close(split.aggregate.head[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["pissa", "mica"])
@pytest.mark.parametrize("learned", [False, True])
def test_fresh_comes_back_to_the_start_and_loses_nothing(start, learned):
    """W0 + s·(O′ + B0A0) = W0 + s·(O + BA), where O already lacks B0A0 once; also after several rounds of it."""
    draw = torch.Generator().manual_seed(0)
    first = Factors(torch.randn(3, 9, generator=draw), torch.randn(7, 3, generator=draw))
    if start == "mica":
        first = Factors(torch.zeros(3, 9), first.B)
    offset = base.advance({}, {"l": Factors(first.A, -first.B)} if start == "pissa" else {})
    ground = ReinitContext({"l": 3}, 2.0, lambda round: {"l": first}, None)
    total = offset.get("l", torch.zeros(7, 9)).double() + first.to(torch.float64).dense()
    for round in (1, 2, 3):
        more = Factors(torch.randn(3, 9, generator=draw), torch.randn(7, 3, generator=draw)) if learned else first
        total = total + more.to(torch.float64).dense() - first.to(torch.float64).dense()
        began = create_reinit("fresh").start(Aggregate(layers={"l": more}), round, ground.over(offset))
        assert began.layers["l"] is first
        assert began.merge["l"].rank == (6 if start == "pissa" else 3)
        offset = base.advance(offset, began.merge)
        np.testing.assert_allclose(offset["l"] + first.dense(), total, atol=2e-5)


def test_fresh_through_the_whole_path(site):
    """FLoRA from principal components: in every round clients are sent the start again, over a base that lacks it."""
    sent = []

    class Watching(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            if messages and messages[0].metadata.message_type == "train":
                sent.append(wire.decode(messages[0].content["state"]))
            return super().send_and_receive(messages, timeout=timeout)

    config = small_config(*words("pissa", "strategy=flora", "rounds=3"))
    outcome = federate(config, Watching(Cohort(site), 3), site.backbone)
    assert len(sent) == 3
    for name in site.targets:
        assert all(torch.equal(sent[i][f"{name}/{part}"], sent[0][f"{name}/{part}"]) for i in (1, 2) for part in "AB")
        start = Factors(sent[0][f"{name}/A"], sent[0][f"{name}/B"]).dense()
        # Of the base only what was learned is left when the start is put back.
        assert 0 < (outcome.offset[name] + start).norm() < 0.5 * start.norm()


# -- a frozen B ------------------------------------------------------------------------------------------------------


def test_mica_with_a_frozen_B_has_no_aggregation_bias(site):
    """‖ΔW − B̄Ā‖/‖ΔW‖, and as negative control FedIT's from the same start."""
    frozen, _ = run(site, *words("mica", "strategy=ffa_lora", "strategy.frozen=B", "rounds=3"))
    both, _ = run(site, *words("mica", "strategy=fedit", "rounds=3"))
    assert frozen.aggregate.diagnostics["bias"] < 1e-6 < 1e-4 < both.aggregate.diagnostics["bias"]
    start, _ = run(site, *words("mica", "strategy=head_alone", "rounds=1"))
    for name in site.targets:
        assert torch.equal(frozen.aggregate.layers[name].B, start.aggregate.layers[name].B)
        assert frozen.aggregate.layers[name].A.any() and not frozen.offset


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("init=mica strategy=ffa_lora", "init=mica: starts with A = 0, which strategy=ffa_lora keeps frozen"),
        ("init=mica strategy=fedsvd", "nothing could be learned; choose a method that trains A"),
        ("strategy=ffa_lora strategy.frozen=B", "init=kaiming: starts with B = 0, which strategy=ffa_lora keeps"),
        ("init=eva strategy=ffa_lora strategy.frozen=B", "init=eva: starts with B = 0"),
        ("init=lora_null init.variant=v2 strategy=ffa_lora strategy.frozen=B", "init=lora_null: starts with B = 0"),
        ("init=lora_xs init.std=0 strategy=ffa_lora strategy.frozen=B", "init=lora_xs: starts with B = 0"),
        ("init=pissa strategy=florist", "strategy=florist drops components by their size, so the model would lose"),
        ("init=corda strategy=spectral", "init=corda: takes its product out of the base"),
        ("strategy=spectral reinit=pissa", "reinit=pissa: does not go with strategy=spectral, which drops components"),
        ("init=pissa strategy=fed_sb", "init=pissa has none; choose one of: .*lora_xs"),
        *[
            (f"init={name} adapter.ranks=[2,4]", f"ranks: .* init={name.split()[0]}, whose components are taken out")
            for name in TAKING
        ],
    ],
)
def test_pairs_that_make_no_sense(overrides, message):
    with pytest.raises(InputError, match=message):
        check_method(small_config(*overrides.split()))


@pytest.mark.parametrize(
    "overrides",
    [
        "init=mica strategy=rolora",
        *slow("init=mica strategy=fedit", "init=mica adapter.ranks=[2,4]"),
        "init=orthogonal strategy=ffa_lora strategy.frozen=B",
        "init=lora_null init.variant=v2 adapter.ranks=[2,4]",
        "init=lora_xs strategy=ffa_lora strategy.frozen=B",
        "init=pissa strategy=lora_a2 adapter.ranks=[2,4]",
        *slow("init=pissa strategy=fedsa_lora evaluation=clients", "init=pissa strategy=fedit server_opt=momentum"),
        "init=pissa reinit=local",
    ],
)
def test_pairs_that_do(overrides, site):
    """The check lets them through, and the effective model moves in a run of them."""
    config = small_config(*overrides.split())
    check_method(config)
    outcome, lines = run(site, *overrides.split(), "client.max_steps=1", "rounds=2")
    assert not lines and all(effective(outcome, name).norm() > 0 for name in site.targets)


def test_why_methods_that_drop_components_are_refused():
    """Without a single step of training, spectral denoising takes most of what PiSSA took out of the base."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 20, generator=draw, dtype=torch.float64)
    part = PiSSA().split(weight, 6, 1.0)
    updates = [Update(i, 1, {"l": part}, {}) for i in range(3)]
    left = {name: create_aggregator(name).aggregate(updates, 1).layers["l"] for name in ("spectral", "fedit")}
    assert norm(left["spectral"]) < 0.6 * norm(part)
    np.testing.assert_allclose(left["fedit"].dense(), part.dense(), atol=1e-12)


# -- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", ["init=pissa", "init=pissa strategy=fedex_lora", "strategy=flora"])
def test_what_is_exported_is_the_effective_model_on_the_untouched_weight(overrides, site, tmp_path):
    """adapter_model alone, as PEFT reads it, scaled by its own alpha/r; of rank 2r after a start that took r out. The
    run's own factors and offset come back bit by bit."""
    config = small_config(*overrides.split(), "evaluation=none")
    outcome = federate(config, LocalGrid(Cohort(site), 3), site.backbone)
    final = outcome.aggregate
    save_adapter(tmp_path, final.layers, final.head, outcome.offset, config, ["a"] * 10)
    layers, _, offset = load_adapter(tmp_path)
    for name in site.targets:
        assert torch.equal(layers[name].A, final.layers[name].A) and torch.equal(layers[name].B, final.layers[name].B)
        assert torch.equal(offset[name], outcome.offset[name])
    facts = json.loads((tmp_path / "adapter_config.json").read_text())
    scale = config.adapter.scale
    for name, product in exported(tmp_path).items():
        rank = facts["rank_pattern"].get(name, facts["r"])
        assert product.rank == rank
        assert facts["alpha_pattern"].get(name, facts["lora_alpha"]) / rank == pytest.approx(scale)
        if overrides == "init=pissa":
            assert rank <= 2 * 4
        error = (product.dense() - effective(outcome, name)).norm()
        assert float(error) < 1e-6 * float(outcome.offset[name].norm() + final.layers[name].dense().norm())
        alone = (layers[name].dense() - effective(outcome, name)).norm()
        assert float(alone) > 0.1 * float(effective(outcome, name).norm())  # BA alone is another model


def exported(folder) -> dict[str, Factors]:
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name, value in tensors.items():
        layer, _, part = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        found.setdefault(layer, {})[part] = value
    return {layer: Factors(parts["A"], parts["B"]) for layer, parts in found.items()}
