"""What every initialiser costs: a client's seconds and bytes in round 0, the server's seconds, and peak memory.

    python -m benchmarks.inits [--quick]
    python -m benchmarks.inits --data <PACS folder or zip> --checkpoint <ViT-Tiny safetensors>

The first: ViT-B/16 at 224 px with random weights and the paper's targets, rank 16, one client of 16 images (`eva`: 64,
so that the first of its two passes is a quarter of them). Each initialiser runs in a process of its own: all that round
0 asks of the client and what the server makes of it, then a plain forward pass of the client's images, one turn each.

statistics/forward  the client's seconds over those of the forward pass (bar for the sketch of `eva`: 2)
up, down            bytes of a client's answers and of what it is asked, serialised as Flower sends them (bar: 15 MB up)
memory              the process's peak above what it held with model and images loaded

The second: how much of the second moment of real inputs the directions of `eva` hold, from its sketch, over what the
best directions hold, layer by layer (bar: 0.99), on ViT-Tiny's activations of PACS training images; beside it, that of
a single pass of the same width.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import ConfigRecord, RecordDict

from benchmarks import machine
from benchmarks.bank import read
from clients.resident import Resident
from clients.statistics import measure
from fedinit import wire
from fedinit.adapters.bank import Bank
from fedinit.config.build import build
from fedinit.config.compose import compose_config
from fedinit.config.schema import ModelConfig
from fedinit.data.dataset import Dataset
from fedinit.initializers import INITIALIZERS, create_initializer
from fedinit.initializers.initializer import InitContext
from fedinit.initializers.measured import covariance, moments
from fedinit.models import build_backbone, init_head, select_targets, shared_inputs
from fedinit.models.backbone import Backbone
from fedinit.statistics import Request, Statistics, add_up, create_statistics, pack, unpack

RANK, SCALE, CLASSES, SEED = 16, 2.0, 100, 0
IMAGES = {"eva": 64}  # of a client, where it is not 16
# What an initialiser needs to be told beside its name.
VARIANTS: Mapping[str, Sequence[Mapping[str, object]]] = {
    "eva": ({"sketch": "nystrom"}, {"sketch": "exact"}),
}


class Client:
    """One client of `images` random images on a backbone, and what it sent and was sent."""

    def __init__(self, backbone: Backbone, data: Dataset, targets: Mapping[str, tuple[int, int]], size: int) -> None:
        self.backbone, self.data, self.size = backbone, data, size
        self.bank = Bank(backbone, targets, SCALE)
        self.up = self.down = 0
        self.seconds = 0.0

    def ask(self, request: Request, head: Mapping[str, torch.Tensor]) -> Statistics:
        began = time.perf_counter()
        self.bank.bare()
        examples = torch.arange(len(self.data.labels))
        found = measure(
            self.bank, request, examples, 0, Resident(self.data, self.bank.device), self.backbone.input, self.size, ""
        )
        self.seconds += time.perf_counter() - began
        sent = head if request.source == "gradients" else {}
        content = {
            wire.CONFIG: ConfigRecord({"request": request.to_json(), "backbone": self.backbone.digest}),
            wire.STATE: wire.encode({wire.HEAD + key: value for key, value in sent.items()}),
            wire.ASKED: wire.encode(request.tensors),
        }
        self.down += wire.nbytes([RecordDict(content)])
        statistics = create_statistics(request)
        packed = pack(statistics, found.sums)
        self.up += wire.nbytes([RecordDict({wire.STATE: wire.encode(packed)})])
        return add_up([Statistics(found.examples, unpack(statistics, packed))])

    def forward(self) -> float:
        """Seconds of a plain forward pass over all images."""
        began = time.perf_counter()
        shape = (self.backbone.input.channels, self.backbone.input.height, self.backbone.input.width)
        with torch.no_grad():
            for part in torch.arange(len(self.data.labels)).split(self.size):
                self.backbone.module(self.data.images[part].view(-1, *shape).float())
        return time.perf_counter() - began


def vit_base(image_size: int) -> Backbone:
    values = {"pretrained": False, "checkpoint": None, "image_size": image_size}
    return build_backbone(build(ModelConfig, read("model", "vit_base") | values, "model"))


def random_images(backbone: Backbone, count: int) -> Dataset:
    draw, spec = torch.Generator().manual_seed(SEED), backbone.input
    return Dataset(
        images=torch.randint(0, 256, (count, spec.channels, spec.height, spec.width), generator=draw).to(torch.uint8),
        labels=torch.randint(0, CLASSES, (count,), generator=draw),
        domains=torch.zeros(count, dtype=torch.long),
        test=torch.zeros(count, dtype=torch.bool),
        class_names=tuple(map(str, range(CLASSES))),
        domain_names=("one",),
    )


def cost(name: str, options: Mapping[str, object], count: int, image_size: int) -> dict[str, object]:
    """The figures of one initialiser; run in a process of its own."""
    torch.set_num_threads(machine.cores())
    backbone = vit_base(image_size)
    data = random_images(backbone, count)
    targets = select_targets(backbone.module, None, RANK)
    initializer = create_initializer(name, options)
    setting = InitContext(
        targets=targets,
        rank=RANK,
        scale=SCALE,
        seed=SEED,
        weight=lambda layer: backbone.module.get_parameter(f"{layer}.weight").detach(),
        groups=shared_inputs(backbone, targets),
        head=init_head("random", CLASSES, backbone.features, SEED),
    )
    client = Client(backbone, data, targets, 8)
    held, began = _peak(), time.perf_counter()
    initializer.run(setting, lambda request: client.ask(request, setting.head))
    server = time.perf_counter() - began - client.seconds
    memory, forward = _peak() - held, client.forward()
    return {
        "init": name + "".join(f" {key}={value}" for key, value in options.items()),
        "images": count,
        "forward_s": forward,
        "statistics_s": client.seconds,
        "statistics/forward": client.seconds / forward,
        "server_s": server,
        "up_MB": client.up / 1e6,
        "down_MB": client.down / 1e6,
        "memory_MB": memory / 1e6,
    }


def _peak() -> int:
    """Bytes of the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def costs(image_size: int) -> list[dict[str, object]]:
    rows = []
    for name in sorted(INITIALIZERS):
        for options in VARIANTS.get(name, ({},)):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(cost, (name, options, IMAGES.get(name, 16), image_size)))
            print(f"{rows[-1]['init']}: {rows[-1]['statistics_s']:.1f} s, {rows[-1]['up_MB']:.1f} MB", flush=True)
    return rows


def captured(data_root: str, checkpoint: str) -> list[dict[str, Any]]:
    """A row a layer: the energy Σ ‖C^½v_i‖² of the sketch's first RANK directions over that of the best ones."""
    config = compose_config(["experiment=pacs_vit_tiny", f"data.root={data_root}", f"model.checkpoint={checkpoint}"])
    backbone = build_backbone(config.model)
    spec = backbone.input
    data = config.data.load(spec.channels, (spec.height, spec.width), config.seed)
    targets = select_targets(backbone.module, ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"], RANK)
    setting = InitContext(targets=targets, rank=RANK, scale=SCALE, seed=SEED, groups=shared_inputs(backbone, targets))
    bank, examples = Bank(backbone, targets, SCALE), (~data.test).nonzero().flatten()

    def last(**options: object) -> tuple[Request, Statistics]:
        """What was asked last, and the answer as it comes over the wire."""
        initializer = create_initializer("eva", {"rho": 1.0, **options})
        made = initializer.plan(setting)
        while isinstance(made, Request):
            bank.bare()
            asked, statistics = made, create_statistics(made)
            found = measure(bank, asked, examples, 0, Resident(data, bank.device), spec, 64, "")
            found = add_up([Statistics(found.examples, unpack(statistics, pack(statistics, found.sums)))])
            made = initializer.step(setting, asked, found)
        return asked, found

    exact, one, two = last(sketch="exact"), last(sketch="nystrom", pilot=0.0), last(sketch="nystrom")
    rows = []
    for name in exact[0].layers:
        k = targets[name][1]
        moment = covariance(exact[1].of(name), k, centred=True)
        best = torch.linalg.eigvalsh(moment)[-RANK:].sum()
        shares = [
            float((V @ moment @ V.T).trace() / best)
            for V in (moments(*sketched, name, True).vectors[:RANK] for sketched in (one, two))
        ]
        width = two[1].of(name)["sketch"].shape[1]
        rows.append({"layer": name, "inputs": k, "width": width, "one_pass": shares[0], "captured": shares[1]})
    return rows


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("inits", __doc__)
    words.add_argument("--quick", action="store_true", help="at 64 px, once")
    words.add_argument("--data", help="PACS: a folder root/domain/class/*.jpg, or a zip of one")
    words.add_argument("--checkpoint", help="vit_tiny_patch16_224 augreg weights, safetensors")
    return words


def main() -> None:
    given = parser().parse_args()
    torch.set_num_threads(machine.cores())
    if given.data and given.checkpoint:
        rows = captured(given.data, given.checkpoint)
        machine.publish("inits-captured", rows, dtype="float32", seed=SEED)
        shares = [float(row["captured"]) for row in rows]
        print(f"least {min(shares):.4f}, on average {sum(shares) / len(shares):.4f}")
    elif given.data or given.checkpoint:
        parser().error("--data and --checkpoint go together")
    elif given.quick:
        machine.publish("inits-quick", costs(64), dtype="float32", seed=SEED)
    else:
        machine.publish("inits", costs(224), dtype="float32", seed=SEED)


if __name__ == "__main__":
    main()
