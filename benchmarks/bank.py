"""Images per second of local training: banks on lanes, against one client after another, against the limit.

    python -m benchmarks.bank [--quick]

The glyph ViT's shape (conf/model/glyph_vit.yaml) with random weights and rank-8 adapters on the paper's layers; K
clients take five SGD steps of b images each, from their start factors to their returned ones. Contestants take turns
in one process, and the best of each one's turns counts:

bank of n   what the cohort does: banks of n clients on lanes of one thread, one lane a core
one by one  K = 1 banks one after another, with all cores inside each operation: the ratio's denominator
limit       forward and backward of a step's K·b images with one adapter and nothing else, the faster of one batch
            with all cores inside each operation, and one batch a lane
"""

from __future__ import annotations

import statistics
from argparse import ArgumentParser
from collections.abc import Callable

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from benchmarks import machine
from clients import batches
from clients.engine.plan import plan
from clients.engine.threads import ThreadEngine
from clients.engine.worker import Settings, make_workers
from clients.task import Task
from clients.training import train_bank
from fedinit.adapters.bank import Bank
from fedinit.config.build import build, create
from fedinit.config.client import CLIENTS
from fedinit.config.engine import BANK_ON_CPU
from fedinit.config.groups import CONF_DIR
from fedinit.config.schema import ModelConfig
from fedinit.data.dataset import Dataset
from fedinit.factors import Factors
from fedinit.models import build_backbone, init_head, select_targets
from fedinit.threads import make_pool

RANK, CLASSES, STEPS, SEED = 8, 10, 5, 0
BANK_SIZES = (1, 3, 5, 16)


def read(group: str, name: str) -> dict:
    return yaml.safe_load((CONF_DIR / group / f"{name}.yaml").read_text())


DEFAULT_SIZE = BANK_ON_CPU


class Setting:
    """Backbone, lanes, images and tasks for K clients with batches of b."""

    def __init__(self, clients: int, batch: int) -> None:
        self.clients, self.batch, self.cores = clients, batch, machine.cores()
        model = build(ModelConfig, read("model", "glyph_vit") | {"checkpoint": None}, "model")
        changes = {"batch_size": batch, "epochs": 1, "max_steps": STEPS}
        self.settings = create("client", CLIENTS, "sgd", changes)
        self.backbone = build_backbone(model)
        self.targets = select_targets(self.backbone.module, None, RANK)
        self.spec = self.backbone.input
        draw = torch.Generator().manual_seed(SEED)
        n = clients * batch * STEPS
        shape = (n, self.spec.channels, self.spec.height, self.spec.width)
        self.data = Dataset(
            images=torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8),
            labels=torch.randint(0, CLASSES, (n,), generator=draw),
            domains=torch.zeros(n, dtype=torch.int64),
            test=torch.zeros(n, dtype=torch.bool),
            class_names=tuple(str(c) for c in range(CLASSES)),
            domain_names=("all",),
        )
        self.head = init_head("random", CLASSES, self.backbone.features, 0)
        self.adapter = {
            name: Factors(torch.randn(RANK, k, generator=draw) / k**0.5, torch.zeros(d, RANK))
            for name, (d, k) in self.targets.items()
        }
        settings = Settings(client=self.settings, seed=0, scale=2.0)
        workers = make_workers(self.backbone, self.targets, self.data, settings, "cpu", self.cores)
        self.engine, self.banks = ThreadEngine(workers), [worker.bank for worker in workers]
        self.pool = make_pool(self.cores, "lane")
        self.tasks = [
            Task(i, 1, part, self.adapter, self.head, frozenset("AB"))
            for i, part in enumerate(torch.arange(n).split(batch * STEPS))
        ]

    @property
    def images(self) -> int:
        return len(self.data)

    def banks_on_lanes(self, size: int) -> None:
        for _ in self.engine.run(plan(self.tasks, size)):
            pass

    def one_by_one(self) -> None:
        for task in self.tasks:
            train_bank(self.banks[0], [task], self.data, self.spec, self.settings, 0)

    def forward_backward(self, bank: Bank, images: Tensor, labels: Tensor, steps: int = STEPS) -> None:
        leaves = list(bank.load([self.adapter], [self.head]).values())
        for _ in range(steps):
            loss = F.cross_entropy(bank.forward(images, 1)[0], labels)
            torch.autograd.grad(loss, leaves)

    def step_images(self) -> tuple[Tensor, Tensor]:
        count = self.clients * self.batch
        return batches.normalise(self.data.images[:count], self.spec, torch.device("cpu")), self.data.labels[:count]

    def limit_in_one_batch(self) -> None:
        self.forward_backward(self.banks[0], *self.step_images())

    def limit_on_lanes(self) -> None:
        images, labels = self.step_images()
        parts = list(zip(self.banks, images.chunk(self.cores), labels.chunk(self.cores), strict=False))
        list(self.pool.map(lambda part: self.forward_backward(*part), parts))


def measure(clients: int, batch: int, turns: int) -> dict[str, object]:
    """One row: images per second of every contestant; for the default bank its ratio and its share of the limit."""
    setting = Setting(clients, batch)
    # A bank of more clients than there are is the bank of all of them.
    sizes = [n for i, n in enumerate(BANK_SIZES) if i == 0 or BANK_SIZES[i - 1] < clients]
    contestants: dict[str, Callable[[], None]] = {
        "one_by_one": setting.one_by_one,
        **{f"bank_of_{n}": lambda n=n: setting.banks_on_lanes(n) for n in sizes},
        "limit_one_batch": setting.limit_in_one_batch,
        "limit_lanes": setting.limit_on_lanes,
    }
    taken = machine.in_turn(contestants, turns)
    speed = {name: setting.images / min(seconds) for name, seconds in taken.items()}
    limit = max(speed["limit_one_batch"], speed["limit_lanes"])
    default = next((n for n in sizes if n >= DEFAULT_SIZE), sizes[-1])
    return {
        "clients": clients,
        "batch": batch,
        "one_by_one": round(speed["one_by_one"]),
        **{f"bank_of_{n}": round(speed[f"bank_of_{n}"]) if n in sizes else "" for n in BANK_SIZES},
        "limit_one_batch": round(speed["limit_one_batch"]),
        "limit_lanes": round(speed["limit_lanes"]),
        "default_to_one_by_one": round(speed[f"bank_of_{default}"] / speed["one_by_one"], 2),
        "default_to_limit": round(speed[f"bank_of_{default}"] / limit, 2),
        "default_median": round(setting.images / statistics.median(taken[f"bank_of_{default}"])),
        "default_spread": round(speed[f"bank_of_{default}"] - setting.images / max(taken[f"bank_of_{default}"])),
    }


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("bank", __doc__)
    words.add_argument("--quick", action="store_true", help="up to 16 clients and two turns, in under a minute")
    return words


def main() -> None:
    options = parser().parse_args()
    quick = options.quick
    torch.set_num_threads(machine.cores())
    counts, turns = ((1, 4, 16), 2) if quick else ((1, 4, 16, 64), 3)
    rows = [measure(clients, batch, turns) for batch in (4, 16) for clients in counts]
    print(f"images per second; the default is engine.clients_per_bank={DEFAULT_SIZE}")
    machine.publish(machine.named("bank", parser(), options), rows, dtype="float32", seed=SEED)


if __name__ == "__main__":
    main()
