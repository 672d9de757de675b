"""Training and evaluation as a share of what the machine's matrix products reach.

    python -m benchmarks.roofline [--device cuda] [--precision bf16 fp32] [--compile] [--quick] [--banks 1x4 64x32]

A row is a backbone and a bank: K clients with batches of b train from their start factors to their returned ones, as in
a round of a simulation (planning, loading, steps, unloading); adapters of rank 16 on attn.proj and mlp.fc2, random
weights. Operations are counted (torch's FlopCounterMode, with no weight's gradient among them). Contestants take turns:

one by one   banks of one client
bank         one bank of all K; on the CPU one a core, since a lane is one thread
evaluation   passes of 256 images without gradients, the adapter folded into the weights; on the CPU shared by the lanes
peak         square matrix products of the same precision, the best of the row's turns: a machine's mood is everybody's

With --banks every backbone of a table is trained in each of these, K x b, two steps, in place of the table's own; a
bank that there is no memory for is left out with a line.
"""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch

from benchmarks import machine
from clients.engine.cost import step_cost
from clients.engine.hardware import DTYPES, computing
from clients.engine.plan import plan
from clients.engine.threads import ThreadEngine
from clients.engine.worker import Settings, make_workers
from clients.evaluation import split
from clients.task import Task
from fedinit.config.client import SGDConfig
from fedinit.data.dataset import Dataset
from fedinit.devices import CPU, chosen
from fedinit.errors import InputError, RunFailed
from fedinit.factors import Factors
from fedinit.models.backbone import Backbone
from fedinit.models.input_spec import InputSpec
from fedinit.models.targets import select_targets

RANK, CLASSES, SEED = 16, 10, 0
SECONDS = 5.0  # of a row's turns, of which there are three at least
EMBEDDED = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
# (name in the table, timm's name, its arguments, clients, batch, steps): on CUDA; on the CPU
ROWS = {
    "cuda": [
        ("embedded ViT", "vit_tiny_patch16_224", EMBEDDED, 64, 4, 6),
        ("ViT-Tiny, 224 px", "vit_tiny_patch16_224", {}, 1, 4, 6),
        ("ViT-Tiny, 224 px", "vit_tiny_patch16_224", {}, 32, 4, 6),
        ("ViT-S/16", "vit_small_patch16_224", {}, 16, 16, 4),
        ("ViT-B/16", "vit_base_patch16_224", {}, 8, 32, 4),
        ("ViT-B/16", "vit_base_patch16_224", {}, 64, 4, 4),
        ("Mixer-B/16", "mixer_b16_224", {}, 8, 32, 4),
    ],
    "cpu": [
        ("embedded ViT", "vit_tiny_patch16_224", EMBEDDED, 12, 4, 6),
        ("ViT-Tiny, 128 px", "vit_tiny_patch16_224", {"img_size": 128}, 4, 16, 2),
        ("ViT-S/16", "vit_small_patch16_224", {}, 4, 8, 2),
        ("ViT-B/16", "vit_base_patch16_224", {}, 2, 8, 2),
        ("Mixer-B/16", "mixer_b16_224", {}, 2, 8, 2),
    ],
}


def peak(device: torch.device, precision: str, turns: int = 12) -> float:
    """Operations a second of the best of square products of 2,048 and 8,192 (on the CPU 1,024 and 2,048)."""
    best = 0.0
    for size in (2048, 8192) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
        with computing(device, precision):
            seconds = fastest(lambda a=a, b=b: a @ b, device, turns)
        best = max(best, 2 * size**3 / seconds)
    return best


def fastest(run: Callable[[], object], device: torch.device, turns: int) -> float:
    """Seconds of the fastest turn, the device's work included."""
    return min(timed(run, device) for _ in range(turns))


def timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


class Setting:
    """Backbone, data, engine and tasks of one row."""

    def __init__(
        self,
        name: str,
        kwargs: dict,
        clients: int,
        batch: int,
        steps: int,
        device: str,
        precision: str,
        last_blocks: int | None = None,
        compiled: bool = False,
    ) -> None:
        """last_blocks: adapters are in as many blocks, the last ones; None: in all. compiled: `engine.compile`."""
        torch.manual_seed(SEED)
        module: Any = timm.create_model(name, num_classes=0, **kwargs).eval().requires_grad_(False)
        size = kwargs.get("img_size", 224)
        half = (0.5, 0.5, 0.5)
        backbone = Backbone(module, module.num_features, InputSpec(3, size, size, half, half))
        patterns = ["attn.proj", "mlp.fc2"] if "vit" in name else None
        targets = select_targets(module, patterns, RANK, last_blocks=last_blocks)
        self.images, draw = clients * batch * steps, torch.Generator().manual_seed(SEED)
        data = Dataset(
            images=torch.randint(0, 256, (self.images, 3, size, size), dtype=torch.uint8, generator=draw),
            labels=torch.randint(0, CLASSES, (self.images,), generator=draw),
            domains=torch.zeros(self.images, dtype=torch.int64),
            test=torch.zeros(self.images, dtype=torch.bool),
            class_names=tuple(map(str, range(CLASSES))),
            domain_names=("all",),
        )
        adapter = {
            layer: Factors(torch.randn(RANK, k, generator=draw) / k**0.5, torch.zeros(d, RANK))
            for layer, (d, k) in targets.items()
        }
        head = {
            "weight": torch.randn(CLASSES, backbone.features, generator=draw) / 100,
            "bias": torch.zeros(CLASSES),
        }
        client = SGDConfig(batch_size=batch, epochs=1)
        settings = Settings(client=client, seed=0, scale=2.0, precision=precision, compile=compiled)
        self.cost = step_cost(backbone, targets, RANK, CLASSES, DTYPES[precision])
        self.backbone, self.targets, self.data, self.settings = backbone, targets, data, settings
        self.engine = ThreadEngine(make_workers(backbone, targets, data, settings, device))
        self.tasks = [
            Task(client, 1, part, adapter, head, frozenset("AB"))
            for client, part in enumerate(torch.arange(self.images).split(batch * steps))
        ]
        self.judged = Task(-1, 1, torch.arange(min(256, self.images)), adapter, head, frozenset(), work="evaluate")

    def train(self, size: int) -> None:
        for _ in self.engine.run(plan(self.tasks, size)):
            pass

    def evaluate(self) -> None:
        parts = split(self.judged, -(-len(self.judged.examples) // len(self.engine.workers)))
        for _ in self.engine.run(plan(parts, 1)):
            pass


def measure(row: Sequence, device: torch.device, precision: str, compiled: bool = False) -> dict[str, object]:
    """One row: images a second, median and best, and the best's share of the peak."""
    label, name, kwargs, clients, batch, steps = row
    setting = Setting(name, kwargs, clients, batch, steps, str(device), precision, compiled=compiled)
    size = -(-clients // len(setting.engine.workers))
    contestants: dict[str, Callable[[], None]] = {
        "one_by_one": lambda: setting.train(1),
        "bank": lambda: setting.train(size),
        "evaluation": setting.evaluate,
    }
    for run in contestants.values():
        run()  # what is made once a shape
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    began, limit = time.perf_counter(), 0.0
    while len(seconds["bank"]) < 3 or time.perf_counter() - began < SECONDS:
        for name, run in contestants.items():
            seconds[name].append(timed(run, device))
        limit = max(limit, peak(device, precision, 3))
    images, judged = setting.images, len(setting.judged.examples)
    best = images / min(seconds["bank"])
    return {
        "backbone": label,
        "clients": clients,
        "batch": batch,
        "precision": precision,
        "compiled": compiled,
        "one_by_one": float(f"{images / min(seconds['one_by_one']):.4g}"),
        "bank": float(f"{best:.4g}"),
        "bank_median": float(f"{images / statistics.median(seconds['bank']):.4g}"),
        "bank_spread": float(f"{images / min(seconds['bank']) - images / max(seconds['bank']):.2g}"),
        "bank_to_one_by_one": round(min(seconds["one_by_one"]) / min(seconds["bank"]), 1),
        "train_tflops": round(best * setting.cost.flops / 1e12, 2),
        "train_to_peak": round(best * setting.cost.flops / limit, 3),
        "evaluation": float(f"{judged / min(seconds['evaluation']):.4g}"),
        "evaluation_to_peak": round(judged / min(seconds["evaluation"]) * setting.cost.flops / 2 / limit, 3),
        "peak_tflops": round(limit / 1e12, 2),
    }


def _rows(device: torch.device, banks: Sequence[tuple[int, int]] | None, quick: bool) -> list[tuple]:
    """What is measured on a device: the table's own rows, or each of its backbones in each of these banks."""
    table = ROWS[device.type]
    if banks is None:
        return table[: 4 if quick else None]
    backbones = dict.fromkeys((label, name, tuple(kwargs.items())) for label, name, kwargs, *_ in table)
    return [(label, name, dict(kwargs), *bank, 2) for label, name, kwargs in backbones for bank in banks]


def _bank(text: str) -> tuple[int, int]:
    clients, x, batch = text.partition("x")
    if not x:
        raise ArgumentTypeError(f"{text}: expected clients x images of a batch, as 16x8")
    return machine.count(clients), machine.count(batch)


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("roofline", __doc__)
    words.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    words.add_argument("--precision", nargs="+", choices=[*DTYPES], help="default: fp32, on a GPU all three")
    words.add_argument("--compile", action="store_true", help="the steps of whole banks go through torch's compiler")
    words.add_argument("--quick", action="store_true", help="the first four rows")
    words.add_argument("--banks", type=_bank, nargs="+", help="K x b of every backbone: 1x4 4x8 16x16 64x32")
    return words


def main() -> None:
    words = parser()
    asked = words.parse_args()
    try:
        device = chosen("--device", asked.device) or CPU
    except InputError as error:
        words.error(str(error))
    on_cuda = device.type == "cuda"
    if not on_cuda and "tf32" in (asked.precision or ()):
        words.error("--precision tf32: the CPU has none; use fp32 or bf16")
    if not on_cuda:
        torch.set_num_threads(machine.cores())
    rows = []
    for precision in asked.precision or (["fp32", "tf32", "bf16"] if on_cuda else ["fp32"]):
        peak(device, precision)  # libraries are loaded at the first product
        for row in _rows(device, asked.banks, asked.quick):
            try:
                rows.append(measure(row, device, precision, asked.compile))
            except RunFailed as error:
                print(f"left out: {row[0]}, {row[3]} x {row[4]}: {error}")
                continue
            print(rows[-1])
    if not rows:
        raise SystemExit("there was memory for none of them")
    where = torch.cuda.get_device_name(device).replace(" ", "-") if on_cuda else ""
    name = machine.named("roofline", words, asked, "device", "compile")
    machine.publish(
        "-".join(filter(None, [name, "compiled" * asked.compile, where])),
        rows,
        dtype="as in its column",
        seed=SEED,
    )


if __name__ == "__main__":
    main()
