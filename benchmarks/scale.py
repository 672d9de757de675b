"""Start, memory and rounds against the number of clients there are and the number that a round asks.

    python -m benchmarks.scale [--quick] [--population 100 1000 10000 100000] [--cohort 10 100 1000] [--rounds 5]
                               [--words reinit=local …]

Every point is a process of its own, one run with all that a run writes: folder, checkpoints after every round, tables.
A client has four images of 64 that are repeated; it takes one SGD step, on a small ViT.

start     seconds from the start of the process until the first round begins: data, partition, everybody's introduction
round     seconds of a round and all that is written after it: the median of all but the first
peak MB   of the process, at its end
"""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from benchmarks import machine
from clients.cohort import Cohort
from clients.site import Site
from fedinit.config.compose import compose_config
from fedinit.config.schema import Config
from fedinit.data.dataset import Dataset
from fedinit.data.image_cache import MappedImages
from fedinit.data.source import Source
from fedinit.runs.folder import Located
from fedinit.runs.made_of import MadeOf
from fedinit.runs.observer import Observer, Roster, RoundReport
from fedinit.runs.reporting import open_run
from fedinit.transport.local import LocalGrid
from strategies.server.federation import federate

EACH, DISTINCT, CLASSES = 4, 64, 10  # images of a client; different ones in all; classes
WORDS = (
    "strategy=fedit",
    "model.checkpoint=null",
    "model.kwargs={img_size: 32, patch_size: 8, embed_dim: 24, depth: 2, num_heads: 3, in_chans: 1}",
    "adapter.rank=4",
    "partition=iid",
    "client=sgd",
    "client.batch_size=4",
    "client.max_steps=1",
    "evaluation=none",
    "evaluation.head_alone=false",
    "report=none",
    "logger=none",
)


@dataclass(frozen=True, kw_only=True)
class Repeated(Source):
    """Noise of DISTINCT images, again and again, of which none is held more than once."""

    name: Literal["repeated"] = "repeated"
    count: int

    @property
    def known_domains(self) -> tuple[str, ...]:
        return ("noise",)

    def load(self, channels: int, size: tuple[int, int], *_: object, **__: object) -> Dataset:
        shape = (channels, *size)
        images = torch.randint(256, (DISTINCT, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        rows = torch.arange(self.count) % DISTINCT
        return Dataset(
            images=MappedImages(rows, shape, lambda wanted: images[torch.from_numpy(wanted)]),
            labels=rows % CLASSES,
            domains=torch.zeros(self.count, dtype=torch.long),
            test=torch.arange(self.count) >= self.count - DISTINCT,
            class_names=tuple(map(str, range(CLASSES))),
            domain_names=("noise",),
        )


class Clock(Observer):
    """When the run began, and when each of its rounds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def started(self, rounds: int, roster: Roster) -> None:
        self.times.append(time.time())

    def round_done(self, report: RoundReport) -> None:
        self.times.append(time.time())


def config(population: int, cohort: int, rounds: int, place: str, also: Sequence[str] = ()) -> Config:
    """Of a run of so many clients, so many of them in a round, kept under `place`. also: further words."""
    share = f"participation={cohort / population}"
    words = [*WORDS, f"partition.clients={population}", share, f"rounds={rounds}", f"output_dir={place}", *also]
    return replace(compose_config(words), data=Repeated(count=EACH * population + DISTINCT))


def point(population: int, cohort: int, rounds: int, began: float, also: Sequence[str] = ()) -> dict[str, float]:
    """One run in this process, which began at that time. also: further words of its configuration."""
    clock, quiet = Clock(), Console(quiet=True)
    with tempfile.TemporaryDirectory() as place:
        run = config(population, cohort, rounds, place, also)
        with contextlib.closing(Site(run)) as site:
            opened = open_run(site.config, quiet, Located(Path(place) / "run", MadeOf()))
            answering = Cohort(site)
            grid = LocalGrid(answering, len(site.partitions), checkpoints=opened.checkpoints())
            federate(
                site.config,
                grid,
                site.backbone,
                observers=[*opened.observers, clock],
                checkpoints=opened.checkpoints(),
                parts={"clients": grid, "bases": answering.bases, "files": opened.folder},
            )
            opened.close()
    between = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"start": clock.times[0] - began, "round": statistics.median(between[1:]), "peak_MB": peak}


def apart(module: str, *numbers: float, also: Sequence[str] = ()) -> dict[str, float]:
    """What `python -m module --point numbers… now` prints last, from a process of its own. also: its --words."""
    words = ["--point", *map(str, numbers), str(time.time()), *(["--words", *also] if also else [])]
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{module} {numbers}: ended with {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(population: int, cohort: int, rounds: int, also: Sequence[str] = ()) -> dict[str, object]:
    """The row of a point, from a process of its own. also: further words of its configuration."""
    figures = apart("benchmarks.scale", population, cohort, rounds, also=also)
    return {"population": population, "cohort": cohort, **{key: float(f"{v:.4g}") for key, v in figures.items()}}


def parser() -> ArgumentParser:
    """Of the command's words."""
    words = machine.words("scale", __doc__)
    words.add_argument("--quick", action="store_true", help="100 and 1,000 clients, ten a round, three rounds")
    words.add_argument("--population", type=machine.count, nargs="+", default=[100, 1000, 10_000, 100_000])
    words.add_argument("--cohort", type=machine.count, nargs="+", default=[10, 100, 1000])
    words.add_argument("--rounds", type=machine.count, default=5)
    words.add_argument("--words", nargs="+", default=[], metavar="key=value", help="further ones of run_sim.py's")
    words.add_argument("--point", nargs=4, help=SUPPRESS)
    return words


def main() -> None:
    words = parser()
    options = words.parse_args()
    if options.point:
        population, cohort, rounds = map(int, options.point[:3])
        print(json.dumps(point(population, cohort, rounds, float(options.point[3]), options.words)))
        return
    name = machine.named("scale", words, options)
    if options.quick:
        options.population, options.cohort, options.rounds = [100, 1000], [10], 3
    points = [(n, k) for n in options.population for k in options.cohort if 1 <= k <= n]
    if not points:
        words.error("no population of these has as many clients as a cohort")
    if options.rounds < 2:
        words.error("--rounds: 2 or more, since the first is left out of the median")
    rows = [measure(*numbers, options.rounds, options.words) for numbers in points]
    machine.publish(name, rows, dtype="float32", seed=0)


if __name__ == "__main__":
    main()
