"""VeRA (adapter=vera): the bank against a plain module, M = b dᵀ against dense sums, whole runs, and what is refused.

Oracles are dense products written from ΔW = diag(b) B diag(d) A, or PEFT's own layer where it is installed.
"""

from __future__ import annotations

import copy
import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import strategies
from clients.cohort import Cohort
from clients.site import Site, is_zero
from clients.task import Task
from clients.training import train_bank
from fedinit import wire
from fedinit.adapters.bank import Bank
from fedinit.adapters.kinds import KINDS, of_parts
from fedinit.adapters.vera import VeRAFactors
from fedinit.config.flower import to_run_config
from fedinit.errors import InputError
from fedinit.factors import Factors, distance, leading, pad
from fedinit.initializers import create_initializer
from fedinit.initializers.initializer import InitContext
from fedinit.models import select_targets
from fedinit.norms import norms
from fedinit.runs.export import load_adapter, save_adapter
from fedinit.state import digest
from fedinit.transport.local import LocalGrid
from run_sim import main
from strategies import AGGREGATORS, create_aggregator
from strategies.aggregator import Aggregate, Update
from strategies.server.compatibility import check_method
from strategies.server.faults import fault_of_norms
from strategies.server.federation import federate
from strategies.server.gate import Gate
from tests.support.bank_runs import close64, in_float64, no_head, one_layer, run_layer
from tests.support.small import WORDS, slow, small_config

VERA = ("adapter=vera", "init=vera", "adapter.rank=8")
quick = settings(deadline=None, max_examples=30)


def drawn(shape: tuple[int, int], rank: int, seed: int, frame: int = 99) -> Factors:
    """Vectors of this seed around A and B of that one, in float64."""
    (d, k), own, common = shape, torch.Generator().manual_seed(seed), torch.Generator().manual_seed(frame)
    A, B = (torch.randn(s, generator=common, dtype=torch.float64) for s in ((rank, k), (d, rank)))
    b, v = (torch.randn(n, generator=own, dtype=torch.float64) for n in (d, rank))
    return VeRAFactors(A, B, b=b, d=v)


def dense(f: Factors) -> np.ndarray:
    """diag(b) B diag(d) A."""
    A, B, b, d = (t.double().numpy() for t in (f.A, f.B, f.b, f.d))
    return np.diag(b) @ B @ np.diag(d) @ A


# -- algebra ---------------------------------------------------------------------------------------------------------


def test_factors_are_the_product_of_four() -> None:
    f = drawn((7, 5), 3, 0)
    np.testing.assert_allclose(f.dense().numpy(), dense(f), rtol=1e-12)
    np.testing.assert_allclose(pad(f, 5).dense().numpy(), dense(f), rtol=1e-12)
    np.testing.assert_allclose(leading(f, 2).dense().numpy(), dense(leading(f, 2)), rtol=1e-12)
    assert f.to(torch.float32).d.dtype == torch.float32
    back, _ = wire.from_tensors(wire.to_tensors({"l": f}, {}))
    assert list(wire.to_tensors({"l": f}, {})) == ["l/A", "l/B", "l/b", "l/d"] and torch.equal(back["l"].b, f.b)
    other = drawn((7, 5), 3, 1)
    expected = float((f.b - other.b).square().sum() + (f.d - other.d).square().sum()) ** 0.5
    assert distance({"l": f}, {"l": other}) == pytest.approx(expected)
    assert not is_zero({"l": f}) and is_zero({"l": VeRAFactors(f.A, f.B, b=torch.zeros(7), d=f.d)})


@pytest.mark.parametrize("bad", [{"b": torch.zeros(7)}, {"b": torch.zeros(6), "d": torch.zeros(3)}])
def test_vectors_that_do_not_fit_are_refused(bad) -> None:
    f = drawn((7, 5), 3, 0)
    with pytest.raises(ValueError, match="vectors|no kind of adapters has the tensors A, B, b together"):
        of_parts({"A": f.A, "B": f.B, **bad})


# -- the bank --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("trainable", ["bd", "b", "d"])
def test_forward_and_gradients(trainable: str, dropout: float) -> None:
    """Against autograd on (W + s·diag(b) B diag(d) A) x + bias with the dense matrix, client by client."""
    d, k, t = 7, 5, 4
    bank, linear = one_layer(d, k, dropout=dropout)
    adapters = [drawn((d, k), 3, seed) for seed in range(3)]
    generators = [torch.Generator().manual_seed(s) for s in range(3)] if dropout else ()
    leaves = bank.load([{"0": f} for f in adapters], no_head(3), frozenset(trainable), generators=generators)
    assert {n for n in leaves if n.startswith("0/")} == {f"0/{part}" for part in trainable}
    x = torch.randn(3 * t, k, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3 * t, d, dtype=torch.float64)
    y = run_layer(bank, x, 3)
    grads = torch.autograd.grad((y * weight).sum(), [x, *(leaves[f"0/{part}"] for part in trainable)])
    scale = bank.layers["0"].scale
    for i, f in enumerate(adapters):
        vectors = {part: getattr(f, part).clone().requires_grad_(True) for part in trainable}
        own = {"b": f.b, "d": f.d} | vectors
        change = scale * torch.diag(own["b"]) @ f.B @ torch.diag(own["d"]) @ f.A
        mine = x.detach()[i * t : (i + 1) * t].clone().requires_grad_(True)
        mask = torch.ones(t, k, dtype=torch.float64)
        if dropout:
            mask.bernoulli_(1 - dropout, generator=torch.Generator().manual_seed(i)).div_(1 - dropout)
        theirs = F.linear(mine, linear.weight, linear.bias) + (mine * mask) @ change.T
        close64(y[i * t : (i + 1) * t].detach(), theirs.detach())
        wanted = torch.autograd.grad((theirs * weight[i * t : (i + 1) * t]).sum(), [mine, *vectors.values()])
        close64(grads[0][i * t : (i + 1) * t], wanted[0])
        for ours, his in zip(grads[1:], wanted[1:], strict=True):
            close64(ours[i], his)
    back, _ = bank.unload()
    assert all(torch.equal(getattr(back[i]["0"], p), getattr(f, p)) for i, f in enumerate(adapters) for p in "ABbd")
    assert bank.layers["0"].leaves["A"].shape == (1, 3, k)  # one A for all clients
    with pytest.raises(ValueError, match="around different A or B"):
        bank.load([{"0": adapters[0]}, {"0": drawn((d, k), 3, 1, frame=7)}], no_head(2), frozenset("bd"))


def test_the_bank_equals_each_client_alone_and_folding(tiny_backbone, tiny_data, client_config, random_head) -> None:
    """Training three clients of different length together, and each alone; folded weights give the forward's logits."""
    backbone = in_float64(tiny_backbone)
    targets = select_targets(backbone.module, None, 4)
    adapters = [{name: drawn(shape, 4, seed) for name, shape in targets.items()} for seed in range(3)]
    heads = [{k: v.double() for k, v in random_head(5, backbone.features, seed).items()} for seed in range(3)]
    bank = Bank(backbone, targets, 1.0)
    bank.load(adapters, heads, frozenset("bd"))
    images = torch.randn(6, 1, 16, 16, dtype=torch.float64)
    together = bank.forward(images, 3).detach()
    for i in range(3):
        bank.fold(adapters[i], heads[i])
        close64(bank.forward(images[2 * i : 2 * i + 2], 1)[0], together[i])
    small = [{n: f.to(torch.float32) for n, f in a.items()} for a in adapters]
    tasks = [
        Task(
            client=i,
            round=1,
            examples=torch.arange(10 * i, 10 * i + 5 + 3 * i),
            adapter={n: VeRAFactors(f.A, f.B, b=0.1 * f.b, d=0.1 * f.d) for n, f in small[i].items()},
            head=random_head(5, tiny_backbone.features, i),
            trainable=frozenset("bd"),
        )
        for i in range(3)
    ]
    settings = client_config(weight_decay=0.1, clip_norm=1.0)
    run = (tiny_data, tiny_backbone.input, settings)
    results = train_bank(Bank(tiny_backbone, targets, 1.0), tasks, *run, seed=3)
    for i, task in enumerate(tasks):
        (alone,) = train_bank(Bank(tiny_backbone, targets, 1.0), [task], *run, seed=3)
        for name, f in results[i].adapter.items():
            assert torch.equal(f.A, task.adapter[name].A) and torch.equal(f.B, task.adapter[name].B)
            for part in "bd":
                mine, his, start = (getattr(x[name], part) for x in (results[i].adapter, alone.adapter, task.adapter))
                torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-6)
                assert not torch.equal(mine, start)


def test_the_start_leaves_the_model_as_it_was_and_shares_its_matrices() -> None:
    targets = {"one": (6, 9), "two": (8, 5)}
    layers = create_initializer("vera").plan(InitContext(targets=targets, rank=4, scale=1.0, seed=3)).layers
    one, two = layers["one"], layers["two"]
    assert torch.equal(one.A[:, :5], two.A) and torch.equal(one.B, two.B[:6]) and one.shape == (6, 9)
    assert not one.b.any() and bool((one.d == 0.1).all()) and not one.dense().any()
    assert float(one.A.abs().max()) <= (6 / 9) ** 0.5 and float(two.B.abs().max()) <= (6 / 4) ** 0.5
    other = create_initializer("vera").plan(InitContext(targets=targets, rank=4, scale=1.0, seed=4)).layers
    assert not torch.equal(other["one"].A, one.A)
    assert float(two.B.var()) == pytest.approx(2 / 4, rel=0.5)  # Kaiming: variance 2 / fan_in


# -- aggregation -----------------------------------------------------------------------------------------------------


@st.composite
def cohorts(draw) -> tuple[list[Update], np.ndarray]:
    """Clients around one A and B, and Σ p_i ΔW_i of dense products."""
    count, rank = draw(st.integers(2, 5)), draw(st.integers(1, 5))
    shape = draw(st.sampled_from([(7, 12), (12, 7), (6, 6)]))
    examples = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    seed = draw(st.integers(0, 10_000))
    found = [drawn(shape, rank, seed + i) for i in range(count)]
    p = np.array(examples) / sum(examples)
    updates = [Update(i, n, {"layer": f}, {}) for i, (n, f) in enumerate(zip(examples, found, strict=True))]
    return updates, sum(w * dense(f) for w, f in zip(p, found, strict=True))


def M(updates: list[Update]) -> np.ndarray:
    p = np.array([u.examples for u in updates]) / sum(u.examples for u in updates)
    return sum(w * np.outer(u.layers["layer"].b, u.layers["layer"].d) for w, u in zip(p, updates, strict=True))


def gap(made: Aggregate, ideal: np.ndarray, residual: bool = True) -> float:
    whole = dense(made.layers["layer"])
    if residual and made.residual:
        whole = whole + made.residual["layer"].dense().numpy()
    return float(np.linalg.norm(whole - ideal) / np.linalg.norm(ideal))


@quick
@given(cohorts())
def test_what_each_method_makes_of_the_pair(case) -> None:
    """The mean of b and d; the top singular pair of M; b for the mean d by a stacked least-squares problem; and with
    the rest in the base, the ideal update exactly. A and B come back as they were."""
    updates, ideal = case
    first, mean = updates[0].layers["layer"], M(updates)
    p = np.array([u.examples for u in updates]) / sum(u.examples for u in updates)
    b, d = (sum(w * getattr(u.layers["layer"], v).numpy() for w, u in zip(p, updates, strict=True)) for v in "bd")
    made = {n: create_aggregator(n).aggregate(updates, 1) for n in ("fedit", "flexlora", "fedex_lora")}
    made["lora_fair"] = create_aggregator("lora_fair", lam=0.0).aggregate(updates, 1)
    for one in made.values():
        layer = one.layers["layer"]
        assert torch.equal(layer.A, first.A) and torch.equal(layer.B, first.B)
    for name in ("fedit", "fedex_lora"):
        np.testing.assert_allclose(made[name].layers["layer"].b.numpy(), b, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(made[name].layers["layer"].d.numpy(), d, rtol=1e-9, atol=1e-12)
    U, S, Vh = np.linalg.svd(mean)
    pair = made["flexlora"].layers["layer"]
    np.testing.assert_allclose(np.outer(pair.b, pair.d), S[0] * np.outer(U[:, 0], Vh[0]), rtol=1e-6, atol=1e-8)
    fair = made["lora_fair"].layers["layer"]
    A, B = first.A.numpy(), first.B.numpy()
    rows = [np.linalg.lstsq(((B[j] * d) @ A)[:, None], ideal[j], rcond=None)[0][0] for j in range(len(b))]
    np.testing.assert_allclose(fair.b.numpy(), rows, rtol=1e-6, atol=1e-8)
    assert gap(made["lora_fair"], ideal) <= gap(made["fedit"], ideal) + 1e-9
    assert gap(made["fedex_lora"], ideal) < 1e-6
    if first.rank > 1:  # of rank one M is a column, and so is what is missed
        assert gap(made["fedit"], ideal) > 1e-6 and gap(made["fedex_lora"], ideal, residual=False) > 1e-6


def test_the_figures_are_those_of_dense_matrices() -> None:
    """bias, cosine and norm_ratio of the diagnostics; the correctable share against projections row by row."""
    updates = [Update(i, i + 1, {"layer": drawn((7, 12), 4, i)}, {}) for i in range(4)]
    p = np.array([1, 2, 3, 4]) / 10
    ideal = sum(w * dense(u.layers["layer"]) for w, u in zip(p, updates, strict=True))
    made = create_aggregator("fedit").aggregate(updates, 1)
    plain, figures = dense(made.layers["layer"]), made.diagnostics
    missed = ideal - plain
    assert figures["bias"] == pytest.approx(np.linalg.norm(missed) / np.linalg.norm(ideal))
    norms = np.linalg.norm(ideal) * np.linalg.norm(plain)
    assert figures["cosine"] == pytest.approx(float(np.sum(ideal * plain)) / norms)
    first = made.layers["layer"]
    V = (first.B.numpy() * first.d.numpy()) @ first.A.numpy()
    share = sum((missed[j] @ V[j]) ** 2 / (V[j] @ V[j]) for j in range(7)) / np.sum(missed**2)
    assert figures["correctable"] == pytest.approx(share)
    fair = create_aggregator("lora_fair", lam=0.0).aggregate(updates, 1)
    repaired = 1 - (np.linalg.norm(ideal - dense(fair.layers["layer"])) / np.linalg.norm(missed)) ** 2
    assert repaired == pytest.approx(share)


@pytest.mark.parametrize(("name", "part"), [("ffa_lora", "b"), ("rolora", "b"), ("rolora", "d")])
def test_one_vector_at_a_time_is_exact(name: str, part: str) -> None:
    """With the other vector frozen the mean is the ideal update; with both trained it is refused."""
    start, round = drawn((7, 12), 4, 0), 1 if part == "b" else 2
    found = [
        VeRAFactors(start.A, start.B, **({"b": start.b, "d": start.d} | {part: getattr(f, part)}))
        for f in (drawn((7, 12), 4, i) for i in (1, 2, 3))
    ]
    updates = [Update(i, i + 1, {"layer": f}, {}) for i, f in enumerate(found)]
    method = create_aggregator(name)
    assert KINDS["vera"].trained(method.trainable(round)) == {part}
    made = method.aggregate(updates, round, Aggregate(layers={"layer": start}))
    assert gap(made, sum(w * dense(f) for w, f in zip((1 / 6, 2 / 6, 3 / 6), found, strict=True))) < 1e-12
    free = [Update(i, 1, {"layer": drawn((7, 12), 4, i)}, {}) for i in range(2)]
    with pytest.raises(ValueError, match="frozen"):
        method.aggregate(free, round, Aggregate(layers={"layer": start}))


def test_other_matrices_than_the_shared_ones_are_refused() -> None:
    updates = [Update(i, 1, {"layer": drawn((7, 12), 4, i, frame=i)}, {}) for i in range(2)]
    with pytest.raises(ValueError, match="not the frozen ones that all clients share"):
        create_aggregator("fedit").aggregate(updates, 1)


# -- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config(*VERA))


class Watching(LocalGrid):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.sent: dict[int, list[tuple[set[str], set[str]]]] = {}

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        for m, r in zip(messages, replies, strict=True):
            if m.metadata.message_type == "train":
                both = tuple({n[-2:] for n in x.content["state"] if "head" not in n} for x in (m, r))
                self.sent.setdefault(m.content["config"]["round"], []).append(both)
        return replies


@pytest.mark.parametrize(
    "strategy", ["fedit", "fedex_lora", "ffa_lora", "rolora", *slow("lora_fair", "flexlora", "hetlora")]
)
def test_only_the_vectors_travel(strategy: str, site) -> None:
    """A and B once, down; then b and d. The run learns, and ends the same on one lane's clients alone."""
    words = (*VERA, f"strategy={strategy}", "rounds=3", "client.lr=0.5")
    grid = Watching(Cohort(site), 3)
    outcome = federate(small_config(*words), grid, site.backbone, evaluate_fn=site.evaluate_round)
    vectors = {"ffa_lora": [{"/b"}] * 3, "rolora": [{"/b"}, {"/d"}, {"/b"}]}.get(strategy, [{"/b", "/d"}] * 3)
    for round, up in enumerate(vectors, start=1):
        assert all(reply == up for _, reply in grid.sent[round])
        assert all(("/A" in down) == (round == 1) and ("/B" in down) == (round == 1) for down, _ in grid.sent[round])
    layers = outcome.aggregate.layers
    assert all(f.b.abs().max() > 1e-4 and "R" not in f.parts for f in layers.values())
    assert bool(outcome.offset) == (strategy == "fedex_lora")
    per_round = {part: sum(getattr(f, part).numel() for f in layers.values()) for part in "bd"}
    assert outcome.trainable == sum(per_round[n[1]] for n in set().union(*vectors)) + 10 * 24 + 10
    if strategy == "fedex_lora":
        assert outcome.aggregate.diagnostics["norm_ratio"] == pytest.approx(1, abs=1e-6)
        assert outcome.aggregate.diagnostics["bias"] > 1e-6


def test_the_client_app_and_a_strict_grid_give_the_same_run(site) -> None:
    from clients.client_app import app

    config = small_config(*VERA, "strategy=fedex_lora", "engine.clients_per_bank=1", "evaluation=clients")

    def one_by_one(deliveries):
        return [app(message, context) for message, context in deliveries]

    alone = Site(config)
    ours = federate(config, LocalGrid(Cohort(alone), 3), alone.backbone)
    theirs = federate(config, LocalGrid(one_by_one, 3, run_config=to_run_config(config), strict=True), alone.backbone)
    assert ours.final_hash == theirs.final_hash and ours.score == theirs.score


def test_a_run_leaves_an_adapter_that_peft_reads(tmp_path) -> None:
    """From the command line; the file is the final state, and PEFT's VeRA layers compute the same."""
    words = [*WORDS, *VERA, "strategy=fedit", "client.lr=0.5", "evaluation.head_alone=true"]
    assert main([*words, f"output_dir={tmp_path}"]) == 0
    (folder,) = (tmp_path / "digits").iterdir()
    layers, head, offset = load_adapter(folder / "adapter")
    summary = json.loads((folder / "summary.json").read_text())
    assert not offset and digest.of_tensors(wire.to_tensors(layers, head)) == summary["final_hash"]
    assert summary["head_alone"]["trainable_parameters"] == 10 * 24 + 10
    assert [float(r["bias"]) > 0 for r in csv.DictReader(open(folder / "metrics.csv"))] == [True, True]
    peft = pytest.importorskip("peft")
    body = nn.ModuleDict({"one": nn.Linear(9, 6), "two": nn.Linear(5, 8)})
    found = {n: drawn((6, 9) if n == "one" else (8, 5), 4, i) for i, n in enumerate(("one", "two"))}
    A, B = torch.randn(4, 9), torch.randn(8, 4)
    layers = {
        n: VeRAFactors(A[:, : f.shape[1]], B[: f.shape[0]], b=f.b.float(), d=f.d.float()) for n, f in found.items()
    }
    merged = {n: torch.randn(*f.shape) for n, f in found.items()}
    for kind, offset in (("VERA", {}), ("LORA", merged)):  # with something in the base, a LoRA adapter on W0
        place, plain = tmp_path / kind, copy.deepcopy(body)
        save_adapter(place, layers, {"weight": torch.zeros(2, 3)}, offset, small_config(*VERA), ["a", "b"])
        assert json.loads((place / "adapter_config.json").read_text())["peft_type"] == kind
        back, _, _ = load_adapter(place)
        assert all(torch.equal(getattr(back[n], p), getattr(f, p)) for n, f in layers.items() for p in "ABbd")
        x = {"one": torch.randn(3, 9), "two": torch.randn(3, 5)}
        ours = {n: body[n](x[n]) + x[n] @ (layers[n].dense() + offset.get(n, 0)).T for n in body}
        read = peft.PeftModel.from_pretrained(plain, str(place))
        for name, expected in ours.items():
            torch.testing.assert_close(read.base_model.model[name](x[name]), expected, rtol=1e-4, atol=1e-4)


def test_the_gate_bounds_the_vectors() -> None:
    """One of them blown up and the other shrunk keeps the product and is refused by the factor's norm."""
    start = {n: v.float() for n, v in wire.to_tensors({"l": drawn((7, 12), 4, 0)}, {}).items()}
    both = Gate().bounds(start, frozenset({"l/b", "l/d"}))

    def judge(b: Tensor, d: Tensor):
        return fault_of_norms(norms({"l/b": b, "l/d": d}), both)

    assert judge(start["l/b"], start["l/d"]) is None
    assert judge(start["l/b"] * 1e3, start["l/d"] / 1e3)[0] == "factor_norm"
    assert judge(start["l/b"], start["l/d"] / 1e3)[0] == "factor_norm"
    only_b = Gate().bounds(start, frozenset({"l/b"}))
    assert fault_of_norms(norms({"l/b": start["l/b"] / 1e3}), only_b) is None


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_every_method_goes_with_it_or_says_why_not(name: str) -> None:
    goes = {"fedit", "fedex_lora", "ffa_lora", "flexlora", "head_alone", "hetlora", "lora_fair", "rolora"}
    config = small_config(*VERA, f"strategy={name}", "evaluation=clients")
    if name in goes:
        check_method(config)
        return
    with pytest.raises(InputError, match="adapter=vera: does not go with|reinit=.* does not go with adapter=vera"):
        check_method(config)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["init=kaiming"], "adapter=vera: init=kaiming makes no start for it; choose one of: vera"),
        (["adapter=lora"], "adapter=lora: init=vera makes no start for it"),
        (["reinit=svd"], "reinit=svd: does not go with adapter=vera"),
        (["reinit=local"], "reinit=local: does not go with adapter=vera"),
        (["adapter.ranks=[4,8]"], "adapter.ranks: adapter=vera does not read it; adapter=dora, lora do"),
        (["client.lr_ratio_b=4"], "client.lr_ratio_b=4.0: adapter=vera trains no B; use 1"),
        (["strategy.solver=gram_sgd"], "b is corrected in closed form"),
        (["strategy.side=A"], "b is corrected in closed form"),
        (["init.d_initial=0"], "init.d_initial=0.0: expected a number in"),
    ],
)
def test_wrong_pairs(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_method(small_config(*VERA, *words))


def test_step_scales_are_fixed_for_the_vectors(site) -> None:
    """At b = 0 the gradient of d is zero, so its scale is the clients'; b's is the server's."""
    config = small_config(*VERA, "client=sgd_sai", "client.gsnr_scope=global_once", "strategy=fedit", "rounds=1")
    sai = Site(config)
    outcome = federate(config, LocalGrid(Cohort(sai), 3), sai.backbone)
    left = outcome.start["step_scales"]["left_to_clients"]
    assert left == sorted(f"{name}/d" for name in sai.targets)


def test_kinds_are_declared_once() -> None:
    assert set(KINDS) == {kind for method in AGGREGATORS.values() for kind in method.kinds}
    assert strategies.AGGREGATORS["lora_a2"].kinds == ("lora",)
