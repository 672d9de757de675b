"""What keeping a run safe costs: a checkpoint and the gate, as shares of a round of the default run.

    python -m benchmarks.checkpoint [--quick]

The default configuration (`python run_sim.py`), timed from inside: save is all of one checkpoint (collecting the state,
writing, flushing to the disk, dropping the oldest), gate is judging all of a round's replies. Bars: 2 % and 1 %.
Medians over the rounds; the disk is that of the temporary folder.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import machine
from clients.cohort import Cohort
from clients.site import Site
from fedinit.config.compose import compose_config
from fedinit.runs.observer import Observer, RoundReport
from fedinit.state.checkpoint import Checkpoints
from fedinit.transport.local import LocalGrid
from strategies.server import collecting
from strategies.server.federation import federate
from strategies.server.state import ServerState


class Clock(Observer):
    """Seconds of each round, and of each call of what is timed."""

    def __init__(self) -> None:
        self.rounds: list[float] = []
        self.calls: dict[str, list[float]] = {}

    def round_done(self, report: RoundReport) -> None:
        self.rounds.append(report.seconds)

    def timed(self, name: str, work: Callable) -> Callable:
        def measured(*args, **kwargs):
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self.calls.setdefault(name, []).append(time.perf_counter() - began)

        return measured


def measure(*words: str) -> dict[str, object]:
    """One run of the configuration, with its checkpoints and judgements timed."""
    config, clock = compose_config([*words, "logger=none", "evaluation.head_alone=false"]), Clock()
    site = Site(config)
    cohort = Cohort(site)
    grid = LocalGrid(cohort, len(site.partitions))
    save, admit, snapshot = Checkpoints.save, collecting.admit, ServerState.snapshot
    Checkpoints.save, ServerState.snapshot = clock.timed("save", save), clock.timed("state", snapshot)
    collecting.admit = clock.timed("gate", admit)
    try:
        with tempfile.TemporaryDirectory() as folder:
            parts = {"clients": grid, "bases": cohort.bases}
            evaluate = site.evaluate_round if config.evaluation.where == "server" else None
            federate(config, grid, site.backbone, observers=[clock], evaluate_fn=evaluate,
                     checkpoints=Path(folder), parts=parts)  # fmt: skip
    finally:
        Checkpoints.save, collecting.admit, ServerState.snapshot = save, admit, snapshot
    seconds = {name: statistics.median(values) for name, values in clock.calls.items()}
    round, kept = statistics.median(clock.rounds), seconds["save"] + seconds["state"]
    return {
        "strategy": config.strategy.name,
        "clients": len(site.partitions),
        "round_seconds": round,
        "save_seconds": kept,
        "gate_seconds": seconds["gate"],
        "save/round": kept / round,
        "gate/round": seconds["gate"] / round,
    }


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("checkpoint", __doc__)
    words.add_argument("--quick", action="store_true", help="three rounds of the default method only")
    return words


def main() -> None:
    options = parser().parse_args()
    quick = options.quick
    words = ["rounds=3"] if quick else []
    rows = [measure(*words, f"strategy={name}") for name in (["lora_fair"] if quick else ["lora_fair", "flora"])]
    torch.set_num_threads(machine.cores())
    machine.publish(machine.named("checkpoint", parser(), options), rows, dtype="float32", seed=0)


if __name__ == "__main__":
    main()
