"""An epoch of training the last four of twelve blocks, with what comes before them computed once and kept, and without.

    python -m benchmarks.prefix [--quick]

plain   every image goes through all blocks in every step.
kept    `engine.prefix_cache=true`, from the second epoch on: what the fifth-last block is given is read from the file.
first   the filling of the file, once for all epochs and runs.

Two clients, five steps of eight images at 224 px, rank 16; the two take turns, and the median
of the turns counts. Bar: kept at least twice as fast.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from argparse import ArgumentParser

import torch

from benchmarks import machine
from benchmarks.roofline import SEED, Setting
from clients.engine.plan import plan
from clients.engine.threads import ThreadEngine
from clients.engine.worker import make_workers
from clients.prefix import Prefix
from fedinit.config.compose import compose_config
from fedinit.models.prefix import cut, first_block

MODELS = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")
CLIENTS, BATCH, STEPS, BLOCKS, BAR = 2, 8, 5, 4, 2.0


def measure(name: str, turns: int, folder: str) -> dict[str, object]:
    """One row: images a second of both, and the ratio."""
    setting = Setting(name, {}, CLIENTS, BATCH, STEPS, "cpu", "fp32", BLOCKS)
    words = ["engine.prefix_cache=true", "data=image_folder", f"data.root={folder}", f"data.cache_dir={folder}"]
    config = compose_config([*words, "engine.precision=fp32", "engine.device=cpu"])
    began = time.perf_counter()
    made = cut(setting.backbone, first_block(setting.backbone, setting.targets))
    kept_data = Prefix(made, setting.data, config, None).dataset
    first = time.perf_counter() - began
    kept = ThreadEngine(make_workers(made.after, setting.targets, kept_data, setting.settings, "cpu"))
    runs = {
        which: lambda engine=engine: list(engine.run(plan(setting.tasks, 1)))
        for which, engine in (("plain", setting.engine), ("kept", kept))
    }
    seconds = machine.in_turn(runs, turns)
    plain, fast = (statistics.median(seconds[which]) for which in ("plain", "kept"))
    ratios = [p / k for p, k in zip(seconds["plain"], seconds["kept"], strict=True)]
    return {
        "model": name,
        "plain": round(setting.images / plain, 1),
        "kept": round(setting.images / fast, 1),
        "ratio": round(plain / fast, 2),
        "spread": round(max(ratios) - min(ratios), 2),
        "first": round(first, 1),
    }


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("prefix", __doc__)
    words.add_argument("--quick", action="store_true", help="ViT-Tiny alone, two turns")
    return words


def main() -> None:
    options = parser().parse_args()
    quick = options.quick
    torch.set_num_threads(machine.cores())
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, 2 if quick else 5, folder) for name in MODELS[: 1 if quick else None]]
    print("images a second of training")
    machine.publish(machine.named("prefix", parser(), options), rows, dtype="float32", seed=SEED)
    for row in rows:
        met = float(str(row["ratio"])) >= BAR
        print(f"{row['model']}: {row['ratio']} times as fast, bar {BAR:g}: {'met' if met else 'NOT met'}")


if __name__ == "__main__":
    main()
