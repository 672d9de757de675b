"""DoRA (adapter=dora): the bank against autograd on dense weights, the effective weights' bias, whole runs, refusals.

The oracle is W′ = m/‖W + s·BA‖_row ∘ (W + s·BA) as dense matrices, its norm detached, or PEFT's own layer.
"""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clients.cohort import Cohort
from clients.site import Site, is_zero
from clients.task import Task
from clients.training import train_bank
from fedinit import wire
from fedinit.adapters.bank import Bank
from fedinit.adapters.dora import DoRAFactors, magnitudes, row_norms
from fedinit.adapters.kinds import KINDS
from fedinit.config.flower import to_run_config
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.models import select_targets
from fedinit.runs.export import load_adapter, save_adapter
from fedinit.state import digest
from fedinit.transport.local import LocalGrid
from run_sim import main
from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Update
from strategies.dora import effective_bias
from strategies.reinit import Reinit, ReinitContext
from strategies.server.compatibility import check_method
from strategies.server.federation import federate
from tests.support.bank_runs import close64, in_float64, no_head, one_layer, run_layer
from tests.support.small import WORDS, slow, small_config

SCALE = 2.0


def drawn(d: int, k: int, rank: int, seed: int) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(s, generator=draw, dtype=torch.float64) / 3 for s in ((rank, k), (d, rank)))
    return DoRAFactors(A, B, m=torch.rand(d, generator=draw, dtype=torch.float64) + 0.5)


def effective(weight: Tensor, f: Factors, scale: float = SCALE) -> Tensor:
    whole = weight + scale * f.B @ f.A
    return f.m[:, None] / whole.norm(dim=1, keepdim=True).detach() * whole


# -- the bank --------------------------------------------------------------------------------------------------------


def test_row_norms_are_those_of_the_dense_matrix() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 5, generator=draw, dtype=torch.float64)
    found = [drawn(7, 5, 3, i) for i in range(4)]
    A, B = torch.stack([f.A for f in found]), torch.stack([f.B for f in found])
    made = row_norms(weight, weight.square().sum(1), A, B, SCALE)
    close64(made, (weight + SCALE * B @ A).norm(dim=2))
    close64(
        magnitudes(weight.float(), A[0].float(), B[0].float(), SCALE),
        (weight.float().double() + SCALE * B[0].float().double() @ A[0].float().double()).norm(dim=1),
    )
    taken_out = row_norms(weight, weight.square().sum(1), weight[:1], -torch.eye(7, 1, dtype=torch.float64), 1.0)
    assert float(taken_out[0]) < 1e-6 and torch.isfinite(1 / taken_out).all()  # a row that is gone divides by the floor


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("trainable", ["ABm", "Bm", ""])
@pytest.mark.parametrize("merged", [False, True])
def test_forward_and_gradients(trainable: str, dropout: float, merged: bool) -> None:
    """Against autograd, client by client, over W and over W + s·O; ranks differ, so some are padded."""
    d, k, t = 7, 5, 4
    bank, linear = one_layer(d, k, scale=SCALE, dropout=dropout)
    weight = linear.weight
    if merged:
        weight = weight + SCALE * drawn(d, k, 2, 77).dense()
        bank.rebase({"0": weight})
    adapters = [drawn(d, k, rank, seed) for seed, rank in enumerate((3, 1, 2))]
    generators = [torch.Generator().manual_seed(s) for s in range(3)] if dropout else ()
    leaves = bank.load([{"0": f} for f in adapters], no_head(3), frozenset(trainable), generators=generators)
    assert {n for n in leaves if n.startswith("0/")} == {f"0/{part}" for part in trainable}
    x = torch.randn(3 * t, k, dtype=torch.float64, requires_grad=True)
    out = torch.randn(3 * t, d, dtype=torch.float64)
    y = run_layer(bank, x, 3)
    grads = torch.autograd.grad((y * out).sum(), [x, *(leaves[f"0/{part}"] for part in trainable)])
    for i, f in enumerate(adapters):
        own = {part: getattr(f, part).clone().requires_grad_(True) for part in trainable}
        whole = DoRAFactors(**(f.parts | own))
        mine = x.detach()[i * t : (i + 1) * t].clone().requires_grad_(True)
        mask = torch.ones(t, k, dtype=torch.float64)
        if dropout:
            mask.bernoulli_(1 - dropout, generator=torch.Generator().manual_seed(i)).div_(1 - dropout)
        norm = (weight + SCALE * whole.B @ whole.A).norm(dim=1).detach()
        theirs = whole.m / norm * (mine @ weight.T + SCALE * (mine * mask) @ whole.A.T @ whole.B.T) + linear.bias
        if not dropout:
            close64(theirs.detach(), F.linear(mine, effective(weight, f), linear.bias).detach())
        close64(y[i * t : (i + 1) * t].detach(), theirs.detach())
        wanted = torch.autograd.grad((theirs * out[i * t : (i + 1) * t]).sum(), [mine, *own.values()])
        close64(grads[0][i * t : (i + 1) * t], wanted[0])
        for part, ours, his in zip(trainable, grads[1:], wanted[1:], strict=True):
            close64({"A": ours[i, : f.rank], "B": ours[i][..., : f.rank], "m": ours[i]}[part], his)
    back, _ = bank.unload()
    assert all(torch.equal(getattr(back[i]["0"], p), getattr(f, p)) for i, f in enumerate(adapters) for p in "ABm")


def test_a_norm_that_is_not_detached_has_other_gradients() -> None:
    """The negative control of the oracle: with the norm's own gradient B's is another one."""
    f, weight, x = drawn(7, 5, 3, 0), torch.randn(7, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    grads = []
    for detach in (True, False):
        B = f.B.clone().requires_grad_(True)
        whole = weight + SCALE * B @ f.A
        norm = whole.norm(dim=1, keepdim=True)
        y = x @ (f.m[:, None] / (norm.detach() if detach else norm) * whole).T
        grads.append(torch.autograd.grad(y.square().sum(), B)[0])
    assert float((grads[0] - grads[1]).norm() / grads[0].norm()) > 1e-2


def test_the_bank_equals_each_client_alone_and_folding(tiny_backbone, tiny_data, client_config, random_head) -> None:
    backbone = in_float64(tiny_backbone)
    targets = select_targets(backbone.module, None, 4)
    adapters = [{n: drawn(*shape, 4 - i, i) for n, shape in targets.items()} for i in range(3)]
    heads = [{k: v.double() for k, v in random_head(5, backbone.features, i).items()} for i in range(3)]
    bank = Bank(backbone, targets, SCALE)
    bank.load(adapters, heads)
    images = torch.randn(6, 1, 16, 16, dtype=torch.float64)
    together = bank.forward(images, 3).detach()
    for i in range(3):
        bank.fold(adapters[i], heads[i])
        close64(bank.forward(images[2 * i : 2 * i + 2], 1)[0], together[i])
    tasks = [
        Task(
            client=i,
            round=1,
            examples=torch.arange(10 * i, 10 * i + 5 + 3 * i),
            adapter={n: f.to(torch.float32) for n, f in adapters[i].items()},
            head=random_head(5, tiny_backbone.features, i),
            trainable=frozenset("ABm"),
        )
        for i in range(3)
    ]
    run = (tiny_data, tiny_backbone.input, client_config(weight_decay=0.1, clip_norm=1.0))
    results = train_bank(Bank(tiny_backbone, targets, SCALE), tasks, *run, seed=3)
    for i, task in enumerate(tasks):
        (alone,) = train_bank(Bank(tiny_backbone, targets, SCALE), [task], *run, seed=3)
        for name, f in results[i].adapter.items():
            for part in "ABm":
                mine, his = getattr(f, part), getattr(alone.adapter[name], part)
                torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-5)
                assert not torch.equal(mine, getattr(task.adapter[name], part))


@pytest.mark.parametrize("init", ["kaiming", "orthogonal", "lora_xs"])
def test_the_start_leaves_the_model_as_it_was(init: str) -> None:
    """m = ‖W0 + s·B0A0‖ by rows, set after the start: the logits of the first round are those of W0 + s·B0A0 alone,
    also where that is not W0, whose norms are others then (the control)."""
    config = small_config("adapter=dora", f"init={init}", *(["init.std=0.3"] if init == "lora_xs" else []))
    site = Site(config)
    first: dict[str, Tensor] = {}

    class Watching(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            for m in messages:
                if m.metadata.message_type == "train" and not first:
                    first.update(wire.decode(m.content["state"]))
            return super().send_and_receive(messages, timeout=timeout)

    federate(config, Watching(Cohort(site), 3), site.backbone)
    layers, head = wire.from_tensors(first)
    images = torch.randn(4, 1, 32, 32).to(next(site.engine.workers[0].bank.module.parameters()).device)
    bank, scale = site.engine.workers[0].bank, config.adapter.scale
    for name, f in layers.items():
        weight = site.backbone.module.get_submodule(name).weight
        torch.testing.assert_close(f.m, (weight + scale * f.B @ f.A).norm(dim=1), rtol=1e-5, atol=1e-6)
        off = float((weight.norm(dim=1) / f.m - 1).abs().max())
        assert off > 1e-2 if init == "lora_xs" else off < 1e-5

    def logits(adapter) -> Tensor:
        bank.load([adapter], [head])
        return bank.forward(images, 1).detach()

    plain = {n: Factors(f.A, f.B) for n, f in layers.items()}
    torch.testing.assert_close(logits(layers), logits(plain), rtol=1e-4, atol=1e-5)
    assert not is_zero(layers)  # m may have left the norm


# -- aggregation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedit", "lora_fair", "flexlora", "fedex_lora", "flora"])
def test_the_methods_rule_for_the_direction_and_the_mean_for_m(name: str) -> None:
    """B and A are those of adapter=lora, bit for bit; m is the weighted mean; and the effective weights' bias is that
    of dense matrices. None is exact: not even what is exact in B A."""
    weight = {n: torch.randn(s, generator=torch.Generator().manual_seed(9)) for n, s in LAYERS.items()}
    updates = [
        Update(i, i + 1, {n: drawn(*s, 3, 10 * i + j) for j, (n, s) in enumerate(LAYERS.items())}, {}) for i in range(4)
    ]
    p = np.array([1, 2, 3, 4]) / 10
    plain = [Update(u.client, u.examples, {n: Factors(f.A, f.B) for n, f in u.layers.items()}, {}) for u in updates]
    method = create_aggregator(name)
    made, lora = method.aggregate(updates, 1), method.aggregate(plain, 1)
    missed = moved = 0.0
    for n in LAYERS:
        f = made.layers[n]
        assert torch.equal(f.A, lora.layers[n].A) and torch.equal(f.B, lora.layers[n].B)
        np.testing.assert_allclose(f.m, sum(w * u.layers[n].m for w, u in zip(p, updates, strict=True)), rtol=1e-12)
        W = weight[n].double()
        over = W + SCALE * (made.residual[n].dense() if n in made.residual else 0)
        mean = sum(w * effective(W, u.layers[n]) for w, u in zip(p, updates, strict=True))
        missed += float((effective(over, f) - mean).square().sum())
        moved += float((mean - W).square().sum())
    ground = ReinitContext(dict.fromkeys(LAYERS, 3), SCALE, None, weight.__getitem__)
    found = effective_bias(updates, list(p), made, ground)["effective_bias"]
    assert found == pytest.approx((missed / moved) ** 0.5, rel=1e-8) and found > 1e-3


def test_equal_clients_have_no_bias() -> None:
    weight = {"l": torch.randn(7, 5, generator=torch.Generator().manual_seed(9))}
    updates = [Update(i, 1, {"l": drawn(7, 5, 3, 0)}, {}) for i in range(3)]
    ground = ReinitContext({"l": 3}, SCALE, None, weight.__getitem__)
    made = create_aggregator("fedit").aggregate(updates, 1)
    assert effective_bias(updates, [1 / 3] * 3, made, ground)["effective_bias"] < 1e-6


LAYERS = {"one": (7, 12), "two": (12, 9)}


# -- whole runs ------------------------------------------------------------------------------------------------------


GOES = sorted(set(AGGREGATORS) - {"fed_sb", "ravan", "lora_a2", "fedsa_lora"})


@pytest.mark.parametrize(
    "words",
    [
        "fedex_lora",
        "rolora",
        "flora",
        "fedit reinit=gauge adapter.ranks=[2,4]",
        "fedit server_opt=adam",
        *slow("fedit", "fedit reinit=svd", "frlora init=pissa", "ffa_lora"),
    ],
)
def test_a_run_keeps_its_magnitudes_through_every_start(words: str, tmp_path) -> None:
    """From the command line: m comes up and is averaged, re-initialisation never changes what is folded (the effective
    model after a round is the one that the next starts from), and the file is the final state."""
    strategy, *rest = words.split()
    run = [*WORDS, "adapter=dora", "evaluation=none", f"strategy={strategy}", *rest, f"output_dir={tmp_path}"]
    assert main(run) == 0
    (folder,) = (tmp_path / "digits").iterdir()
    layers, head, offset = load_adapter(folder / "adapter")
    whole = wire.to_tensors(layers, head) | {f"offset/{n}": o for n, o in offset.items()}
    summary = json.loads((folder / "summary.json").read_text())
    assert digest.of_tensors(whole) == summary["final_hash"]
    assert [float(r["effective_bias"]) > 0 for r in csv.DictReader(open(folder / "metrics.csv"))] == [True, True]
    assert all(f.m is not None for f in layers.values())
    parts = {"A", "B", "m"} - ({"A"} if strategy == "ffa_lora" else set())  # rolora trains all, in turn
    expected = sum(getattr(f, part).numel() for f in layers.values() for part in parts)
    if strategy != "flora":  # whose global factors have the rank of all clients
        assert summary["trainable_parameters"] == expected + 10 * 24 + 10


@pytest.mark.parametrize("reinit", [r for r in AGGREGATORS["fedit"].reinits if not r.startswith("local")])
def test_re_initialising_leaves_the_effective_weights(reinit: str, monkeypatch) -> None:
    """What the clients of round 2 are sent folds to what was evaluated after round 1."""
    config = small_config("adapter=dora", "strategy=fedit", f"reinit={reinit}", "evaluation=none")
    site = Site(config)
    seen: list[dict[str, Tensor]] = []
    cohort = Cohort(site)

    def handler(deliveries):
        answers = cohort(deliveries)
        if deliveries[0][0].metadata.message_type == "train":
            layers, _ = wire.from_tensors(wire.decode(deliveries[0][0].content["state"]))
            base = cohort.bases.known[str(deliveries[0][0].content["config"]["base-key"])]
            own = {}
            for name, f in layers.items():
                weight = site.backbone.module.get_submodule(name).weight.double()
                over = weight + config.adapter.scale * base.get(name, 0)
                own[name] = effective(over, f.to(torch.float64), config.adapter.scale)
            seen.append(own)
        return answers

    made, restart = [], Reinit.after

    def watch(reinit, aggregate, round, over):
        own = {}
        for name, f in aggregate.layers.items():
            own[name] = effective(over.weight(name), f.to(torch.float64), over.scale)
        made.append(own)
        return restart(reinit, aggregate, round, over)

    monkeypatch.setattr(Reinit, "after", watch)
    federate(config, LocalGrid(handler, 3), site.backbone)
    for name, expected in made[0].items():
        torch.testing.assert_close(seen[1][name], expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(seen[0][name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merged", [False, True])
def test_peft_computes_the_same(tmp_path, merged: bool) -> None:
    """On the untouched W0, also where something was merged into the base."""
    peft = pytest.importorskip("peft")
    body = nn.ModuleDict({"one": nn.Linear(9, 6), "two": nn.Linear(5, 8)})
    layers = {n: drawn(*s, 3, i).to(torch.float32) for i, (n, s) in enumerate({"one": (6, 9), "two": (8, 5)}.items())}
    config = small_config("adapter=dora", "adapter.rank=3", "adapter.alpha=6")
    x = {"one": torch.randn(3, 9), "two": torch.randn(3, 5)}
    offset = {n: drawn(*f.shape, 2, 7).dense().float() for n, f in layers.items()} if merged else {}
    ours, scale = {}, config.adapter.scale
    for n, f in layers.items():
        over = body[n].weight + scale * offset.get(n, 0)
        ours[n] = F.linear(x[n], effective(over, f, scale), body[n].bias)
    save_adapter(tmp_path, layers, {"weight": torch.zeros(2, 3)}, offset, config, ["a", "b"])
    back, _, offset_back = load_adapter(tmp_path)
    assert all(torch.equal(getattr(back[n], p), getattr(f, p)) for n, f in layers.items() for p in "ABm")
    assert offset_back.keys() == offset.keys()
    read = peft.PeftModel.from_pretrained(body, str(tmp_path))
    for name, expected in ours.items():
        torch.testing.assert_close(read.base_model.model[name](x[name]), expected, rtol=1e-4, atol=1e-5)


def test_the_client_app_gives_the_same_run() -> None:
    from clients.client_app import app

    own = ("adapter=dora", "strategy=fedex_lora", "engine.clients_per_bank=1")
    config = small_config(*own, "evaluation=clients")

    def one_by_one(deliveries):
        return [app(message, context) for message, context in deliveries]

    site = Site(config)
    ours = federate(config, LocalGrid(Cohort(site), 3), site.backbone)
    run_config = to_run_config(config)
    theirs = federate(config, LocalGrid(one_by_one, 3, run_config=run_config, strict=True), site.backbone)
    assert ours.final_hash == theirs.final_hash and ours.score == theirs.score


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_every_method_goes_with_it_or_says_why_not(name: str) -> None:
    needed = {"fed_sb": ["init=lora_xs"], "ravan": ["init=lora_xs"], "frlora": ["init=pissa"]}.get(name, [])
    config = small_config("adapter=dora", f"strategy={name}", "evaluation=clients", *needed)
    if name in GOES:
        check_method(config)
    else:
        with pytest.raises(InputError, match="adapter=dora: does not go with strategy"):
            check_method(config)


def test_a_start_of_each_clients_own_is_refused() -> None:
    with pytest.raises(InputError, match="reinit=local: does not go with adapter=dora"):
        check_method(small_config("adapter=dora", "strategy=fedit", "reinit=local"))
    assert KINDS["dora"].trained(frozenset("AB")) == set("ABm") and not KINDS["dora"].trained(frozenset())
