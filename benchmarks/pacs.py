"""Tables of accuracy on real images: every method, with its learning rate chosen on a validation split.

    python -m benchmarks.pacs methods --data <PACS folder or zip> --checkpoint <ViT-Tiny safetensors>
    python -m benchmarks.pacs inits --data <PACS folder or zip> --checkpoint <ViT-Tiny safetensors>

`methods` compares the aggregation methods, `inits` every initialiser with LoRA-FAIR and with FedIT. A run that is done
is not run again, so a command that was interrupted goes on where it was. The workers are processes with one lane each,
and change no number. Written: benchmarks/results/pacs-<table>.csv, a row a run, and the table.

The settings: ViT-Tiny (augreg, ImageNet-21k then 1k) at 96 px (`inits`: 80), rank 16, s = 2, three batches of 32 images
a client and round, SGD with momentum 0.9, no augmentation. The rate is the one of the table's grid with the best
accuracy on a fifth of the training images (seed SELECT, the table's first setting, the test images left out), for all
settings; `methods` goes on beyond an edge of its grid while the best rate lies there. Initialisers start from the head
that is ridge regression on the features of 256 images a client, since gradients need one.
The centralised reference takes as many batches a round as all the clients of a round together.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import statistics
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.machine import RESULTS, commit
from clients.engine.hardware import resolved
from fedinit.config.compose import compose_config
from fedinit.config.schema import Config
from fedinit.initializers import INITIALIZERS
from fedinit.report.runs.significance import LEVEL, Sample, paired
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


@dataclass(frozen=True)
class Row:
    """One line of a table: its label, and the overrides that make it."""

    label: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """settings: {name: overrides} that every row is run in; the first is the one that rates are chosen on, in
    `selected_after` rounds. per_round: {setting: clients in a round}, for the centralised reference."""

    name: str
    experiment: str
    image_size: int  # pixels a side
    rows: tuple[Row, ...]
    settings: Mapping[str, tuple[str, ...]]
    per_round: Mapping[str, int]
    rounds: int
    evaluated: tuple[int, ...]
    reference: str  # the row that the others are compared with
    grid: tuple[float, ...]  # of learning rates
    selected_after: int
    seeds: int = 3  # 0, 1, …
    ratio: float | None = None  # of one rate to the next where the grid goes on beyond its edges
    timed: bool = False  # whether the CPU seconds of a run are shown


METHODS = Table(
    name="methods",
    experiment="pacs_vit_tiny",
    image_size=96,
    rows=tuple(
        Row(label, (f"strategy={name}",))
        for label, name in {
            "FFA-LoRA": "ffa_lora",
            "FedIT": "fedit",
            "FLoRA": "flora",
            "FlexLoRA": "flexlora",
            "FedEx-LoRA": "fedex_lora",
            "RoLoRA": "rolora",
            "LoRA-FAIR": "lora_fair",
        }.items()
    )
    + (Row("centralised", ("strategy=fedit", "partition=pooled")),),
    settings={
        "4 clients by domain": ("partition=domain",),
        "12 clients, label skew": (
            "partition=dirichlet",
            "partition.clients=12",
            "partition.alpha=0.5",
            "participation=0.6",
        ),
    },
    per_round={"4 clients by domain": 4, "12 clients, label skew": 7},
    rounds=5,
    evaluated=(2, 5),
    reference="LoRA-FAIR",
    grid=(0.02, 0.05, 0.125),
    selected_after=5,
    seeds=5,
    ratio=2.5,
)

# For trained cores, for VeRA, and for a model whose weight is zero.
ELSEWHERE = {"random_core", "vera", "gaussian_pair"}

INITS = Table(
    name="inits",
    experiment="inits_pacs",
    image_size=80,
    rows=tuple(Row(name, (f"init={name}",)) for name in sorted(INITIALIZERS.keys() - ELSEWHERE)),
    settings={"LoRA-FAIR": ("strategy=lora_fair",), "FedIT": ("strategy=fedit",)},
    per_round={},
    rounds=10,
    evaluated=(1, 2, 5, 10),
    reference="kaiming",
    grid=(0.005, 0.02, 0.05),
    selected_after=3,
    timed=True,
)

TABLES = {table.name: table for table in (METHODS, INITS)}

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


def beyond(table: Table, scores: Mapping[float, float]) -> float | None:
    """The next rate to try for a row, if its best one lies at an edge of those tried.

    scores: {rate: validation accuracy; NaN where the run failed}.
    """
    usable = {rate: score for rate, score in scores.items() if not math.isnan(score)}
    if table.ratio is None or not usable:
        return None
    best = max(usable, key=usable.__getitem__)
    if best == min(scores):
        return float(f"{best / table.ratio:.3g}")
    return float(f"{best * table.ratio:.3g}") if best == max(scores) else None


def choose_rates(table: Table, place: Sequence[str], workers: int) -> dict[str, tuple[float, dict[float, float]]]:
    """{row: (the rate, {rate: validation accuracy in percent; NaN where the run failed})}"""
    scores: dict[str, dict[float, float]] = {row.label: {} for row in table.rows}
    due = [(row, rate) for row in table.rows for rate in table.grid]
    while due:
        run_all([selecting(table, row, rate, place) for row, rate in due], workers)
        for row, rate in due:
            summary = summary_of(selecting(table, row, rate, place))
            scores[row.label][rate] = math.nan if summary is None else summary["accuracy"]
        found = [(row, beyond(table, scores[row.label])) for row in table.rows]
        due = [(row, rate) for row, rate in found if rate is not None]
    chosen = {}
    for label, tried in scores.items():
        usable = [rate for rate in tried if not math.isnan(tried[rate])]
        if not usable:
            raise SystemExit(f"{label}: no rate of {', '.join(f'{r:g}' for r in tried)} gave a run that ended")
        chosen[label] = max(usable, key=tried.__getitem__), tried
    return chosen


def make(table: Table, place: Sequence[str], seeds: int, workers: int) -> list[dict[str, object]]:
    """A row a run, with its accuracy at every evaluated round."""
    rates = choose_rates(table, place, workers)
    tried = sorted({rate for _, scores in rates.values() for rate in scores})
    reported = [
        (row, setting, seed, words_of(table, row, setting, rates[row.label][0], seed, place))
        for seed in range(seeds)
        for setting in table.settings
        for row in table.rows
    ]
    run_all([words for *_, words in reported], workers)
    made = []
    for row, setting, seed, words in reported:
        summary = summary_of(words)
        if summary is None:
            raise SystemExit(f"{row.label}, {setting}, seed {seed}: the run did not end; see the messages above")
        rate, scores = rates[row.label]
        by_round = accuracy_by_round(words)
        made.append(
            {
                "setting": setting,
                "method": row.label,
                "seed": seed,
                "lr": rate,
                **{f"validation_lr_{r:g}": round(scores[r], 2) if r in scores else "" for r in tried},
                **{f"round_{r}": round(by_round[r], 3) for r in table.evaluated},
                **({"cpu_seconds": cpu_seconds(words)} if table.timed else {}),
                "bytes_up": summary["bytes_up"],
                "bytes_down": summary["bytes_down"],
                "final_hash": summary["final_hash"],
            }
        )
    return made


def spread(sample: Sample) -> str:
    """Mean and sample standard deviation."""
    return f"{sample.mean:.1f} ± {math.nan if sample.std is None else sample.std:.1f}"


def against(sample: Sample, other: Sample) -> str:
    """The difference, seed by seed; in bold where the 95 % interval of its mean, by Student's t, leaves out zero."""
    difference = paired(sample, other)
    gaps = Sample({seed: value - other.by_seed[seed] for seed, value in sample.by_seed.items()})
    text = f"{'+' if gaps.mean >= 0 else ''}{spread(gaps)}"
    return f"**{text}**" if difference.p is not None and difference.p < LEVEL else text


def render(table: Table, rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over the seeds, and the difference to the reference, seed by seed, in bold
    where it is beyond noise."""
    lines = []
    for setting in table.settings:
        inside = [r for r in rows if r["setting"] == setting]
        last = f"round_{table.evaluated[-1]}"

        def sample(label: str, column: str, rows: Sequence[Mapping[str, Any]] = inside) -> Sample:
            return Sample({r["seed"]: r[column] for r in rows if r["method"] == label})

        heads = [f"round {r}" for r in table.evaluated]
        lines += [
            f"**{setting}**",
            "",
            f"| {table.name[:-1]} | rate | {' | '.join(heads)} | against {table.reference} | MB up | MB down |"
            + " CPU s |" * table.timed,
            "|---" * (5 + len(heads) + table.timed) + "|",
        ]
        for row in table.rows:
            mine = [r for r in inside if r["method"] == row.label]
            cells = [spread(sample(row.label, f"round_{n}")) for n in table.evaluated]
            reference = row.label == table.reference
            gap = "" if reference else against(sample(row.label, last), sample(table.reference, last))
            up, down = (sample(row.label, key).mean / 1e6 for key in ("bytes_up", "bytes_down"))
            cells = [row.label, f"{mine[0]['lr']:g}", *cells, gap, f"{up:.1f}", f"{down:.1f}"]
            if table.timed:
                seconds = statistics.fmean(r["cpu_seconds"] for r in mine)  # NaN where a run was interrupted
                cells.append(f"{seconds:.0f}")
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("pacs", __doc__)
    words.add_argument("table", choices=sorted(TABLES))
    words.add_argument("--data", required=True, help="PACS: a folder root/domain/class/*.jpg, or a zip of one")
    words.add_argument("--checkpoint", required=True, help="vit_tiny_patch16_224 augreg weights, safetensors")
    words.add_argument("--output", default="outputs", help="where the runs are kept")
    words.add_argument("--seeds", type=machine.count, help="how many (methods: 5, inits: 3)")
    words.add_argument("--workers", type=machine.count, default=2)
    return words


def main() -> None:
    words = parser()
    given = words.parse_args()
    for key in ("data", "checkpoint"):
        if not Path(getattr(given, key)).exists():
            words.error(f"--{key} {getattr(given, key)}: is not there")
    table = TABLES[given.table]
    place = (
        f"data.root={given.data}",
        f"model.checkpoint={given.checkpoint}",
        f"output_dir={given.output}",
        f"data.cache_dir={given.output}/cache",
    )
    rows = make(table, place, given.seeds or table.seeds, given.workers)
    path = RESULTS / f"pacs-{table.name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "commit"], lineterminator="\n")
        writer.writeheader()
        at = commit()
        writer.writerows({**row, "commit": at} for row in rows)
    print(render(table, rows))
    print(json.dumps({"written": path.name, "runs": len(rows)}))


if __name__ == "__main__":
    main()
