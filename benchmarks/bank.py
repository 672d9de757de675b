"""Images per second of local training: banks on lanes, against one client after another, against the limit.

    python -m benchmarks.bank [--quick]

The glyph ViT's shape (conf/model/glyph_vit.yaml) with random weights and rank-8 adapters on the paper's layers; K
clients take five SGD steps of b images each, from their start factors to their returned ones. Contestants take turns,
and the median of their turns counts:

bank of n   what the cohort does: banks of n clients on lanes of one thread, one lane a core
one by one  K = 1 banks one after another, with all cores inside each operation: the ratio's denominator
limit       forward and backward of a step's K·b images with one adapter and nothing else, the faster of one batch
            with all cores inside each operation, and one batch a lane
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from benchmarks import machine
from clients import batches
from clients.cohort import split_evenly
from clients.lanes import Lanes
from clients.training import Task, train_bank
from fedinit.config import CONF_DIR, ClientConfig, ModelConfig, build
from fedinit.data.dataset import Dataset
from fedinit.factors import Factors
from fedinit.lora import Bank
from fedinit.models import build_backbone, init_head, select_targets

RANK, CLASSES, STEPS = 8, 10, 5
BANK_SIZES = (1, 2, 3, 5, 8, 16)


def read(group: str, name: str) -> dict:
    return yaml.safe_load((CONF_DIR / group / f"{name}.yaml").read_text())


class Setting:
    """Backbone, lanes, images and tasks for K clients with batches of b."""

    def __init__(self, clients: int, batch: int) -> None:
        self.clients, self.batch, self.cores = clients, batch, len(os.sched_getaffinity(0))
        model = build(ModelConfig, read("model", "glyph_vit") | {"checkpoint": None}, "model")
        changes = {"batch_size": batch, "epochs": 1, "max_steps": STEPS}
        self.settings = build(ClientConfig, read("client", "sgd") | changes, "client")
        self.backbone = build_backbone(model)
        self.targets = select_targets(self.backbone.module, None, RANK)
        self.lanes = Lanes(self.backbone, self.targets, scale=2.0, device="cpu", lanes=self.cores)
        self.spec = self.backbone.input
        draw = torch.Generator().manual_seed(0)
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
        self.tasks = [
            Task(i, 1, part, self.adapter, self.head, frozenset("AB"))
            for i, part in enumerate(torch.arange(n).split(batch * STEPS))
        ]

    @property
    def images(self) -> int:
        return len(self.data)

    def train(self, bank: Bank, tasks: list[Task]) -> None:
        train_bank(bank, tasks, self.data, self.spec, self.settings, 0)

    def banks_on_lanes(self, size: int) -> None:
        self.lanes.map(self.train, split_evenly(self.tasks, size))

    def one_by_one(self) -> None:
        for task in self.tasks:
            self.train(self.lanes.banks[0], [task])

    def forward_backward(self, bank: Bank, images: Tensor, labels: Tensor, steps: int = STEPS) -> None:
        leaves = list(bank.load([self.adapter], [self.head]).values())
        for _ in range(steps):
            loss = F.cross_entropy(bank.forward(images, 1)[0], labels)
            torch.autograd.grad(loss, leaves)

    def step_images(self) -> tuple[Tensor, Tensor]:
        count = self.clients * self.batch
        return batches.normalise(self.data.images[:count], self.spec, torch.device("cpu")), self.data.labels[:count]

    def limit_in_one_batch(self) -> None:
        self.forward_backward(self.lanes.banks[0], *self.step_images())

    def limit_on_lanes(self) -> None:
        images, labels = self.step_images()
        parts = list(zip(images.chunk(self.cores), labels.chunk(self.cores), strict=True))
        self.lanes.map(lambda bank, part: self.forward_backward(bank, *part), parts)


def seconds(contestants: dict[str, Callable[[], None]], turns: int) -> dict[str, float]:
    """The median of each contestant's turns, after one turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(clients: int, batch: int, turns: int) -> list[dict[str, object]]:
    """One row a contestant: images per second, ratio to one by one, share of the limit."""
    setting = Setting(clients, batch)
    sizes = [n for n in BANK_SIZES if n <= clients]
    contestants: dict[str, Callable[[], None]] = {
        "one by one": setting.one_by_one,
        **{f"bank of {n}": lambda n=n: setting.banks_on_lanes(n) for n in sizes},
        "limit, one batch": setting.limit_in_one_batch,
        "limit, lanes": setting.limit_on_lanes,
    }
    speed = {name: setting.images / s for name, s in seconds(contestants, turns).items()}
    limit = max(speed["limit, one batch"], speed["limit, lanes"])
    return [
        {
            "clients": clients,
            "batch": batch,
            "contestant": name,
            "images_per_second": round(value, 1),
            "ratio_to_one_by_one": round(value / speed["one by one"], 3),
            "share_of_limit": round(value / limit, 3),
        }
        for name, value in speed.items()
    ]
