"""The bank computes, for every client, exactly that client's own LoRA; the backbone is there once and stays as it is.

Oracles are dense products, or an ordinary nn.Module with one adapter (`plain_client`), in float64 with rtol 1e-10:
sums of at most a few hundred terms lose no more than four of sixteen digits. In float32 the bound is 1e-5.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from clients.task import Task
from clients.training import train_bank
from fedinit.adapters.bank import Bank
from fedinit.adapters.core import CoreFactors
from fedinit.errors import InputError
from fedinit.factors import Factors
from fedinit.models import select_targets
from tests.support.bank_runs import close64, in_float64, no_head, one_layer, run_layer

SCALE = 1.7


def doubled(adapter: dict[str, Factors]) -> dict[str, Factors]:
    return {name: f.to(torch.float64) for name, f in adapter.items()}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("active", [1, 2, 3])
def test_layer_is_the_dense_product(bias: bool, active: int, random_adapter) -> None:
    d, k, b = 7, 5, 4
    bank, linear = one_layer(d, k, bias)
    adapters = [doubled(random_adapter({"0": (d, k)}, rank, seed)) for seed, rank in enumerate((2, 3, 1))]
    bank.load(adapters, no_head(3))
    x = torch.randn(active * b, 6, k, dtype=torch.float64)
    ours = run_layer(bank, x, active)
    for i, mine in enumerate(x.split(b)):
        weight = linear.weight + SCALE * adapters[i]["0"].dense()
        close64(ours[i * b : (i + 1) * b], nn.functional.linear(mine, weight, linear.bias))


@pytest.mark.parametrize("offset", [False, True])
def test_what_a_layer_gives_may_be_added_to_in_place(offset: bool, random_adapter) -> None:
    """NaFlexViT adds its positions to the patches' layer in place; the gradients are those of adding to a copy."""
    d, k = 6, 5
    bank, _ = one_layer(d, k)
    adapters = [doubled(random_adapter({"0": (d, k)}, 2, seed)) for seed in range(2)]
    offsets = [doubled(random_adapter({"0": (d, k)}, 1, seed)) for seed in (7, 8)] if offset else None
    x, gradients = torch.randn(4, 3, k, dtype=torch.float64), []
    for in_place in (True, False):
        leaves = bank.load(adapters, no_head(2), offsets=offsets)
        y = run_layer(bank, x, 2)
        y = y.mul_(2).add_(1) if in_place else y * 2 + 1
        gradients.append(torch.autograd.grad(y.square().sum(), [leaves["0/A"], leaves["0/B"]]))
    for ours, theirs in zip(*gradients, strict=True):
        close64(ours, theirs)


def test_offsets_belong_to_each_clients_base(random_adapter) -> None:
    """y = (W + s·B′A′ + s·BA) x with the offset B′A′ frozen, of another rank than the adapter and than its mates'."""
    d, k, b = 6, 5, 3
    bank, linear = one_layer(d, k)
    adapters = [doubled(random_adapter({"0": (d, k)}, 2, i)) for i in range(3)]
    offsets = [doubled(random_adapter({"0": (d, k)}, rank, 10 + rank)) for rank in (4, 1, 3)]
    leaves = bank.load(adapters, no_head(3), offsets=offsets)
    assert {name for name in leaves if name.startswith("0/")} == {"0/A", "0/B"}
    assert not any(t.requires_grad for t in bank.layers["0"].offset)
    x = torch.randn(3 * b, k, dtype=torch.float64)
    ours = run_layer(bank, x, 3)
    for i, mine in enumerate(x.split(b)):
        weight = linear.weight + SCALE * (adapters[i]["0"].dense() + offsets[i]["0"].dense())
        close64(ours[i * b : (i + 1) * b], nn.functional.linear(mine, weight, linear.bias))
    bank.load(adapters, no_head(3), offsets=[{}, {}, {}])
    assert not torch.allclose(run_layer(bank, x, 3), ours)  # negative: the next load forgets the offsets


def test_k_clients_equal_k_separate(tiny_backbone, random_adapter, random_head) -> None:
    """Float32, 1e-5 relative to the logits' size: batched products may sum in another order."""
    targets = select_targets(tiny_backbone.module, None, 4)
    adapters = [random_adapter(targets, rank, rank) for rank in (4, 2, 3)]
    heads = [random_head(5, tiny_backbone.features, i) for i in range(3)]
    images = torch.randn(6, 1, 16, 16)
    bank = Bank(tiny_backbone, targets, SCALE)
    bank.load(adapters, heads)
    together = bank.forward(images, 3)
    assert together.shape == (3, 2, 5)
    for i in range(3):
        bank.load(adapters[i : i + 1], heads[i : i + 1])
        alone = bank.forward(images[2 * i : 2 * i + 2], 1)[0]
        assert (together[i] - alone).norm() <= 1e-5 * alone.norm()
        assert (together[i - 1] - alone).norm() > 1e-2 * alone.norm()  # negative: another client's logits


def test_gradients_and_logits_equal_a_plain_module(tiny_backbone, random_adapter, random_head, plain_client) -> None:
    """For the Mixer this is the proof of token mixing, where the adapted axis is the patches and not the channels."""
    backbone = in_float64(tiny_backbone)
    targets = select_targets(backbone.module, None, 3)
    if "mixer" in type(backbone.module).__name__.lower():
        assert targets["blocks.0.mlp_tokens.fc2"] == (16, 12)  # 16 patches
    adapters = [doubled(random_adapter(targets, rank, rank)) for rank in (3, 2)]
    heads = [{k: v.double() for k, v in random_head(5, backbone.features, i).items()} for i in range(2)]
    images = torch.randn(8, 1, 16, 16, dtype=torch.float64)
    labels = torch.arange(8) % 5
    bank = Bank(backbone, targets, SCALE)
    leaves = bank.load(adapters, heads)
    ours = bank.forward(images, 2)
    grads = torch.autograd.grad(nn.functional.cross_entropy(ours.flatten(0, 1), labels) * 2, list(leaves.values()))
    grads = dict(zip(leaves, grads, strict=True))
    for i, rank in enumerate((3, 2)):
        model = plain_client(backbone, adapters[i], heads[i], SCALE).double()
        theirs = model(images[4 * i : 4 * i + 4])
        nn.functional.cross_entropy(theirs, labels[4 * i : 4 * i + 4]).backward()
        close64(ours[i].detach(), theirs.detach())
        for name, lora in model.loras.items():
            close64(grads[f"{name}/A"][i, :rank], lora.A.grad)
            close64(grads[f"{name}/B"][i, :, :rank], lora.B.grad)
        close64(grads["head/weight"][i], model.head.weight.grad)
        close64(grads["head/bias"][i], model.head.bias.grad)


def test_every_linear_layer_can_be_adapted(tiny_backbone, random_adapter, random_head, plain_client) -> None:
    """fc1 of token mixing sees a transposed, non-contiguous input; qkv is one fused layer."""
    backbone = in_float64(tiny_backbone)
    targets = select_targets(backbone.module, ["*"], 2)
    adapters = [doubled(random_adapter(targets, 2, i)) for i in range(2)]
    heads = [{k: v.double() for k, v in random_head(5, backbone.features, i).items()} for i in range(2)]
    images = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    bank = Bank(backbone, targets, SCALE)
    bank.load(adapters, heads)
    ours = bank.forward(images, 2).detach()
    for i in range(2):
        model = plain_client(backbone, adapters[i], heads[i], SCALE).double()
        close64(ours[i], model(images[2 * i : 2 * i + 2]).detach())


def test_fold_equals_the_adapters_forward(tiny_backbone, random_adapter, random_head) -> None:
    backbone = in_float64(tiny_backbone)
    targets = select_targets(backbone.module, None, 3)
    adapter = doubled(random_adapter(targets, 3, 0))
    head = {k: v.double() for k, v in random_head(5, backbone.features, 0).items()}
    images = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    bank, other = Bank(backbone, targets, SCALE), Bank(backbone, targets, SCALE)
    bank.load([adapter], [head])
    unfolded = bank.forward(images, 1).detach()
    bank.fold(adapter, head)
    close64(bank.forward(images, 1), unfolded)
    other.fold_like(bank)
    assert torch.equal(other.forward(images, 1), bank.forward(images, 1))
    assert other.layers.popitem()[1].folded.data_ptr() == bank.layers.popitem()[1].folded.data_ptr()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("trainable", ["AB", "B"])
def test_padding_stays_exactly_zero(
    optimizer: str, trainable: str, tiny_backbone, tiny_data, client_config, random_adapter, random_head
) -> None:
    """Momentum, weight decay, Adam's moments and clipping all map zero to zero; ranks and step counts differ."""
    ranks = (4, 1, 2)
    targets = select_targets(tiny_backbone.module, None, 4)
    bank = Bank(tiny_backbone, targets, SCALE, dropout=0.2)
    tasks = [
        Task(
            client=i,
            round=1,
            examples=torch.arange(20 * i, 20 * i + 8 + 4 * i),
            adapter=random_adapter(targets, rank, i),
            head=random_head(5, tiny_backbone.features, i),
            trainable=frozenset(trainable),
        )
        for i, rank in enumerate(ranks)
    ]
    settings = client_config(optimizer=optimizer, weight_decay=0.1, clip_norm=1.0)
    results = train_bank(bank, tasks, tiny_data, tiny_backbone.input, settings, seed=3)
    rows = sorted(range(3), key=lambda i: -results[i].steps)
    assert rows == [2, 1, 0]  # the bank's rows are the longest first
    for name, layer in bank.layers.items():
        for row, i in enumerate(rows):
            assert not layer.leaves["A"][row, ranks[i] :].any() and not layer.leaves["B"][row, :, ranks[i] :].any()
            assert not torch.equal(results[i].adapter[name].B, tasks[i].adapter[name].B)  # it did train


class TestDropout:
    """With W = 0 and A = B = I a layer returns s·mask·x / (1 − p), so its output on ones shows the mask itself."""

    P = 0.3

    def mask(self, seeds: list[int], width: int = 40, rows: int = 50) -> Tensor:
        bank, linear = one_layer(width, width, bias=False, scale=1.0, dropout=self.P)
        linear.weight.zero_()
        unit = {"0": Factors(torch.eye(width, dtype=torch.float64), torch.eye(width, dtype=torch.float64))}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        bank.load([unit] * len(seeds), no_head(len(seeds)), generators=generators)
        out = run_layer(bank, torch.ones(len(seeds) * rows, width, dtype=torch.float64), len(seeds))
        return out.detach().view(len(seeds), rows, width)

    def test_keeps_its_share_and_the_expectation(self) -> None:
        mask = self.mask([0, 1, 2])
        kept = mask != 0
        close64(mask[kept], torch.full_like(mask[kept], 1 / (1 - self.P)))
        # Five standard deviations of the mean of n Bernoulli draws.
        bound = 5 * (self.P * (1 - self.P) / mask.numel()) ** 0.5
        assert abs(float(kept.double().mean()) - (1 - self.P)) < bound
        assert abs(float(mask.mean()) - 1) < bound / (1 - self.P)

    def test_a_client_draws_the_same_alone_and_in_company(self) -> None:
        alone = self.mask([7])[0]
        assert torch.equal(self.mask([7, 8])[0], alone)
        assert torch.equal(self.mask([3, 9, 7])[2], alone)
        assert not torch.equal(self.mask([8])[0], alone)  # negative: another seed

    def test_frozen_path_is_not_dropped(self) -> None:
        bank, linear = one_layer(6, 5, dropout=0.5)
        zero = {"0": Factors(torch.randn(2, 5, dtype=torch.float64), torch.zeros(6, 2, dtype=torch.float64))}
        bank.load([zero], no_head(1), generators=[torch.Generator()])
        x = torch.randn(4, 5, dtype=torch.float64)
        close64(run_layer(bank, x, 1).detach(), linear(x))

    @pytest.mark.parametrize("trainable", ["AB", "A", "B"])
    def test_gradients_are_those_of_the_masked_product(self, trainable: str, random_adapter) -> None:
        """Against autograd on y = x Wᵀ + bias + s·(m∘x Aᵀ) Bᵀ with the mask drawn here from the same seeds."""
        d, k, t = 6, 5, 4
        bank, linear = one_layer(d, k, dropout=self.P)
        adapters = [doubled(random_adapter({"0": (d, k)}, 3, i)) for i in range(2)]
        seeds = [4, 9]
        leaves = bank.load(
            adapters, no_head(2), frozenset(trainable), generators=[torch.Generator().manual_seed(s) for s in seeds]
        )
        x = torch.randn(2 * t, k, dtype=torch.float64, requires_grad=True)
        out_weight = torch.randn(2 * t, d, dtype=torch.float64)
        parts = {part: leaves[f"0/{part}"] for part in trainable}
        ours = torch.autograd.grad((run_layer(bank, x, 2) * out_weight).sum(), [x, *parts.values()])
        total = torch.zeros((), dtype=torch.float64)
        stacks = {part: torch.stack([getattr(a["0"], part) for a in adapters]).requires_grad_(True) for part in "AB"}
        for i, seed in enumerate(seeds):
            draw = torch.Generator().manual_seed(seed)
            mask = torch.empty(t, k, dtype=torch.float64).bernoulli_(1 - self.P, generator=draw) / (1 - self.P)
            mine = x[i * t : (i + 1) * t]
            y = linear(mine) + SCALE * (mine * mask) @ stacks["A"][i].T @ stacks["B"][i].T
            total = total + (y * out_weight[i * t : (i + 1) * t]).sum()
        theirs = torch.autograd.grad(total, [x, *(stacks[part] for part in parts)])
        for one, two in zip(ours, theirs, strict=True):
            close64(one, two)

    def test_none_without_generators(self, random_adapter) -> None:
        bank, _ = one_layer(6, 5, dropout=0.5)
        adapter = doubled(random_adapter({"0": (6, 5)}, 2, 0))
        x = torch.randn(4, 5, dtype=torch.float64)
        bank.load([adapter], no_head(1))
        assert torch.equal(run_layer(bank, x, 1), run_layer(bank, x, 1))
        bank.load([adapter], no_head(1), generators=[torch.Generator().manual_seed(0)])
        assert not torch.equal(run_layer(bank, x, 1), run_layer(bank, x, 1))  # negative


def test_backbone_is_held_once_and_never_changes(
    tiny_backbone, tiny_data, client_config, random_adapter, random_head
) -> None:
    tensors = dict(itertools.chain(tiny_backbone.module.named_parameters(), tiny_backbone.module.named_buffers()))
    before = {name: t.clone() for name, t in tensors.items()}
    targets = select_targets(tiny_backbone.module, None, 4)
    banks = [Bank(tiny_backbone, targets, SCALE) for _ in range(3)]
    for bank in banks:
        tasks = [
            Task(
                client=i,
                round=1,
                examples=torch.arange(8),
                adapter=random_adapter(targets, 4, i),
                head=random_head(5, tiny_backbone.features, i),
                trainable=frozenset("AB"),
            )
            for i in range(2)
        ]
        train_bank(bank, tasks, tiny_data, tiny_backbone.input, client_config(), seed=0)
        theirs = dict(itertools.chain(bank.module.named_parameters(), bank.module.named_buffers()))
        assert {name: t.data_ptr() for name, t in theirs.items()} == {n: t.data_ptr() for n, t in tensors.items()}
        assert all(not t.requires_grad and t.grad is None for t in theirs.values())
    for name, value in tensors.items():
        assert torch.equal(value, before[name])
    adapted = type(tiny_backbone.module.get_submodule(next(iter(targets))))
    assert adapted is nn.Linear  # the original's own tree still has its plain layers


def test_unload_returns_what_was_loaded(tiny_backbone, random_adapter, random_head) -> None:
    """Bit for bit and at each client's own rank; as copies, so that training on does not change them."""
    targets = select_targets(tiny_backbone.module, None, 4)
    adapters = [random_adapter(targets, rank, rank) for rank in (1, 4, 2)]
    heads = [random_head(5, tiny_backbone.features, i) for i in range(3)]
    bank = Bank(tiny_backbone, targets, SCALE)
    leaves = bank.load(adapters, heads)
    back, heads_back = bank.unload()
    for mine, theirs, head, head_back in zip(back, adapters, heads, heads_back, strict=True):
        assert list(mine) == list(targets)
        for name in targets:
            assert torch.equal(mine[name].A, theirs[name].A) and torch.equal(mine[name].B, theirs[name].B)
        assert all(torch.equal(head[key], head_back[key]) for key in head)
    with torch.no_grad():
        for leaf in leaves.values():
            leaf.add_(1)
    assert torch.equal(back[1][next(iter(targets))].A, adapters[1][next(iter(targets))].A)
    assert not torch.equal(bank.unload()[0][1][next(iter(targets))].A, adapters[1][next(iter(targets))].A)
    assert torch.equal(heads[0]["bias"], random_head(5, tiny_backbone.features, 0)["bias"])  # nor do the inputs


def test_load_absorbs_the_core_of_three_factor_products(random_adapter) -> None:
    bank, _ = one_layer(6, 5)
    plain = doubled(random_adapter({"0": (6, 5)}, 3, 0))["0"]
    cored = CoreFactors(plain.A, plain.B, torch.randn(3, 3, dtype=torch.float64))
    bank.load([{"0": cored}], no_head(1))
    close64(bank.unload()[0][0]["0"].dense(), cored.B @ cored.R @ cored.A)


def test_only_the_trainable_factors_are_leaves(tiny_vit, random_adapter, random_head) -> None:
    targets = select_targets(tiny_vit.module, None, 2)
    bank = Bank(tiny_vit, targets, SCALE)
    for trainable in ("AB", "B", ""):
        leaves = bank.load(
            [random_adapter(targets, 2, 0)], [random_head(5, tiny_vit.features, 0)], frozenset(trainable)
        )
        wanted = {f"{name}/{part}" for name in targets for part in trainable} | {"head/weight", "head/bias"}
        assert leaves.keys() == wanted and all(leaf.is_leaf and leaf.requires_grad for leaf in leaves.values())


class TestCores:
    """y = x Wᵀ + bias + s · (m∘x Aᵀ) Rᵀ Bᵀ with R trained, full or block diagonal, against autograd on dense cores."""

    D, K, T = 6, 9, 4

    def clients(self, blocks: int | None) -> list[dict[str, Factors]]:
        """Two clients of ranks 4 and 2: full cores, or blocks of two."""
        made = []
        for seed, rank in enumerate((4, 2)):
            draw = torch.Generator().manual_seed(seed)
            shapes = [(rank, self.K), (self.D, rank), (rank, rank) if blocks is None else (rank // 2, 2, 2)]
            A, B, R = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in shapes)
            made.append({"0": CoreFactors(A, B, R)})
        return made

    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    @pytest.mark.parametrize(
        ("blocks", "trainable"),
        [(None, "R"), (2, "R"), (2, "R scales"), (None, "A B R"), (2, "A B R scales")],
    )
    def test_forward_and_gradients(self, blocks: int | None, trainable: str, dropout: float) -> None:
        bank, linear = one_layer(self.D, self.K, dropout=dropout)
        adapters = self.clients(blocks)
        seeds = [4, 9]
        generators = [torch.Generator().manual_seed(s) for s in seeds] if dropout else ()
        leaves = bank.load(adapters, no_head(2), frozenset(trainable.split()), generators=generators)
        assert {n for n in leaves if n.startswith("0/")} == {f"0/{part}" for part in trainable.split()}
        if "scales" in trainable:
            with torch.no_grad():
                leaves["0/scales"].copy_(torch.tensor([[0.5, 3.0], [2.0, 1.0]]))
        x = torch.randn(2 * self.T, self.K, dtype=torch.float64, requires_grad=True)
        out_weight = torch.randn(2 * self.T, self.D, dtype=torch.float64)
        y = run_layer(bank, x, 2)
        grads = torch.autograd.grad((y * out_weight).sum(), [x, *(leaves[f"0/{p}"] for p in trainable.split())])
        ours = dict(zip(["x", *trainable.split()], grads, strict=True))
        for i, rank in enumerate((4, 2)):
            own = {p: getattr(adapters[i]["0"], p).clone().requires_grad_(True) for p in "ABR"}
            heads = rank // 2 if blocks else 1
            scales = torch.ones(heads, dtype=torch.float64)
            if "scales" in trainable:
                scales = leaves["0/scales"][i, :heads].detach().clone()
            own["scales"] = scales.requires_grad_(True)
            core = torch.block_diag(*own["R"] * scales[:, None, None]) if blocks else own["R"]
            mine = x.detach()[i * self.T : (i + 1) * self.T].requires_grad_(True)
            mask = torch.ones_like(mine)
            if dropout:
                draw = torch.Generator().manual_seed(seeds[i])
                mask = mask.bernoulli_(1 - dropout, generator=draw) / (1 - dropout)
            theirs = linear(mine) + SCALE * (mine * mask) @ own["A"].T @ core.T @ own["B"].T
            close64(y[i * self.T : (i + 1) * self.T].detach(), theirs.detach())
            total = (theirs * out_weight[i * self.T : (i + 1) * self.T]).sum()
            wanted = torch.autograd.grad(total, [mine, *(own[p] for p in trainable.split())])
            close64(ours["x"][i * self.T : (i + 1) * self.T], wanted[0])
            for part, gradient in zip(trainable.split(), wanted[1:], strict=True):
                got = ours[part][i]
                if part == "R" and not blocks:
                    got = got[0, :rank, :rank]
                elif part in ("R", "scales"):
                    assert not got[heads:].any()  # the padding of a client with fewer blocks
                    got = got[:heads]
                else:
                    got = got[:rank] if part == "A" else got[:, :rank]
                close64(got, gradient)

    @pytest.mark.parametrize("blocks", [None, 2])
    def test_unload_gives_each_client_its_own_shape_back(self, blocks: int | None) -> None:
        """Bit for bit; a scale is multiplied into its block."""
        bank, _ = one_layer(self.D, self.K)
        adapters = self.clients(blocks)
        bank.load(adapters, no_head(2), frozenset({"R"}))
        for mine, theirs in zip(bank.unload()[0], adapters, strict=True):
            assert all(torch.equal(getattr(mine["0"], p), getattr(theirs["0"], p)) for p in "ABR")
        if blocks:
            leaves = bank.load(adapters, no_head(2), frozenset({"R", "scales"}))
            with torch.no_grad():
                leaves["0/scales"][0, 1] = 3.0
            assert torch.equal(bank.unload()[0][0]["0"].R, adapters[0]["0"].R * torch.tensor([1.0, 3.0])[:, None, None])

    @pytest.mark.parametrize("blocks", [None, 2])
    def test_padding_is_not_a_clients_own(self, blocks: int | None) -> None:
        """The numbers a client owns are those of the factors it came with."""
        bank, _ = one_layer(self.D, self.K)
        adapters = self.clients(blocks)
        parts = ["A", "B", "R", *(["scales"] if blocks else [])]
        owned = bank.owned(bank.load(adapters, no_head(2), frozenset(parts)))
        for part in "ABR":
            assert owned[f"0/{part}"].tolist() == [getattr(a["0"], part).numel() for a in adapters]
        if blocks:
            assert owned["0/scales"].tolist() == [2, 1]
        assert owned["head/weight"].tolist() == [1, 1]

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_training_moves_the_core_alone(
        self, optimizer: str, tiny_backbone, tiny_data, client_config, random_adapter, random_head
    ) -> None:
        """Frozen factors and padding stay as they are, bit for bit, with momentum, weight decay and clipping."""
        targets = select_targets(tiny_backbone.module, None, 4)
        bank = Bank(tiny_backbone, targets, SCALE)
        draw = torch.Generator().manual_seed(0)
        tasks = [
            Task(
                client=i,
                round=1,
                examples=torch.arange(20 * i, 20 * i + 12),
                adapter={
                    n: CoreFactors(f.A, f.B, torch.randn(rank // 2, 2, 2, generator=draw))
                    for n, f in random_adapter(targets, rank, i).items()
                },
                head=random_head(5, tiny_backbone.features, i),
                trainable=frozenset({"R", "scales"}),
            )
            for i, rank in enumerate((4, 2))
        ]
        settings = client_config(optimizer=optimizer, weight_decay=0.1, clip_norm=1.0)
        results = train_bank(bank, tasks, tiny_data, tiny_backbone.input, settings, seed=3)
        for task, result in zip(tasks, results, strict=True):
            for name, before in task.adapter.items():
                after = result.adapter[name]
                assert torch.equal(after.A, before.A) and torch.equal(after.B, before.B)
                assert after.R.shape == before.R.shape and not torch.equal(after.R, before.R)
        for layer in bank.layers.values():
            A, B, R = (layer.leaves[part] for part in "ABR")
            assert not R[1, 1].any() and not A[1, 2:].any() and not B[1, :, 2:].any()


class TestTargets:
    def test_paper_defaults(self, tiny_vit, tiny_mixer) -> None:
        assert select_targets(tiny_vit.module, None, 1) == {
            f"blocks.{i}.{name}": shape
            for i in (0, 1)
            for name, shape in (("attn.proj", (24, 24)), ("mlp.fc2", (24, 96)))
        }
        assert select_targets(tiny_mixer.module, None, 1) == {
            f"blocks.{i}.{name}": shape
            for i in (0, 1)
            for name, shape in (("mlp_tokens.fc2", (16, 12)), ("mlp_channels.fc2", (24, 96)))
        }

    @pytest.mark.parametrize(
        ("patterns", "names"),
        [
            (["attn.qkv"], ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]),
            (["blocks.1.mlp.fc?"], ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]),
            (["blocks.[1-3].attn.*"], ["blocks.1.attn.qkv", "blocks.1.attn.proj"]),
            (["fc2", "mlp.fc2"], ["blocks.0.mlp.fc2", "blocks.1.mlp.fc2"]),
        ],
    )
    def test_patterns(self, patterns: list[str], names: list[str], tiny_vit) -> None:
        assert list(select_targets(tiny_vit.module, patterns, 1)) == names

    def test_a_pattern_is_a_whole_name_or_its_end_after_a_dot(self, tiny_vit) -> None:
        with pytest.raises(InputError):
            select_targets(tiny_vit.module, ["ttn.proj"], 1)

    def test_no_match_says_what_was_meant(self, tiny_vit) -> None:
        with pytest.raises(InputError, match=r"'atn\.proj'.*did you mean 'attn\.proj'.*attn\.qkv") as caught:
            select_targets(tiny_vit.module, ["mlp.fc2", "atn.proj"], 1)
        assert "\n" not in str(caught.value)

    def test_rank_beyond_a_layer(self, tiny_vit, tiny_mixer) -> None:
        assert select_targets(tiny_vit.module, None, 24)
        with pytest.raises(InputError, match=r"rank=25: layer blocks\.0\.attn\.proj is 24x24; expected a rank of 24"):
            select_targets(tiny_vit.module, None, 25)
        with pytest.raises(InputError, match=r"mlp_tokens\.fc2 is 16x12; expected a rank of 12"):
            select_targets(tiny_mixer.module, None, 13)

    def test_a_model_without_defaults_asks_for_patterns(self) -> None:
        model = nn.Sequential(nn.Linear(3, 2))
        with pytest.raises(InputError, match=r"Sequential has no default targets; set adapter\.targets"):
            select_targets(model, None, 1)
        assert select_targets(model, ["0"], 2) == {"0": (2, 3)}
