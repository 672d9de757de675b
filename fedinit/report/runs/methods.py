"""Runs that differ by their seed alone are one method; what tells the methods of a comparison apart is its label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedinit.report.runs.labels import labels
from fedinit.report.runs.options import counted
from fedinit.report.runs.reading import RecordedRun
from fedinit.report.runs.same_data import refuse_different_data


@dataclass(frozen=True)
class Method:
    """label: what it is called here, a `Cut` where that is not all of it. runs: of one configuration, by seed, each
    seed once. others: those that are done and not in `runs`, since one of their seed is. usual: what holds of all
    methods of the comparison whose label says nothing else."""

    label: str
    runs: tuple[RecordedRun, ...]
    others: tuple[RecordedRun, ...] = ()
    usual: str = ""

    @property
    def first(self) -> RecordedRun:
        """The one that speaks for all: the first that was evaluated, if any was."""
        return next((run for run in self.runs if run.evaluated), self.runs[0])

    @property
    def evaluated(self) -> bool:
        """Whether it has a figure, so that it is a row and a line."""
        return self.first.evaluated


def methods(runs: Sequence[RecordedRun]) -> list[Method]:
    """The runs by configuration, in the order of their first, those without an evaluated round last. Of two of the same
    configuration and seed the one that is done counts, or came further. Raises InputError for runs on different
    data."""
    refuse_different_data(runs)
    by_config: dict[tuple[Any, ...], dict[int, list[RecordedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_config[tuple(sorted((k, repr(v)) for k, v in counted(run).items())), run.made_of][run.seed].append(run)
    groups, others = [], []
    for by_seed in by_config.values():
        chosen = tuple(max(by_seed[seed], key=_progress) for seed in sorted(by_seed))
        groups.append(chosen)
        others.append(tuple(r for rs in by_seed.values() for r in rs if r.summary is not None and r not in chosen))
    named, usual = labels(groups)
    found = [Method(*each, usual) for each in zip(named, groups, others, strict=True)]
    return sorted(found, key=lambda method: not method.evaluated)


def _progress(run: RecordedRun) -> tuple[bool, int]:
    return run.summary is not None, run.reached
