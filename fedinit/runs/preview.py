"""What a run would be, before it is one (`preview=true`): who holds what, what is trained, bytes, memory, time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from fedinit.config.schema import Config
from fedinit.data.dataset import Dataset
from fedinit.data.reporter import counted, readable
from fedinit.data.shares import Partition
from fedinit.models import Backbone
from fedinit.runs.view import TICKS, clock
from fedinit.scores import judged_on
from fedinit.telling import cell, tell

ROWS = 24  # clients with a row each
BARS = 40  # characters of a client's classes


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial of a few rounds with two steps a client measured, and what that makes of the run.

    trained: numbers that a client trains in some round, head included.
    up, down: bytes of a round, in the mean over the run; its evaluation apart.
    judged_up, judged_down: bytes of all evaluations of the run; 0 where the clients do not evaluate.
    opening_up, opening_down: bytes before the first.
    start, clients, server, evaluation: seconds of the start, and of a round of the run.
    reference: seconds of the head alone; 0 where it is not run.
    memory: bytes that this process held; None where the system does not say.
    accelerator: the most that tensors held on one; None without.
    """

    trained: int
    up: float
    down: float
    judged_up: int
    judged_down: int
    opening_up: int
    opening_down: int
    start: float
    clients: float
    server: float
    evaluation: float
    reference: float
    memory: int | None
    accelerator: int | None


@dataclass(frozen=True)
class Preview:
    """config: of the run. folder: where it would be kept, and what is there.
    backbone, targets: the frozen model, and {layer: (d, k)} of those that are adapted.
    data, partitions: who would hold what.
    trial: None where it failed, `why` says how.
    """

    config: Config
    folder: str
    backbone: Backbone
    targets: Mapping[str, tuple[int, int]]
    data: Dataset
    partitions: Sequence[Partition]
    trial: Trial | None
    why: str = ""

    def show(self, console: Console) -> None:
        """Print it."""
        config = self.config
        title = f"{config.strategy.name} on {config.data.name}, {config.model.title}"
        heading = f"preview: {title}: nothing is trained, no folder is made"
        tell(console, heading, "bold")
        for name, text in self.facts().items():
            tell(console, f"{name:<9} {text}")
        console.print(self.holdings(ascii_only=console.options.ascii_only))

    def facts(self) -> dict[str, str]:
        """{what: in words}."""
        config, spec = self.config, self.backbone.input
        whole = sum(p.numel() for p in self.backbone.module.parameters())
        size = f"{spec.channels}×{spec.height}×{spec.width}"
        ranks = "" if config.adapter.ranks is None else f", ranks {config.adapter.ranks} by client"
        layers = f"{counted(len(self.targets), 'layer')}: {', '.join(pattern(self.targets))}"
        facts = {
            "model": f"{config.model.title}, images {size}, {whole / 1e6:.2f} M frozen parameters",
            "adapters": f"{config.adapter.kind}, rank {config.adapter.rank}{ranks}, on {layers}",
        }
        if self.trial is None:
            facts["trial"] = f"failed, so bytes, memory and time are not known: {self.why}"
        else:
            facts |= self._measured(self.trial, whole)
        return {**facts, "folder": self.folder}

    def _measured(self, trial: Trial, whole: int) -> dict[str, str]:
        rounds = self.config.rounds
        share = 100 * trial.trained / max(whole, 1)
        up = trial.opening_up + rounds * trial.up + trial.judged_up
        down = trial.opening_down + rounds * trial.down + trial.judged_down
        besides = ""
        if trial.judged_down:
            besides = f"; for evaluation {readable(trial.judged_up)} up, {readable(trial.judged_down)} down"
        if trial.start:
            besides += f"; before the first {readable(trial.opening_up)} up, {readable(trial.opening_down)} down"
        a_round = trial.clients + trial.server + trial.evaluation
        seconds = rounds * a_round + trial.start + trial.reference
        parts = f"a round {a_round:.1f} s: clients {trial.clients:.1f}, server {trial.server:.1f}"
        parts += f", evaluation {trial.evaluation:.1f}"
        once = {"start": trial.start, "head alone": trial.reference}
        parts += "".join(f"; {name} {n:.1f} s" for name, n in once.items() if n)
        memory = "not known on this system" if trial.memory is None else f"{readable(trial.memory)} of this process"
        memory += ", those of Ray and its actors apart" * (self.config.engine.name == "ray")
        # What is measured may deal ranks out, by more images than a trial's.
        about, of = "about " * bool(trial.start), " of the highest rank" * (self.config.adapter.ranks is not None)
        return {
            "trained": f"{about}{trial.trained:,} numbers a client{of}, {share:.2g} % of the frozen ones",
            "sent": f"a round {readable(trial.up)} up, {readable(trial.down)} down{besides}; in all {readable(up)} up, "
            f"{readable(down)} down",
            "memory": memory + ("" if trial.accelerator is None else f", {readable(trial.accelerator)} on the GPU"),
            "time": f"about {clock(seconds)} for {counted(rounds, 'round')} ({parts}), by two steps a client on this "
            "machine, as busy as it is; reading the data apart",
        }

    def holdings(self, ascii_only: bool = False) -> Table:
        """A row a client: its domain, how many images, and how many of each class, as bars of the client's own."""
        data, parts = self.data, self.partitions
        title = f"partition={self.config.partition.name}: {counted(len(parts), 'client')}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("client", "domain", "train", judged_on(self.config.data)):
            table.add_column(column, justify="left" if column == "domain" else "right")
        table.add_column("" if data.is_regression else cell(f"training images by class, {_span(data.class_names)}"))
        for part in parts[:ROWS]:
            domain = data.domain_names[part.domain] if part.domain >= 0 else "several"
            bars = "" if data.is_regression or ascii_only else self._bars(part)
            counts = f"{len(part.train):,}", f"{len(part.test):,}"
            table.add_row(str(part.client), cell(domain), *counts, bars)
        if len(parts) > ROWS:
            sizes = sorted(len(part.train) for part in parts)
            table.add_row("…", f"{len(parts) - ROWS} more", f"{sizes[0]:,} to {sizes[-1]:,}", "", "")
        return table

    def _bars(self, part: Partition) -> str:
        counts = torch.bincount(self.data.labels[part.train], minlength=len(self.data.class_names)).tolist()
        width = -(-len(counts) // BARS)  # classes a bar
        sums = [sum(counts[i : i + width]) for i in range(0, len(counts), width)]
        most = max(*sums, 1)
        return "".join(TICKS[round(n / most * (len(TICKS) - 1))] if n else "·" for n in sums)


def pattern(names: Iterable[str]) -> list[str]:
    """Layers of the same name in consecutive blocks as one: blocks.{0-11}.attn.qkv."""
    groups: dict[str, list[int]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "*", name, count=1), []).extend(map(int, re.findall(r"\d+", name)[:1]))
    return [key.replace("*", _range(numbers), 1) for key, numbers in groups.items()]


def _range(numbers: Sequence[int]) -> str:
    if not numbers:
        return "*"
    if len(numbers) == 1:
        return str(numbers[0])
    whole = list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{{{numbers[0]}-{numbers[-1]}}}" if whole else f"{{{','.join(map(str, numbers))}}}"


def _span(names: Sequence[str]) -> str:
    return f"{names[0]} … {names[-1]}"
