"""The runs behind a table: their words, what they ended with, and how those that are missing are made."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pacs.table import Row, Table
from clients.engine.hardware import resolved
from fedinit.config.compose import compose_config
from fedinit.config.schema import Config
from fedinit.runs import folder as run_folder
from fedinit.sweeps.processes import CORES, side_by_side

SELECT = 1000  # the seed of the runs that choose a rate; no reported run has it
BATCHES = 3  # a client and round
CPU_SECONDS = "cpu_seconds.txt"  # in a run's folder: unlike the clock's, hardly changed by what else the machine does
ONE_CORE = {CORES: "1", "OMP_NUM_THREADS": "1"}  # for each process, so that its CPU seconds are of one core
TOLD = ("strategy", "init", "client.lr", "seed", "partition")  # the words that a run is called by
COMMON = (
    "client.batch_size=32",
    "evaluation.head_alone=false",
    "strategy.diagnostics=false",
    "logger=none",
    "engine.lanes=1",
)

Run = tuple[str, ...]  # the overrides of one run


def words_of(table: Table, row: Row, setting: str, rate: float, seed: int, place: Sequence[str]) -> Run:
    """The overrides of a reported run. What the row says wins over what the setting says."""
    pooled = "partition=pooled" in row.words
    together = table.per_round[setting] if pooled else 1
    split = () if pooled else table.settings[setting]
    return (
        f"experiment={table.experiment}",
        *COMMON,
        f"model.image_size={table.image_size}",
        *place,
        *split,
        *row.words,
        f"name=pacs_{table.name}",
        f"rounds={table.rounds}",
        f"evaluation.rounds={list(table.evaluated)}".replace(" ", ""),
        f"client.max_steps={BATCHES * together}",
        f"client.lr={rate}",
        f"seed={seed}",
    )


def selecting(table: Table, row: Row, rate: float, place: Sequence[str]) -> Run:
    """The overrides of a run that helps to choose the rate."""
    words = words_of(table, row, next(iter(table.settings)), rate, SELECT, place)
    kept = tuple(w for w in words if not w.startswith(("evaluation.rounds=", "name=", "rounds=")))
    rounds = (f"rounds={table.selected_after}", f"evaluation.every={table.selected_after}")
    return (*kept, *rounds, f"name=pacs_{table.name}_rates", "data.validation_fraction=0.2")


def config_of(words: Run) -> Config:
    """The configuration as a run knows itself by it: with what `auto` stands for on this machine."""
    return resolved(compose_config(words))


def summary_of(words: Run) -> dict | None:
    return run_folder.finished(run_folder.place(config_of(words)))


def accuracy_by_round(words: Run) -> dict[int, float]:
    """{round: percent} of a finished run."""
    with open(run_folder.place(config_of(words)) / "metrics.csv") as file:
        return {int(r["round"]): float(r["accuracy"]) for r in csv.DictReader(file) if r["accuracy"]}


def cpu_seconds(words: Run) -> float:
    """Of a run on one core; NaN for one that was interrupted and went on."""
    path = run_folder.place(config_of(words)) / CPU_SECONDS
    return float(path.read_text()) if path.exists() else math.nan


def run_all(runs: Sequence[Run], workers: int) -> None:
    """The runs that are not done, side by side. A failure is told and leaves the table incomplete; the others go on."""
    left = {" ".join(words): words for words in runs if summary_of(words) is None}
    print(f"{len(runs)} runs, {len(left)} to do", flush=True)
    whole = {name for name, words in left.items() if not run_folder.place(config_of(words)).exists()}
    named = [(name, config_of(words)) for name, words in left.items()]
    for number, outcome in enumerate(side_by_side(named, [ONE_CORE] * workers), 1):
        told = [w for w in outcome.words.split() if w.split("=")[0] in TOLD]
        said = dataclasses.replace(outcome, words=" ".join(told)).line
        print(f"{outcome.trace}{number} of {len(left)}: {said}", flush=True)
        if outcome.summary is not None and outcome.words in whole:
            (Path(outcome.summary["folder"]) / CPU_SECONDS).write_text(f"{outcome.cpu_seconds:.1f}")
