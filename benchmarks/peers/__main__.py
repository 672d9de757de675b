"""Seconds of the same federated work in fedinit and in what a person would use instead.

    python -m benchmarks.peers [--quick] [--clients 10 50 100] [--model vit_tiny] [--device cuda] [--contestants …]

Every contestant is a process of its own; they take turns, and the median of the turns counts, with the spread of them
beside it. A client is a glyph ViT with adapters on digits, an epoch of SGD steps of eight images a round, five steps at
most, all clients in every round, FedAvg of adapters and head, no evaluation; with --model vit_tiny it is a ViT-Tiny at
224 px. On a GPU all contestants train there, fedinit in what it takes by itself, bf16, and there is no process a core.

fedinit           this engine: banks on lanes
fedinit, compiled the same with engine.compile=true, whose first round compiles
fedinit, bf16     the same with engine.precision=bf16, on the CPU, where all others compute in float32
fedinit, ray      the same with engine=ray; of rounds in which nobody trains there is none of the three
plain loop        plain torch, a client at a time, all cores inside each operation
pfl, one process  pfl-research, likewise
pfl, a core each  pfl-research under torchrun, a process a core
Flower with Ray   stock Flower's simulation, a core a client

steady   a round but the first: the median of all
first    from the start of the process to the end of the first round
whole    from the start of the process to its end
no-op    a steady round in which nobody trains: the framework's own time

What is not installed is left out and named: pip install -e ".[peers]".
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.peers.work import MODELS, Work

ROUNDS, STEPS, BATCH, LIMIT = 10, 5, 8, 900  # LIMIT: seconds of one contestant's turn
TRAINING = ("fedinit, compiled", "fedinit, ray", "fedinit, bf16")  # which differ from fedinit in training alone
USUAL = "glyph_vit", "cpu"  # model and device
ON_CPU = ("pfl, a core each", "fedinit, bf16")  # of a GPU there is one, on which fedinit takes bf16 by itself
PLAIN = [sys.executable, "-m", "benchmarks.peers.contestant"]
CONTESTANTS = {  # {name: (its module, what it needs, how its process is started)}
    "fedinit": ("fedinit_itself", None, PLAIN),
    TRAINING[0]: ("fedinit_compiled", None, PLAIN),
    TRAINING[1]: ("fedinit_ray", "ray", PLAIN),
    TRAINING[2]: ("fedinit_bf16", None, PLAIN),
    "plain loop": ("plain_loop", None, PLAIN),
    "pfl, one process": ("pfl_research", "pfl", PLAIN),
    "pfl, a core each": (
        "pfl_research",
        "pfl",
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={machine.cores()}"]
        + ["-m", "benchmarks.peers.contestant"],
    ),
    "Flower with Ray": ("flower_ray", "ray", PLAIN),
}


def turn(contestant: str, work: Work) -> dict[str, float]:
    """{"steady", "first", "whole"}: seconds of one process of a contestant."""
    module, _, command = CONTESTANTS[contestant]
    one_thread = {"OMP_NUM_THREADS": "1"} if "run" in command[2] else {}
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "ends"
        words = [module, json.dumps(asdict(work)), str(told)]
        began = time.time()
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, timeout=LIMIT, env={**os.environ, **one_thread}
        )
        whole = time.time() - began
        ends = [float(line) for line in told.read_text().split()] if told.exists() else []
    if done.returncode and len(ends) == work.rounds:  # pfl's processes may abort each other when all is done
        print(f"{contestant}: all {work.rounds} rounds done, then ended with {done.returncode}")
    elif len(ends) != work.rounds:
        raise SystemExit(f"{contestant}: ended with {done.returncode} after {len(ends)} rounds\n{done.stderr[-2000:]}")
    between = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    return {"steady": statistics.median(between), "first": ends[0] - began, "whole": whole}


def measure(work: Work, names: list[str], turns: int) -> list[dict[str, object]]:
    """One row a contestant. The ratios are to fedinit, above 1 where it is faster."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(turns):
        for name in names:
            taken[name].append(turn(name, work))
    middle = {name: {k: statistics.median(t[k] for t in all_) for k in all_[0]} for name, all_ in taken.items()}
    ours = middle["fedinit"]
    return [
        {
            "model": work.model,
            "device": work.device,
            "clients": work.clients,
            "steps": work.steps,
            "contestant": name,
            "steady": float(f"{middle[name]['steady']:.4g}"),
            "spread": float(f"{max(t['steady'] for t in all_) - min(t['steady'] for t in all_):.2g}"),
            "first": round(middle[name]["first"], 2),
            "whole": round(middle[name]["whole"], 2),
            "steady_to_fedinit": round(middle[name]["steady"] / ours["steady"], 2),
            "whole_to_fedinit": round(middle[name]["whole"] / ours["whole"], 2),
        }
        for name, all_ in taken.items()
    ]


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("peers", __doc__)
    words.add_argument("--quick", action="store_true", help="ten clients, three rounds, one turn")
    words.add_argument("--clients", type=machine.count, nargs="+", default=[10, 50, 100])
    words.add_argument(
        "--noop", type=machine.count, nargs="*", default=[10, 100, 1000], help="clients of the no-op rounds"
    )
    words.add_argument("--turns", type=machine.count, default=3)
    words.add_argument("--model", choices=[*MODELS], default=USUAL[0])
    words.add_argument("--device", choices=["cpu", "cuda"], default=USUAL[1])
    words.add_argument("--contestants", choices=[*CONTESTANTS], nargs="+", help="beside fedinit itself; default: all")
    return words


def main() -> None:
    words = parser()
    options = words.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by which the contestant whose turn it is ends too
    quick = words.parse_args(["--quick", "--model", options.model, "--device", options.device])
    if options.quick and vars(options) | {"contestants": None} != vars(quick):
        words.error(
            "--quick is ten clients, three rounds, one turn: it goes with --model, --device, --contestants alone"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        words.error("--device cuda: this machine has no CUDA device")
    names = [n for n, (_, need, _) in CONTESTANTS.items() if need is None or importlib.util.find_spec(need)]
    wanted = {"fedinit", *(options.contestants or CONTESTANTS)}
    names = [name for name in names if name in wanted]
    for missing in wanted - set(names):
        print(f'left out, not installed: {missing}; pip install -e ".[peers]"')
    if options.device == "cuda":
        names = [name for name in names if name not in ON_CPU]
    where = {"model": options.model, "device": options.device}
    if options.quick:
        works, turns = [Work(10, 3, STEPS, BATCH, **where)], 1
    else:
        works = [Work(n, ROUNDS, STEPS, BATCH, **where) for n in options.clients]
        works, turns = works + [Work(n, ROUNDS, 0, BATCH, **where) for n in options.noop], options.turns
    rows = [
        row for work in works for row in measure(work, [n for n in names if work.steps or n not in TRAINING], turns)
    ]
    name = machine.named("peers", parser(), options, "turns", "model", "device")
    name += "".join(f"-{given}" for given, usual in zip(where.values(), USUAL, strict=True) if given != usual)
    dtype = "float32, but where it says bf16" if options.device == "cpu" else "float32, fedinit's bfloat16"
    machine.publish(name, rows, dtype=dtype, seed=0)


if __name__ == "__main__":
    main()
