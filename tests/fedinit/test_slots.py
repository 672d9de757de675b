"""Clients that choose which slots they train: what they choose, what they send, and that it stays exact.

Oracles are dense float64 products and plain LoRA modules; rtol 1e-9 in float64.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord, RecordDict
from torch import nn

from clients import batches
from clients.cohort import Cohort
from clients.loader import BankLoader
from clients.selection import choose
from clients.site import Site
from clients.task import ClientFailed, SlotChoice, Task
from clients.training import train_bank
from fedinit import slots, wire
from fedinit.adapters.bank import Bank
from fedinit.adapters.core import CoreFactors
from fedinit.adapters.vera import VeRAFactors
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.models import select_targets
from fedinit.transport.local import LocalGrid
from strategies import create_aggregator
from strategies.aggregator import Aggregate, Update
from strategies.server import collecting, requests
from strategies.server.compatibility import check_method
from strategies.server.federation import federate
from tests.support.serving import method_of, registered
from tests.support.small import small_config
from tests.support.watching import SentTensors, numbers

SCALE = 1.7


def product(part: str, seed: int = 0, heads: int = 4) -> Factors:
    """A (7, 12) product of rank 8, with a core of four blocks where the part is the core."""
    draw = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in [(8, 12), (7, 8)])
    R = torch.randn(heads, 8 // heads, 8 // heads, generator=draw, dtype=torch.float64)
    return CoreFactors(A, B, R) if part == "R" else Factors(A, B)


# -- the algebra -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["A", "B", "R"])
def test_the_slots_sum_to_the_product(part):
    whole = product(part)
    chosen = torch.tensor([0, 3])
    mine, rest = slots.take(whole, part, chosen), slots.take(whole, part, slots.others(whole, part, chosen))
    torch.testing.assert_close(mine.dense() + rest.dense(), whole.dense(), rtol=1e-12, atol=1e-12)
    assert mine.rank + rest.rank == 8 and mine.dense().norm() > 1 and rest.dense().norm() > 1
    none = slots.take(whole, part, torch.tensor([], dtype=torch.long))
    assert none.rank == 0 and not none.absorb().dense().any()
    size = [float(slots.take(whole, part, torch.tensor([j])).dense().norm()) for j in range(slots.count(whole, part))]
    np.testing.assert_allclose(slots.norms(whole, part).numpy(), size, rtol=1e-9)


@pytest.mark.parametrize("part", ["A", "B", "R"])
def test_what_is_packed_comes_back(part):
    """Through the wire's tensors: the chosen slots as trained, the others as they were sent."""
    start = {"one": product(part), "two": product(part, 1), "three": product(part, 2)}
    trained = {name: product(part, 9) for name in start}
    chosen = {"one": torch.tensor([1, 2]), "two": torch.tensor([], dtype=torch.long), "three": torch.tensor([3])}
    sent = {f"{n}/{part}": getattr(f, part) for n, f in trained.items()} | {"head/bias": torch.zeros(3)}
    packed = slots.pack(sent, part, chosen)
    assert packed.keys() == {f"one/{part}", "one/slots", f"three/{part}", "three/slots", "head/bias"}
    back, fault = slots.unpack(packed, wire.to_tensors(start, {}), part, budget=3)
    assert fault == "" and back.keys() == sent.keys()
    for name, places in chosen.items():
        wanted = slots.fill(start[name], part, places, getattr(slots.take(trained[name], part, places), part))
        assert torch.equal(back[f"{name}/{part}"], getattr(wanted, part))
    assert slots.unpack(packed, wire.to_tensors(start, {}), part, budget=2)[1] == "3 slots, more than the 2 allowed"


def test_the_largest_scores_of_all_layers_win():
    scores = {"a": torch.tensor([3.0, 1.0, 3.0]), "b": torch.tensor([9.0]), "c": torch.tensor([0.0, 3.0])}
    places = {budget: {n: p.tolist() for n, p in slots.leading(scores, budget).items()} for budget in (1, 2, 4, 6)}
    assert places[1] == {"a": [], "b": [0], "c": []}
    assert places[2] == {"a": [0], "b": [0], "c": []}  # of three equals the first
    assert places[4] == {"a": [0, 2], "b": [0], "c": [1]}
    assert places[6] == {"a": [0, 1, 2], "b": [0], "c": [0, 1]}
    nothing = {name: torch.zeros(4) for name in "abc"}  # as the sizes of slots are before anything is trained
    assert {n: p.tolist() for n, p in slots.leading(nothing, 5).items()} == {"a": [0, 1], "b": [0, 1], "c": [0]}


# -- a client --------------------------------------------------------------------------------------------------------


def tasks(targets, random_adapter, random_head, features, part, choice, count=2) -> list[Task]:
    made = []
    for i in range(count):
        adapter = random_adapter(targets, 4, 0)
        if part == "R":
            draw = torch.Generator().manual_seed(0)
            adapter = {n: CoreFactors(f.A, f.B, torch.randn(2, 2, 2, generator=draw)) for n, f in adapter.items()}
        trainable = frozenset({"R", "scales"}) if part == "R" else frozenset(part)
        head = random_head(5, features, 0)
        examples = torch.arange(20 * i, 20 * i + 12)
        made.append(
            Task(client=i, round=1, examples=examples, adapter=adapter, head=head, trainable=trainable, choice=choice)
        )
    return made


@pytest.mark.parametrize("part", ["A", "B"])
def test_the_choice_is_the_largest_gradient_step(
    part, tiny_backbone, tiny_data, client_config, random_adapter, random_head, plain_client
):
    """Against plain LoRA modules: the norm of each slot's product with its factor replaced by the gradient of the
    first batch's loss. A client chooses the same alone and in company."""
    backbone = tiny_backbone
    targets = select_targets(backbone.module, None, 4)
    members = tasks(targets, random_adapter, random_head, backbone.features, part, SlotChoice(7, "gradient", 1))
    settings = client_config()
    bank = Bank(backbone, targets, SCALE)

    def chosen_by(tasks) -> list[dict]:
        loader = BankLoader(tasks, tiny_data, backbone.input, settings, 3, torch.device("cpu"))
        return [view.places for view in choose(bank, loader, 3)]

    ours = chosen_by(members)
    for task, chosen in zip(members, ours, strict=True):
        model = plain_client(backbone, task.adapter, task.head, SCALE)
        first = batches.plan(task.examples, settings, 3, task.round, task.client)[0]
        inputs = batches.normalise(tiny_data.images[first], backbone.input, torch.device("cpu"))
        nn.functional.cross_entropy(model(inputs), tiny_data.labels[first]).backward()
        scores = {}
        for name, lora in model.loras.items():
            for j in range(4):
                a = lora.A.grad[j] if part == "A" else lora.A[j]
                b = lora.B.grad[:, j] if part == "B" else lora.B[:, j]
                scores[name, j] = float(torch.outer(b, a).detach().norm())
        best = sorted(scores, key=scores.get, reverse=True)[:7]
        assert {(n, int(j)) for n, places in chosen.items() for j in places} == set(best)
        (alone,) = chosen_by([task])
        assert all(torch.equal(alone[n], chosen[n]) for n in chosen)
    assert any(not torch.equal(ours[0][n], ours[1][n]) for n in targets)  # each by its own data


@pytest.mark.parametrize("part", ["A", "B"])
def test_the_choice_is_of_a_clients_own_rank_in_a_bank_of_a_larger_one(
    part, tiny_vit, tiny_data, client_config, random_adapter, random_head
):
    """A bank is filled up to the largest rank of a run, also where all of its clients have lower ones."""
    targets = select_targets(tiny_vit.module, None, 4)
    members = tasks(targets, random_adapter, random_head, tiny_vit.features, part, SlotChoice(7, "gradient", 1))
    members[1] = dataclasses.replace(members[1], adapter=random_adapter(targets, 2, 5))

    def chosen_by(rank: int) -> list[dict[str, list[int]]]:
        loader = BankLoader(members, tiny_data, tiny_vit.input, client_config(), 3, torch.device("cpu"))
        views = choose(Bank(tiny_vit, targets, SCALE, rank=rank), loader, 3)
        return [{name: places.tolist() for name, places in view.places.items()} for view in views]

    assert chosen_by(9) == chosen_by(4)
    assert max(max(places, default=0) for places in chosen_by(9)[1].values()) < 2


def test_a_random_choice_is_the_clients_own(tiny_vit, tiny_data, client_config, random_adapter, random_head):
    targets = select_targets(tiny_vit.module, None, 4)
    bank, settings = Bank(tiny_vit, targets, SCALE), client_config()

    def drawn(seed: int, round: int) -> list[dict]:
        members = tasks(targets, random_adapter, random_head, tiny_vit.features, "B", SlotChoice(7, "random", 1))
        members = [dataclasses.replace(t, round=round) for t in members]
        loader = BankLoader(members, tiny_data, tiny_vit.input, settings, seed, torch.device("cpu"))
        return [{n: p.tolist() for n, p in view.places.items()} for view in choose(bank, loader, seed)]

    first = drawn(0, 1)
    assert first == drawn(0, 1) and first != drawn(1, 1) and first != drawn(0, 2) and first[0] != first[1]
    assert all(sum(map(len, own.values())) == 7 for own in first)


@pytest.mark.parametrize("part", ["A", "B", "R"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_the_chosen_slots_move(part, optimizer, tiny_vit, tiny_data, client_config, random_adapter, random_head):
    """With momentum, weight decay and clipping; and the model starts from the whole product: the loss of the first step
    is that of a client that trains all. One member has no choice to make, and trains everything."""
    targets = select_targets(tiny_vit.module, None, 4)
    bank = Bank(tiny_vit, targets, SCALE)
    first, second = tasks(targets, random_adapter, random_head, tiny_vit.features, part, SlotChoice(3, "gradient", 2))
    second = dataclasses.replace(second, choice=None)
    settings = client_config(optimizer=optimizer, weight_decay=0.1, clip_norm=1.0)
    common = (tiny_data, tiny_vit.input, settings)
    chooser, other = train_bank(bank, [first, second], *common, seed=3)
    assert other.chosen is None and sum(map(len, chooser.chosen.values())) == 3
    for name, before in first.adapter.items():
        after, places = chooser.adapter[name], chooser.chosen[name]
        rest = slots.others(before, part, places)
        axis = slots.AXIS[part]
        old, new = getattr(before, part), getattr(after, part)
        assert torch.equal(new.index_select(axis, rest), old.index_select(axis, rest))
        moved = (new - old).index_select(axis, places).transpose(0, axis).flatten(1).norm(dim=1)
        assert (moved > 0).all()
        assert all(torch.equal(getattr(after, p), getattr(before, p)) for p in {"A", "B"} - {part})
        assert not torch.equal(getattr(other.adapter[name], part), getattr(before, part))
    one = dataclasses.replace(settings, max_steps=1)
    partly = train_bank(bank, [first], tiny_data, tiny_vit.input, one, seed=3)[0].loss
    wholly = train_bank(bank, [dataclasses.replace(first, choice=None)], tiny_data, tiny_vit.input, one, seed=3)[0].loss
    assert partly == pytest.approx(wholly, rel=1e-5)


@pytest.mark.parametrize("part", ["B", "R"])
def test_a_mate_that_fails_changes_no_bit(part, tiny_vit, tiny_data, client_config, random_adapter, random_head):
    """A client chooses and trains the same whether its mate works, fails, or chooses other slots."""
    targets = select_targets(tiny_vit.module, None, 4)
    bank = Bank(tiny_vit, targets, SCALE)
    first, second = tasks(targets, random_adapter, random_head, tiny_vit.features, part, SlotChoice(3, "gradient", 1))
    lost = dataclasses.replace(second, examples=torch.full((12,), 1000))
    other = dataclasses.replace(second, choice=SlotChoice(2, "random", 1))
    made = []
    for mate in (second, lost, other):
        results = train_bank(bank, [first, mate], tiny_data, tiny_vit.input, client_config(), seed=3)
        assert isinstance(results[1], ClientFailed) == (mate is lost)
        made.append(results[0])
    for one in made[1:]:
        assert one.loss == made[0].loss
        for name in targets:
            assert torch.equal(one.chosen[name], made[0].chosen[name])
            assert torch.equal(getattr(one.adapter[name], part), getattr(made[0].adapter[name], part))


def test_the_same_seed_gives_the_same_final_hash():
    words = ("strategy=lora_a2", "strategy.choice=random", "evaluation=none")
    site = Site(small_config(*words))
    hashes = [federate(small_config(*words), LocalGrid(Cohort(site), 3), site.backbone).final_hash for _ in range(2)]
    assert hashes[0] == hashes[1]


# -- LoRA-A2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round", [1, 2])
def test_lora_a2_is_the_ideal_update_of_what_clients_chose(round):
    """Clients that changed different slots of one factor: Σ p_i B_iA_i exactly, and what nobody chose is as it was."""
    part, start = ("B", "A")[round - 1], product("A")
    draw = torch.Generator().manual_seed(3)
    updates, p, ideal = [], [0.1, 0.3, 0.6], 0
    for i, places in enumerate(([0, 1], [1, 5], [6])):
        values = torch.randn(len(places), 12 if part == "A" else 7, generator=draw, dtype=torch.float64)
        own = slots.fill(start, part, torch.tensor(places), values if part == "A" else values.T)
        updates.append(Update(i, (1, 3, 6)[i], {"layer": own}, {}))
        ideal = ideal + p[i] * own.B.numpy() @ own.A.numpy()
    made = create_aggregator("lora_a2").aggregate(updates, round, Aggregate(layers={"layer": start}))
    layer = made.layers["layer"]
    np.testing.assert_allclose(layer.dense().numpy(), ideal, rtol=1e-9, atol=1e-12)
    assert made.diagnostics["bias"] < 1e-12
    rest = torch.tensor([2, 3, 4, 7])
    torch.testing.assert_close(slots.take(layer, part, rest).dense(), slots.take(start, part, rest).dense())
    assert create_aggregator("lora_a2").trainable(round) == {part}


def test_the_bytes_up_are_those_of_the_chosen_slots():
    """Half of the slots, or a client's share of them: each slot a column or a row, and four bytes for its place."""
    words = ("strategy=lora_a2", "rounds=2")
    site = Site(small_config(*words))
    total = 4 * len(site.targets)
    for extra, budgets in (((), [8, 8, 8]), (("strategy.share=0.25", "adapter.ranks=[1,4]"), [1, 4, 1])):
        grid = SentTensors(Cohort(site), 3)
        federate(small_config(*words, *extra), grid, site.backbone)
        assert total == 16
        for round, part in ((1, "B"), (2, "A")):
            for (down, up), budget in zip(grid.rounds[round], budgets, strict=True):
                assert numbers(up, "slots") == budget
                for name, (d, k) in site.targets.items():
                    if f"{name}/slots" in up:
                        rows = len(up[f"{name}/slots"])
                        assert up[f"{name}/{part}"].shape == ((d, rows) if part == "B" else (rows, k))
                    else:
                        assert f"{name}/{part}" not in up
                assert numbers(up, "A" if part == "B" else "B") == 0
                assert {n[-1] for n in down} >= ({"A", "B"} if round == 1 else {"B"})


def test_with_all_slots_lora_a2_is_rolora():
    hashes = []
    for words in (("strategy=lora_a2", "strategy.share=1.0"), ("strategy=rolora",), ("strategy=lora_a2",)):
        config = small_config(*words, "evaluation=none")
        site = Site(config)
        hashes.append(federate(config, LocalGrid(Cohort(site), 3), site.backbone).final_hash)
    assert hashes[0] == hashes[1] != hashes[2]


# -- Ravan -----------------------------------------------------------------------------------------------------------


def test_ravan_is_the_mean_of_scaled_heads():
    """Σ_h B_h (Σ_i p_i s_ih H_ih) A_h over dense products, with heads that only some clients trained."""
    start = product("R")
    rng = np.random.default_rng(0)
    p, updates, ideal = [0.25, 0.75], [], 0
    for i, heads in enumerate(([0, 1, 2, 3], [2])):
        R = start.R.clone()
        for h in heads:
            R[h] = torch.tensor(rng.standard_normal() * rng.standard_normal((2, 2)))  # s_h H_h, as a client sends it
        updates.append(Update(i, (1, 3)[i], {"layer": CoreFactors(start.A, start.B, R)}, {}))
        B, A = start.B.numpy(), start.A.numpy()
        for h in range(4):
            at = slice(2 * h, 2 * h + 2)
            ideal = ideal + p[i] * B[:, at] @ R[h].numpy() @ A[at]
    made = create_aggregator("ravan").aggregate(updates, 1, Aggregate(layers={"layer": start}))
    np.testing.assert_allclose(made.layers["layer"].dense().numpy(), ideal, rtol=1e-9, atol=1e-12)
    assert made.layers["layer"].R.shape == (4, 2, 2) and made.diagnostics["bias"] < 1e-12


def test_ravan_takes_the_blocks_of_a_full_core():
    full = torch.arange(64.0).view(8, 8)
    made = create_aggregator("ravan", heads=2).adopt(CoreFactors(torch.zeros(8, 12), torch.zeros(7, 8), full))
    assert torch.equal(made.R, torch.stack([full[:4, :4], full[4:, 4:]]))


def test_a_round_of_ravan_is_its_heads():
    """r²/h numbers a layer up, and down with the frozen factors already there; half the heads from half the rank."""
    words = ("strategy=ravan", "strategy.heads=2", "init=random_core", "adapter.ranks=[4,2]")
    site = Site(small_config(*words))
    grid = SentTensors(Cohort(site), 3)
    outcome = federate(small_config(*words), grid, site.backbone)
    layers = len(site.targets)
    for (down, up), share in zip(grid.rounds[2], (1, 0.5, 1), strict=True):
        assert numbers(down, "R") == 8 * layers and numbers(down, "A") == numbers(down, "B") == 0
        assert numbers(up, "R") == 8 * layers * share and not any(n.endswith("/scales") for n in up)
        assert numbers(up, "slots") == (0 if share == 1 else 2 * layers * share)
    assert all(f.R.shape == (2, 2, 2) and f.R.any() for f in outcome.aggregate.layers.values())


# -- the gate --------------------------------------------------------------------------------------------------------


LAYER = "blocks.0.attn.proj"


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(small_config("strategy=lora_a2"))


@pytest.mark.parametrize(
    ("spoil", "detail"),
    [
        (lambda s: s.__setitem__(f"{LAYER}/slots", s[f"{LAYER}/slots"].flip(0)), "not rising whole numbers below 4"),
        (lambda s: s.__setitem__(f"{LAYER}/slots", s[f"{LAYER}/slots"] + 4), "not rising whole numbers below 4"),
        (lambda s: s.__setitem__(f"{LAYER}/slots", s[f"{LAYER}/slots"] - 4), "not rising whole numbers below 4"),
        (lambda s: s.__setitem__(f"{LAYER}/slots", s[f"{LAYER}/slots"].float()), "not rising whole numbers below 4"),
        (lambda s: s.__setitem__(f"{LAYER}/B", s[f"{LAYER}/B"][:, :1]), "expected torch.float32 (24, 2)"),
        (lambda s: s.__setitem__(f"{LAYER}/B", s[f"{LAYER}/B"].double()), "is torch.float64"),
        (lambda s: s.pop(f"{LAYER}/slots"), "belong together"),
        (lambda s: s.pop(f"{LAYER}/B"), "belong together"),
    ],
)
def test_the_gate_names_what_is_wrong_with_slots(site, spoil, detail):
    """The same reply unspoiled is let in (the control), completed by the start."""
    method, (exchange, state) = method_of("lora_a2"), registered(site)
    _, messages, expected = requests.for_training(state, method, exchange, exchange.clients)
    replies = exchange.send(messages, 60.0)
    tensors = wire.decode(replies[0].content["state"])
    places = torch.tensor([0, 2], dtype=torch.int32)
    for name in list(tensors):
        if name.endswith(("/B", "/slots")):
            del tensors[name]
    tensors |= {f"{LAYER}/B": torch.ones(24, 2), f"{LAYER}/slots": places}

    def judged(found: dict) -> tuple:
        metrics = MetricRecord(dict(replies[0].content["metrics"]))
        replies[0].content = RecordDict({"state": wire.encode(found), "metrics": metrics})
        admitted = collecting.admit(method, exchange, replies, expected)
        return admitted.updates, admitted.refusals

    updates, refusals = judged(tensors)
    assert len(updates) == 3 and not refusals
    assert updates[0].layers[LAYER].B.sum(0).tolist() == [24, 0, 24, 0]
    spoil(tensors)
    updates, refusals = judged(tensors)
    assert [(r.client, r.code) for r in refusals] == [(0, "slots")] and detail in refusals[0].detail
    assert len(updates) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["strategy=ravan"], "init=kaiming has none; choose one of"),
        (["strategy=ravan", "init=random_core", "strategy.heads=3"], "heads=3: does not divide the rank 4"),
        (["strategy=ravan", "init=random_core", "reinit=local"], "choose one of: average"),
        (["strategy=lora_a2", "strategy.share=0"], "strategy.share=0.0: expected a number in"),
        (["strategy=lora_a2", "strategy.probe=0"], "strategy.probe=0: expected 1 or more"),
        (["strategy=lora_a2", "reinit=fresh"], "must be the same on all clients"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    with pytest.raises(InputError, match=message):
        check_method(small_config(*words))


@pytest.mark.parametrize("part", "AB")
def test_slots_that_are_no_products_are_refused(part):
    """b and d weigh rows and columns of all of VeRA's slots; a full core joins each row of A with each column of B."""
    A, B = torch.ones(4, 6), torch.ones(5, 4)
    for product in (VeRAFactors(A, B, torch.ones(5), torch.ones(4)), CoreFactors(A, B, torch.ones(4, 4))):
        with pytest.raises(ValueError, match="are no products whose sum is the whole"):
            slots.take(product, part, torch.tensor([1]))
