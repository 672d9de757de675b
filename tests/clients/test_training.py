"""A bank trains each of its clients as that client would train alone, on any number of lanes.

Three comparisons. Between numbers of lanes: the same bits. Between a bank of K and K banks of one: 1e-5 relative in
float32, since batched products sum in another order. Against `plain_client`, ordinary PyTorch with torch.optim and
clip_grad_norm_: 1e-10 in float64, where AdamW's division by √v near zero cannot blow rounding up to a visible size.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from clients import batches
from clients.engine.plan import split_evenly
from clients.engine.threads import ThreadEngine
from clients.engine.worker import Settings, make_workers
from clients.evaluation import FrozenFeatures
from clients.optimizers import create_optimizer
from clients.task import Job, Result, Task
from clients.training import train_bank
from fedinit.adapters.bank import Bank
from fedinit.config.client import ClientConfig
from fedinit.data.dataset import Dataset
from fedinit.factors import Factors
from fedinit.models import Backbone, select_targets
from fedinit.philox import philox
from tests.support.small import slow_unless

SCALE = 2.0
RANK = 4
# client -> (examples, rank, size of its head): with batches of four images, 6, 3, 2, 4 and 1 batches an epoch, some of
# them partial; the head's size makes gradients of unlike norms.
CLIENTS = {0: (24, 4, 1.0), 1: (11, 2, 4.0), 2: (5, 3, 0.3), 3: (13, 4, 6.0), 4: (2, 1, 1.0)}


@pytest.fixture
def make_tasks(training_task) -> Callable[..., list[Task]]:
    """make_tasks(backbone, clients, trainable): the clients above, each with its own images and start."""

    def make(backbone: Backbone, clients: Sequence[int] = tuple(CLIENTS), trainable: str = "AB") -> list[Task]:
        made = {c: (images, rank, 2, size, trainable) for c, (images, rank, size) in CLIENTS.items()}
        return [training_task(backbone, c, *made[c]) for c in clients]

    return make


@pytest.fixture
def train(tiny_data: Dataset) -> Callable[..., list[Result]]:
    """train(backbone, tasks, settings, dropout, seed): the tasks in one fresh bank."""

    def run(
        backbone: Backbone, tasks: Sequence[Task], settings: ClientConfig, dropout: float = 0.0, seed: int = 1
    ) -> list[Result]:
        bank = Bank(backbone, select_targets(backbone.module, None, RANK), SCALE, dropout)
        return train_bank(bank, tasks, tiny_data, backbone.input, settings, seed)

    return run


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors, and the images the bank is given, are float64."""
    real = batches.normalise
    monkeypatch.setattr(batches, "normalise", lambda *args: real(*args).double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tensors(result: Result) -> dict[str, Tensor]:
    adapter = {f"{name}/{part}": getattr(f, part) for name, f in result.adapter.items() for part in "AB"}
    return adapter | {f"head/{key}": value for key, value in result.head.items()}


def identical(ours: Result, theirs: Result) -> bool:
    one, two = tensors(ours), tensors(theirs)
    return (
        (ours.client, ours.steps, ours.loss) == (theirs.client, theirs.steps, theirs.loss)
        and one.keys() == two.keys()
        and all(torch.equal(one[name], two[name]) for name in one)
    )


def gap(ours: Result, theirs: Result) -> float:
    """The largest ‖x − y‖/‖y‖ over the tensors of two results."""
    one, two = tensors(ours), tensors(theirs)
    return max(float((one[name] - two[name]).norm() / two[name].norm()) for name in two)


def doubled(task: Task) -> Task:
    return dataclasses.replace(
        task,
        adapter={name: f.to(torch.float64) for name, f in task.adapter.items()},
        head={key: value.double() for key, value in task.head.items()},
    )


# Between lanes


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_lanes_change_no_bit(optimizer: str, tiny_backbone, tiny_data, client_config, make_tasks) -> None:
    """Banks of two, uneven steps, mixed ranks, dropout and augmentation; every lane is used again and again."""
    settings = client_config(optimizer=optimizer, clip_norm=1.0, augment="crop_flip")
    targets = select_targets(tiny_backbone.module, None, RANK)
    banks = split_evenly(make_tasks(tiny_backbone), 2)
    assert [len(b) for b in banks] == [2, 1, 2]

    def run(count: int) -> list[Result]:
        worker = Settings(client=settings, seed=1, scale=SCALE, dropout=0.2)
        engine = ThreadEngine(make_workers(tiny_backbone, targets, tiny_data, worker, "cpu", count))
        return [r for results in engine.run([Job("train", "", "", tuple(bank)) for bank in banks]) for r in results]

    one = run(1)
    assert [r.client for r in one] == list(CLIENTS)
    for count in (2, 4):
        assert all(identical(a, b) for a, b in zip(run(count), one, strict=True))


# Between a bank and its clients alone


@pytest.mark.parametrize(
    ("augment", "dropout"),
    slow_unless(
        lambda augment, dropout: (augment == "none") == (dropout == 0),
        itertools.product(["none", "flip", "crop_flip"], [0.0, 0.3]),
    ),
)
def test_a_bank_equals_its_clients_alone(
    augment: str, dropout: float, tiny_backbone, client_config, make_tasks, train
) -> None:
    """SGD with momentum, weight decay and clipping, up to twelve steps, uneven steps, mixed ranks."""
    settings = client_config(clip_norm=1.0, augment=augment)
    tasks = make_tasks(tiny_backbone)
    together = train(tiny_backbone, tasks, settings, dropout)
    for task, ours in zip(tasks, together, strict=True):
        (alone,) = train(tiny_backbone, [task], settings, dropout)
        assert gap(ours, alone) < 1e-5 and abs(ours.loss - alone.loss) < 1e-5 * alone.loss
        assert ours.steps == alone.steps == 2 * -(-CLIENTS[task.client][0] // 4)


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 0.003), ("sgd_sai", 0.0003)])
def test_other_optimisers_train_a_bank_as_its_clients_alone(
    optimizer: str, lr: float, tiny_backbone, client_config, make_tasks, train
) -> None:
    settings = client_config(optimizer=optimizer, lr=lr, clip_norm=1.0)
    tasks = make_tasks(tiny_backbone)
    for task, ours in zip(tasks, train(tiny_backbone, tasks, settings), strict=True):
        (alone,) = train(tiny_backbone, [task], settings)
        assert gap(ours, alone) < 1e-5


def test_dropout_and_augmentation_follow_the_seed(tiny_vit, client_config, make_tasks, train) -> None:
    """Negative control of the twins above: each of these does change the result."""
    tasks = make_tasks(tiny_vit, range(4))  # without client 4, whose one batch is the same in any order
    base = train(tiny_vit, tasks, client_config())
    assert all(identical(a, b) for a, b in zip(train(tiny_vit, tasks, client_config()), base, strict=True))
    for other in (
        train(tiny_vit, tasks, client_config(), seed=2),
        train(tiny_vit, tasks, client_config(), dropout=0.3),
        train(tiny_vit, tasks, client_config(augment="flip")),
        train(tiny_vit, [dataclasses.replace(t, round=3) for t in tasks], client_config()),
    ):
        assert all(gap(a, b) > 1e-3 for a, b in zip(other, base, strict=True))
    dropped = [train(tiny_vit, tasks[:1], client_config(batch_size=24), dropout=0.3, seed=s)[0] for s in (1, 2)]
    assert gap(*dropped) > 1e-3  # one batch of all images: only the mask tells the seeds apart


@pytest.mark.parametrize("changed", [{"client": 1}, {"round": 3}])
@pytest.mark.parametrize("randomness", ["dropout", "crop_flip"])
def test_clients_and_rounds_draw_apart(
    randomness: str, changed: dict, tiny_vit, client_config, make_tasks, train
) -> None:
    """On eight copies of one image the order of the batches says nothing, so dropout or augmentation makes the gap."""
    (first,) = make_tasks(tiny_vit, [0])
    first = dataclasses.replace(first, examples=torch.full((8,), 3))
    pair = [first, dataclasses.replace(first, **changed)]
    one, two = (train(tiny_vit, [task], client_config())[0] for task in pair)
    assert gap(one, two) == 0
    settings = client_config(augment="crop_flip" if randomness == "crop_flip" else "none")
    dropout = 0.3 if randomness == "dropout" else 0.0
    one, two = (train(tiny_vit, [task], settings, dropout)[0] for task in pair)
    assert gap(one, two) > 1e-3


def test_clipping_is_each_clients_own(tiny_vit, client_config, make_tasks, train) -> None:
    """A limit that some clients reach and others do not: those others keep the very bits of no clipping."""
    tasks = make_tasks(tiny_vit)
    free, clipped = (train(tiny_vit, tasks, client_config(clip_norm=limit)) for limit in (None, 4.0))
    same = [identical(a, b) for a, b in zip(clipped, free, strict=True)]
    assert any(same) and not all(same)
    for task, ours in zip(tasks, clipped, strict=True):
        assert gap(ours, train(tiny_vit, [task], client_config(clip_norm=4.0))[0]) < 1e-5


def test_a_client_that_is_done_keeps_its_values(tiny_vit, client_config, make_tasks, train) -> None:
    """Client 2 has four steps, its mate twelve: stopped after four, both ways give client 2 the same bits."""
    tasks = make_tasks(tiny_vit, [0, 2])
    for settings in (client_config(), client_config(optimizer="adamw")):
        whole = train(tiny_vit, tasks, settings)
        cut = train(tiny_vit, tasks, dataclasses.replace(settings, max_steps=4))
        assert [r.steps for r in whole] == [12, 4] and [r.steps for r in cut] == [4, 4]
        assert identical(whole[1], cut[1])
        assert not identical(whole[0], cut[0])


def test_results_are_in_the_order_of_the_tasks(tiny_vit, client_config, make_tasks, train) -> None:
    for order in ([4, 0, 2, 1, 3], [2, 4, 1, 3, 0]):
        results = train(tiny_vit, make_tasks(tiny_vit, order), client_config(epochs=1))
        assert [r.client for r in results] == order
        assert [r.steps for r in results] == [-(-CLIENTS[c][0] // 4) for c in order]
        for result in results:
            assert result.adapter["blocks.0.mlp.fc2"].rank == CLIENTS[result.client][1]


# Against plain PyTorch


def plain_training(model: nn.Module, task: Task, data: Dataset, backbone: Backbone, settings: ClientConfig, seed: int):
    """The recipe in ordinary PyTorch: one client, one model, torch.optim, clip_grad_norm_. Returns (model, loss)."""
    for lora in model.loras.values():
        lora.A.requires_grad_("A" in task.trainable)
        lora.B.requires_grad_("B" in task.trainable)
    trained = [p for p in model.parameters() if p.requires_grad]
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            trained, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(trained, settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
    losses = []
    for batch in batches.plan(task.examples, settings, seed, task.round, task.client):
        images = batches.normalise(data.images[batch], backbone.input, torch.device("cpu"))
        loss = nn.functional.cross_entropy(model(images), data.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        if settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, sum(losses) / len(losses)


WAYS = {
    "sgd-momentum-decay-clip": {"optimizer": "sgd", "clip_norm": 4.0},
    "sgd-bare": {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0},
    "adamw-decay-clip": {"optimizer": "adamw", "lr": 0.01, "clip_norm": 4.0, "weight_decay": 0.1},
    "adamw-betas-capped": {"optimizer": "adamw", "lr": 0.01, "betas": (0.5, 0.9), "max_steps": 5},
}


@pytest.mark.parametrize(
    ("way", "trainable"),
    slow_unless(
        lambda way, trainable: trainable == "AB" or way == f"{'adamw' if trainable else 'sgd-momentum'}-decay-clip",
        itertools.product(WAYS, ["AB", "B", ""]),
    ),
)
def test_training_equals_plain_pytorch(
    way: str,
    trainable: str,
    float64: None,
    tiny_backbone,
    tiny_data,
    client_config,
    make_tasks,
    plain_client,
    train,
) -> None:
    """Five clients in one bank, each against its own ordinary training: factors, head and mean loss."""
    settings = client_config(**WAYS[way])
    backbone = dataclasses.replace(tiny_backbone, module=copy.deepcopy(tiny_backbone.module).double())
    tasks = [doubled(t) for t in make_tasks(backbone, trainable=trainable)]
    for task, ours in zip(tasks, train(backbone, tasks, settings), strict=True):
        model = plain_client(backbone, task.adapter, task.head, SCALE).double()
        model, loss = plain_training(model, task, tiny_data, backbone, settings, seed=1)
        adapter = {name: Factors(lora.A.detach(), lora.B.detach()) for name, lora in model.loras.items()}
        theirs = Result(task.client, adapter, dict(model.head.state_dict()), loss, ours.steps)
        assert gap(ours, theirs) < 1e-10
        assert abs(ours.loss - loss) < 1e-10 * loss
        start = Result(task.client, task.adapter, task.head, loss, ours.steps)
        assert gap(ours, start) > 1e-3  # negative: it did move
        for name, factors in ours.adapter.items():
            for part in "AB":
                kept = torch.equal(getattr(factors, part), getattr(task.adapter[name], part))
                assert kept == (part not in trainable)


def test_offsets_train_as_a_changed_base(
    float64: None, tiny_vit, tiny_data, client_config, make_tasks, plain_client, random_adapter, train
) -> None:
    """A client with an offset trains as on a backbone whose weights already hold that offset."""
    settings = client_config(clip_norm=4.0)
    targets = select_targets(tiny_vit.module, None, RANK)
    backbone = dataclasses.replace(tiny_vit, module=copy.deepcopy(tiny_vit.module).double())
    offset = {name: f.to(torch.float64) for name, f in random_adapter(targets, 3, 9).items()}
    tasks = [dataclasses.replace(doubled(t), offset=offset) for t in make_tasks(backbone, [1, 2])]
    for task, ours in zip(tasks, train(backbone, tasks, settings), strict=True):
        moved = copy.deepcopy(backbone.module)
        for name, offset in task.offset.items():
            moved.get_submodule(name).weight.add_(offset.dense(), alpha=SCALE)
        model = plain_client(dataclasses.replace(backbone, module=moved), task.adapter, task.head, SCALE).double()
        model, loss = plain_training(model, task, tiny_data, backbone, settings, seed=1)
        for name, lora in model.loras.items():
            torch.testing.assert_close(ours.adapter[name].A, lora.A.detach(), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(ours.adapter[name].B, lora.B.detach(), rtol=1e-10, atol=1e-12)
        assert abs(ours.loss - loss) < 1e-10 * loss


def test_cached_features_train_the_heads_alike(tiny_backbone, tiny_data, client_config, random_head) -> None:
    """With B = 0 and only the head learning, features computed once stand for the images."""
    targets = select_targets(tiny_backbone.module, None, RANK)
    zero = {name: Factors(torch.ones(RANK, k), torch.zeros(d, RANK)) for name, (d, k) in targets.items()}
    head = random_head(5, tiny_backbone.features, 0)
    tasks = [Task(c, 1, torch.arange(9 + 4 * c), zero, head, frozenset()) for c in range(3)]
    settings = Settings(client=client_config(), seed=1, scale=SCALE)
    engine = ThreadEngine(make_workers(tiny_backbone, targets, tiny_data, settings, "cpu", 2))
    features = FrozenFeatures(engine, tiny_data, 7).of(torch.arange(60))
    featured = [dataclasses.replace(t, features=features[t.examples]) for t in tasks]
    both = engine.run([Job("train", "", "", tuple(group)) for group in (featured, tasks)])
    for ours, theirs in zip(*both, strict=True):
        assert gap(ours, theirs) < 1e-5
        assert all(torch.equal(f.B, zero[name].B) for name, f in ours.adapter.items())


# The optimisers alone


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("limit", [None, 2.0])
def test_optimizer_equals_torch(name: str, limit: float | None, float64: None, client_config) -> None:
    """Ten steps of four rows against four torch optimisers; rows 3 and 2 stop after three and seven steps."""
    settings = client_config(optimizer=name, lr=0.1, weight_decay=0.1, clip_norm=limit)
    draw = torch.Generator().manual_seed(0)
    leaves = {"a": torch.randn(4, 3, 5, generator=draw), "b": torch.randn(4, 6, generator=draw)}
    ours = create_optimizer(leaves, settings)
    rows = [[nn.Parameter(leaf[i].clone()) for leaf in leaves.values()] for i in range(4)]
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    options = {"momentum": settings.momentum} if name == "sgd" else {"betas": settings.betas}
    theirs = [kind(row, lr=settings.lr, weight_decay=settings.weight_decay, **options) for row in rows]
    clipped = 0
    for step in range(10):
        active = 4 - (step >= 3) - (step >= 7)
        # Row i's gradients have norm about 4·2^-i: the first rows meet the limit, the last never do.
        gradients = {key: torch.randn(active, *leaf.shape[1:], generator=draw) for key, leaf in leaves.items()}
        for gradient in gradients.values():
            gradient.mul_(2.0 ** -torch.arange(active).view(-1, *[1] * (gradient.ndim - 1)))
        for i in range(active):
            for parameter, gradient in zip(rows[i], gradients.values(), strict=True):
                parameter.grad = gradient[i].clone()
            if limit is not None:
                clipped += bool(nn.utils.clip_grad_norm_(rows[i], limit) > limit)
            theirs[i].step()
        done = {key: leaf[active:].clone() for key, leaf in leaves.items()}
        ours.step(gradients, active)
        assert all(torch.equal(leaf[active:], done[key]) for key, leaf in leaves.items())
    assert limit is None or 0 < clipped < 30
    for i, row in enumerate(rows):
        for leaf, parameter in zip(leaves.values(), row, strict=True):
            torch.testing.assert_close(leaf[i], parameter.detach(), rtol=1e-12, atol=1e-13)


# Batches


class TestPlan:
    EXAMPLES = torch.arange(100, 111)  # 11 examples: batches of 4, 4, 3

    def test_every_example_once_an_epoch(self, client_config) -> None:
        made = batches.plan(self.EXAMPLES, client_config(epochs=3), 0, 0, 0)
        assert [len(b) for b in made] == [4, 4, 3] * 3
        epochs = [torch.cat(made[3 * e : 3 * e + 3]) for e in range(3)]
        assert all(torch.equal(e.sort().values, self.EXAMPLES) for e in epochs)
        assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])

    def test_is_seeded_by_seed_round_and_client(self, client_config) -> None:
        def order(seed: int, round: int, client: int) -> tuple[int, ...]:
            torch.manual_seed(seed + 17 * round)  # the global generator has no say
            return tuple(torch.cat(batches.plan(self.EXAMPLES, client_config(epochs=1), seed, round, client)).tolist())

        keys = [(s, r, c) for s in (0, 1) for r in (0, 1) for c in (0, 1)]
        orders = [order(*key) for key in keys]
        assert len(set(orders)) == len(keys)
        assert [order(*key) for key in reversed(keys)] == orders[::-1]

    @pytest.mark.parametrize("cap", [1, 3, 5, 6, 100])
    def test_cap_is_a_prefix(self, cap: int, client_config) -> None:
        whole = batches.plan(self.EXAMPLES, client_config(), 0, 0, 0)
        cut = batches.plan(self.EXAMPLES, client_config(max_steps=cap), 0, 0, 0)
        assert len(cut) == min(cap, 6)
        assert all(torch.equal(a, b) for a, b in zip(cut, whole, strict=False))


def test_join_fills_with_weightless_images() -> None:
    step = batches.join([torch.tensor([5, 6, 7, 8]), torch.tensor([3, 2])], 4)
    assert step.indices.tolist() == [[5, 6, 7, 8], [3, 2, 3, 3]]
    assert step.weight.tolist() == [[0.25] * 4, [0.5, 0.5, 0.0, 0.0]]


def test_normalise_is_per_channel(tiny_vit) -> None:
    spec = dataclasses.replace(tiny_vit.input, channels=2, mean=(0.5, 0.25), std=(0.5, 0.2))
    images = torch.tensor([0, 255, 51, 255], dtype=torch.uint8).view(1, 2, 1, 2)
    ours = batches.normalise(images, spec, torch.device("cpu"))
    torch.testing.assert_close(ours.flatten(), torch.tensor([-1.0, 1.0, -0.25, 3.75]), rtol=1e-6, atol=1e-7)


class TestAugment:
    IMAGES = torch.arange(40 * 2 * 16 * 8).remainder(251).to(torch.uint8).view(40, 2, 16, 8)

    def made(self, kind: str, seed: int = 0) -> Tensor:
        counter = torch.zeros(40, 4, dtype=torch.long)
        counter[:, 0] = torch.arange(40)
        return batches.augment(self.IMAGES, kind, philox(torch.tensor(seed), counter))

    def test_none_leaves_images_alone(self) -> None:
        assert torch.equal(self.made("none"), self.IMAGES)

    def test_flip_mirrors_about_half(self) -> None:
        mirrored = [bool(torch.equal(a, b.flip(-1))) for a, b in zip(self.made("flip"), self.IMAGES, strict=True)]
        kept = [bool(torch.equal(a, b)) for a, b in zip(self.made("flip"), self.IMAGES, strict=True)]
        assert all(m != k for m, k in zip(mirrored, kept, strict=True))
        assert 8 <= sum(mirrored) <= 32  # 20 ± 3.8 standard deviations of 40 fair coins

    def test_crop_flip_shifts_by_an_eighth_at_most(self) -> None:
        """Every image is one of its 2·5·3 mirrored and shifted versions, edges repeated; most of them are met."""
        reach_y, reach_x = 2, 1
        seen = set()
        for made, image in zip(self.made("crop_flip"), self.IMAGES, strict=True):
            padded = nn.functional.pad(image[None].float(), (reach_x, reach_x, reach_y, reach_y), mode="replicate")
            versions = {
                (flip, y, x): (padded[0].flip(-1) if flip else padded[0])[:, y : y + 16, x : x + 8]
                for flip in (False, True)
                for y in range(5)
                for x in range(3)
            }
            hits = [key for key, version in versions.items() if torch.equal(version, made.float())]
            assert hits
            seen.update(hits)
        assert {y for _, y, _ in seen} == set(range(5)) and {x for _, _, x in seen} == set(range(3))

    def test_follows_the_words(self) -> None:
        assert torch.equal(self.made("crop_flip", 1), self.made("crop_flip", 1))
        assert not torch.equal(self.made("crop_flip", 1), self.made("crop_flip", 2))
