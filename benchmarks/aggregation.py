"""Seconds that the server takes to aggregate a round, by LoRA-FAIR's three solvers.

    python -m benchmarks.aggregation [--quick] [--threads N] [--device cuda]

ViT-B/16 with the paper's targets (twelve attn.proj of 768×768, twelve mlp.fc2 of 768×3072), rank 16, float32 updates
of 4.1 MB a client. Contestants take turns in one process, and the best of each one's turns counts:

read         every float32 of all updates summed by torch, tensor by tensor as they lie in memory.
read as one  the same numbers copied into one contiguous tensor beforehand: the memory's own speed, or the cache's,
             where all updates fit into it (25 MB for K = 6, 124 MB for 30, 413 MB for 100).
fedit        the two averages alone.
closed form  LoRA-FAIR's default solver, without diagnostics (and once with them).
gram SGD     1,000 steps, extrapolated from the difference between a long and a short run of STEPS steps.
dense SGD    the paper's own solver, extrapolated likewise. What does not grow with the steps is left out of both.
… on cuda:0  with --device, as a simulation's server there works: updates go up, the result comes back.

Two bars: the closed form is at least 1,000 times as fast as 1,000 steps of dense SGD, and takes at most five times as
long as reading the updates (the first of the two).
"""

from __future__ import annotations

import logging
import statistics
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import machine
from fedinit.devices import CPU, chosen
from fedinit.errors import InputError
from fedinit.factors import Factors
from strategies import create_aggregator
from strategies.aggregator import Update
from strategies.server.placing import brought_back, placed

RANK, SEED = 16, 0
SHAPES = {
    **{f"blocks.{i}.attn.proj": (768, 768) for i in range(12)},
    **{f"blocks.{i}.mlp.fc2": (768, 3072) for i in range(12)},
}
STEPS = {"gram_sgd": (20, 120), "dense_sgd": (1, 4)}  # the short and the long run
DENSE_BAR, READ_BAR = 1000, 5


def draw_updates(clients: int) -> list[Update]:
    """Clients that moved from a common start, each in a direction of its own; a head of ten classes."""
    draw = torch.Generator().manual_seed(SEED)
    starts = {
        name: (torch.randn(RANK, k, generator=draw) / k**0.5, 0.02 * torch.randn(d, RANK, generator=draw))
        for name, (d, k) in SHAPES.items()
    }

    def moved(name: str) -> Factors:
        A, B = starts[name]
        return Factors(
            A + 0.1 * torch.randn(A.shape, generator=draw) / A.shape[1] ** 0.5,
            B + 0.01 * torch.randn(B.shape, generator=draw),
        )

    head = {"weight": torch.zeros(10, 768), "bias": torch.zeros(10)}
    return [Update(i, 100 + i, {name: moved(name) for name in SHAPES}, head) for i in range(clients)]


def contestants(updates: list[Update], device: torch.device) -> dict[str, Callable[[], object]]:
    """By name, what one turn of each runs. device: of what is measured besides the CPU."""
    tensors = [t for u in updates for f in u.layers.values() for t in (f.A, f.B)]
    flat = torch.cat([t.flatten() for t in tensors])

    def run(name: str, place: torch.device = CPU, **options: object) -> Callable[[], object]:
        method = create_aggregator(name, **{"diagnostics": False, **options})
        return lambda: brought_back(method.aggregate(placed(updates, place), 1), place)

    made: dict[str, Callable[[], object]] = {
        "read": lambda: [t.sum() for t in tensors],
        "read as one": flat.sum,
        "fedit": run("fedit"),
        "closed form": run("lora_fair"),
        "closed form, diagnostics": run("lora_fair", diagnostics=True),
    }
    if device != CPU:
        made[f"fedit on {device}"] = run("fedit", device)
        made[f"closed form on {device}"] = run("lora_fair", device)
        made[f"closed form, diagnostics on {device}"] = run("lora_fair", device, diagnostics=True)
    for solver, pair in STEPS.items():
        made.update({f"{solver} {steps}": run("lora_fair", solver=solver, steps=steps) for steps in pair})
    return made


def measure(clients: int, turns: int, device: torch.device) -> list[dict[str, Any]]:
    """One row a contestant: seconds, and the ratios that the bars are about."""
    # Those that take milliseconds get three tries a turn.
    runs = contestants(draw_updates(clients), device)
    taken = machine.in_turn(runs, turns, lambda name: 1 if "sgd" in name or "diagnostics" in name else 3)
    best, how = {name: min(runs) for name, runs in taken.items()}, f"best of {turns} turns"
    seconds = {name: (value, how) for name, value in best.items() if "sgd" not in name}
    for solver, (short, long) in STEPS.items():
        step = (best[f"{solver} {long}"] - best[f"{solver} {short}"]) / (long - short)
        seconds[f"{solver}, 1000 steps"] = (1000 * step, f"1000/{long - short} of ({long} steps - {short} steps)")
    read, closed = seconds["read"][0], seconds["closed form"][0]
    return [
        {
            "clients": clients,
            "contestant": name,
            "seconds": float(f"{value:.4g}"),
            "median": float(f"{statistics.median(taken[name]):.4g}") if name in taken else "",
            "spread": float(f"{max(taken[name]) - min(taken[name]):.2g}") if name in taken else "",
            "times_closed_form": float(f"{value / closed:.4g}"),
            "times_read": float(f"{value / read:.4g}"),
            "measured": text,
        }
        for name, (value, text) in seconds.items()
    ]


def print_bars(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["contestant"] == "dense_sgd, 1000 steps":
            value, met = row["times_closed_form"], row["times_closed_form"] >= DENSE_BAR
            print(f"K = {row['clients']}: dense SGD takes {value:,.0f} times the closed form; "
                  f"bar {DENSE_BAR:,} or more: {'met' if met else 'NOT met'}")  # fmt: skip
        if row["contestant"] == "closed form":
            value, met = row["times_read"], row["times_read"] <= READ_BAR
            print(f"K = {row['clients']}: the closed form takes {value:.1f} times the read; "
                  f"bar {READ_BAR} or less: {'met' if met else 'NOT met'}")  # fmt: skip


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("aggregation", __doc__)
    words.add_argument("--quick", action="store_true", help="six clients and two turns, in half a minute")
    words.add_argument("--threads", type=machine.count, default=machine.cores(), help="one a core, unless set")
    words.add_argument("--device", default="cpu", help="cuda or cuda:<n>, where the closed form is measured too")
    return words


def main() -> None:
    options = parser().parse_args()
    try:
        device = chosen("--device", options.device) or CPU
    except InputError as error:
        parser().error(str(error))
    if options.threads > machine.cores():
        parser().error(f"--threads {options.threads}: this machine has {machine.cores()} cores")
    logging.getLogger("strategies").setLevel(logging.ERROR)  # that so short runs of SGD have not converged
    torch.set_num_threads(options.threads)
    counts, turns = ((6,), 2) if options.quick else ((6, 30, 100), 4)
    rows = [row for clients in counts for row in measure(clients, turns, device)]
    machine.publish(machine.named("aggregation", parser(), options), rows, dtype="float32 in, float64 sums", seed=SEED)
    print_bars(rows)


if __name__ == "__main__":
    main()
